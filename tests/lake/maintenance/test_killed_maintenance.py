"""Maintenance killed between any two steps, and taken again: nothing that readers see goes, nothing is left over."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest

from lakerunner_dagster.lake.lrdb import profiles
from lakerunner_dagster.lake.model import RawState
from lakerunner_dagster.lake.runs.context import Lake
from lakerunner_dagster.lake.signals import Signal
from tests.lake.killing import kill_everywhere
from tests.lake.maintenance.turns import DAY_MS, LATER_MS, old_object, rebuild_day, turn
from tests.lake.requests import expected, logs
from tests.lake.world import DAY, NOON_MS, ORGANIZATION, World
from tests.waiting import eventually

MOST = 40
"""More boundaries than a turn of one job has."""


def one_turn(name: str, lake: Lake, _: int) -> None:
    turn(lake, name)


def replace_a_day(world: World, number: int) -> set[str]:
    """A day is ingested and rebuilt; the names of its objects."""
    noon = NOON_MS + number * DAY_MS
    world.send(Signal.LOGS, f"seen{number}", logs(f"seen{number}", [noon]), event_time_ms=noon)
    world.ingest(Signal.LOGS)
    rebuild_day(world, noon_ms=noon)
    return {f"seen{number}"}


def let_a_day_expire(world: World, number: int) -> set[str]:
    old = NOON_MS - number * DAY_MS
    world.send(Signal.LOGS, f"old{number}", logs(f"old{number}", [old]), event_time_ms=old)
    world.ingest(Signal.LOGS)
    return set()


def leave_orphans(world: World, number: int) -> set[str]:
    for signal in Signal:
        old_object(world, f"db/{ORGANIZATION}/edge/{DAY}/{signal}/12/tbl_{number}.parquet")
    return replace_a_day(world, number)


def tell_nobody(world: World, number: int) -> set[str]:
    world.put(Signal.LOGS, f"untold{number}", logs(f"untold{number}", [NOON_MS]))
    return {f"untold{number}"}


JOBS: dict[str, tuple[Callable[[World, int], set[str]], set[str]]] = {
    "reconcile": (tell_nobody, {"before messages are sent", "after messages are sent"}),
    "retention": (let_a_day_expire, {"before a commit", "after a commit"}),
    "superseded": (replace_a_day, {"before a commit", "after a commit", "after a delete"}),
    "orphans": (leave_orphans, {"before a commit", "after a commit", "after a delete"}),
}
"""By job: what gives it something to do (and what readers must see of it at the end), and some of its boundaries."""


@pytest.mark.parametrize("job", JOBS)
def test_a_job_killed_at_each_boundary_and_taken_again_leaves_what_readers_see(world: World, job: str) -> None:
    prepare, expected_boundaries = JOBS[job]
    with world.lake.lrdb.transaction() as conn:
        profiles.set_retention(conn, ORGANIZATION, Signal.LOGS, (LATER_MS - NOON_MS) // DAY_MS)
    seen: set[str] = set()

    def before(number: int) -> None:
        world.select(Signal.LOGS, "1")  # each published segment has its object, once
        seen.update(prepare(world, number))

    boundaries = kill_everywhere(world.place, partial(one_turn, job), before)
    assert expected_boundaries <= set(boundaries)
    assert len(boundaries) < MOST

    for name in (*JOBS, "superseded"):
        turn(world.lake, name)
    gather_all(world)
    assert world.messages() == expected(**dict.fromkeys(seen, 1))
    assert world.breaches() == []
    published = {segment_id for _, segment_id, _ in world.published(Signal.LOGS)}
    assert {int(path.stem.removeprefix("tbl_")) for path in world.segment_files()} == published
    assert world.query("SELECT count(*) FROM deletions WHERE confirmed_at IS NULL") == [(0,)]
    assert world.query("SELECT count(*) FROM log_seg WHERE NOT published") == [(0,)]


def gather_all(world: World) -> None:
    """Ingest until every object in the bucket is."""
    raw = len([path for path in world.place.bucket.glob("otel-raw/**/*") if path.is_file()])

    def ingested() -> bool:
        world.ingest(Signal.LOGS)
        return list(world.objects().values()).count(RawState.INGESTED) == raw

    eventually(ingested, f"{raw} objects are ingested")
