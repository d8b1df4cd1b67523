"""Raw objects out of the store, some ahead of the one in hand, in the order asked for.

What belongs here: concurrency and its bounds. What does not: what is in the bytes (``transform``), what becomes of an
object that cannot be read (``ingest``, ``rebuild``).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

from lakerunner_dagster.lake.errors import InputError, ObjectMissing
from lakerunner_dagster.lake.model import RawObject
from lakerunner_dagster.lake.runs.context import Stores
from lakerunner_dagster.lake.store import StoredObject

READERS = 8
"""Objects under way at once: enough to hide a store's latency behind the decoder."""

AHEAD_BYTES = 32 * 1024 * 1024
"""Stored bytes (as notified) that may be under way beyond the first object."""


@dataclass(frozen=True, slots=True)
class Fetched:
    """A raw object's stored bytes, and how the store itself describes it."""

    raw: RawObject
    data: bytes
    stored: StoredObject


@dataclass(frozen=True, slots=True)
class Unreadable:
    """A raw object that is not there, or that may not be read: it alone is set aside."""

    raw: RawObject
    error: ObjectMissing | InputError


def fetch(stores: Stores, objects: Iterable[RawObject], max_bytes: int) -> Iterator[Fetched | Unreadable]:
    """Read each object, none larger than ``max_bytes`` stored bytes.

    StoreUnavailable and StoreDenied end the iteration: they say nothing about the object.
    """

    def read(raw: RawObject) -> Fetched:
        data, stored = stores.of(raw.bucket).read(raw.key, max_bytes)
        return Fetched(raw, data, stored)

    pool = ThreadPoolExecutor(READERS, thread_name_prefix="read-raw")
    try:
        for raw, future in _ahead(objects, lambda raw: pool.submit(read, raw)):
            try:
                yield future.result()
            except (ObjectMissing, InputError) as error:
                yield Unreadable(raw, error)
    finally:
        pool.shutdown(cancel_futures=True)


def _ahead(
    objects: Iterable[RawObject], submit: Callable[[RawObject], Future[Fetched]]
) -> Iterator[tuple[RawObject, Future[Fetched]]]:
    """Submit each object and give it back in order, with at most READERS and AHEAD_BYTES between the two."""
    under_way: deque[tuple[RawObject, Future[Fetched]]] = deque()
    size = 0
    for raw in objects:
        while under_way and (len(under_way) == READERS or size + raw.size > AHEAD_BYTES):
            size -= under_way[0][0].size
            yield under_way.popleft()
        under_way.append((raw, submit(raw)))
        size += raw.size
    yield from under_way
