"""What Kafka may bring to a boxer, and must neither stop it nor be told twice."""

from __future__ import annotations

import json
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from random import Random
from typing import Any
from uuid import uuid4

import pytest
from confluent_kafka import Producer
from psycopg.errors import UndefinedTable

from lakerunner_dagster.lake import bus as kafka
from lakerunner_dagster.lake.bus import Bus
from lakerunner_dagster.lake.lrdb import dead_letters, offsets, profiles
from lakerunner_dagster.lake.lrdb.intake import Observed
from lakerunner_dagster.lake.model import HOUR_MS, Message, dateint_of, day_start_ms
from lakerunner_dagster.lake.notifications.replay import Replayed, replay, waiting
from lakerunner_dagster.lake.runs.context import Lake
from lakerunner_dagster.lake.settings import BoxPolicy
from lakerunner_dagster.lake.signals import DEADLETTER_TOPIC, SIGNALS, Signal
from lakerunner_dagster.lake.stages import ingest_stage
from lakerunner_dagster.lake.ticks.boxer import BoxerReport, BoxerTick
from tests.lake.requests import expected, logs
from tests.lake.world import BUCKET, COLLECTOR, DAY, NOON_MS, ORGANIZATION, World, now_ms, soon

TOPIC = SIGNALS[Signal.LOGS].notification_topic
TEN = NOON_MS - 2 * HOUR_MS


def tick(lake: Lake) -> BoxerReport:
    """One tick of a boxer that was started for it."""
    return BoxerTick(lake, ingest_stage(Signal.LOGS)).run(now_ms(), soon())


def produce(world: World, *bodies: bytes, topic: str = TOPIC) -> None:
    """Send bytes as they are, which need be nothing."""
    producer = Producer({"bootstrap.servers": world.place.bootstrap})
    for body in bodies:
        producer.produce(world.place.prefix + topic, body, key=b"key")
    assert producer.flush(10) == 0


def notification(**changes: Any) -> dict[str, Any]:
    """The body of a notification, as Lakerunner writes one, with some keys changed or (None) left out."""
    body = {
        "o": str(ORGANIZATION),
        "i": 1,
        "b": BUCKET,
        "k": f"otel-raw/{ORGANIZATION}/{COLLECTOR}/logs/a",
        "s": 10,
        "t": "2026-02-03T12:00:00Z",
    } | changes
    return {name: value for name, value in body.items() if value is not None}


def test_duplicate_late_and_disordered_notifications_make_one_row_and_one_copy(world: World) -> None:
    keys = [world.put(Signal.LOGS, f"f{number}", logs(f"f{number}", [TEN])) for number in range(6)]
    order = Random(3)
    for _ in range(3):
        events = [world.event(key) for key in keys] + [world.event(key, etag="") for key in keys[:2]]
        order.shuffle(events)
        world.intake.accept(events, "test")
        world.ingest(Signal.LOGS)
    assert world.messages() == expected(**{f"f{number}": 1 for number in range(6)})
    assert world.query("SELECT count(*) FROM raw_objects") == [(6,)]
    assert world.breaches() == []


def test_a_tick_tells_what_is_new_by_source_and_day(world: World) -> None:
    data = logs("a", [TEN])
    for name, time_ms in (("a", NOON_MS), ("b", NOON_MS), ("c", NOON_MS - 24 * HOUR_MS)):
        world.send(Signal.LOGS, name, data, event_time_ms=time_ms)
    report = world.box(Signal.LOGS)
    assert (report.received, report.new, report.known, report.dead) == (3, 3, 0, 0)
    assert report.observed == {
        (world.source, DAY): Observed(2, 2 * len(data)),
        (world.source, 20260202): Observed(1, len(data)),
    }
    world.send(Signal.LOGS, "a", data)
    report = world.box(Signal.LOGS)
    assert (report.received, report.new, report.known, report.observed) == (1, 0, 1, {})


def test_no_message_whatever_stops_the_boxer(world: World) -> None:
    deep = b"[" * 50_000 + b"]" * 50_000
    hostile: list[Any] = [
        *(notification(k=key) for key in ("../x", "a\0b", "x" * 1025, "", "\ud800", "a//b", 7)),
        *(notification(o=organization) for organization in ("x", "", 3, None, "\0")),
        *(notification(i=number) for number in (-1, 2**40, "1", 1.5, True, None)),
        *(notification(s=size) for size in (-1, 2**70, "9", None, float("nan"))),
        *(
            notification(t=text)
            for text in ("yesterday", "", None, "9999-99-99T00:00:00Z", "0001-01-01T00:00:00+14:00")
        ),
        *(notification(et=time) for time in (-1, 2**63, "x", 10**400)),
        *(notification(b=bucket) for bucket in ("", "b\0", "b" * 300, None)),
        *(notification(e=etag) for etag in ("\ud800", "e" * 5000, 5)),
        *(notification(c=collector) for collector in (7, "\0", "somebody else's")),
        notification(b="unheard-of"),
        notification(k=f"otel-raw/{uuid4()}/{COLLECTOR}/logs/a"),
        *([], {}, None, 1, "text", [notification()], {"Records": []}),
    ]
    produce(
        world,
        b"",
        b"\xff\xfe\x00",
        b"{",
        deep,
        b'{"k": "' + b"x" * 500_000,
        *(json.dumps(body).encode() for body in hostile),
    )
    world.send(Signal.LOGS, "good", logs("good", [TEN]))
    report = world.box(Signal.LOGS)
    assert report.received == len(hostile) + 6
    assert report.new + report.known + report.dead == report.received
    world.drain(Signal.LOGS)
    assert world.messages() == expected(good=1)
    with world.lake.lrdb.connection() as conn:
        kept = dead_letters.waiting(conn, 1000)
    assert sum(letter.times for letter in kept) == report.dead
    assert {letter.reason for letter in kept} == {
        "not_json",
        "bad_notification",
        "bad_key",
        "unknown_source",
        "unknown_bucket",
        "other_organization",
    }
    assert world.query("SELECT count(*) FROM outbox") == [(0,)], "a dead letter cannot be sent"
    assert world.breaches() == []


def test_an_object_that_seems_to_be_of_an_impossible_day_is_of_the_day_it_is_heard_of(world: World) -> None:
    for name, time_ms in (("early", 1), ("late", now_ms() + 48 * HOUR_MS)):
        world.send(Signal.LOGS, name, logs(name, [TEN]), event_time_ms=time_ms)
    before = dateint_of(now_ms())
    world.ingest(Signal.LOGS)
    days = {dateint for (dateint,) in world.query("SELECT event_dateint FROM raw_objects")}
    assert days <= {before, dateint_of(now_ms())}
    assert world.messages() == expected(early=1, late=1)


def test_an_object_of_a_clock_that_is_ahead_at_midnight_does_not_wait_for_its_day(world: World) -> None:
    midnight = day_start_ms(DAY) + 24 * HOUR_MS
    times = {"before": midnight - 30_000, "behind": midnight + 600_000}
    for name, time_ms in times.items():
        world.send(Signal.LOGS, name, logs(name, [midnight + 600_000]), event_time_ms=time_ms)
    BoxerTick(world.lake, ingest_stage(Signal.LOGS)).run(midnight - 60_000, soon())
    dated = world.query("SELECT event_dateint, event_time_ms FROM raw_objects ORDER BY event_time_ms")
    assert dated == [(DAY, midnight - 30_000), (DAY, midnight - 1)]
    world.drain(Signal.LOGS)
    assert world.messages() == expected(before=1, behind=1)


def test_a_notification_of_nobody_waits_as_a_dead_letter_until_somebody_is_there(world: World) -> None:
    other = uuid4()
    key = f"otel-raw/{other}/edge/logs/a"
    path = world.place.bucket / key
    path.parent.mkdir(parents=True)
    path.write_bytes(logs("a", [TEN]))
    produce(world, json.dumps(notification(o=str(other), k=key)).encode())
    assert world.box(Signal.LOGS).dead == 1
    consumer = world.lake.bus.consumer("test", [DEADLETTER_TOPIC])
    consumer.assign({})
    (told,) = consumer.poll(10, 5.0)
    consumer.close()
    assert (told.headers["topic"], told.headers["reason"]) == (TOPIC, "unknown_source")

    with world.lake.lrdb.transaction() as conn:
        profiles.add_organization(conn, "late", other)
        profiles.register_source(conn, other, "edge", BUCKET, limit=1)
    lake = world.lake
    assert replay(lake.lrdb, lake.bus, lake.settings, waiting(lake.lrdb)) == Replayed(1, Counter())
    assert world.box(Signal.LOGS).new == 1


def test_what_a_failed_transaction_has_received_is_received_again(world: World) -> None:
    boxer = BoxerTick(world.lake, ingest_stage(Signal.LOGS))
    world.send(Signal.LOGS, "a", logs("a", [TEN]))
    with world.lake.lrdb.transaction() as conn:
        conn.execute("ALTER TABLE raw_objects RENAME TO away")
    with pytest.raises(UndefinedTable):
        boxer.run(now_ms(), soon())
    with world.lake.lrdb.transaction() as conn:
        conn.execute("ALTER TABLE away RENAME TO raw_objects")
    assert boxer.run(now_ms(), soon()).new == 1
    assert boxer.run(now_ms(), soon()).received == 0


def test_a_new_boxer_goes_on_where_lrdb_says_not_where_kafka_does(world: World) -> None:
    world.send(Signal.LOGS, "a", logs("a", [TEN]))
    world.box(Signal.LOGS)
    assert tick(world.lake).received == 0
    with world.lake.lrdb.transaction() as conn:
        conn.execute("UPDATE consumed_offsets SET next_offset = 0")
    assert tick(world.lake).known == 1
    group = f"{world.place.prefix}boxer.logs.ingest"
    with world.lake.lrdb.connection() as conn:
        assert set(offsets.load(conn, group, world.lake.bus.cluster_id()).values()) == {1}


def test_boxers_at_once_make_one_row_of_an_object_and_put_it_into_one_box(world: World) -> None:
    keys = [world.put(Signal.LOGS, f"f{number}", logs(f"f{number}", [TEN])) for number in range(30)]
    world.notify(*keys)
    lakes = [world.place.open() for _ in range(3)]
    try:
        with ThreadPoolExecutor(3) as pool:
            reports = list(pool.map(tick, lakes))
    finally:
        for lake in lakes:
            lake.close()
    assert sum(report.new for report in reports) == 30
    world.drain(Signal.LOGS)
    assert world.messages() == expected(**{f"f{number}": 1 for number in range(30)})
    assert world.breaches() == []


def test_a_box_is_closed_by_count_at_once_and_by_age_later(world: World) -> None:
    lake = replace(world.lake, policy=BoxPolicy(count=3, age_seconds=60.0))
    keys = [world.put(Signal.LOGS, f"f{number}", logs("f", [TEN])) for number in range(4)]
    world.notify(*keys)
    boxer = BoxerTick(lake, ingest_stage(Signal.LOGS))
    assert boxer.run(now_ms(), soon()).boxes == 1
    assert world.query("SELECT state, count(*) FROM raw_objects GROUP BY 1 ORDER BY 1") == [
        ("boxed", 3),
        ("pending", 1),
    ]
    assert boxer.run(now_ms(), soon()).boxes == 0
    assert boxer.run(now_ms() + 61_000, soon()).boxes == 1


def test_objects_of_two_windows_or_sources_are_never_in_one_box(world: World) -> None:
    lake = replace(world.lake, policy=BoxPolicy(age_seconds=0.0, window_seconds=3600))
    for name, time_ms in (("a", NOON_MS), ("b", NOON_MS + 3_599_999), ("c", NOON_MS + HOUR_MS), ("d", NOON_MS - 1)):
        world.put(Signal.LOGS, name, logs(name, [TEN]))
        world.notify(f"otel-raw/{ORGANIZATION}/{COLLECTOR}/logs/{name}", event_time_ms=time_ms)
    other = f"otel-raw/{ORGANIZATION}/other/logs/e"
    world.intake.accept([replace(world.event(other), size=1)], "test")
    waiting = replace(lake, policy=BoxPolicy(age_seconds=60.0))
    tick(waiting)
    tick(replace(lake, policy=BoxPolicy(age_seconds=0.0)))
    members = world.query(
        "SELECT array_agg(split_part(key, '/', 5) ORDER BY key) FROM raw_objects GROUP BY box_id ORDER BY min(key)"
    )
    assert sorted(names for (names,) in members) == [["a", "b"], ["c"], ["d"], ["e"]]


def test_while_kafka_is_away_what_lrdb_knows_is_boxed(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kafka, "REQUEST_SECONDS", 0.5)
    world.send(Signal.LOGS, "a", logs("a", [TEN]))
    tick(replace(world.lake, policy=BoxPolicy(age_seconds=60.0)))
    report = tick(replace(world.lake, bus=Bus("127.0.0.1:1", prefix=world.place.prefix)))
    assert (report.boxes, report.outbox_published) == (1, 0)
    assert report.trouble is not None
    world.drain(Signal.LOGS)
    assert world.messages() == expected(a=1)


def test_another_systems_notifications_are_taken_without_our_own_keys(world: World) -> None:
    key = world.put(Signal.LOGS, "a", logs("a", [TEN]))
    world.lake.bus.produce([Message(TOPIC, "key", notification(k=key, et=None, e=None, c=None))], 10)
    world.ingest(Signal.LOGS)
    assert world.messages() == expected(a=1)
    assert world.query("SELECT event_dateint FROM raw_objects") == [(DAY,)]
