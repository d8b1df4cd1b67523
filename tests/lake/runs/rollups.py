"""A lake of metrics for the tests of rollup: what is sent, and what its tiers then have."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from lakerunner_dagster.lake.lrdb import profiles
from lakerunner_dagster.lake.model import HOUR_MS
from lakerunner_dagster.lake.runs.full_rollup import roll_up_day
from lakerunner_dagster.lake.runs.report import Step
from lakerunner_dagster.lake.signals import Signal
from lakerunner_dagster.lake.stages import rollup_stage
from lakerunner_dagster.lake.tiers import TIERS
from tests.lake.requests import gauges
from tests.lake.world import DAY, NOON_MS, World

TEN = NOON_MS - 2 * HOUR_MS
ELEVEN = NOON_MS - HOUR_MS
SECOND = 1000
MINUTE = 60_000
STAGE = rollup_stage()
METRICS = Signal.METRICS

FACTS = "sum(chq_points)::bigint, sum(chq_rollup_count), sum(chq_rollup_sum), min(chq_rollup_min), max(chq_rollup_max)"
ROWS = (
    "chq_timestamp, metric_name, chq_tid, chq_points, chq_rollup_count, chq_rollup_sum, chq_rollup_min, chq_rollup_max,"
    " chq_rollup_avg, chq_last, chq_rollup_p50, chq_rollup_p99, chq_sketch"
)


def send(world: World, name: str, data: bytes, event_time_ms: int = TEN) -> None:
    world.send(METRICS, name, data, event_time_ms=event_time_ms)
    world.ingest(METRICS)


def gauge(world: World, name: str, start_ms: int, points: int = 60, every_ms: int = 10 * SECOND) -> None:
    send(world, name, gauges("queue.length", [start_ms + number * every_ms for number in range(points)]), start_ms)


def rows(world: World, frequency_ms: int) -> list[tuple[Any, ...]]:
    return sorted(world.select(METRICS, ROWS, frequency_ms), key=repr)


def dirty(world: World) -> list[tuple[int, int]]:
    return world.query("SELECT frequency_ms, slot_ms FROM dirty_slots ORDER BY 1, 2")


def increments(world: World, frequency_ms: int) -> dict[int, float]:
    """The sum of each bucket, by its time after ten o'clock in ms."""
    pairs = world.select(METRICS, "chq_timestamp, chq_rollup_sum", frequency_ms)
    sums: dict[int, float] = {}
    for time_ms, value in pairs:
        sums[time_ms - TEN] = sums.get(time_ms - TEN, 0.0) + value
    return sums


def rebuilt(world: World, frequency_ms: int) -> list[Step]:
    steps: list[Step] = []
    roll_up_day(world.lake, TIERS[frequency_ms], world.source, DAY, run_id="hand", on_step=steps.append)
    return steps


@contextmanager
def retained(world: World, days: int, frequency_ms: int = 10_000) -> Iterator[None]:
    with world.lake.lrdb.transaction() as conn:
        profiles.set_retention(conn, world.source.organization_id, METRICS, days, frequency_ms=frequency_ms)
    yield
