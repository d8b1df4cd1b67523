"""What no adapter has told of is found, once, and in bounded pieces; what it must not touch it leaves alone."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from typing import Any
from uuid import uuid4

import pytest

from lakerunner_dagster.lake.bus import BusConsumer, Received
from lakerunner_dagster.lake.lrdb import dead_letters, profiles
from lakerunner_dagster.lake.lrdb.profiles import PrefixMapping
from lakerunner_dagster.lake.maintenance.reconcile import BATCH
from lakerunner_dagster.lake.model import HOUR_MS
from lakerunner_dagster.lake.notifications.events import ObjectEvent
from lakerunner_dagster.lake.notifications.intake import Intake
from lakerunner_dagster.lake.settings import MaintenancePolicy
from lakerunner_dagster.lake.signals import Signal
from tests.lake.gathering import gather
from tests.lake.maintenance.turns import AT_ONCE, DAY_MS, everything, old_object, subjects, turn
from tests.lake.requests import expected, logs
from tests.lake.world import BUCKET, COLLECTOR, NOON_MS, ORGANIZATION, World
from tests.waiting import eventually

HOURLY = MaintenancePolicy(overdue_seconds=10_000_000.0)
NOW_MS = NOON_MS + HOUR_MS


def test_losing_every_notification_for_an_hour_heals_itself(world: World) -> None:
    world.send(Signal.LOGS, "told", logs("told", [NOON_MS]))
    world.ingest(Signal.LOGS)
    names = [f"lost{number}" for number in range(60)]
    for minute, name in enumerate(names):
        path = world.place.bucket / world.put(Signal.LOGS, name, logs(name, [NOON_MS + minute * 60_000]))
        modified = NOON_MS / 1000 + minute * 60
        os.utime(path, (modified, modified))
    report = turn(world.lake, "reconcile", now_ms=NOW_MS + 5 * 60_000, policy=HOURLY)
    assert report.counts == {"notified": 60, "known": 1}
    gather(world, Signal.LOGS, 60)
    world.ingest(Signal.LOGS)
    assert world.messages() == expected(told=1, **dict.fromkeys(names, 1))
    assert world.query("SELECT DISTINCT adapter FROM raw_objects ORDER BY 1") == [("reconciliation",), ("test",)]
    assert turn(world.lake, "reconcile", now_ms=NOW_MS + 5 * 60_000, policy=HOURLY).counts == {"known": 61}
    assert world.breaches() == []


def test_many_objects_are_looked_at_in_bounded_pieces(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    count = 5000
    for number in range(count):
        world.put(Signal.LOGS, f"{number:05d}", b"x")
    sent: list[int] = []
    accept = Intake.accept

    def counted(self: Intake, events: Iterable[ObjectEvent], *arguments: Any, **rest: Any) -> Any:
        listed = list(events)
        sent.append(len(listed))
        return accept(self, listed, *arguments, **rest)

    monkeypatch.setattr(Intake, "accept", counted)
    report = turn(world.lake, "reconcile", now_ms=NOW_MS, policy=HOURLY)
    assert report.counts == {"notified": count}
    assert max(sent) <= BATCH
    assert sum(sent) == count
    assert len(report.items) < count


def test_what_is_too_young_or_too_old_is_left_to_others(world: World) -> None:
    key = world.put(Signal.LOGS, "a", logs("a", [NOON_MS]))
    path = world.place.bucket / key
    for modified_ms in (NOW_MS - 299_000, NOW_MS - 48 * HOUR_MS - 1000):
        os.utime(path, (modified_ms / 1000, modified_ms / 1000))
        assert turn(world.lake, "reconcile", now_ms=NOW_MS, policy=HOURLY).counts == {}
    for modified_ms in (NOW_MS - 301_000, NOW_MS - 48 * HOUR_MS + 1000):
        os.utime(path, (modified_ms / 1000, modified_ms / 1000))
        assert turn(world.lake, "reconcile", now_ms=NOW_MS, policy=HOURLY, dry_run=True).counts == {"notified": 1}


def test_an_overwritten_object_is_told_of_as_the_new_one_that_it_is(world: World) -> None:
    world.send(Signal.LOGS, "a", logs("first", [NOON_MS]))
    world.ingest(Signal.LOGS)
    key = world.put(Signal.LOGS, "a", logs("second", [NOON_MS]))
    assert subjects(turn(world.lake, "reconcile", now_ms=NOW_MS, policy=HOURLY), "notified") == [f"{BUCKET}/{key}"]


def test_objects_below_a_mapped_prefix_are_found(world: World) -> None:
    with world.lake.lrdb.transaction() as conn:
        for prefix in ("old/log", "old/logs-raw/", "plain"):
            profiles.put_prefix_mapping(conn, PrefixMapping(BUCKET, prefix, Signal.LOGS, ORGANIZATION, COLLECTOR))
    for name in ("old/logs-raw/a", "old/logs-raw/b", "plain-a"):
        old_object(world, name, logs(name, [NOON_MS]))
    old_object(world, "old/others/c")
    old_object(world, f"db/{ORGANIZATION}/edge/20260203/logs/12/tbl_1.parquet")
    old_object(world, "unmapped")
    report = turn(world.lake, "reconcile", now_ms=NOW_MS, policy=HOURLY)
    assert subjects(report, "notified") == [
        f"{BUCKET}/{name}" for name in ("old/logs-raw/a", "old/logs-raw/b", "plain-a")
    ]
    assert report.counts == {"notified": 3}


def test_what_is_nobodys_becomes_a_dead_letter_once(world: World) -> None:
    stranger = uuid4()
    old_object(world, f"otel-raw/{stranger}/edge/logs/a", logs("a", [NOON_MS]))
    old_object(world, f"otel-raw/{ORGANIZATION}/edge/notes.txt")
    old_object(world, f"otel-raw/{ORGANIZATION}/edge/logs/.partial")
    report = turn(world.lake, "reconcile", now_ms=NOW_MS, policy=HOURLY)
    assert report.counts == {"dead letter": 2}
    for _ in range(2):
        assert turn(world.lake, "reconcile", now_ms=NOW_MS, policy=HOURLY).counts == {"dead letter already": 2}
    with world.lake.lrdb.transaction() as conn:
        assert {(letter.reason, letter.times) for letter in dead_letters.waiting(conn, 10)} == {
            ("unknown_organization", 1),
            ("no_signal", 1),
        }
        profiles.add_organization(conn, "globex", stranger)
    assert turn(world.lake, "reconcile", now_ms=NOW_MS, policy=HOURLY).counts == {
        "notified": 1,
        "dead letter already": 1,
    }


def test_a_disabled_tenant_and_one_collector_too_many_are_refused_as_the_intake_does(world: World) -> None:
    with world.lake.lrdb.transaction() as conn:
        organization = profiles.add_organization(conn, "globex")
        profiles.enable_organization(conn, organization.organization_id, enabled=False)
    old_object(world, f"otel-raw/{organization.organization_id}/edge/logs/a")
    report = turn(world.lake, "reconcile", now_ms=NOW_MS, policy=HOURLY)
    assert [item.note for item in report.items] == ["organization_disabled"]
    with world.lake.lrdb.connection() as conn:
        assert [letter.reason for letter in dead_letters.waiting(conn, 10)] == ["organization_disabled"]


def test_an_object_of_an_expired_day_is_not_brought_back(world: World) -> None:
    world.put(Signal.LOGS, "a", logs("a", [NOON_MS]))
    with world.lake.lrdb.transaction() as conn:
        profiles.set_retention(conn, ORGANIZATION, Signal.LOGS, 1)
    later = AT_ONCE
    assert turn(world.lake, "reconcile", now_ms=NOON_MS + 2 * DAY_MS, policy=later).counts == {"expired already": 1}
    assert turn(world.lake, "reconcile", now_ms=NOON_MS + DAY_MS, policy=later).counts == {"notified": 1}


def test_a_bucket_that_cannot_be_listed_is_told_and_the_others_have_their_turn(world: World) -> None:
    world.put(Signal.LOGS, "a", logs("a", [NOON_MS]))
    with world.lake.lrdb.transaction() as conn:
        conn.execute(
            "INSERT INTO bucket_configurations (bucket_name, cloud_provider, endpoint) VALUES ('gone', 'file', %s)",
            (str(world.place.bucket / "nowhere"),),
        )
    report = turn(world.lake, "reconcile", now_ms=NOW_MS, policy=HOURLY)
    assert report.counts == {"failed": 1, "notified": 1}


def test_a_box_whose_message_was_lost_is_announced_again_until_a_run_is_asked_for(world: World) -> None:
    world.send(Signal.LOGS, "a", logs("a", [NOON_MS]))
    world.box(Signal.LOGS)
    assert turn(world.lake, "reconcile", now_ms=NOW_MS, policy=HOURLY).counts == {"known": 1}
    (box,) = world.query("SELECT box_id FROM boxes")
    consumer = world.lake.bus.consumer("test", ["segments.logs.ingest"])
    consumer.assign({})
    try:
        first = next_message(consumer)
        report = turn(world.lake, "reconcile", now_ms=NOW_MS)
        assert subjects(report, "box announced again") == [f"box {box[0]} of logs"]
        again = next_message(consumer)
    finally:
        consumer.close()
    told = [without_times(message.body) for message in (first, again)]
    assert told[0] == told[1]
    assert len(world.dispatch(Signal.LOGS)) == 1
    world.drain(Signal.LOGS)
    assert turn(world.lake, "reconcile", now_ms=NOW_MS).counts == {"known": 1}
    assert world.messages() == expected(a=1)


def next_message(consumer: BusConsumer) -> Received:
    """The one message that comes next."""
    received: list[Received] = []

    def came() -> bool:
        received.extend(consumer.poll(1, 1.0))
        return bool(received)

    eventually(came, "a message of a box")
    return received[0]


def without_times(body: bytes) -> Any:
    """A box's message without the times at which it was queued."""
    told = json.loads(body)
    return {**told, "q": "", "m": [{**member, "t": ""} for member in told["m"]]}


def test_a_dry_run_tells_of_nothing_to_anybody(world: World) -> None:
    world.send(Signal.LOGS, "told", logs("told", [NOON_MS]))
    world.box(Signal.LOGS)
    old_object(world, f"otel-raw/{ORGANIZATION}/another/logs/a", logs("a", [NOON_MS]))
    old_object(world, "otel-raw/nobody/edge/logs/a")
    untouched = everything(world)
    report = turn(world.lake, "reconcile", now_ms=NOW_MS, dry_run=True)
    assert report.counts == {"known": 1, "notified": 1, "dead letter": 1, "box announced again": 1}
    assert everything(world) == untouched
    assert world.box(Signal.LOGS).received == 0
