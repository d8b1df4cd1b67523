"""The rebuild of a day: its published segments are computed anew from the raw objects and replaced hour by hour.

What belongs here: finding the day's raw objects and the order of steps. What does not: bytes to segments
(``transform``), the swap itself (``lrdb.publish``).
"""

from __future__ import annotations

from lakerunner_dagster.lake.model import Source
from lakerunner_dagster.lake.runs.context import Lake
from lakerunner_dagster.lake.runs.report import OnStep, RebuildReport
from lakerunner_dagster.lake.signals import Signal


def rebuild(lake: Lake, signal: Signal, source: Source, dateint: int, *, run_id: str, on_hour: OnStep) -> RebuildReport:
    """Ingest what the day still misses, then replace each of its hours by what its raw objects say now.

    Doing it twice changes nothing. Raises WorkIncomplete at the end when a box or an hour could not be done: each
    such hour is as it was.
    """
    raise NotImplementedError
