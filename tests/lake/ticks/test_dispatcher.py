"""Which runs a dispatcher asks for: every one that is needed, none twice, whatever Kafka brings or forgets."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any
from uuid import UUID, uuid4

import pytest

from lakerunner_dagster.lake import bus as kafka
from lakerunner_dagster.lake.bus import Bus
from lakerunner_dagster.lake.lrdb import dead_letters, profiles
from lakerunner_dagster.lake.model import HOUR_MS, Message
from lakerunner_dagster.lake.signals import Signal
from lakerunner_dagster.lake.stages import ingest_stage
from lakerunner_dagster.lake.ticks.dispatcher import Dispatch, DispatcherTick
from tests.lake.requests import expected, logs
from tests.lake.world import BUCKET, COLLECTOR, DAY, NOON_MS, ORGANIZATION, World, now_ms, soon
from tests.waiting import eventually

TOPIC = ingest_stage(Signal.LOGS).box_topic
TEN = NOON_MS - 2 * HOUR_MS
DAY_MS = 24 * HOUR_MS


def box_days(world: World, days: int, organization: UUID = ORGANIZATION, collector: str = COLLECTOR) -> None:
    """An open box of a source on each of so many days."""
    for number in range(days):
        name = f"f{number}"
        key = world.put(Signal.LOGS, name, logs(name, [TEN]), organization=organization, collector=collector)
        world.notify(key, event_time_ms=NOON_MS + number * DAY_MS)
    world.box(Signal.LOGS)


def dispatched(world: World, *active: str, room: int = 100) -> list[Dispatch]:
    """What a tick asks for while the sources of these keys have runs."""
    tick = DispatcherTick(world.lake, ingest_stage(Signal.LOGS))
    return tick.run(lambda: active, len(active) + room, now_ms(), soon())


def places(dispatches: Sequence[Dispatch]) -> list[tuple[str, int]]:
    return [(dispatch.source.key, dispatch.dateint) for dispatch in dispatches]


def test_a_waiting_partition_gets_one_run_for_all_its_boxes(world: World) -> None:
    box_days(world, 2)
    world.send(Signal.LOGS, "more", logs("more", [TEN]))
    world.box(Signal.LOGS)
    (first,) = dispatched(world)
    assert (first.source, first.dateint, first.box_ids) == (world.source, DAY, (1, 3))
    assert first.run_key.startswith("logs.ingest/acme/edge/2026-02-03/")
    (second,) = dispatched(world)
    assert (second.dateint, second.box_ids) == (20260204, (2,))
    assert dispatched(world) == []


def test_no_more_runs_are_asked_for_than_there_is_room(world: World) -> None:
    for collector in ("a", "b", "c"):
        box_days(world, 1, collector=collector)
    assert dispatched(world, "acme/x", room=0) == []
    assert dispatched(world, "acme/x", room=-1) == []
    assert places(dispatched(world, "acme/x", room=1)) == [("acme/a", DAY)]
    assert places(dispatched(world)) == [("acme/b", DAY), ("acme/c", DAY)]


def test_days_of_one_source_whose_lane_lets_one_go_at_a_time_take_no_places_of_others(world: World) -> None:
    box_days(world, 7)
    box_days(world, 1, collector="late")
    assert places(dispatched(world, room=4)) == [("acme/edge", DAY), ("acme/late", DAY)]
    assert dispatched(world, "acme/edge") == []
    assert places(dispatched(world)) == [("acme/edge", 20260204)]


def test_an_organization_that_is_late_need_not_wait_for_the_backlog_of_another(world: World) -> None:
    for collector in ("a", "b", "c"):
        box_days(world, 1, collector=collector)
    globex = uuid4()
    with world.lake.lrdb.transaction() as conn:
        profiles.add_organization(conn, "globex", globex)
    box_days(world, 1, organization=globex, collector="late")
    assert places(dispatched(world, "acme/x", room=2)) == [("globex/late", DAY), ("acme/a", DAY)]


def test_a_dispatch_that_led_to_no_run_is_made_again_under_another_key(world: World) -> None:
    box_days(world, 1)
    (first,) = dispatched(world)
    again: list[Dispatch] = []

    def asked_again() -> bool:
        again.extend(dispatched(world))
        return bool(again)

    eventually(asked_again, "the run is asked for again")
    assert again[0].box_ids == first.box_ids
    assert again[0].run_key != first.run_key


def test_a_box_that_a_run_gave_back_is_dispatched_under_another_key(world: World) -> None:
    box_days(world, 1)
    (first,) = dispatched(world)
    with world.lake.lrdb.transaction() as conn:
        conn.execute("UPDATE boxes SET attempts = 1, claimed_at = now()")
    (second,) = dispatched(world)
    assert second.run_key != first.run_key


def foreign(*keys: str, **changes: Any) -> dict[str, Any]:
    """A box of Lakerunner's own boxer: no key of ours in it."""
    members = [
        {"o": str(ORGANIZATION), "i": 1, "b": BUCKET, "k": key, "s": 10, "t": "2026-02-03T12:00:00Z"} | changes
        for key in keys
    ]
    return {"v": 1, "m": members, "q": "2026-02-03T12:00:01Z"}


def test_a_box_of_another_boxer_becomes_rows_and_a_box_of_ours(world: World) -> None:
    keys = [world.put(Signal.LOGS, name, logs(name, [TEN])) for name in ("a", "b")]
    for _ in range(2):
        world.lake.bus.produce([Message(TOPIC, "key", foreign(*keys))], 10)
        dispatched(world)
    world.drain(Signal.LOGS)
    assert world.messages() == expected(a=1, b=1)
    world.lake.bus.produce([Message(TOPIC, "key", foreign(*keys))], 10)
    dispatched(world)
    (step,) = world.drain(Signal.LOGS)
    assert step.objects == 0, "an object was ingested again that is known under its etag"
    assert world.messages() == expected(a=1, b=1)
    assert world.breaches() == []


def test_a_box_that_lrdb_has_forgotten_is_taken_up_again(world: World) -> None:
    world.send(Signal.LOGS, "a", logs("a", [TEN]))
    world.box(Signal.LOGS)
    with world.lake.lrdb.transaction() as conn:
        conn.execute("DELETE FROM raw_objects")
        conn.execute("DELETE FROM boxes")
    assert len(dispatched(world)) == 1
    world.drain(Signal.LOGS)
    assert world.messages() == expected(a=1)


def test_what_is_no_box_is_kept_and_what_is_one_goes_on(world: World) -> None:
    key = world.put(Signal.LOGS, "a", logs("a", [TEN]))
    kept: list[dict[str, Any]] = [
        {},
        {"v": 1},
        {"v": 1, "m": "x"},
        {"v": 1, "m": [1, [], {"k": "../x"}], "box": None},
        {"box": 2**70, "m": [{}]},
        foreign("a", o=str(uuid4())),
        foreign("a", b="unheard-of"),
    ]
    bodies = [*kept, {"box": True, "m": []}, foreign(key)]
    world.lake.bus.produce([Message(TOPIC, "key", body) for body in bodies], 10)
    assert len(dispatched(world)) == 1
    with world.lake.lrdb.connection() as conn:
        assert len(dead_letters.waiting(conn, 100)) == len(kept)
    assert world.drain(Signal.LOGS)
    assert world.messages() == expected(a=1)
    assert world.breaches() == []


def test_while_kafka_is_away_runs_are_asked_for_all_the_same(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kafka, "REQUEST_SECONDS", 0.5)
    box_days(world, 1)
    away = replace(world.lake, bus=Bus("127.0.0.1:1", prefix=world.place.prefix))
    assert len(DispatcherTick(away, ingest_stage(Signal.LOGS)).run(set, 1, now_ms(), soon())) == 1
