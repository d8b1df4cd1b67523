"""The ingest run: claims the boxes that wait for a partition, one after the other, and publishes each in one transaction.

What belongs here: the life of a claimed box, from lease to outbox. What does not: bytes to segments (``transform``),
what the publishing transaction does (``lrdb.publish``).
"""

from __future__ import annotations

from lakerunner_dagster.lake.model import Source
from lakerunner_dagster.lake.runs.context import Lake
from lakerunner_dagster.lake.runs.report import DrainReport, OnStep
from lakerunner_dagster.lake.signals import Signal


def drain(lake: Lake, signal: Signal, source: Source, dateint: int, run_id: str, on_box: OnStep) -> DrainReport:
    """Work off every box that waits for (source, dateint), until none does.

    A box that cannot be done is given back with its error and a back-off, and the run goes on with the next.
    Raises WorkIncomplete at the end when any box was given back.
    """
    raise NotImplementedError
