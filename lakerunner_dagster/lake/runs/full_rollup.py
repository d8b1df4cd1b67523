"""The rebuild of a day of a tier, as a person asks for it: every hour computed anew from the finer tier.

What belongs here: which hours, and what is marked before. What does not: going through them (``by_hour``),
computing one (``rollup``).
"""

from __future__ import annotations

from lakerunner_dagster.lake.errors import RequestRefused
from lakerunner_dagster.lake.lrdb import boxes, faults, slots
from lakerunner_dagster.lake.model import Source, date_of
from lakerunner_dagster.lake.planning.compaction import SegmentGroup
from lakerunner_dagster.lake.runs.by_hour import hour_by_hour
from lakerunner_dagster.lake.runs.context import Lake
from lakerunner_dagster.lake.runs.report import DrainReport, OnStep
from lakerunner_dagster.lake.runs.rollup import is_past_retention, roll_up_hour
from lakerunner_dagster.lake.stages import rollup_stage
from lakerunner_dagster.lake.tiers import ROLLED_UP, Tier


def roll_up_day(lake: Lake, tier: Tier, source: Source, dateint: int, *, run_id: str, on_step: OnStep) -> DrainReport:
    """Compute every hour of a tier's day anew; twice changes nothing. What had failed is tried too.

    Until an hour is done its slots are dirty: killed anywhere, the stage goes on with it. Raises RequestRefused where
    the finer tier has expired, and WorkIncomplete at the end when an hour could not be done: it is as it was.
    """
    with lake.lrdb.transaction() as conn:
        if is_past_retention(conn, source, tier, dateint):
            raise RequestRefused(
                f"{source.key} {date_of(dateint)}: the tier of {tier.finer_ms // 1000} s is past its retention, so the "
                f"{tier.label} tier can be computed from nothing: it stays as it is"
            )
        boxes.reopen_failed(conn, rollup_stage().name, source, dateint, frequency_ms=tier.frequency_ms)
        faults.make_day_due(conn, source, ROLLED_UP, dateint)
        hours = slots.of_day(conn, source, tier, dateint)
        slots.mark(conn, [slot for group in hours for slot in slots.of_group(group)])

    def roll_up(group: SegmentGroup, committed: OnStep) -> None:
        roll_up_hour(lake, source, group, run_id=run_id, on_step=committed)

    return hour_by_hour(lake, source, dateint, hours, roll_up, on_step=on_step)
