"""What would break if a dead letter that is sent again were lost, or taken for passed on where it leads nowhere."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any
from uuid import uuid4

import pytest

from lakerunner_dagster.lake.bus import Bus
from lakerunner_dagster.lake.errors import BusUnavailable
from lakerunner_dagster.lake.lrdb import dead_letters, profiles
from lakerunner_dagster.lake.lrdb.dead_letters import DeadLetter
from lakerunner_dagster.lake.notifications import intake as intake_module
from lakerunner_dagster.lake.notifications import replay as module
from lakerunner_dagster.lake.notifications.events import ObjectEvent
from lakerunner_dagster.lake.notifications.intake import Intake
from lakerunner_dagster.lake.notifications.replay import Replayed, replay
from lakerunner_dagster.lake.runs.context import Lake as OpenLake
from lakerunner_dagster.lake.signals import Signal
from tests.lake.killing import kill_everywhere
from tests.lake.notifications.conftest import Lake
from tests.lake.notifications.samples import BUCKET
from tests.lake.notifications.test_intake import BAD_NAMES, NOBODY, NOW_MS, event
from tests.lake.notifications.test_intake import waiting as waiting_now
from tests.lake.requests import logs
from tests.lake.world import NOON_MS, World

LOGS_TOPIC = "objstore.ingest.logs"


def again(lake: Lake, reason: str | None = None, *, dry_run: bool = False) -> Replayed:
    return replay(lake.lrdb, lake.bus, lake.settings, module.waiting(lake.lrdb, reason), dry_run=dry_run)


def bury(lake: Lake, body: dict[str, Any], reason: str, topic: str = LOGS_TOPIC) -> None:
    with lake.lrdb.transaction() as conn:
        dead_letters.add(conn, [dead_letters.NewLetter(topic, "o/c", reason, "?", body)])


def notification(lake: Lake, key: str, **changes: Any) -> dict[str, Any]:
    """What another system may say of an object."""
    return {
        "o": str(lake.organization_id),
        "i": 7,
        "b": BUCKET,
        "k": key,
        "s": 100,
        "t": "2026-04-24T12:00:00Z",
    } | changes


def collector(lake: Lake, name: str) -> int:
    with lake.lrdb.transaction() as conn:
        return profiles.register_source(conn, lake.organization_id, name, BUCKET, limit=4).instance_num


def test_a_replayed_letter_is_taken_once_its_cause_is_gone_and_waits_until_then(lake: Lake) -> None:
    organization = uuid4()
    key = f"otel-raw/{organization}/edge/traces/a+b ü.binpb"
    lake.intake.accept([event(key), event("backup/x")], "http")
    before = waiting_now(lake)
    nowhere = Counter(unknown_organization=1, no_route=1)
    assert again(lake) == Replayed(0, nowhere)
    assert waiting_now(lake) == before
    with lake.lrdb.transaction() as conn:
        profiles.add_organization(conn, "late", organization)
    assert again(lake) == Replayed(1, Counter(no_route=1))
    assert [letter.key for letter in waiting_now(lake)] == [f"{BUCKET}/backup/x"]
    [body] = lake.bodies("objstore.ingest.traces", 1)
    assert (body["k"], body["et"], body["e"], body["a"]) == (key, NOW_MS, "e1", "http")
    assert len(lake.messages("deadletter", 2)) == 2


def test_a_dry_run_tells_the_same_and_registers_sends_and_marks_nothing(lake: Lake) -> None:
    with lake.lrdb.transaction() as conn:
        profiles.enable_organization(conn, lake.organization_id, enabled=False)
    lake.intake.accept([event(lake.key(collector="new")), event("backup/x")], "http")
    with lake.lrdb.transaction() as conn:
        profiles.enable_organization(conn, lake.organization_id, enabled=True)
    before = waiting_now(lake)
    told = again(lake, dry_run=True)
    with lake.lrdb.connection() as conn:
        assert profiles.sources(conn) == []
    assert waiting_now(lake) == before
    assert again(lake) == told == Replayed(1, Counter(no_route=1))


def test_letters_of_one_reason_go_alone(lake: Lake) -> None:
    lake.intake.accept([event("backup/x"), event(lake.key("notes.txt"))], "http")
    assert again(lake, "no_signal") == Replayed(0, Counter(no_signal=1))


def test_a_collector_too_many_stays_and_the_others_are_passed_on(lake: Lake) -> None:
    with lake.lrdb.transaction() as conn:
        profiles.enable_organization(conn, lake.organization_id, enabled=False)
    lake.intake.accept([event(lake.key(collector=f"c{number}")) for number in range(6)], "http")
    with lake.lrdb.transaction() as conn:
        profiles.enable_organization(conn, lake.organization_id, enabled=True)
    assert again(lake) == Replayed(4, Counter(too_many_collectors=2))


def test_names_that_can_be_none_stay(lake: Lake) -> None:
    lake.intake.accept([event(lake.key(name)) for name in BAD_NAMES], "http")
    assert again(lake) == Replayed(0, Counter(BAD_NAMES.values()))
    assert len(waiting_now(lake)) == len(BAD_NAMES)


def test_a_notification_with_an_old_number_goes_where_its_key_says(lake: Lake) -> None:
    bury(lake, notification(lake, lake.key("logs/a"), i=7, c="edge"), "unknown_source")
    bury(lake, notification(lake, lake.key("logs/b"), o=str(uuid4())), "other_organization")
    assert again(lake) == Replayed(2, Counter())
    bodies = lake.bodies(LOGS_TOPIC, 2)
    assert {(body["o"], body["i"], body["c"]) for body in bodies} == {(str(lake.organization_id), 1, "edge")}


def test_a_notification_whose_key_tells_nothing_is_sent_as_it_was_once_its_source_is_there(lake: Lake) -> None:
    number = collector(lake, "edge")
    said = notification(lake, "old/a", i=number)
    bury(lake, said, "unknown_bucket")
    bury(lake, notification(lake, "old/b", i=number + 1), "unknown_source")
    bury(lake, notification(lake, "old/c", i=number, b="other"), "unknown_bucket")
    assert again(lake) == Replayed(1, Counter(no_route=2))
    [message] = lake.messages(LOGS_TOPIC, 1)
    assert (message.key, json.loads(message.body)) == ("o/c", said)


@pytest.mark.parametrize("topic", [LOGS_TOPIC, "boxer.logs.compact"])
def test_what_was_no_notification_stays_as_the_one_letter_that_it_is(lake: Lake, topic: str) -> None:
    bury(lake, {"text": "{"}, "not_json", topic)
    bury(lake, {"text": "[]"}, "bad_notification", topic)
    assert again(lake) == Replayed(0, Counter(not_json=1, bad_notification=1))
    assert len(waiting_now(lake)) == 2


def test_a_letter_that_comes_back_while_it_is_sent_still_waits(lake: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    number = collector(lake, "edge")
    bury(lake, notification(lake, "old/a", i=number), "unknown_bucket")
    produce = Bus.produce

    def refused_at_once(self: Bus, messages: Any, timeout_seconds: float) -> None:
        produce(self, messages, timeout_seconds)
        if messages:
            bury(lake, notification(lake, "old/a", i=number), "unknown_bucket")

    monkeypatch.setattr(Bus, "produce", refused_at_once)
    again(lake)
    assert [letter.times for letter in waiting_now(lake)] == [2]


def test_many_letters_go_in_bounded_batches_and_what_comes_meanwhile_is_none_of_them(
    lake: Lake, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "BATCH", 50)
    lake.intake.accept([event(f"old/{number}") for number in range(420)], "http")
    with lake.lrdb.transaction() as conn:
        mapping = profiles.PrefixMapping(BUCKET, "old/", Signal.LOGS, lake.organization_id, "edge")
        profiles.put_prefix_mapping(conn, mapping)
    sizes: list[int] = []
    accept = Intake.accept

    def counted(self: Intake, events: list[ObjectEvent], adapter: str, **rest: Any) -> Any:
        sizes.append(len(events))
        bury(lake, notification(lake, f"late{len(sizes)}"), "unknown_bucket")
        return accept(self, events, adapter, **rest)

    monkeypatch.setattr(Intake, "accept", counted)
    assert again(lake) == Replayed(420, Counter())
    assert sizes == [50] * 8 + [20]
    assert len(waiting_now(lake)) == len(sizes)
    assert sorted(body["k"] for body in lake.bodies(LOGS_TOPIC, 420)) == sorted(f"old/{n}" for n in range(420))


def test_without_kafka_every_letter_still_waits(lake: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(intake_module, "PRODUCE_SECONDS", 0.3)
    bury(lake, notification(lake, lake.key("logs/a")), "unknown_source")
    with pytest.raises(BusUnavailable):
        replay(lake.lrdb, Bus(NOBODY, replication=1), lake.settings, module.waiting(lake.lrdb))
    assert len(waiting_now(lake)) == 1


BATCH = 2
LETTERS = 5


def replay_in_small_batches(lake: OpenLake, _number: int) -> None:
    module.BATCH = BATCH
    replay(lake.lrdb, lake.bus, lake.settings, module.waiting(lake.lrdb))


def test_killed_at_each_boundary_it_goes_on_and_every_object_has_one_row(world: World) -> None:
    keys = [world.put(Signal.LOGS, f"{number}", logs(f"m{number}", [NOON_MS])) for number in range(LETTERS)]
    left: list[int] = []

    def waiting() -> list[DeadLetter]:
        with world.lake.lrdb.connection() as conn:
            return dead_letters.waiting(conn, 100)

    def bury_again(number: int) -> None:
        left.append(len(waiting()))
        if number == 1:
            done: list[ObjectEvent] = [world.event(key) for key in keys]
            with world.lake.lrdb.transaction() as conn:
                conn.execute("UPDATE organizations SET enabled = false")
            assert world.intake.accept(done, "test").dead.total() == LETTERS
            with world.lake.lrdb.transaction() as conn:
                conn.execute("UPDATE organizations SET enabled = true")

    boundaries = kill_everywhere(world.place, replay_in_small_batches, bury_again)
    assert "after messages are sent" in boundaries
    assert waiting() == []
    world.ingest(Signal.LOGS)
    assert world.messages() == Counter(f"m{number} 0" for number in range(LETTERS))
    assert left[-1] < LETTERS, "what was passed on before a kill was sent again from the beginning"
    assert world.breaches() == []
