"""The compaction of a whole day, as a person asks for it: every hour down to its final files.

What belongs here: which hours, in which order, and what is told when one cannot be done. What does not: compacting an
hour (``compaction``).
"""

from __future__ import annotations

import logging

from lakerunner_dagster.lake.lrdb import boxes, faults, unsettled
from lakerunner_dagster.lake.model import Source
from lakerunner_dagster.lake.runs.compaction import compact_hour
from lakerunner_dagster.lake.runs.context import Lake
from lakerunner_dagster.lake.runs.drain import OUTAGES, require_complete, work_off
from lakerunner_dagster.lake.runs.report import DrainReport, Failure, OnStep, Step
from lakerunner_dagster.lake.signals import Signal
from lakerunner_dagster.lake.stages import compaction_stage
from lakerunner_dagster.lake.ticks.outbox import announce

logger = logging.getLogger(__name__)


def compact_day(
    lake: Lake, signal: Signal, source: Source, dateint: int, *, run_id: str, on_step: OnStep
) -> DrainReport:
    """Compact every hour and tier of a day fully; twice changes nothing. What had failed or was set aside is tried too.

    Raises WorkIncomplete at the end when a box or an hour could not be done: each is as it was, or partly merged.
    """
    stage = compaction_stage(signal)
    with lake.lrdb.transaction() as conn:
        boxes.reopen_failed(conn, stage.name, source, dateint)
        faults.make_day_due(conn, source, signal, dateint)
    drained = work_off(lake, stage, source, dateint, run_id=run_id, on_step=on_step)
    steps = list(drained.steps)
    failures = list(drained.failures)

    def committed(step: Step) -> None:
        steps.append(step)
        announce(lake.lrdb, lake.bus)
        on_step(step)

    with lake.lrdb.connection() as conn:
        groups = unsettled.of_day(conn, source, signal, dateint)
    for group in groups:
        try:
            compact_hour(lake, source, group, run_id=run_id, on_step=committed)
        except Exception as error:  # noqa: BLE001  # whatever ails this hour, the others are to be done
            logger.warning("%d %02dh is not compacted: %s", dateint, group.hour, error)
            failures.append(Failure(unsettled.grouping_key(group), type(error).__name__, str(error)))
            if isinstance(error, OUTAGES):
                break
    require_complete(source, dateint, failures)
    return DrainReport(tuple(steps), tuple(failures))
