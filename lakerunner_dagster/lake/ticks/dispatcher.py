"""The dispatcher's tick: which partitions have boxes waiting, and so need a run.

What belongs here: hearing ``segments.*.ingest``, taking up foreign boxes, choosing partitions. What does not: starting
the run (the sensor does), and what the run does (``runs``).
"""

from __future__ import annotations

from collections.abc import Set as AbstractSet
from dataclasses import dataclass

from lakerunner_dagster.lake.model import Source
from lakerunner_dagster.lake.runs.context import Lake
from lakerunner_dagster.lake.signals import Signal


@dataclass(frozen=True, slots=True)
class Dispatch:
    """A partition that needs a run, and the boxes that it is started for.

    ``run_key`` is a function of the boxes and of how often each was claimed and dispatched before.
    """

    source: Source
    dateint: int
    box_ids: tuple[int, ...]
    run_key: str


class DispatcherTick:
    """One signal's dispatcher. It outlives a tick, so that its consumer does."""

    def __init__(self, lake: Lake, signal: Signal) -> None:
        self._lake = lake
        self._signal = signal

    def run(self, active: AbstractSet[tuple[str, int]], room: int, now_ms: int, deadline: float) -> list[Dispatch]:
        """One tick. ``active`` are the (source key, dateint) of runs queued or going, ``room`` how many more may start.

        ``deadline`` is of ``time.monotonic()``: Kafka is polled no longer.
        """
        raise NotImplementedError
