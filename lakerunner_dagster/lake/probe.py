"""Trying a bucket out: every kind of request that the lake makes of it, on an object of the probe's own.

What belongs here: the steps, and the right that is missing where one is denied. What does not: requests (``store``).
"""

from __future__ import annotations

from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING
from uuid import uuid4

from lakerunner_dagster.lake.errors import BucketMissing, LakeError, ObjectMissing, StoreDenied, StoreUnavailable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from lakerunner_dagster.lake.store import Store

PROBE_PREFIX = "db/00000000-0000-0000-0000-000000000000/probe"
"""Where probes stand: among the segments, whose rights they try, under an organization that there cannot be."""

CONTENT = b"lakerunner profile test"

RIGHTS: Mapping[str, Mapping[str, str]] = MappingProxyType(
    {
        "aws": {
            "write": "s3:PutObject on db/*",
            "describe": "s3:GetObject",
            "read": "s3:GetObject",
            "list": "s3:ListBucket on the bucket itself",
            "delete": "s3:DeleteObject on db/*",
        },
        "gcp": {
            "write": "storage.objects.create",
            "describe": "storage.objects.get",
            "read": "storage.objects.get",
            "list": "storage.objects.list",
            "delete": "storage.objects.delete",
        },
        "azure": dict.fromkeys(
            ("write", "describe", "read", "list", "delete"), "the role Storage Blob Data Contributor on the container"
        ),
        "file": {
            "write": "write access to the directory",
            "describe": "read access to the directory",
            "read": "read access to the directory",
            "list": "read access to the directory",
            "delete": "write access to the directory",
        },
    }
)
"""By provider and step: what its operator is to grant."""


@dataclass(frozen=True, slots=True)
class ProbeStep:
    """One request that was tried; ``trouble`` says what went wrong and what to do, None where nothing did."""

    name: str
    trouble: str | None


def probe(store: Store, provider: str) -> Iterator[ProbeStep]:
    """Write, describe, read, list and delete an object; what follows from a failed write is not tried.

    The object is gone at the end, whatever failed, unless deleting it is what failed.
    """
    key = f"{PROBE_PREFIX}/{uuid4()}"
    written = _tried("write", provider, lambda: _write(store, key))
    yield written
    try:
        if written.trouble is None:
            yield _tried("describe", provider, lambda: _describe(store, key))
            yield _tried("read", provider, lambda: _read(store, key))
        yield _tried("list", provider, lambda: _list(store, key, there=written.trouble is None))
    finally:
        deleted = _tried("delete", provider, lambda: _delete(store, key))
    if written.trouble is None:
        yield deleted


def _tried(name: str, provider: str, step: Callable[[], None]) -> ProbeStep:
    try:
        step()
    except BucketMissing as error:
        return ProbeStep(name, str(error))
    except StoreDenied as error:
        return ProbeStep(name, f"{error} (needed: {RIGHTS[provider][name]})")
    except LakeError as error:
        return ProbeStep(name, str(error))
    return ProbeStep(name, None)


def _write(store: Store, key: str) -> None:
    if not store.create(key, CONTENT):
        raise StoreUnavailable(f"{store.bucket}/{key} was there already, though its name is new: try again")


def _describe(store: Store, key: str) -> None:
    size = store.head(key).size
    if size != len(CONTENT):
        raise StoreUnavailable(f"{store.bucket}/{key} is told to have {size} bytes, not the {len(CONTENT)} written")


def _read(store: Store, key: str) -> None:
    data, _ = store.read(key, len(CONTENT))
    if data != CONTENT:
        raise StoreUnavailable(f"{store.bucket}/{key} does not read as it was written: {data!a}")


def _list(store: Store, key: str, *, there: bool) -> None:
    listed = [found.key for found in store.list(PROBE_PREFIX)]
    if there and key not in listed:
        raise ObjectMissing(f"{store.bucket}/{key} was written and is not listed")


def _delete(store: Store, key: str) -> None:
    error = store.delete([key])[key]
    if error is not None:
        raise error
