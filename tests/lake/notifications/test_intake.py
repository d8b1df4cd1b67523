"""What would break if news were lost between an event and Kafka, or an object given to somebody else."""

from __future__ import annotations

import json
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from uuid import uuid4

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lakerunner_dagster.lake.bus import Bus
from lakerunner_dagster.lake.errors import BusUnavailable, LakeDatabaseUnavailable
from lakerunner_dagster.lake.lrdb import connection, dead_letters, profiles
from lakerunner_dagster.lake.lrdb import intake as rows
from lakerunner_dagster.lake.lrdb.dead_letters import DeadLetter
from lakerunner_dagster.lake.lrdb.intake import Notification
from lakerunner_dagster.lake.notifications import intake as module
from lakerunner_dagster.lake.notifications.events import ObjectEvent
from lakerunner_dagster.lake.notifications.intake import Intake
from lakerunner_dagster.lake.signals import Signal
from tests.lake.notifications.conftest import Lake
from tests.lake.notifications.samples import BUCKET

NOW_MS = 1_777_059_479_125
NOBODY = "127.0.0.1:9"


def event(key: str, bucket: str = BUCKET, etag: str = "e1") -> ObjectEvent:
    return ObjectEvent(bucket, key, 100, etag, NOW_MS)


def waiting(lake: Lake) -> list[DeadLetter]:
    with lake.lrdb.connection() as conn:
        return dead_letters.waiting(conn, 1000)


@pytest.mark.parametrize("signal", list(Signal))
def test_an_object_reaches_its_signal_s_topic_as_the_contract_says(lake: Lake, signal: Signal) -> None:
    key = lake.key(f"a b/ü+%/{signal}_1.binpb.gz")
    report = lake.intake.accept([event(key)], "http")
    assert (report.produced, dict(report.dead), dict(report.ignored)) == (1, {}, {})
    [message] = lake.messages(f"objstore.ingest.{signal}", 1)
    assert message.key == f"{lake.organization_id}/edge"
    body = json.loads(message.body)
    assert body == {
        "o": str(lake.organization_id),
        "i": 1,
        "b": BUCKET,
        "k": key,
        "s": 100,
        "t": body["t"],
        "e": "e1",
        "c": "edge",
        "et": NOW_MS,
        "a": "http",
    }
    assert Notification.from_body(signal, body).key == key


def test_an_event_without_a_time_has_that_of_its_coming(lake: Lake) -> None:
    lake.intake.accept([ObjectEvent(BUCKET, lake.key(), 0, "", 0)], "http")
    [body] = lake.bodies("objstore.ingest.logs", 1)
    assert body["et"] > NOW_MS
    assert (body["s"], body["e"]) == (0, "")


def test_new_collectors_register_themselves_one_number_each(lake: Lake) -> None:
    collectors = ["a", "b", "c"]
    events = [event(lake.key(collector=collector)) for collector in collectors for _ in range(5)]
    intake = lake.intake
    with ThreadPoolExecutor(8) as pool:
        reports = list(pool.map(lambda _: intake.accept(events, "http"), range(8)))
    assert {report.produced for report in reports} == {15}
    with lake.lrdb.connection() as conn:
        sources = profiles.sources(conn)
    assert [source.collector for source in sources] == collectors
    assert sorted(source.instance_num for source in sources) == [1, 2, 3]
    numbers = {source.collector: source.instance_num for source in sources}
    assert all(numbers[body["c"]] == body["i"] for body in lake.bodies("objstore.ingest.logs", 120))


BAD_NAMES = {
    "..": "bad_key",
    "a/../../etc/passwd": "bad_key",
    "logs/a\x00b": "bad_key",
    "logs/\udcff": "bad_key",
    "logs/" + "x" * 1100: "bad_key",
    "logs/" + "y" * 900_000: "bad_key",
    "logs//x": "bad_key",
    "x": "no_signal",
}


def test_names_that_can_be_none_are_kept_for_a_person(lake: Lake) -> None:
    report = lake.intake.accept([event(lake.key(name)) for name in [*BAD_NAMES, "logs/1"]], "http")
    assert (report.produced, dict(report.dead)) == (1, dict(Counter(BAD_NAMES.values())))
    letters = waiting(lake)
    assert Counter(letter.reason for letter in letters) == report.dead
    assert {(letter.adapter, letter.times) for letter in letters} == {("http", 1)}
    for letter in letters:
        assert letter.key.startswith(f"{BUCKET}/otel-raw/")
        assert letter.error_text.startswith(letter.key[:1000])
    assert len(lake.messages("deadletter", len(BAD_NAMES))) == len(BAD_NAMES)


def test_what_belongs_to_nobody_is_a_row_and_a_message_never_dropped(lake: Lake) -> None:
    ours = f"otel-raw/{lake.organization_id}"
    nobodys = {
        (f"otel-raw/{uuid4()}/edge/logs/x", BUCKET): "unknown_organization",
        (f"{ours}/a b/logs/x", BUCKET): "bad_collector_name",
        (f"{ours}/a...b/logs/x", BUCKET): "bad_collector_name",
        (f"{ours}/edge/logs/x", "elsewhere"): "unknown_bucket",
        (f"{ours}/edge/logs/y", "b\x00\udcff" * 10_000): "unknown_bucket",
        ("backup/x", BUCKET): "no_route",
        ("backup/'; DROP TABLE organizations; --", BUCKET): "no_route",
    }
    report = lake.intake.accept([event(key, bucket) for key, bucket in [*nobodys, (lake.key(), BUCKET)]], "http")
    assert (report.produced, report.dead) == (1, Counter(nobodys.values()))
    letters = {letter.key: letter for letter in waiting(lake)}
    messages = {message.key: message for message in lake.messages("deadletter", len(nobodys))}
    assert len(letters) == len(nobodys)
    assert letters.keys() == messages.keys()
    for (key, _), reason in nobodys.items():
        [name] = [name for name in letters if name.endswith(f"/{key}")]
        assert letters[name].reason == reason
        assert messages[name].headers.items() >= {"topic": "objstore.ingest", "reason": reason}.items()
        assert messages[name].headers["time"].endswith("Z")
        assert json.loads(messages[name].body)["k"] == key


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_no_name_makes_postgresql_or_kafka_refuse_the_others(lake: Lake, data: st.DataObject) -> None:
    text = st.text(st.characters(), max_size=30)
    names = data.draw(st.lists(st.tuples(text, st.sampled_from([BUCKET, "other"]) | text), max_size=5))
    collectors = data.draw(st.lists(text, max_size=2))
    events = [event(name, bucket) for name, bucket in names if name]
    events += [event(lake.key(name), bucket) for name, bucket in names]
    events += [event(lake.key(collector=collector)) for collector in collectors]
    report = lake.intake.accept(events, "http")
    assert report.produced + report.dead.total() + report.ignored.total() == len(events)


def test_a_collector_too_many_is_a_dead_letter_and_the_others_go_on(lake: Lake) -> None:
    events = [event(lake.key(collector=f"c{number}")) for number in range(5)]
    report = lake.intake.accept(events, "http")
    assert (report.produced, dict(report.dead)) == (4, {"too_many_collectors": 1})
    assert lake.intake.accept(events[:4], "http").produced == 4


def test_a_disabled_organization_s_objects_are_kept_not_taken(lake: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SOURCE_SECONDS", 0.0)
    intake = lake.intake
    assert intake.accept([event(lake.key())], "http").produced == 1
    with lake.lrdb.transaction() as conn:
        profiles.enable_organization(conn, lake.organization_id, enabled=False)
    assert dict(intake.accept([event(lake.key())], "http").dead) == {"organization_disabled": 1}


def test_a_mapped_prefix_finds_its_source(lake: Lake) -> None:
    with lake.lrdb.transaction() as conn:
        mapping = profiles.PrefixMapping(BUCKET, "metrics-raw/", Signal.METRICS, lake.organization_id, "legacy")
        profiles.put_prefix_mapping(conn, mapping)
    assert lake.intake.accept([event("metrics-raw/2026/x.binpb")], "http").produced == 1
    [body] = lake.bodies("objstore.ingest.metrics", 1)
    assert (body["c"], body["k"]) == ("legacy", "metrics-raw/2026/x.binpb")


def test_segments_and_directories_come_back_ignored(lake: Lake) -> None:
    report = lake.intake.accept([event("db/x/tbl_1.parquet"), event("db/"), event("x/")], "http")
    assert (report.produced, dict(report.dead), dict(report.ignored)) == (0, {}, {"segment": 1, "directory": 2})


def test_the_same_letter_again_is_one_letter_seen_twice(lake: Lake) -> None:
    for _ in range(2):
        lake.intake.accept([event("backup/x"), event("backup/y")], "http")
    assert sorted((letter.key, letter.times) for letter in waiting(lake)) == [
        (f"{BUCKET}/backup/x", 2),
        (f"{BUCKET}/backup/y", 2),
    ]


def test_without_kafka_nothing_is_taken_for_passed_on(lake: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PRODUCE_SECONDS", 0.3)
    intake = Intake(lake.lrdb, Bus(NOBODY, replication=1), lake.settings)
    with pytest.raises(BusUnavailable):
        intake.accept([event(lake.key())], "http")
    with pytest.raises(BusUnavailable):
        intake.accept([event("backup/x")], "http")
    assert [letter.key for letter in waiting(lake)] == [f"{BUCKET}/backup/x"]
    monkeypatch.setattr("lakerunner_dagster.lake.bus.REQUEST_SECONDS", 0.3)
    assert intake.troubles() == ["kafka"]
    assert lake.intake.troubles() == []


def test_without_lrdb_nothing_is_taken_for_passed_on(lake: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "POOL_TIMEOUT_SECONDS", 0.3)
    with connection.Lrdb(f"postgresql://nobody@{NOBODY}/none") as away:
        intake = Intake(away, lake.bus, lake.settings)
        with pytest.raises(LakeDatabaseUnavailable):
            intake.accept([event(lake.key())], "http")
        assert intake.troubles() == ["lrdb"]


def test_objects_that_lrdb_knows_are_left_out_where_that_is_asked_for(lake: Lake) -> None:
    other = uuid4()
    with lake.lrdb.transaction() as conn:
        profiles.add_organization(conn, "other", other)
    events = [
        event(lake.key("logs/1")),
        event(lake.key("logs/2")),
        event(lake.key("logs/3")),
        event(f"otel-raw/{other}/edge/logs/1"),
    ]
    lake.intake.accept(events[:3], "directory")
    upsert(lake, count=3)
    with lake.lrdb.transaction() as conn:
        conn.execute(
            "UPDATE raw_objects SET state = 'missing', ended_at = now(), error_class = 'missing' WHERE key = %s",
            (lake.key("logs/2"),),
        )
    changed = event(lake.key("logs/3"), etag="e2")
    report = lake.intake.accept([*events[:2], changed, events[3]], "directory", skip_known=True)
    assert (report.produced, dict(report.ignored)) == (3, {"known": 1})
    again = lake.intake.accept(events, "directory")
    assert (again.produced, dict(again.ignored)) == (4, {})


def upsert(lake: Lake, count: int) -> None:
    bodies = lake.bodies("objstore.ingest.logs", count)
    with lake.lrdb.transaction() as conn:
        rows.upsert_raw_objects(conn, [Notification.from_body(Signal.LOGS, body) for body in bodies])


def test_many_at_once_lose_none(lake: Lake) -> None:
    intake = lake.intake
    names = [lake.key(f"logs/{number}") for number in range(400)]
    lots = [[event(name) for name in names[start : start + 50]] for start in range(0, 400, 50)]
    with ThreadPoolExecutor(4) as pool:
        reports = list(pool.map(lambda lot: intake.accept([*lot, event("backup/x")], "http"), lots))
    assert sum(report.produced for report in reports) == 400
    assert sorted(body["k"] for body in lake.bodies("objstore.ingest.logs", 400)) == sorted(names)
    assert [letter.times for letter in waiting(lake)] == [8]
