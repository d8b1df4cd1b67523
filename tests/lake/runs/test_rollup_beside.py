"""What others publish while slots are computed: it is seen, or the slots stay dirty; and nobody waits for ever."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import pytest

from lakerunner_dagster.lake.lrdb import rolling, unsettled
from lakerunner_dagster.lake.runs.full_compaction import compact_day
from tests.lake.requests import counter
from tests.lake.runs.rollups import (
    FACTS,
    METRICS,
    MINUTE,
    SECOND,
    STAGE,
    TEN,
    dirty,
    gauge,
    increments,
    rebuilt,
    send,
)
from tests.lake.world import DAY, World
from tests.waiting import eventually


def published_before(monkeypatch: pytest.MonkeyPatch, happens: Callable[[], object]) -> None:
    """Let something happen between what the next rollup has read and its transaction."""
    real = rolling.publish_rollup
    armed = [True]

    def publish(*arguments: Any, **named: Any) -> Any:
        if armed:
            armed.pop()
            with monkeypatch.context() as patched:
                patched.setattr(rolling, "publish_rollup", real)
                happens()
        return real(*arguments, **named)

    monkeypatch.setattr(rolling, "publish_rollup", publish)


def test_what_comes_while_a_slot_is_computed_leaves_it_dirty(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    gauge(world, "a", TEN)
    world.box_stage(STAGE)
    published_before(monkeypatch, lambda: gauge(world, "b", TEN + 5 * MINUTE, points=6))
    world.drain_stage(STAGE)
    assert (60_000, TEN) in dirty(world)
    assert world.query("SELECT count(*) FROM metric_seg WHERE frequency_ms = 10000 AND rolledup") == [(0,)]
    world.roll_up()
    assert world.select(METRICS, FACTS, 60_000) == world.select(METRICS, FACTS)
    assert world.breaches() == []


def test_a_value_that_comes_before_a_slot_while_it_is_computed_is_counted_once(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    send(world, "a", counter("requests", [(TEN + 9 * MINUTE + 40 * SECOND, 100.0)], TEN))
    world.roll_up()
    send(world, "b", counter("requests", [(TEN + 10 * MINUTE + 5 * SECOND, 160.0)], TEN))
    world.box_stage(STAGE)
    late = counter("requests", [(TEN + 9 * MINUTE + 50 * SECOND, 150.0)], TEN)
    published_before(monkeypatch, lambda: send(world, "late", late))
    world.drain_stage(STAGE)
    assert (60_000, TEN + 10 * MINUTE) in dirty(world)
    world.roll_up()
    assert increments(world, 60_000) == {9 * MINUTE: 150.0, 10 * MINUTE: 10.0}
    assert increments(world, 3_600_000) == {0: 160.0}
    assert world.breaches() == []


def test_a_rebuild_beside_the_stage_never_doubles_a_point(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    gauge(world, "a", TEN, points=360)
    world.box_stage(STAGE)
    published_before(monkeypatch, lambda: rebuilt(world, 60_000))
    world.drain_stage(STAGE)
    assert world.select(METRICS, FACTS, 60_000) == world.select(METRICS, FACTS)
    world.roll_up()
    assert world.breaches() == []


def test_a_compaction_of_the_finer_tier_beside_a_rollup_loses_nothing(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    gauge(world, "a", TEN)
    gauge(world, "b", TEN)
    world.box_stage(STAGE)
    published_before(
        monkeypatch,
        lambda: compact_day(world.lake, METRICS, world.source, DAY, run_id="hand", on_step=lambda _: None),
    )
    world.drain_stage(STAGE)
    world.roll_up()
    assert world.select(METRICS, FACTS, 60_000) == world.select(METRICS, FACTS)
    assert world.query("SELECT DISTINCT rolledup FROM metric_seg WHERE frequency_ms = 10000 AND published") == [(True,)]
    assert world.breaches() == []


def test_a_rollup_and_the_boxer_of_compaction_never_wait_in_a_circle(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    gauge(world, "a", TEN)
    world.roll_up()
    gauge(world, "b", TEN + 10 * MINUTE)
    world.box_stage(STAGE)
    told = [one for tier in (10_000, 60_000) for _, one, _ in world.published(METRICS, tier)]
    waiting = "SELECT FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
    real = rolling._note_rolled_up

    def hear() -> int:
        with world.lake.lrdb.transaction() as conn:
            return unsettled.wake(conn, world.source.organization_id, DAY, METRICS, told)

    with ThreadPoolExecutor(1) as boxer:
        heard: list[Future[int]] = []

        def note(*arguments: Any) -> None:
            heard.append(boxer.submit(hear))
            eventually(lambda: bool(world.query(waiting)), "the boxer waits for the rollup")
            real(*arguments)

        monkeypatch.setattr(rolling, "_note_rolled_up", note)
        world.drain_stage(STAGE)
        assert [future.result() for future in heard] == [0]
