"""A sensor's tick killed anywhere, and Kafka taken away: work is delayed, and none of it lost or done twice."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from lakerunner_dagster.lake.model import HOUR_MS
from lakerunner_dagster.lake.runs.context import Lake
from lakerunner_dagster.lake.settings import BoxPolicy
from lakerunner_dagster.lake.signals import Signal
from lakerunner_dagster.lake.stages import ingest_stage
from lakerunner_dagster.lake.ticks.boxer import BoxerTick
from lakerunner_dagster.lake.ticks.dispatcher import DispatcherTick
from lakerunner_dagster.local.kafka import KafkaServer
from tests.lake.killing import kill_everywhere
from tests.lake.requests import expected, logs
from tests.lake.world import DAY, NOON_MS, Place, World, now_ms, soon, world_in
from tests.waiting import eventually

TEN = NOON_MS - 2 * HOUR_MS
DAY_MS = 24 * HOUR_MS


def boxer_tick(lake: Lake, _number: int) -> None:
    BoxerTick(lake, ingest_stage(Signal.LOGS)).run(now_ms(), soon())


def dispatcher_tick(lake: Lake, _number: int) -> None:
    DispatcherTick(lake, ingest_stage(Signal.LOGS)).run(set, 100, now_ms(), soon())


def test_a_boxer_killed_at_each_boundary_makes_one_row_of_each_object(world: World) -> None:
    sent: dict[str, int] = {}

    def two_more(number: int) -> None:
        for name in (f"a{number}", f"b{number}"):
            world.send(Signal.LOGS, name, logs(name, [TEN]))
            sent[name] = 1

    boundaries = kill_everywhere(world.place, boxer_tick, before=two_more)
    assert set(boundaries) == {
        "after a poll",
        "before a commit",
        "after a commit",
        "before offsets are committed",
        "after offsets are committed",
        "before messages are sent",
        "after messages are sent",
    }
    world.ingest(Signal.LOGS)
    assert world.messages() == expected(**sent)
    assert world.query("SELECT count(*) FROM raw_objects") == [(len(sent),)]
    assert world.query("SELECT count(*) FROM outbox") == [(0,)]
    assert world.breaches() == []


def test_a_dispatcher_killed_at_each_boundary_leaves_every_partition_to_be_dispatched(world: World) -> None:
    def another_partition(number: int) -> None:
        time_ms = NOON_MS + number * DAY_MS
        world.send(Signal.LOGS, f"f{number}", logs(f"f{number}", [TEN]), event_time_ms=time_ms)
        world.box(Signal.LOGS)

    boundaries = kill_everywhere(world.place, dispatcher_tick, before=another_partition)
    assert {"after a poll", "before a commit", "after a commit", "after offsets are committed"} <= set(boundaries)
    waiting = set(world.partitions(ingest_stage(Signal.LOGS)))
    assert len(waiting) == len(boundaries) + 1
    asked: set[object] = set()

    def all_asked() -> bool:
        asked.update((dispatch.source, dispatch.dateint) for dispatch in world.dispatch(Signal.LOGS))
        return asked == waiting

    eventually(all_asked, "every partition is dispatched")
    world.drain(Signal.LOGS)
    assert world.breaches() == []


def test_kafka_started_anew_with_work_in_flight_loses_nothing(lrdb_url: str, tmp_path: Path) -> None:
    first = KafkaServer([], tmp_path / "first.log")
    first.start()
    with world_in(lrdb_url, first.bootstrap_servers, tmp_path, "test.") as world:
        for name in ("ingested", "boxed"):
            world.send(Signal.LOGS, name, logs(name, [TEN]))
            world.box(Signal.LOGS)
            if name == "ingested":
                world.drain(Signal.LOGS)
        world.send(Signal.LOGS, "pending", logs("pending", [TEN]))
        BoxerTick(replace(world.lake, policy=BoxPolicy(age_seconds=3600.0)), ingest_stage(Signal.LOGS)).run(
            now_ms(), soon()
        )
        world.send(Signal.LOGS, "unheard", logs("unheard", [TEN]))
        first.stop()

        second = KafkaServer([], tmp_path / "second.log")
        second.start()
        place = Place(lrdb_url, second.bootstrap_servers, world.place.bucket, "test.")
        anew = World(place, place.open())
        try:
            # As the adapter of a directory does when it starts: it looks at all that is there.
            anew.notify(
                *(f"otel-raw/{path.relative_to(place.bucket / 'otel-raw')}" for path in _raw_files(place.bucket))
            )
            anew.box(Signal.LOGS)
            (dispatch,) = anew.dispatch(Signal.LOGS)
            assert dispatch.dateint == DAY
            anew.drain(Signal.LOGS)
            assert anew.messages() == expected(ingested=1, boxed=1, pending=1, unheard=1)
            assert anew.query("SELECT count(*) FROM outbox") == [(0,)]
            assert anew.breaches() == []
        finally:
            anew.close()
            second.stop()


def _raw_files(bucket: Path) -> list[Path]:
    return sorted(path for path in bucket.glob("otel-raw/**/*") if path.is_file())
