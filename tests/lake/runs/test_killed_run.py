"""A run killed anywhere, and run again: one visible copy, exact counts, the same objects."""

from __future__ import annotations

from collections import Counter

from lakerunner_dagster.lake.lrdb import profiles
from lakerunner_dagster.lake.model import HOUR_MS, Source, dateint_of
from lakerunner_dagster.lake.runs.context import Lake
from lakerunner_dagster.lake.runs.drain import drain
from lakerunner_dagster.lake.runs.rebuild import rebuild
from lakerunner_dagster.lake.runs.report import Step
from lakerunner_dagster.lake.signals import Signal
from lakerunner_dagster.lake.stages import ingest_stage
from tests.lake.killing import kill_everywhere
from tests.lake.requests import logs
from tests.lake.world import COLLECTOR, NOON_MS, ORGANIZATION, World

DAYS = 24
"""Partitions that are made ready: more than a run has boundaries, each of which is tried in a partition of its own."""

DAY_MS = 24 * HOUR_MS


def noon(number: int) -> int:
    """Noon of a partition's day."""
    return NOON_MS + number * DAY_MS


def send_days(world: World, names: tuple[str, ...], hours: int) -> Counter[str]:
    """A raw object of each name on each day, with a record of each of so many hours; the messages to be."""
    for number in range(DAYS):
        for name in names:
            times = [noon(number) - ago * HOUR_MS for ago in range(hours)]
            world.put(Signal.LOGS, f"{name}-{number}", logs(f"{name}-{number}", times))
    for number in range(DAYS):
        keys = [f"otel-raw/{ORGANIZATION}/{COLLECTOR}/logs/{name}-{number}" for name in names]
        world.notify(*keys, event_time_ms=noon(number))
    return Counter(f"{name}-{number} {record}" for name in names for number in range(DAYS) for record in range(hours))


def source_in(lake: Lake) -> Source:
    with lake.lrdb.connection() as conn:
        source = profiles.source_of(conn, ORGANIZATION, COLLECTOR)
    assert source is not None
    return source


def drain_day(lake: Lake, number: int) -> None:
    drain(
        lake,
        ingest_stage(Signal.LOGS),
        source_in(lake),
        dateint_of(noon(number)),
        run_id=f"killed-{number}",
        on_step=_ignore,
    )


def rebuild_day(lake: Lake, number: int) -> None:
    rebuild(lake, Signal.LOGS, source_in(lake), dateint_of(noon(number)), run_id=f"killed-{number}", on_step=_ignore)


def _ignore(_: Step) -> None:
    return


def unpublished_files(world: World) -> set[str]:
    ids = {str(segment_id) for _, segment_id, _ in world.published(Signal.LOGS)}
    return {path.stem.removeprefix("tbl_") for path in world.segment_files()} - ids


def test_an_ingest_run_killed_at_each_boundary_and_run_again_leaves_one_copy(world: World) -> None:
    sent = send_days(world, ("a", "b", "c"), hours=2)
    world.box(Signal.LOGS)
    boundaries = kill_everywhere(world.place, drain_day)
    assert {
        "after a read",
        "after an upload",
        "before a commit",
        "after a commit",
        "before messages are sent",
        "after messages are sent",
    } <= set(boundaries)

    world.expire_leases()
    world.drain(Signal.LOGS)
    assert world.messages() == sent
    assert len(boundaries) < DAYS
    assert unpublished_files(world) == set()
    assert world.query("SELECT count(*) FROM outbox") == [(0,)]
    assert world.breaches() == []


def test_a_rebuild_killed_at_each_boundary_and_run_again_leaves_one_copy(world: World) -> None:
    sent = send_days(world, ("a",), hours=1)
    world.ingest(Signal.LOGS)
    boundaries = kill_everywhere(world.place, rebuild_day)
    assert {"after a read", "after an upload", "before a commit", "after a commit"} <= set(boundaries)
    assert len(boundaries) < DAYS
    assert world.messages() == sent
    assert world.breaches() == []

    for number in range(1, len(boundaries) + 1):
        rebuild_day(world.lake, number)
    assert world.messages() == sent
    assert world.breaches() == []
