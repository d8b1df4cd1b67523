"""Raw objects out of the store, some ahead of the one in hand, in the order asked for.

What belongs here: concurrency, memory and their bounds. What does not: what is in the bytes (``contents``), what
becomes of an object that cannot be read (``ingest``, ``rebuild``).

What is read ahead is no larger than it was said to be. An object that is larger, or too large for memory, is read when
its turn comes, and too large a one into a file.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from lakerunner_dagster.lake.errors import BucketMissing, InputError, ObjectMissing, StoreDenied
from lakerunner_dagster.lake.model import RawObject
from lakerunner_dagster.lake.runs.context import Stores
from lakerunner_dagster.lake.store import Store, StoredObject

if TYPE_CHECKING:
    from lakerunner_dagster.lake.runs.scratch import NewFile

READERS = 8
"""Objects under way at once: enough to hide a store's latency behind the decoder."""

AHEAD_BYTES = 32 * 1024 * 1024
"""Stored bytes (as notified) that may be under way beyond the first object."""

UNTOLD_BYTES = 4 * 1024 * 1024
"""Stored bytes that may be read ahead of any object, whatever is known of its size."""

IN_MEMORY_BYTES = 64 * 1024 * 1024
"""Stored bytes of an object that is held in memory."""


@dataclass(frozen=True, slots=True)
class Fetched:
    """A raw object's stored bytes, or the file that has them, and how the store itself describes it.

    The file is there until the next object is asked for.
    """

    raw: RawObject
    data: bytes | Path
    stored: StoredObject


@dataclass(frozen=True, slots=True)
class Unreadable:
    """A raw object that is not there, that may not be read, or that the store denies.

    Whether it denies this one or all of them is for the caller to tell, who has the others.
    """

    raw: RawObject
    error: ObjectMissing | InputError | StoreDenied


def fetch(
    stores: Stores, objects: Iterable[RawObject], max_bytes: int, new_file: NewFile
) -> Iterator[Fetched | Unreadable]:
    """Read each object, none larger than ``max_bytes`` stored bytes.

    StoreUnavailable and BucketMissing end the iteration: they say nothing about the object.
    """

    def read(raw: RawObject) -> Fetched | None:
        most = min(max(raw.size, UNTOLD_BYTES), IN_MEMORY_BYTES, max_bytes)
        return _read(stores.of(raw.bucket), raw, most)

    pool = ThreadPoolExecutor(READERS, thread_name_prefix="read-raw")
    try:
        for raw, future in _ahead(objects, lambda raw: pool.submit(read, raw)):
            try:
                lent = _lent(future.result() or _read_now(stores.of(raw.bucket), raw, max_bytes, new_file))
            except BucketMissing:
                raise
            except (ObjectMissing, InputError, StoreDenied) as error:
                yield Unreadable(raw, error)
            else:
                yield from lent
    finally:
        pool.shutdown(cancel_futures=True)


def _read(store: Store, raw: RawObject, most_bytes: int) -> Fetched | None:
    """The object, in memory; None where it is larger than that."""
    try:
        return Fetched(raw, *store.read(raw.key, most_bytes))
    except InputError as error:
        if error.reason != "object_too_large":
            raise
        return None


def _read_now(store: Store, raw: RawObject, max_bytes: int, new_file: NewFile) -> Fetched:
    """An object that was too large to be read ahead, into a file."""
    path = new_file()
    return Fetched(raw, path, store.read_into(path, raw.key, max_bytes))


def _lent(found: Fetched) -> Iterator[Fetched]:
    yield found
    if isinstance(found.data, Path):
        found.data.unlink()


def _ahead(
    objects: Iterable[RawObject], submit: Callable[[RawObject], Future[Fetched | None]]
) -> Iterator[tuple[RawObject, Future[Fetched | None]]]:
    """Submit each object and give it back in order, with at most READERS and AHEAD_BYTES between the two."""
    under_way: deque[tuple[RawObject, Future[Fetched | None]]] = deque()
    size = 0
    for raw in objects:
        while under_way and (len(under_way) == READERS or size + raw.size > AHEAD_BYTES):
            size -= under_way[0][0].size
            yield under_way.popleft()
        under_way.append((raw, submit(raw)))
        size += raw.size
    yield from under_way
