"""The boxer's tick: notifications from Kafka become rows of lrdb, and rows that wait become boxes.

What belongs here: hearing ``objstore.ingest.*`` and the one transaction that makes it durable. What does not: which rows
make a box (``planning.boxer``), how they are stored (``lrdb``).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from lakerunner_dagster.lake.model import Source
from lakerunner_dagster.lake.runs.context import Lake
from lakerunner_dagster.lake.signals import Signal


@dataclass(frozen=True, slots=True)
class Observed:
    """New raw objects of one source and day: how many, and their stored bytes."""

    objects: int
    bytes: int


@dataclass(frozen=True, slots=True)
class BoxerReport:
    """What a tick did. ``observed`` counts new raw objects by (source, dateint of their event time)."""

    received: int
    new: int
    duplicates: int
    dead: int
    boxes: int
    observed: Mapping[tuple[Source, int], Observed]
    outbox_published: int


class BoxerTick:
    """One signal's boxer. It outlives a tick, so that its consumer does."""

    def __init__(self, lake: Lake, signal: Signal) -> None:
        self._lake = lake
        self._signal = signal

    def run(self, now_ms: int, deadline: float) -> BoxerReport:
        """One tick. ``deadline`` is of ``time.monotonic()``: no further batch is polled after it."""
        raise NotImplementedError
