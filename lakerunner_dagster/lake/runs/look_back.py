"""Looking back from a slot: the last value that each of its cumulative series had before it.

What belongs here: which segments are read, newest first, and how far back. What does not: which rows are sought, and
what they are good for (``segments.preceding``, ``segments.increments``).

Most values stand a few seconds before the slot: its last ten minutes come first, then the rest of that hour, then hour
by hour. What is read is whole: a window grows until it cuts no segment, so that the last row found in it is the last.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from lakerunner_dagster.lake.lrdb import expiry, faults, segments
from lakerunner_dagster.lake.model import HOUR_MS, Segment, dateint_of, day_start_ms, hour_of
from lakerunner_dagster.lake.runs.segment_files import download
from lakerunner_dagster.lake.segments.preceding import Sought
from lakerunner_dagster.lake.tiers import FIRST_SLOT_MS, ROLLED_UP

if TYPE_CHECKING:
    import pyarrow as pa

    from lakerunner_dagster.lake.lrdb.rolling import Piece
    from lakerunner_dagster.lake.runs.context import Lake
    from lakerunner_dagster.lake.segments.reading import MergeInput


@dataclass(frozen=True, slots=True)
class LookBack:
    """What was found before a slot: ``rows`` of the segments ``segment_ids``, of ``bytes`` read.

    ``horizon_ms`` is how far back was looked at most, ``reach_ms`` the earliest time from which on a late row would
    change the slot, where that is before it, and ``seen`` the ids of all segments that were published from then on to
    the slot. ``aside`` segments could not be read.
    """

    rows: pa.Table | None
    segment_ids: Sequence[int]
    bytes: int
    aside: int
    horizon_ms: int
    reach_ms: int | None
    seen: frozenset[int]


def look_back(lake: Lake, piece: Piece, inputs: Sequence[MergeInput], directory: Path) -> LookBack:
    """The rows before a piece of those of its series that go on in ``inputs``. SegmentUnusable."""
    sought = Sought.of(inputs, piece.start_ms, piece.end_ms)
    horizon_ms = _horizon_ms(lake, piece)
    store = lake.stores.of(piece.source.bucket)
    files = {one.segment.segment_id: one for one in inputs}
    looked_into: set[int] = set()
    met: list[Segment] = []
    read = aside = 0
    for window in _windows(lake, piece, horizon_ms):
        if not sought.unresolved or window.end_ms <= sought.since_ms:
            break
        missing = [segment for segment in window.readable if segment.segment_id not in files]
        files |= {one.segment.segment_id: one for one in download(store, missing, directory)}
        new = {segment.segment_id for segment in window.readable} - looked_into
        sought.look_into([files[segment_id] for segment_id in sorted(new)])
        looked_into |= new
        met += window.touching
        aside += len(window.touching) - len(window.readable)
        read += sum(segment.file_size for segment in missing)
    reach_ms = sought.reach_ms(horizon_ms)
    return LookBack(
        rows=sought.found(),
        segment_ids=sorted(sought.segment_ids),
        bytes=read,
        aside=aside,
        horizon_ms=horizon_ms,
        reach_ms=reach_ms if reach_ms < piece.start_ms else None,
        seen=frozenset(one.segment_id for one in met if one.end_ms > reach_ms),
    )


def _horizon_ms(lake: Lake, piece: Piece) -> int:
    """How far back there is anything to look at: what has expired is no evidence that nothing was there."""
    source, finer_ms = piece.source, piece.tier.finer_ms
    horizon_ms = (piece.start_ms - int(lake.rollup.look_back_hours * HOUR_MS)) // finer_ms * finer_ms
    since = dateint_of(horizon_ms)
    with lake.lrdb.connection() as conn:
        kept = expiry.first_kept(conn, source.organization_id, ROLLED_UP, finer_ms, time.time_ns() // 1_000_000)
        before = min(kept, piece.dateint)
        if before <= since:
            return horizon_ms
        expired = expiry.last_expired(conn, source, ROLLED_UP, finer_ms, since=since, before=before)
    return horizon_ms if expired is None else max(horizon_ms, day_start_ms(expired) + 24 * HOUR_MS)


@dataclass(frozen=True, slots=True)
class _Window:
    """The finer segments that touch a time which ends at ``end_ms`` and cuts none of them."""

    end_ms: int
    touching: Sequence[Segment]
    readable: Sequence[Segment]


def _windows(lake: Lake, piece: Piece, horizon_ms: int) -> Iterator[_Window]:
    """Backwards from the piece to the horizon."""
    end_ms, length_ms = piece.start_ms, FIRST_SLOT_MS
    while end_ms > horizon_ms:
        hour_ms = (end_ms - 1) // HOUR_MS * HOUR_MS
        with lake.lrdb.connection() as conn:
            published = segments.published_segments(
                conn,
                piece.source,
                ROLLED_UP,
                dateint_of(hour_ms),
                frequency_ms=piece.tier.finer_ms,
                hour=hour_of(hour_ms),
            )
            waiting = faults.waiting(
                conn, piece.source.organization_id, piece.source.instance_num, ROLLED_UP, dateint_of(hour_ms)
            )
        start_ms, touching = _uncut(max(end_ms - length_ms, hour_ms), end_ms, published)
        readable = [segment for segment in touching if segment.segment_id not in waiting]
        yield _Window(end_ms, touching, readable)
        end_ms, length_ms = max(start_ms, hour_ms), HOUR_MS


def _uncut(start_ms: int, end_ms: int, published: Sequence[Segment]) -> tuple[int, list[Segment]]:
    """Where the time from ``start_ms`` to ``end_ms`` must begin to cut no segment, and the segments in it."""
    touching = [segment for segment in published if segment.start_ms < end_ms and segment.end_ms > start_ms]
    earliest = min([start_ms, *(segment.start_ms for segment in touching)])
    return (start_ms, touching) if earliest == start_ms else _uncut(earliest, end_ms, published)
