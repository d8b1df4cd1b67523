"""Raw objects of a day that are in the store and not in lrdb: never notified, or their notification was lost.

What belongs here: listing, and telling what is unknown. What does not: what becomes of it (``rebuild``).
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from itertools import islice

from lakerunner_dagster.lake.errors import InputError
from lakerunner_dagster.lake.lrdb import intake, profiles
from lakerunner_dagster.lake.lrdb.connection import Conn
from lakerunner_dagster.lake.lrdb.intake import Notification
from lakerunner_dagster.lake.lrdb.known import ObjectName, known_objects
from lakerunner_dagster.lake.model import Source, dateint_of, rfc3339
from lakerunner_dagster.lake.notifications.listing import hidden, with_etag
from lakerunner_dagster.lake.notifications.routing import Route, route, uninteresting
from lakerunner_dagster.lake.runs.context import Lake
from lakerunner_dagster.lake.signals import Signal
from lakerunner_dagster.lake.store import Store, StoredObject, check_key

BATCH = 500
"""Objects that lrdb is asked for at once."""

ADAPTER = "rebuild"
"""Who told of an object that was found here."""


def register_unknown(lake: Lake, signal: Signal, source: Source, dateint: int) -> int:
    """Give a pending row to what the source's home bucket holds of the day, by time of storing, and lrdb does not know.

    How many objects these were. Raises StoreUnavailable and StoreDenied.
    """
    store = lake.stores.of(source.bucket)
    of_day = (found for found in _listed(lake, store, signal, source) if dateint_of(found.last_modified_ms) == dateint)
    new = 0
    while batch := list(islice(of_day, BATCH)):
        named = [there for found in batch if (there := with_etag(store, found)) is not None]
        with lake.lrdb.transaction() as conn:
            new += _register(conn, signal, source, named)
    return new


def _listed(lake: Lake, store: Store, signal: Signal, source: Source) -> Iterator[StoredObject]:
    """Every object under a prefix where there may be some of the source."""
    with lake.lrdb.connection() as conn:
        mapped = profiles.prefixes_of(conn, source, signal)
    for prefix in [f"otel-raw/{source.organization_id}/{source.collector}/", *mapped]:
        directory, _, _ = prefix.rpartition("/")
        listed = (found for found in store.list(directory) if found.key.startswith(prefix))
        yield from (found for found in listed if not hidden(store, found.key))


def _register(conn: Conn, signal: Signal, source: Source, found: list[StoredObject]) -> int:
    names = {ObjectName(source.bucket, there.key, there.etag): there for there in found}
    known = known_objects(conn, source.organization_id, list(names))
    queued = rfc3339(time.time_ns() // 1_000_000)
    notifications = [
        Notification(
            signal=signal,
            organization_id=source.organization_id,
            instance_num=source.instance_num,
            bucket=source.bucket,
            key=there.key,
            size=there.size,
            queued=queued,
            event_time_ms=there.last_modified_ms,
            etag=there.etag,
            collector=source.collector,
            adapter=ADAPTER,
        )
        for name, there in names.items()
        if name not in known and _is_of(conn, signal, source, there.key)
    ]
    upserted = intake.upsert_raw_objects(conn, notifications)
    return upserted.new + upserted.reopened


def _is_of(conn: Conn, signal: Signal, source: Source, key: str) -> bool:
    """Whether an adapter would take an object of this key for one of the source and signal."""
    if uninteresting(key) is not None:
        return False
    try:
        check_key(key)
        found = route(key, profiles.prefix_mappings(conn, source.bucket, key))
    except InputError:
        return False
    return found == Route(source.organization_id, source.collector, signal)
