"""A day done hour by hour, as a person asks for it: an hour that cannot be done keeps no other from being done.

What belongs here: going through the hours, and what is told in the end. What does not: which hours these are and what
is done with one (``full_compaction``, ``full_rollup``).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable

from lakerunner_dagster.lake.model import Source
from lakerunner_dagster.lake.planning.compaction import SegmentGroup
from lakerunner_dagster.lake.runs.context import Lake
from lakerunner_dagster.lake.runs.drain import OUTAGES, require_complete
from lakerunner_dagster.lake.runs.report import DrainReport, Failure, OnStep, Step
from lakerunner_dagster.lake.ticks.outbox import announce

logger = logging.getLogger(__name__)

EMPTY = DrainReport((), ())


def hour_by_hour(
    lake: Lake,
    source: Source,
    dateint: int,
    groups: Iterable[SegmentGroup],
    do: Callable[[SegmentGroup, OnStep], None],
    *,
    on_step: OnStep,
    before: DrainReport = EMPTY,
) -> DrainReport:
    """Do each hour, telling each committed step; the report has what went ``before`` too.

    Raises WorkIncomplete at the end when anything could not be done. An outage ends it early: the next hour would meet
    it too.
    """
    steps: list[Step] = list(before.steps)
    failures: list[Failure] = list(before.failures)

    def committed(step: Step) -> None:
        steps.append(step)
        announce(lake.lrdb, lake.bus)
        on_step(step)

    for group in groups:
        try:
            do(group, committed)
        except Exception as error:  # noqa: BLE001  # whatever ails this hour, the others are to be done
            what = f"{dateint} {group.hour:02d}h" + (
                f" of {group.frequency_ms // 1000} s" if group.frequency_ms else ""
            )
            logger.warning("%s is not done: %s", what, error)
            failures.append(Failure(what, type(error).__name__, str(error)))
            if isinstance(error, OUTAGES):
                break
    require_complete(source, dateint, failures)
    return DrainReport(tuple(steps), tuple(failures))
