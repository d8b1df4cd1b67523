"""Object storage: one bucket as a typed handle, whichever cloud or directory it stands in.

What belongs here: reading, writing, listing and deleting objects, and what went wrong as an error of the lake. What
does not: which buckets there are (``lrdb.profiles``), what objects mean, what is done when one is missing.
"""

from __future__ import annotations

import re
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, timedelta
from hashlib import md5
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import obstore
from obstore.exceptions import (
    AlreadyExistsError,
    BaseError,
    InvalidPathError,
    PermissionDeniedError,
    UnauthenticatedError,
)
from obstore.store import AzureStore, GCSStore, LocalStore, S3Store

from lakerunner_dagster.lake.errors import (
    BucketMissing,
    ConfigurationError,
    InputError,
    LakeError,
    ObjectMissing,
    StoreDenied,
    StoreUnavailable,
)
from lakerunner_dagster.lake.files import PlainFiles

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from pathlib import Path

    from obstore import GetResult, ObjectMeta, PutMode
    from obstore.store import (
        AzureConfig,
        ClientConfig,
        GCSConfig,
        ObjectStore,
        RetryConfig,
        S3Config,
        S3Credential,
        S3CredentialProvider,
    )
    from typing_extensions import Buffer

KEY_BYTES = 1024
"""Longest object key in UTF-8 bytes, in S3, GCS and here."""

CHUNK_BYTES = 4 * 1024 * 1024
"""Least size of the pieces that a large file is hashed in, in bytes; smaller ones are read at once."""

LIST_PAGE = 1000
"""Objects a listing asks for at once: a page of S3's."""

CONCURRENT_DELETES = 8
"""Deletes in flight at once: each is a request of its own, so that each has an outcome of its own."""

RETRY: RetryConfig = {
    "max_retries": 5,
    "backoff": {"init_backoff": timedelta(milliseconds=100), "max_backoff": timedelta(seconds=5), "base": 2},
    "retry_timeout": timedelta(seconds=30),
}
"""Covers a blip. An outage is StoreUnavailable soon, so that a run gives its box back instead of sitting on it."""

CONTROL = re.compile(r"[\x00-\x1f\x7f]")

NO_BUCKET = (
    "<Code>NoSuchBucket</Code>",
    "<Code>ContainerNotFound</Code>",
    "The specified container does not exist",  # of a delete, which Azure's store sends as a batch
)
"""How S3, GCS and Azure say in a 404 that the bucket, not the object, is missing."""

REFUSED = (
    "status code: 401",
    "status code: 403",
    "(code: 401)",
    "(code: 403)",
    "(code: AccessDenied)",
    "<Code>ExpiredToken</Code>",
    "<Code>InvalidToken</Code>",
    "<Code>TokenRefreshRequired</Code>",
    "performing token request",
    "CredentialsNotLoaded",
)
"""How it reads when credentials are refused (a listing's, a delete's, which S3 and Azure get as a batch and refuse for
each key, and S3's with status 400) or there are none: obstore has no error class for these."""

INCOMPLETE = ("Content-Length Header missing", "ETag Header missing")
"""How it reads when an object is given without its size or its etag. It will be again: that is no outage."""

SILENCE = timedelta(seconds=60)
"""A store that says nothing for so long is away. A segment must have been sent by then: 128 MiB at 2 MiB a second."""


@dataclass(frozen=True, slots=True)
class BucketConfiguration:
    """Where a bucket is (spec/lrdb.md, ``bucket_configurations``); no secret is in it.

    ``cloud_provider`` is ``aws``, ``gcp``, ``azure`` or ``file``. ``endpoint`` is a URL where it is not the cloud's own
    (for Azure, the storage account's URL), and for ``file`` the bucket's absolute directory. ``role`` is the ARN of an
    AWS role to assume.
    """

    bucket_name: str
    cloud_provider: str
    region: str | None = None
    endpoint: str | None = None
    role: str | None = None
    use_path_style: bool = False


@dataclass(frozen=True, slots=True)
class StoredObject:
    """An object as the store describes it. ``size`` in stored bytes, ``last_modified_ms`` in epoch ms.

    ``etag`` has neither quotes nor ``W/``. For a directory it is the content's MD5 in hex, as S3's is; a listing of
    a directory leaves it empty, since it would have to read every file.
    """

    key: str
    size: int
    etag: str
    last_modified_ms: int


def check_key(key: str) -> None:
    """InputError (``bad_key``) unless every kind of store can hold this object key, and a directory safely so."""
    problem = _key_problem(key)
    if problem is not None:
        raise InputError("bad_key", f"object key {key[:200]!a} {problem}: rename the object and notify it again")


def _key_problem(key: str) -> str | None:
    try:
        length = len(key.encode())
    except UnicodeEncodeError:
        return "is not valid UTF-8"
    if not 0 < length <= KEY_BYTES:
        return f"has {length} bytes, not 1 to {KEY_BYTES}"
    if CONTROL.search(key):
        return "holds a control character"
    if any(element in ("", ".", "..") for element in key.split("/")):
        return "holds an empty, '.' or '..' path element"
    return None


def normalize_etag(etag: str | None) -> str:
    """An etag as we compare it: without ``W/`` and surrounding quotes; empty when unknown."""
    return (etag or "").removeprefix("W/").strip('"')


class Store:
    """One bucket. Safe to share between threads. Keys are exact: nothing is decoded or normalised in them.

    Besides the errors that each method names, all raise StoreUnavailable (try again), StoreDenied (credentials or
    configuration) and InputError ``bad_key`` or ``transcoded_object``.
    """

    def __init__(self, bucket: str, store: ObjectStore, files: PlainFiles | None) -> None:
        self.bucket = bucket
        self._store = store
        self._files = files

    @classmethod
    def open(cls, bucket: BucketConfiguration) -> Store:
        """A handle on the bucket, without a request. ConfigurationError where the description cannot be one."""
        try:
            store, files = _opened_store(bucket)
        except (BaseError, ValueError) as error:
            raise ConfigurationError(f"bucket {bucket.bucket_name!r} cannot be opened: {_reason(error)}") from error
        return cls(bucket.bucket_name, store, files)

    @property
    def local(self) -> bool:
        """Whether the bucket is a directory, whose listings carry no etag."""
        return self._files is not None

    def read(self, key: str, max_bytes: int) -> tuple[bytes, StoredObject]:
        """The object's bytes and what the store says of exactly these bytes.

        ObjectMissing; InputError ``object_too_large`` beyond ``max_bytes``, without having read it.
        """
        with self._opened(key) as result:
            self._require_at_most(max_bytes, key, result.meta)
            data = result.bytes().to_bytes()
            self._require_whole(len(data), key, result.meta)
            etag = md5(data, usedforsecurity=False).hexdigest() if self.local else result.meta["e_tag"]
            return data, _described(result.meta, etag)

    def download(self, key: str, path: Path) -> None:
        """Write the object's bytes into a new file, a piece at a time. ObjectMissing."""
        with path.open("xb") as file, self._opened(key) as result:
            for chunk in _chunks(result):
                file.write(chunk)
            self._require_whole(file.tell(), key, result.meta)

    def read_into(self, path: Path, key: str, max_bytes: int) -> StoredObject:
        """As ``read``, into a new file, a piece at a time."""
        with self._opened(key) as result:
            self._require_at_most(max_bytes, key, result.meta)
            digest = md5(usedforsecurity=False)
            with path.open("xb") as file:
                for chunk in _chunks(result):
                    file.write(chunk)
                    if self.local:
                        digest.update(chunk)
                self._require_whole(file.tell(), key, result.meta)
            return _described(result.meta, digest.hexdigest() if self.local else result.meta["e_tag"])

    def head(self, key: str) -> StoredObject:
        """What the store says of the object; a directory's file is read for its MD5.

        ObjectMissing, also where there is no bucket: such an answer has no body to tell that. Who must know lists it.
        """
        if not self.local:
            check_key(key)
            with self._errors(key):
                meta = obstore.head(self._store, key)
                return _described(meta, meta["e_tag"])
        with self._opened(key) as result:
            digest = md5(usedforsecurity=False)
            for chunk in _chunks(result):
                digest.update(chunk)
            return _described(result.meta, digest.hexdigest())

    def put(self, key: str, data: Buffer) -> None:
        """Write the object, whole or not at all; one that has this key is replaced."""
        self._write(key, data, "overwrite")

    def create(self, key: str, data: Buffer) -> bool:
        """Write the object, whole or not at all; False, and nothing is changed, where other bytes have this key.

        The same bytes are there already where the store's first answer was lost and the request was repeated.
        """
        try:
            self._write(key, data, "create")
        except AlreadyExistsError:
            return self._holds(key, data)
        return True

    def _write(self, key: str, data: Buffer, mode: PutMode) -> None:
        check_key(key)
        content = memoryview(data).cast("B")
        with self._errors(key):
            if self._files is not None:
                self._files.admit(key)
            # In one request: an interrupted multipart upload leaves parts that nobody sees and somebody pays for.
            obstore.put(self._store, key, content, mode=mode, use_multipart=False)

    def _holds(self, key: str, data: Buffer) -> bool:
        content = memoryview(data).cast("B")
        try:
            return self.read(key, len(content))[0] == content
        except InputError:  # it is larger
            return False

    def list(self, prefix: str = "", after: str = "") -> Iterator[StoredObject]:
        """The objects whose keys are below the path ``prefix`` and greater than ``after``, in the order of their keys.

        A directory that cannot be read hides only itself: StoreDenied is raised once the rest has been given.
        """
        prefix = prefix.removesuffix("/")
        if prefix:
            check_key(prefix)
        with self._errors(prefix):
            if self._files is not None:
                yield from (
                    StoredObject(key=file.key, size=file.size, etag="", last_modified_ms=file.modified_ms)
                    for file in self._files.walk(prefix, after)
                )
                return
            for page in obstore.list(self._store, prefix or None, offset=after or None, chunk_size=LIST_PAGE):
                for meta in page:
                    yield _described(meta, meta["e_tag"])

    def delete(self, keys: Sequence[str]) -> dict[str, LakeError | None]:
        """Delete objects; for each key None where it is gone (or never was), else why it may still be there."""
        with ThreadPoolExecutor(CONCURRENT_DELETES) as pool:
            return dict(zip(keys, pool.map(self._delete_one, keys), strict=True))

    def _delete_one(self, key: str) -> LakeError | None:
        try:
            check_key(key)
            with self._errors(key):
                if self._files is not None:
                    self._files.admit(key)
                obstore.delete(self._store, key)
        except ObjectMissing:
            return None
        except LakeError as error:
            return error
        return None

    def _require_at_most(self, max_bytes: int, key: str, meta: ObjectMeta) -> None:
        if meta["size"] > max_bytes:
            raise InputError(
                "object_too_large",
                f"{self.bucket}/{key} has {meta['size']} bytes, more than the {max_bytes} allowed: "
                "raise LAKERUNNER_LIMIT_OBJECT_BYTES, or write smaller files",
            )

    def _require_whole(self, size: int, key: str, meta: ObjectMeta) -> None:
        if size != meta["size"]:
            raise StoreUnavailable(
                f"{self.bucket}/{key}: {size} bytes came and {meta['size']} were announced: "
                "it was cut off, or changed while it was read"
            )

    @contextmanager
    def _opened(self, key: str) -> Iterator[GetResult]:
        check_key(key)
        with self._errors(key):
            if self._files is not None:
                self._files.require(key)
            yield obstore.get(self._store, key)

    @contextmanager
    def _errors(self, key: str) -> Iterator[None]:
        """What goes wrong inside, as the lake's own errors."""
        try:
            yield
        except FileNotFoundError as error:
            # A key may hold such a code: a sender cannot make its missing object look like a missing bucket.
            if any(code in str(error) and code not in key for code in NO_BUCKET):
                raise self._no_bucket() from error
            raise ObjectMissing(f"{self.bucket}/{key} is not in the store") from error
        except (PermissionDeniedError, UnauthenticatedError) as error:
            raise StoreDenied(
                f"{self.bucket}/{key}: {_reason(error)}: check the credentials and their rights"
            ) from error
        except AlreadyExistsError:
            raise
        except (InvalidPathError, ValueError) as error:
            raise InputError("bad_key", f"object key {key!a} cannot stand in a store: {_reason(error)}") from error
        except BaseError as error:
            if any(text in str(error) and text not in key for text in INCOMPLETE):
                raise InputError(
                    "transcoded_object",
                    f"{self.bucket}/{key} is given without its size or its etag, as Cloud Storage gives some that have "
                    "a Content-Encoding: take that from it, and retry it",
                ) from error
            if any(code in str(error) and code not in key for code in NO_BUCKET):
                raise self._no_bucket() from error
            if any(code in str(error) and code not in key for code in REFUSED):
                raise StoreDenied(
                    f"{self.bucket}/{key}: {_reason(error)}: check bucket, credentials and rights"
                ) from error
            raise StoreUnavailable(f"{self.bucket}/{key}: {_reason(error)}") from error

    def _no_bucket(self) -> BucketMissing:
        return BucketMissing(f"bucket {self.bucket!r} does not exist: create it, or correct the storage profile")


def _chunks(result: GetResult) -> Iterable[Buffer]:
    """The bytes of an object: a small one's at once, others in pieces."""
    # A stream of a file comes in small pieces, each at the price of a thread's turn: for large files only.
    small = result.meta["size"] <= CHUNK_BYTES
    return [result.bytes()] if small else result.stream(min_chunk_size=CHUNK_BYTES)


def _described(meta: ObjectMeta, etag: str | None) -> StoredObject:
    return StoredObject(
        key=meta["path"],
        size=meta["size"],
        etag=normalize_etag(etag),
        last_modified_ms=int(meta["last_modified"].timestamp() * 1000),
    )


def _reason(error: BaseException) -> str:
    """The first line: what follows it in obstore's errors is Rust's own account of the same."""
    return str(error).split("\n", 1)[0]


def _opened_store(bucket: BucketConfiguration) -> tuple[ObjectStore, PlainFiles | None]:
    if bucket.role is not None and bucket.cloud_provider != "aws":
        raise ConfigurationError(f"bucket {bucket.bucket_name!r}: a role can only be assumed with cloud_provider aws")
    match bucket.cloud_provider:
        case "file":
            files = PlainFiles(bucket.endpoint or "")
            return LocalStore(files.root), files
        case "aws":
            return _s3(bucket), None
        case "gcp":
            return _gcs(bucket), None
        case "azure":
            return _azure(bucket), None
        case unknown:
            raise ConfigurationError(
                f"bucket {bucket.bucket_name!r}: cloud_provider {unknown!r} is none of aws, gcp, azure and file"
            )


def _s3(bucket: BucketConfiguration) -> S3Store:
    config: S3Config = {"virtual_hosted_style_request": not bucket.use_path_style}
    if bucket.region is not None:
        config["region"] = bucket.region
    if bucket.endpoint is not None:
        url = urlsplit(bucket.endpoint)
        # obstore takes an endpoint of the virtual-hosted style as it stands: the bucket must be in its host already.
        host = url.netloc if bucket.use_path_style else f"{bucket.bucket_name}.{url.netloc}"
        config["endpoint"] = url._replace(netloc=host).geturl()
    return S3Store(
        bucket.bucket_name,
        config=config,
        client_options=_client_options(bucket),
        retry_config=RETRY,
        credential_provider=_assumed_role(bucket.role, bucket.region) if bucket.role is not None else None,
    )


def _assumed_role(role: str, region: str | None) -> S3CredentialProvider:
    import boto3  # type: ignore[import-untyped]  # noqa: PLC0415 - costs half a second, and few buckets have a role
    from obstore.auth.boto3 import StsCredentialProvider  # noqa: PLC0415 - imports boto3

    provider = StsCredentialProvider(boto3.Session(region_name=region), RoleArn=role, RoleSessionName="lakerunner")

    def credentials() -> S3Credential:
        assumed = provider()
        ends = assumed["expires_at"]
        # obstore takes no time zone but Python's own UTC, and boto3 gives another one.
        return {**assumed, "expires_at": ends.astimezone(UTC) if ends is not None else None}

    return credentials


def _gcs(bucket: BucketConfiguration) -> GCSStore:
    config: GCSConfig = {"base_url": bucket.endpoint} if bucket.endpoint is not None else {}
    options = _client_options(bucket)
    # Else what has a Content-Encoding of gzip comes decompressed, without the size and etag that it is known by.
    options["default_headers"] = {"accept-encoding": "gzip"}
    return GCSStore(bucket.bucket_name, config=config, client_options=options, retry_config=RETRY)


def _azure(bucket: BucketConfiguration) -> AzureStore:
    config: AzureConfig = {}
    if bucket.endpoint is not None:
        config = {"endpoint": bucket.endpoint, "account_name": _azure_account(bucket.endpoint)}
    return AzureStore(bucket.bucket_name, config=config, client_options=_client_options(bucket), retry_config=RETRY)


def _azure_account(endpoint: str) -> str:
    """The storage account of its URL: the path of an emulator's, else the first label of the host."""
    url = urlsplit(endpoint)
    return url.path.strip("/") or (url.hostname or "").split(".", 1)[0]


def _client_options(bucket: BucketConfiguration) -> ClientConfig:
    return {
        "connect_timeout": timedelta(seconds=5),
        "read_timeout": SILENCE,
        "timeout": timedelta(minutes=5),
        "allow_http": (bucket.endpoint or "").startswith("http://"),
    }
