"""What a bucket holds that may be raw telemetry, by listing it: for the directory adapter and for reconciliation.

What belongs here: which keys to list, and in which order. What does not: what is done with the objects.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from lakerunner_dagster.lake.notifications.routing import SEGMENT_PREFIX, uninteresting

if TYPE_CHECKING:
    from collections.abc import Iterator

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
