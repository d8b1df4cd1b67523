"""The rebuild of a day: what it misses is ingested, then each of its hours is computed anew and replaced.

What belongs here: the order of these, and what is told when a part cannot be done. What does not: finding objects
(``discovery``), ingesting (``drain``), computing hours (``hours``).
"""

from __future__ import annotations

import logging
import time

from lakerunner_dagster.lake.errors import BucketMissing, StoreDenied
from lakerunner_dagster.lake.lrdb import boxes, expiry, intake, lineage, standing
from lakerunner_dagster.lake.lrdb.standing import Hour
from lakerunner_dagster.lake.model import RawState, Source, dateint_of
from lakerunner_dagster.lake.runs.context import Lake
from lakerunner_dagster.lake.runs.discovery import register_unknown
from lakerunner_dagster.lake.runs.drain import OUTAGES, require_complete, work_off
from lakerunner_dagster.lake.runs.hours import Strays, Task, find_strays, replace_hour
from lakerunner_dagster.lake.runs.report import Failure, OnStep, RebuildReport, Step
from lakerunner_dagster.lake.signals import SIGNALS, Signal
from lakerunner_dagster.lake.stages import ingest_stage
from lakerunner_dagster.lake.ticks.ingesting import close_partition
from lakerunner_dagster.lake.ticks.outbox import announce

logger = logging.getLogger(__name__)


def rebuild(lake: Lake, signal: Signal, source: Source, dateint: int, *, run_id: str, on_step: OnStep) -> RebuildReport:
    """Ingest what the day still misses, then replace each of its hours by what its raw objects say now.

    ``on_step`` is called for the boxes as well, which have no ``hour``. Doing it twice changes nothing. Raises
    WorkIncomplete at the end when a box or an hour could not be done: each such hour is as it was.
    """
    task = Task(source, signal, dateint, run_id)
    _find_work(lake, task)
    drained = work_off(lake, ingest_stage(signal), source, dateint, run_id=run_id, on_step=on_step)
    hours, failures = _replace_hours(lake, task, on_step)
    require_complete(source, dateint, [*drained.failures, *failures])
    return RebuildReport(drained.steps, tuple(hours))


def _find_work(lake: Lake, task: Task) -> None:
    """Box what the day lacks: never heard of, set aside, or in boxes that had failed."""
    found = register_unknown(lake, task.signal, task.source, task.dateint)
    with lake.lrdb.transaction() as conn:
        of_day = lineage.raw_objects_of_day(conn, task.source, task.signal, task.dateint)
        aside = [
            known.raw.raw_object_id
            for known in of_day
            if known.state in (RawState.QUARANTINED, RawState.MISSING)
            and dateint_of(known.raw.event_time_ms) == task.dateint
        ]
        again = intake.requeue(conn, task.source.organization_id, aside)
        reopened = boxes.reopen_failed(conn, ingest_stage(task.signal).name, task.source, task.dateint)
        close_partition(
            conn, task.signal, task.source, task.dateint, policy=lake.policy, now_ms=time.time_ns() // 1_000_000
        )
    logger.info("%d raw objects were unknown, %d set aside, %d boxes had failed", found, again, reopened)


def _replace_hours(lake: Lake, task: Task, on_step: OnStep) -> tuple[list[Step], list[Failure]]:
    """Compute and swap each hour that has segments, or should have."""
    with lake.lrdb.connection() as conn:
        hours = standing.hours_of_day(conn, task.source, task.signal, task.dateint)
    strays, failures = _strays(lake, task)
    done: dict[Hour, Step] = {}
    for hour in sorted(hours | strays.hours):
        if hour in done:
            continue
        try:
            swapped = replace_hour(lake, task, hour, strays.readings)
        except Exception as error:  # noqa: BLE001  # whatever ails this hour, the others are to be done
            logger.warning("%d %02dh stays as it was: %s", *hour, error)
            failures.append(Failure(f"{hour.dateint} {hour.hour:02d}h", type(error).__name__, str(error)))
            if isinstance(error, OUTAGES) and not _may_be_of_one_object(error):
                break
            continue
        done |= swapped
        announce(lake.lrdb, lake.bus)
        for step in swapped.values():
            on_step(step)
    return list(done.values()), failures


def _may_be_of_one_object(error: Exception) -> bool:
    """Whether the store may give what the other hours stand on."""
    return isinstance(error, StoreDenied) and not isinstance(error, BucketMissing)


def _strays(lake: Lake, task: Task) -> tuple[Strays, list[Failure]]:
    """Records of this day's objects that readers lack: rejected once and not now, or out of sight since.

    Nothing is brought back that is past its retention. A failure is an object that must be read for it and cannot be.
    """
    frequency_ms, now_ms = SIGNALS[task.signal].frequency_ms, time.time_ns() // 1_000_000
    with lake.lrdb.connection() as conn:
        kept = expiry.first_kept(conn, task.source.organization_id, task.signal, frequency_ms, now_ms)
        unseen = standing.unseen_objects(conn, task.source, task.signal, task.dateint) if task.dateint >= kept else []
        rejecting = standing.rejecting_objects(conn, task.source, task.signal, task.dateint)
        seen = standing.records_by_hour(conn, task.source, task.signal, [raw.raw_object_id for raw in rejecting])
    # An object that is seen on this day is read for its hours in any case.
    elsewhere = [raw for raw in rejecting if task.dateint not in {hour.dateint for hour in seen[raw.raw_object_id]}]
    objects = {raw.raw_object_id: raw for raw in [*elsewhere, *unseen]}
    needed = {raw.raw_object_id for raw in unseen}
    strays = find_strays(lake, task, objects.values())
    failures = [
        Failure(f"{objects[id_].bucket}/{objects[id_].key}", type(error).__name__, str(error))
        for id_, error in strays.unreadable.items()
        if id_ in needed or isinstance(error, StoreDenied)
    ]
    return strays, failures
