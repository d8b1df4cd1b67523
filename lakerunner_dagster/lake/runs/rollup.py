"""The rollup of an hour: its dirty slots are computed from the finer tier, and take the place of what they had.

What belongs here: which slots are computed together, the order of download, rollup, upload and swap, and looking back
for the values before a slot. What does not: rolling up (``segments.rollup``), the swap (``lrdb.rolling``), which slots
are dirty (``lrdb.slots``).

Killed anywhere, a slot is as it was or is computed; in the first case it is dirty still. Two that compute one slot do
no harm: what either has not read leaves the slot dirty.
"""

from __future__ import annotations

import logging
import math
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from lakerunner_dagster.lake.errors import InputsUnreadable, SegmentUnusable, SwapConflict
from lakerunner_dagster.lake.lrdb import boxes, expiry, faults, leases, lineage, rolling, slots, unsettled
from lakerunner_dagster.lake.lrdb.connection import Conn
from lakerunner_dagster.lake.lrdb.rolling import Piece
from lakerunner_dagster.lake.model import HOUR_MS, ClaimedBox, Lease, Output, Segment, Source
from lakerunner_dagster.lake.planning.compaction import SegmentGroup
from lakerunner_dagster.lake.planning.rollup import pieces
from lakerunner_dagster.lake.runs.announce import announcements
from lakerunner_dagster.lake.runs.context import Lake
from lakerunner_dagster.lake.runs.hour_task import HourTask, bytes_of, records_of
from lakerunner_dagster.lake.runs.leasing import Heartbeat
from lakerunner_dagster.lake.runs.look_back import LookBack, look_back
from lakerunner_dagster.lake.runs.report import OnStep, Step
from lakerunner_dagster.lake.runs.scratch import scratch_directory
from lakerunner_dagster.lake.runs.segment_files import FAULT_RETRY_SECONDS, download, set_aside, upload
from lakerunner_dagster.lake.segments.rollup import roll_up
from lakerunner_dagster.lake.signals import ROLLUP_CODE_VERSION
from lakerunner_dagster.lake.tiers import ROLLED_UP, TIERS, Tier

logger = logging.getLogger(__name__)

OPERATION = "rollup"
"""What lineage and ledger call this work; it enters segment ids."""

TRIES = 3
"""How often slots are computed again because others have replaced what was to be replaced, or for one segment that
cannot be read."""


@dataclass(frozen=True, slots=True)
class _Task(HourTask):
    """An hour of a tier."""

    @property
    def tier(self) -> Tier:
        return TIERS[self.group.frequency_ms]

    @property
    def hour(self) -> Piece:
        """The whole hour."""
        return self.piece(self.group.end_ms - HOUR_MS, self.group.end_ms)

    def piece(self, start_ms: int, end_ms: int) -> Piece:
        return Piece(self.source, self.tier, start_ms, end_ms)


@dataclass(frozen=True, slots=True)
class _Computed:
    """What came of a piece: from which finer segments, how many of them unreadable, with what before them."""

    read: Sequence[Segment]
    aside: int
    before: LookBack
    outputs: Sequence[Output]
    seconds: float


def roll_up_box(lake: Lake, box: ClaimedBox, on_step: OnStep) -> None:
    """Compute the slots of a claimed box, and end the box. Raises what prevents that.

    Each piece is a step of its own and stays, whatever becomes of the next.
    """
    group = unsettled.group_of_box(box)
    with Heartbeat(lake.lrdb, box.lease, lake.settings.lease_seconds) as heartbeat:
        task = _Task(lake, box.source, group, box.lease.run_id, box.lease, heartbeat.check)
        with lake.lrdb.connection() as conn:
            dirty = [slot.start_ms for slot in slots.of_box(conn, group.organization_id, box.lease.box_id)]
        made: list[Segment] = []
        for step in _steps(task, dirty):
            on_step(step)
            made.extend(step.segments)
        _end(task, box.lease, made)


def roll_up_hour(lake: Lake, source: Source, group: SegmentGroup, *, run_id: str, on_step: OnStep) -> None:
    """Compute an hour of a tier anew, as one piece, whoever else works on it. Raises what prevents it."""
    task = _Task(lake, source, group, run_id, None, lambda: None)
    for step in _steps(task, [slot.start_ms for slot in task.hour.slots], whole=True):
        on_step(step)


def _steps(task: _Task, dirty: Iterable[int], *, whole: bool = False) -> Iterator[Step]:
    """Compute the slots that begin at ``dirty``; a step for each piece that took the place of what stood there.

    A slot that lacks what cannot be read stays as it is, and dirty, and keeps no other from being computed.
    """
    left = set(dirty)
    conflicts = 0
    met: Counter[int] = Counter()
    while left:
        piece = task.hour if whole else _next_piece(task, left)
        try:
            step = _rolled_up(task, piece)
        except SwapConflict as conflict:
            conflicts += 1
            logger.info("computes again: %s", conflict)
            if conflicts == TRIES:
                raise
            continue
        except SegmentUnusable as fault:
            set_aside(task.lake, task.source, fault)
            met[fault.segment.segment_id] += 1
            if met[fault.segment.segment_id] == TRIES:
                raise
            continue
        except InputsUnreadable as lack:
            if whole:
                raise
            logger.warning("%s", lack)
            with task.lake.lrdb.transaction() as conn:
                slots.postpone(conn, piece.slots, FAULT_RETRY_SECONDS)
            step = None
        left -= set(task.tier.slots(piece.start_ms, piece.end_ms))
        if step is not None:
            yield step


def _next_piece(task: _Task, dirty: Iterable[int]) -> Piece:
    with task.lake.lrdb.connection() as conn:
        standing = rolling.standing_segments(conn, task.hour)
    return task.piece(*pieces(task.tier, dirty, [(one.start_ms, one.end_ms) for one in standing])[0])


def _rolled_up(task: _Task, piece: Piece) -> Step | None:
    """Compute a piece and swap it; None where the finer tier is past its retention, and the piece stays as it is.

    SwapConflict, SegmentUnusable, InputsUnreadable and what store and lrdb raise: nothing is seen then.
    """
    task.check()
    with task.lake.lrdb.connection() as conn:
        expired = is_past_retention(conn, task.source, task.tier, piece.dateint)
    if expired:
        with task.lake.lrdb.transaction() as conn:
            slots.clean(conn, task.source, task.tier.frequency_ms, piece.start_ms, piece.end_ms)
        return None
    written_since = task.lake.lrdb.clock()
    with scratch_directory() as directory:
        computed = _computed(task, piece, directory)
    made = [output.segment for output in computed.outputs]
    step = task.step(
        computed.outputs,
        superseded=0,
        read=records_of(made),  # of the slots alone: segments.rollup has counted them, and would not have lost one
        bytes_in=bytes_of(computed.read) + computed.before.bytes,
        seconds=computed.seconds,
    )
    counted = math.fsum(segment.rollup_count for segment in made)
    task.check()
    with task.lake.lrdb.transaction() as conn:
        published = rolling.publish_rollup(
            conn,
            piece,
            computed.read,
            computed.outputs,
            ledger=task.ledger(step, OPERATION, ROLLUP_CODE_VERSION, counted),
            messages=announcements(step.segments, time.time_ns() // 1_000_000),
            lease=task.lease,
            written_since=written_since,
            seen_before=computed.before.seen,
            reach_ms=computed.before.reach_ms,
            aside=computed.aside,
            retry_seconds=FAULT_RETRY_SECONDS if computed.aside else 0.0,
        )
    return replace(step, superseded=len(published.replaced.superseded), origins=_origins(task, step.segments))


def _origins(task: _Task, made: Sequence[Segment]) -> tuple[tuple[str, str], ...]:
    """What the segments stand on in the ingest tier, for people to see."""
    keys = {segment.segment_id: segment.key for segment in made}
    with task.lake.lrdb.connection() as conn:
        found = lineage.ingested_segments(conn, task.source, ROLLED_UP, list(keys))
    return tuple((keys[segment_id], origin) for segment_id, origin in found)


def is_past_retention(conn: Conn, source: Source, tier: Tier, dateint: int) -> bool:
    """Whether the finer tier of a day has expired, so that the tier cannot be computed from it any more.

    A day that its rule lets go, and retention has not taken yet, is there for a tier that is kept for longer.
    """
    now_ms = time.time_ns() // 1_000_000
    finer, own = (
        expiry.first_kept(conn, source.organization_id, ROLLED_UP, frequency_ms, now_ms)
        for frequency_ms in (tier.finer_ms, tier.frequency_ms)
    )
    return dateint < finer and (dateint < own or expiry.has_expired(conn, source, ROLLED_UP, tier.finer_ms, dateint))


def _computed(task: _Task, piece: Piece, directory: Path) -> _Computed:
    """The piece's segments, in the store."""
    started = time.monotonic()
    with task.lake.lrdb.connection() as conn:
        published = rolling.finer_segments(conn, piece)
        waiting = faults.waiting(conn, task.source.organization_id, task.source.instance_num, ROLLED_UP, piece.dateint)
    read = [segment for segment in published if segment.segment_id not in waiting]
    store = task.lake.stores.of(task.source.bucket)
    inputs = download(store, read, directory)
    before = look_back(task.lake, piece, inputs, directory)
    outputs = []
    for made in roll_up(
        inputs,
        source=task.source,
        frequency_ms=task.tier.frequency_ms,
        start_ms=piece.start_ms,
        end_ms=piece.end_ms,
        preceding=before.rows,
        preceding_ids=before.segment_ids,
        horizon_ms=before.horizon_ms,
        reach_ms=before.reach_ms,
        target_bytes=task.lake.compaction.target_bytes,
        operation=OPERATION,
        directory=directory,
    ):
        task.check()
        outputs.append(upload(task.lake, task.source, made))
    aside = len(published) - len(read) + before.aside
    return _Computed(read, aside, before, outputs, time.monotonic() - started)


def _end(task: _Task, lease: Lease, made: Sequence[Segment]) -> None:
    """The box is done; what it has not computed is dirty, and waits for another."""
    with task.lake.lrdb.transaction() as conn:
        leases.hold(conn, lease, task.group.organization_id)
        slots.postpone(conn, slots.of_box(conn, task.group.organization_id, lease.box_id))
        boxes.finish(conn, lease, task.group.organization_id, segments=len(made), records=records_of(made))
