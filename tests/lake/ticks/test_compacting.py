"""What the compaction boxer hears and boxes: every hour with small segments, whatever Kafka brings or forgets."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any
from uuid import uuid4

from lakerunner_dagster.lake.lrdb import dead_letters, unsettled
from lakerunner_dagster.lake.model import HOUR_MS, Message
from lakerunner_dagster.lake.planning.compaction import SegmentGroup
from lakerunner_dagster.lake.settings import CompactionPolicy
from lakerunner_dagster.lake.signals import SIGNALS, Signal
from lakerunner_dagster.lake.stages import Stage, compaction_stage
from lakerunner_dagster.lake.ticks.boxer import BoxerReport, BoxerTick
from tests.lake.gathering import dispatched
from tests.lake.requests import gauges, logs
from tests.lake.world import DAY, NOON_MS, ORGANIZATION, World, now_ms, soon
from tests.waiting import eventually

TEN = NOON_MS - 2 * HOUR_MS
LOGS = compaction_stage(Signal.LOGS)
METRICS = compaction_stage(Signal.METRICS)


def ingest(world: World, name: str, start_ms: int = TEN) -> None:
    world.send(Signal.LOGS, name, logs(name, [start_ms]), event_time_ms=start_ms)
    world.ingest(Signal.LOGS)


def tick(world: World, policy: CompactionPolicy) -> BoxerReport:
    return BoxerTick(replace(world.lake, compaction=policy), LOGS).run(now_ms(), soon())


def heard(world: World, topic: str) -> list[dict[str, Any]]:
    """The bodies on a topic, from its beginning."""
    consumer = world.lake.bus.consumer(f"test-{uuid4()}", [topic])
    consumer.assign({})
    bodies = [json.loads(message.body) for message in consumer.poll(1000, 5.0)]
    consumer.close()
    return bodies


def hear(world: World, stage: Stage, topic: str, count: int) -> None:
    """Ticks until the boxer has heard so many messages on a topic, those that we told ourselves included."""

    def heard_so_far() -> int:
        world.box_stage(stage)
        rows = world.query("SELECT coalesce(sum(next_offset), 0) FROM consumed_offsets WHERE topic = %s", topic)
        return int(rows[0][0])

    eventually(lambda: heard_so_far() == count, f"the boxer of {stage.name} has heard {count} messages")


def test_a_box_names_the_segments_of_its_hour_as_the_contract_says(world: World) -> None:
    ingest(world, "a")
    ingest(world, "b")
    assert world.box_stage(LOGS).boxes == 1
    (body,) = heard(world, LOGS.box_topic)
    assert (body["v"], body["box"]) == (1, world.query("SELECT max(box_id) FROM boxes")[0][0])
    rows = world.query("SELECT segment_id, record_count, file_size, lower(ts_range), upper(ts_range) FROM log_seg")
    assert sorted((m["s"], m["rc"], m["fs"], m["st"], m["et"]) for m in body["m"]) == sorted(rows)
    assert {(m["v"], m["o"], m["d"], m["i"]) for m in body["m"]} == {(1, str(ORGANIZATION), DAY, 1)}


def test_a_box_of_metrics_names_its_tier(world: World) -> None:
    for name in ("a", "b"):
        world.send(Signal.METRICS, name, gauges("queue.length", [TEN]))
        world.ingest(Signal.METRICS)
    world.box_stage(METRICS)
    (body,) = heard(world, METRICS.box_topic)
    assert {(m["f"], "st" in m) for m in body["m"]} == {(10_000, False)}
    assert world.query("SELECT grouping_key FROM boxes WHERE stage = 'metrics.compact'") == [("10h/10000",)]


def test_an_hour_in_a_box_is_not_boxed_again(world: World) -> None:
    ingest(world, "a")
    ingest(world, "b")
    assert world.box_stage(LOGS).boxes == 1
    ingest(world, "c")
    assert world.box_stage(LOGS).boxes == 0
    world.drain_stage(LOGS)
    assert len(world.published(Signal.LOGS)) == 1


def test_an_hour_with_nothing_to_merge_is_left_for_a_while_or_for_good(world: World) -> None:
    ingest(world, "a")
    hot = CompactionPolicy(cold_seconds=1e9, gather_seconds=3600.0)
    assert tick(world, hot).boxes == 0
    assert world.query("SELECT look_at > now() + interval '50 minutes' FROM unsettled_hours") == [(True,)]
    ingest(world, "b")
    assert tick(world, CompactionPolicy(settle_seconds=0.0)).boxes == 0, "an hour is looked at before its time"
    world.query("UPDATE unsettled_hours SET look_at = now() RETURNING hour")
    assert tick(world, CompactionPolicy(settle_seconds=0.0)).boxes == 1
    world.drain_stage(LOGS)
    assert world.query("SELECT count(*) FROM unsettled_hours") == [(0,)]


def test_a_message_of_another_system_wakes_the_hour_that_it_names(world: World) -> None:
    topic = str(SIGNALS[Signal.LOGS].compaction_topic)
    ingest(world, "a")
    ingest(world, "b")
    hear(world, LOGS, topic, 2)
    world.query("DELETE FROM unsettled_hours RETURNING hour")
    world.query("DELETE FROM boxes WHERE stage = 'logs.compact' RETURNING box_id")
    assert world.box_stage(LOGS).boxes == 0, "nobody knows of the hour any more"
    ids = [segment_id for _, segment_id, _ in world.published(Signal.LOGS)]
    world.lake.bus.produce([Message(topic, "key", told(ids[0]))], 10)
    eventually(lambda: world.box_stage(LOGS).boxes == 1, "a tick brings the message and boxes its hour")


def told(segment_id: int, **changes: Any) -> dict[str, Any]:
    return {
        "v": 1,
        "o": str(ORGANIZATION),
        "d": DAY,
        "s": segment_id,
        "i": 1,
        "rc": 1,
        "fs": 1000,
        "t": "2026-02-03T12:00:00Z",
        "st": TEN,
        "et": TEN + 1,
    } | changes


def test_a_box_of_another_boxer_is_taken_up(world: World) -> None:
    ingest(world, "a")
    ingest(world, "b")
    world.query("DELETE FROM unsettled_hours RETURNING hour")
    members = [told(segment_id) for _, segment_id, _ in world.published(Signal.LOGS)]
    world.lake.bus.produce([Message(LOGS.box_topic, "key", {"v": 1, "m": members, "q": "2026-02-03T12:00:01Z"})], 10)
    dispatch = dispatched(world, LOGS)
    assert dispatch.dateint == DAY
    assert dispatch.run_key.startswith("logs.compact/acme/edge/2026-02-03/")
    world.drain_stage(LOGS)
    assert len(world.published(Signal.LOGS)) == 1


def test_what_is_no_message_of_a_segment_is_kept_and_what_is_one_goes_on(world: World) -> None:
    ingest(world, "a")
    ingest(world, "b")
    kept: list[Any] = [{}, told(1, o="nobody"), told(1, d="today"), told(2**63), told(-1)]
    harmless = [told(7), told(1, o=str(uuid4())), told(1, d=1)]
    topic = SIGNALS[Signal.LOGS].compaction_topic
    world.lake.bus.produce([Message(topic, "key", body) for body in (*kept, *harmless)], 10)
    report = world.box_stage(LOGS)
    assert (report.dead, report.boxes) == (len(kept), 1)
    with world.lake.lrdb.connection() as conn:
        assert {letter.reason for letter in dead_letters.waiting(conn, 100)} == {"bad_notification"}


def test_a_segment_published_while_its_hour_is_looked_at_unsettles_it_again(world: World) -> None:
    ingest(world, "a")
    group = SegmentGroup(ORGANIZATION, 1, Signal.LOGS, 0, DAY, 10)
    with ThreadPoolExecutor(1) as pool:
        with world.lake.lrdb.transaction() as looking:
            assert unsettled.hold(looking, group)
            seen = [one.candidate.segment_id for one in unsettled.published(looking, [group])]
            publishing = pool.submit(ingest, world, "b")
            waiting = "SELECT count(*) > 0 FROM pg_stat_activity WHERE wait_event_type = 'Lock'"
            eventually(lambda: world.query(waiting) == [(True,)], "the publication waits for the look")
            unsettled.settle(looking, [group])
        publishing.result()
    assert len(world.published(Signal.LOGS)) == len(seen) + 1
    assert world.query("SELECT hour FROM unsettled_hours") == [(10,)], "the new segment's hour is forgotten"
