"""What a bucket holds that may be raw telemetry, by listing it: for the directory adapter and for reconciliation.

What belongs here: which keys to list, in which order, and what a listing leaves out. What does not: what is done with
the objects.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from lakerunner_dagster.lake.errors import InputError, ObjectMissing
from lakerunner_dagster.lake.notifications.routing import SEGMENT_PREFIX, uninteresting

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from lakerunner_dagster.lake.store import Store, StoredObject

AFTER_SEGMENTS = f"{SEGMENT_PREFIX}g"
"""Greater than every segment's key: after the prefix stands an organization's UUID in hexadecimal digits."""


def raw_objects(store: Store, after: str = "") -> Iterator[StoredObject]:
    """Every object that may be raw telemetry with a key greater than ``after``, in the order of keys.

    The segments, which are most of a bucket, are stepped over and not listed. Errors are those of ``Store.list``.
    """
    for found in store.list(after=after):
        if found.key.startswith(SEGMENT_PREFIX):
            break
        if uninteresting(found.key) is None:
            yield found
    else:
        return
    yield from (found for found in store.list(after=max(after, AFTER_SEGMENTS)) if uninteresting(found.key) is None)


def raw_objects_below(store: Store, prefixes: Iterable[str]) -> Iterator[StoredObject]:
    """Every object that may be raw telemetry and has one of these prefixes, once; a prefix may end in a name."""
    listed: list[str] = []
    for prefix in sorted(prefixes):
        if any(prefix.startswith(before) for before in listed):
            continue
        listed.append(prefix)
        directory, _, _ = prefix.rpartition("/")
        found = store.list(directory) if directory else raw_objects(store)
        yield from (there for there in found if there.key.startswith(prefix) and uninteresting(there.key) is None)


def with_etag(store: Store, found: StoredObject) -> StoredObject | None:
    """The object with its etag, which a directory's listing does not tell; None when it is gone again."""
    if found.etag:
        return found
    try:
        return replace(found, etag=store.head(found.key).etag)
    except (InputError, ObjectMissing):
        return None


def hidden(store: Store, key: str) -> bool:
    """Names with a leading dot are what programs write into a directory while they work, not what people put there."""
    return store.local and any(element.startswith(".") for element in key.split("/"))
