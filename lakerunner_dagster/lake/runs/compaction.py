"""Compaction of an hour: its small segments are merged, and each merge takes the place of its inputs at once.

What belongs here: planning again from what is published, and the order of download, merge, upload and swap. What does
not: what is to be merged (``planning.compaction``), merging (``segments.merge``), the swap (``lrdb.merging``).

Two that work on one hour do no harm: they write the same objects, and the second finds its inputs replaced and plans
again. Killed anywhere, an hour is as it was or has some of its merges; what was uploaded is written again, or removed
as an orphan.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from lakerunner_dagster.lake.errors import SegmentUnusable, SwapConflict
from lakerunner_dagster.lake.lrdb import boxes, leases, merging, segments, unsettled
from lakerunner_dagster.lake.model import ClaimedBox, Lease, Output, Segment, Source
from lakerunner_dagster.lake.planning.compaction import Merge, SegmentGroup, plan, settled
from lakerunner_dagster.lake.runs.announce import announcements
from lakerunner_dagster.lake.runs.context import Lake
from lakerunner_dagster.lake.runs.hour_task import HourTask, bytes_of, records_of
from lakerunner_dagster.lake.runs.leasing import Heartbeat
from lakerunner_dagster.lake.runs.report import OnStep, Step
from lakerunner_dagster.lake.runs.scratch import scratch_directory
from lakerunner_dagster.lake.runs.segment_files import download, set_aside, upload
from lakerunner_dagster.lake.segments.merge import merge
from lakerunner_dagster.lake.signals import COMPACTION_CODE_VERSION

logger = logging.getLogger(__name__)

OPERATION = "compact"
"""What lineage and ledger call this work; it enters segment ids."""

TRIES = 3
"""How often an hour is planned again because others have replaced what was to be merged."""

FULLY_MS = 2**53
"""The time at which a person's compaction plans: every hour is long cold, and no straggler is waited for."""


@dataclass(frozen=True, slots=True)
class _Task(HourTask):
    """An hour to compact, as of when (epoch ms)."""

    now_ms: int


def compact_box(lake: Lake, box: ClaimedBox, on_step: OnStep) -> None:
    """Merge what there is to merge in the hour of a claimed box, and end the box. Raises what prevents that.

    Each merge is a step of its own and stays, whatever becomes of the next.
    """
    group = unsettled.group_of_box(box)
    with Heartbeat(lake.lrdb, box.lease, lake.settings.lease_seconds) as heartbeat:
        now_ms = int(lake.lrdb.clock().timestamp() * 1000)  # as segments were published by that clock
        task = _Task(lake, box.source, group, box.lease.run_id, box.lease, heartbeat.check, now_ms)
        made: list[Segment] = []
        for step in _steps(task):
            on_step(step)
            made.extend(step.segments)
        _end(task, box.lease, made)


def compact_hour(lake: Lake, source: Source, group: SegmentGroup, *, run_id: str, on_step: OnStep) -> None:
    """Merge an hour down to its final files, whatever its age and whoever else works on it. Raises what prevents it."""
    task = _Task(lake, source, group, run_id, None, lambda: None, FULLY_MS)
    for step in _steps(task):
        on_step(step)


def _steps(task: _Task) -> Iterator[Step]:
    """Plan and merge until there is nothing to merge; a step for each merge that took the place of its inputs."""
    conflicts = 0
    while merges := _planned(task):
        for planned in merges:
            try:
                step = _merge(task, planned)
            except SwapConflict as conflict:
                conflicts += 1
                logger.info("plans again: %s", conflict)
                if conflicts == TRIES:
                    raise
                break
            except SegmentUnusable as fault:
                set_aside(task.lake, task.source, fault)
                break
            yield step


def _planned(task: _Task) -> list[Merge]:
    with task.lake.lrdb.connection() as conn:
        published = unsettled.published(conn, [task.group])
    return plan([segment.candidate for segment in published if not segment.aside], task.lake.compaction, task.now_ms)


def _merge(task: _Task, planned: Merge) -> Step:
    """Merge, upload and swap. SwapConflict, SegmentUnusable and what store and lrdb raise: nothing is seen then."""
    task.check()
    started = time.monotonic()
    written_since = task.lake.lrdb.clock()
    with task.lake.lrdb.connection() as conn:
        inputs = segments.published_segments(
            conn,
            task.source,
            task.group.signal,
            task.group.dateint,
            frequency_ms=task.group.frequency_ms,
            hour=task.group.hour,
            segment_ids=planned.segment_ids,
        )
    if len(inputs) != len(planned.segment_ids):
        raise SwapConflict(f"{len(planned.segment_ids)} segments were to be merged, {len(inputs)} are published still")
    with scratch_directory() as directory:
        outputs = _written(task, inputs, directory)
    step = task.step(
        outputs,
        superseded=len(inputs),
        read=records_of(inputs),
        bytes_in=bytes_of(inputs),
        seconds=time.monotonic() - started,
    )
    counted = math.fsum(segment.rollup_count for segment in inputs)
    task.check()
    with task.lake.lrdb.transaction() as conn:
        merging.publish_merge(
            conn,
            task.source,
            inputs,
            outputs,
            ledger=task.ledger(step, OPERATION, COMPACTION_CODE_VERSION, counted),
            messages=announcements(step.segments, time.time_ns() // 1_000_000),
            lease=task.lease,
            written_since=written_since,
        )
    return step


def _written(task: _Task, inputs: Sequence[Segment], directory: Path) -> list[Output]:
    """The merged segments, in the store."""
    store = task.lake.stores.of(task.source.bucket)
    outputs = []
    for merged in merge(
        download(store, inputs, directory),
        source=task.source,
        target_bytes=task.lake.compaction.target_bytes,
        operation=OPERATION,
        directory=directory,
    ):
        task.check()
        outputs.append(upload(task.lake, task.source, merged))
    return outputs


def _end(task: _Task, lease: Lease, made: Sequence[Segment]) -> None:
    """The box is done; its hour is looked at again after a while, or when something new is published in it."""
    policy = task.lake.compaction
    with task.lake.lrdb.transaction() as conn:
        leases.hold(conn, lease, task.group.organization_id)
        unsettled.hold(conn, task.group)
        published = unsettled.published(conn, [task.group])
        at_rest = settled([segment.candidate for segment in published], policy, task.now_ms)
        if at_rest and not any(segment.aside for segment in published):
            unsettled.settle(conn, [task.group])
        else:
            unsettled.postpone(conn, [task.group], policy.gather_seconds)
        boxes.finish(conn, lease, task.group.organization_id, segments=len(made), records=records_of(made))
