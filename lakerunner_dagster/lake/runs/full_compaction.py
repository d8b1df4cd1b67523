"""The compaction of a whole day, as a person asks for it: every hour down to its final files.

What belongs here: which hours, and what is tried before. What does not: going through them (``by_hour``),
compacting one (``compaction``).
"""

from __future__ import annotations

from lakerunner_dagster.lake.lrdb import boxes, faults, unsettled
from lakerunner_dagster.lake.model import Source
from lakerunner_dagster.lake.planning.compaction import SegmentGroup
from lakerunner_dagster.lake.runs.by_hour import hour_by_hour
from lakerunner_dagster.lake.runs.compaction import compact_hour
from lakerunner_dagster.lake.runs.context import Lake
from lakerunner_dagster.lake.runs.drain import work_off
from lakerunner_dagster.lake.runs.report import DrainReport, OnStep
from lakerunner_dagster.lake.signals import Signal
from lakerunner_dagster.lake.stages import compaction_stage


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
    with lake.lrdb.connection() as conn:
        groups = unsettled.of_day(conn, source, signal, dateint)

    def compact(group: SegmentGroup, committed: OnStep) -> None:
        compact_hour(lake, source, group, run_id=run_id, on_step=committed)

    return hour_by_hour(lake, source, dateint, groups, compact, on_step=on_step, before=drained)
