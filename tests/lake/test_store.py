"""What would break if a bucket lied, or let us out of its directory."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from hashlib import md5
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lakerunner_dagster.lake.errors import (
    ConfigurationError,
    InputError,
    ObjectMissing,
    StoreDenied,
    StoreUnavailable,
)
from lakerunner_dagster.lake.store import CHUNK_BYTES, BucketConfiguration, Store, check_key, normalize_etag

ODD_KEYS = [
    "otel-raw/a b/c+d/logs_1.gz",
    "100%/%41/%2F/%zz",
    "ünï/日本/🦊.gz",
    "quotes\"'`/x",
    "..a/b../...",
    "a#b/#c/d#1x",
    "back\\slash/a:b*c?d<e>f|g",
    "~tilde/$dollar;&",
]


def open_directory(path: Path) -> Store:
    return Store.open(BucketConfiguration("lake", "file", endpoint=str(path)))


@pytest.fixture
def bucket(tmp_path: Path) -> Path:
    path = tmp_path / "bucket"
    path.mkdir()
    return path


@pytest.fixture
def store(bucket: Path) -> Store:
    return open_directory(bucket)


@pytest.mark.parametrize("key", ODD_KEYS)
def test_odd_keys_stay_what_they_are(store: Store, key: str) -> None:
    store.put(key, b"payload")
    data, described = store.read(key, 100)
    assert (data, described.key) == (b"payload", key)
    assert [found.key for found in store.list()] == [key]
    assert store.delete([key]) == {key: None}
    assert list(store.list()) == []


@pytest.mark.parametrize(
    "key",
    [
        "",
        "/a",
        "a/",
        "a//b",
        "..",
        "../a",
        "a/../b",
        "a/..",
        ".",
        "./a",
        "a\x00b",
        "a\nb",
        "a\x7f",
        "x" * 1025,
        "a\ud800",
    ],
)
def test_keys_that_no_store_should_see_are_refused_everywhere(store: Store, bucket: Path, key: str) -> None:
    outside = bucket.parent / "a"
    outside.write_bytes(b"secret")
    with pytest.raises(InputError) as refusal:
        check_key(key)
    assert refusal.value.reason == "bad_key"
    for use in (lambda: store.read(key, 100), lambda: store.head(key), lambda: store.put(key, b"x")):
        with pytest.raises(InputError):
            use()
    assert isinstance(store.delete([key])[key], InputError)
    assert outside.read_bytes() == b"secret"


@pytest.mark.parametrize("key", ["logs/a#1", "logs/A:", "ab|", "x" * 256 + "/y", "y/" + "é" * 128])
def test_keys_that_a_directory_cannot_hold_are_bad_not_retried(store: Store, key: str) -> None:
    with pytest.raises(InputError) as refusal:
        store.read(key, 100)
    assert refusal.value.reason == "bad_key"


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.text(st.characters() | st.sampled_from("#:|%+. \\~01aA"), min_size=1, max_size=20), min_size=1, max_size=4
    ).map("/".join),
    st.binary(max_size=50),
)
def test_any_key_that_is_not_refused_is_read_back_and_listed(key: str, data: bytes) -> None:
    with tempfile.TemporaryDirectory() as directory:
        store = open_directory(Path(directory))
        try:
            store.put(key, data)
        except InputError:
            return
        read, described = store.read(key, len(data))
        assert read == data
        assert described.etag == md5(data, usedforsecurity=False).hexdigest()
        assert store.head(key) == described
        assert [found.key for found in store.list()] == [key]


def test_links_lead_nowhere(store: Store, bucket: Path) -> None:
    outside = bucket.parent / "outside"
    outside.mkdir()
    (outside / "secret").write_bytes(b"secret")
    (bucket / "inside").write_bytes(b"data")
    (bucket / "file").symlink_to(outside / "secret")
    (bucket / "dir").symlink_to(outside)
    (bucket / "alias").symlink_to(bucket / "inside")
    (bucket / "loop").symlink_to(bucket / "loop")
    assert [found.key for found in store.list()] == ["inside"]
    for key in ("file", "dir/secret", "alias", "loop", "loop/x"):
        with pytest.raises(ObjectMissing):
            store.read(key, 100)
        with pytest.raises(ObjectMissing):
            store.head(key)
        with pytest.raises(ObjectMissing):
            store.put(key, b"changed")
    with pytest.raises(ObjectMissing):
        list(store.list("dir"))
    assert store.delete(["dir/secret"]) == {"dir/secret": None}
    assert (outside / "secret").read_bytes() == b"secret"


def test_a_bucket_that_is_itself_a_link_is_one_bucket(bucket: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(bucket)
    store = open_directory(tmp_path / "link")
    store.put("a/b", b"x")
    assert store.read("a/b", 10)[0] == b"x"
    assert (bucket / "a/b").read_bytes() == b"x"


def test_pipes_and_directories_are_not_objects(store: Store, bucket: Path) -> None:
    os.mkfifo(bucket / "pipe")
    (bucket / "directory").mkdir()
    for key in ("pipe", "directory", "directory/none", "none", "pipe/below"):
        with pytest.raises(ObjectMissing):
            store.read(key, 100)
    assert list(store.list()) == []


def test_more_than_allowed_is_not_read(store: Store) -> None:
    store.put("a", b"x" * 1000)
    with pytest.raises(InputError) as refusal:
        store.read("a", 999)
    assert refusal.value.reason == "object_too_large"
    assert "lake/a has 1000 bytes" in str(refusal.value)
    assert len(store.read("a", 1000)[0]) == 1000


@pytest.mark.parametrize("size", [0, 1, CHUNK_BYTES, 2 * CHUNK_BYTES + 7])
def test_a_download_has_every_byte_however_many_pieces_it_comes_in(store: Store, tmp_path: Path, size: int) -> None:
    data = bytes(number % 251 for number in range(1000)) * (size // 1000 + 1)
    store.put("db/x.parquet", data[:size])
    store.download("db/x.parquet", tmp_path / "copy")
    assert (tmp_path / "copy").read_bytes() == data[:size]
    with pytest.raises(FileExistsError):
        store.download("db/x.parquet", tmp_path / "copy")


def test_a_download_of_nothing_is_missing(store: Store, tmp_path: Path) -> None:
    with pytest.raises(ObjectMissing):
        store.download("db/gone.parquet", tmp_path / "copy")


def test_an_empty_object_is_an_object(store: Store) -> None:
    store.put("a", b"")
    data, described = store.read("a", 0)
    assert (data, described.size, described.etag) == (b"", 0, "d41d8cd98f00b204e9800998ecf8427e")


def test_the_same_content_copied_again_has_the_same_etag(store: Store) -> None:
    store.put("a", b"x" * 9_000_000)
    first = store.head("a")
    store.put("a", b"x" * 9_000_000)
    assert store.head("a").etag == first.etag == store.read("a", 9_000_000)[1].etag


def test_arrow_buffers_are_written_as_they_are(store: Store) -> None:
    store.put("a", pa.py_buffer(b"parquet"))
    store.put("b", memoryview(b"view"))
    assert store.read("a", 10)[0] == b"parquet"
    assert store.read("b", 10)[0] == b"view"


def test_listing_is_in_key_order_not_in_directory_order(store: Store) -> None:
    keys = ["a-b", "a/b", "a/c/d", "a0", "b/é", "b/z", "c", "Z/a"]
    for key in reversed(keys):
        store.put(key, b"x")
    assert [found.key for found in store.list()] == sorted(keys)
    assert [found.key for found in store.list("a")] == ["a/b", "a/c/d"]
    assert [found.key for found in store.list("a/")] == ["a/b", "a/c/d"]
    assert [found.key for found in store.list("none")] == []


@settings(max_examples=30, deadline=None)
@given(st.sets(st.from_regex(r"[a-c\-.é]{1,3}(/[a-c\-é]{1,2}){0,3}", fullmatch=True), max_size=20), st.data())
def test_a_listing_goes_on_exactly_where_it_was_left(keys: set[str], data: st.DataObject) -> None:
    with tempfile.TemporaryDirectory() as directory:
        store = open_directory(Path(directory))
        for key in sorted(keys):
            with suppress(InputError, StoreUnavailable):  # "." and "..", and keys below a key that is a file
                store.put(key, b"x")
        listed = [found.key for found in store.list()]
        assert listed == sorted(listed)
        after = data.draw(st.sampled_from([*listed, "a", "a/", "b/zz", "é"]))
        assert [found.key for found in store.list(after=after)] == [key for key in listed if key > after]


def test_files_still_being_uploaded_are_not_listed(store: Store, bucket: Path) -> None:
    (bucket / "a#1").write_bytes(b"half")
    store.put("a", b"whole")
    assert [found.key for found in store.list()] == ["a"]


def test_a_directory_that_vanishes_during_the_listing_hides_nothing_else(store: Store, bucket: Path) -> None:
    for key in ("a/1", "b/1", "c/1"):
        store.put(key, b"x")
    listing = store.list()
    assert next(listing).key == "a/1"
    (bucket / "b/1").unlink()
    (bucket / "b").rmdir()
    assert [found.key for found in listing] == ["c/1"]


@contextmanager
def as_nobody() -> Iterator[None]:
    """Root may read every directory: be somebody else where we are root."""
    root = os.geteuid() == 0
    if root:
        os.seteuid(65534)
    try:
        yield
    finally:
        if root:
            os.seteuid(0)


def test_an_unreadable_directory_hides_only_itself() -> None:
    with tempfile.TemporaryDirectory() as directory:
        bucket = Path(directory)
        bucket.chmod(0o755)
        store = open_directory(bucket)
        for key in ("a/1", "b/1", "c/1"):
            store.put(key, b"x")
        (bucket / "b").chmod(0)
        listing = store.list()
        with as_nobody():
            assert [next(listing).key, next(listing).key] == ["a/1", "c/1"]
            with pytest.raises(StoreDenied, match=f"{directory}/b: Permission denied"):
                next(listing)
        (bucket / "b").chmod(0o700)


def test_a_missing_object_is_missing_and_a_missing_directory_is_not(store: Store, bucket: Path) -> None:
    with pytest.raises(ObjectMissing, match="none"):
        store.head("none")
    bucket.rmdir()
    with pytest.raises(StoreUnavailable):
        store.read("none", 10)
    with pytest.raises(StoreUnavailable):
        open_directory(bucket)


def test_deletes_tell_for_each_key_whether_it_is_gone(store: Store, bucket: Path) -> None:
    store.put("a", b"x")
    (bucket / "directory").mkdir()
    outcome = store.delete(["a", "never-was", "../out", "directory"])
    assert (outcome["a"], outcome["never-was"]) == (None, None)
    assert isinstance(outcome["../out"], InputError)
    assert outcome["directory"] is not None


@pytest.mark.parametrize(
    ("given_etag", "normal"),
    [
        ('"abc"', "abc"),
        ("abc", "abc"),
        ('W/"abc"', "abc"),
        ("", ""),
        (None, ""),
        ('"0x8D4BCC2E4835CD0"', "0x8D4BCC2E4835CD0"),
    ],
)
def test_etags_compare_without_their_quotes(given_etag: str | None, normal: str) -> None:
    assert normalize_etag(given_etag) == normal


@pytest.mark.parametrize(
    "configuration",
    [
        BucketConfiguration("b", "aws"),
        BucketConfiguration("b", "aws", region="eu-central-1", role="arn:aws:iam::123456789012:role/reader"),
        BucketConfiguration("b", "aws", endpoint="http://127.0.0.1:9000", use_path_style=True),
        BucketConfiguration("b", "aws", endpoint="https://s3.example.com"),
        BucketConfiguration("b", "gcp"),
        BucketConfiguration("b", "gcp", endpoint="http://127.0.0.1:4443"),
        BucketConfiguration("container", "azure", endpoint="https://account.blob.core.windows.net"),
        BucketConfiguration("container", "azure", endpoint="http://127.0.0.1:10000/devstoreaccount1"),
    ],
)
def test_a_bucket_of_any_cloud_opens_without_network(configuration: BucketConfiguration) -> None:
    store = Store.open(configuration)
    assert store.bucket == configuration.bucket_name
    assert not store.local


@pytest.mark.parametrize(
    ("configuration", "complaint"),
    [
        (BucketConfiguration("b", "ftp"), "ftp"),
        (BucketConfiguration("b", "file"), "not absolute"),
        (BucketConfiguration("b", "file", endpoint="relative/path"), "relative/path"),
        (BucketConfiguration("b", "gcp", role="somebody"), "role"),
        (BucketConfiguration("b", "azure"), "[Aa]ccount"),
    ],
)
def test_a_bucket_that_cannot_be_one_is_refused_with_what_is_wrong(
    configuration: BucketConfiguration, complaint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("AZURE_STORAGE_ACCOUNT_NAME", "AZURE_ACCOUNT_NAME"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(ConfigurationError, match=complaint):
        Store.open(configuration)


def test_an_s3_that_does_not_answer_is_unavailable_not_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "nobody")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "nothing")
    monkeypatch.setattr("lakerunner_dagster.lake.store.RETRY", {"max_retries": 0})
    store = Store.open(BucketConfiguration("b", "aws", endpoint="http://127.0.0.1:9", use_path_style=True))
    with pytest.raises(StoreUnavailable):
        store.read("a", 10)
    with pytest.raises(StoreUnavailable):
        list(store.list())
