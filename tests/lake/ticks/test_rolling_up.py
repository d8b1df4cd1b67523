"""What the rollup boxer hears and boxes: every dirty slot, whatever Kafka brings or forgets."""

from __future__ import annotations

from typing import Any
from uuid import uuid4

from lakerunner_dagster.lake.lrdb import dead_letters, slots
from lakerunner_dagster.lake.lrdb.slots import Slot
from lakerunner_dagster.lake.model import HOUR_MS, Message, rfc3339
from lakerunner_dagster.lake.signals import ROLLUP_TOPIC, Signal
from lakerunner_dagster.lake.stages import rollup_stage
from tests.lake.gathering import dispatched
from tests.lake.requests import gauges
from tests.lake.ticks.test_compacting import hear, heard
from tests.lake.world import DAY, NOON_MS, ORGANIZATION, World

TEN = NOON_MS - 2 * HOUR_MS
SLOT = 600_000
STAGE = rollup_stage()


def ingest(world: World, name: str, start_ms: int = TEN, points: int = 6) -> None:
    data = gauges("queue.length", [start_ms + number * 10_000 for number in range(points)])
    world.send(Signal.METRICS, name, data, event_time_ms=start_ms)
    world.ingest(Signal.METRICS)


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
        "sf": 10_000,
        "tf": 60_000,
        "st": rfc3339(TEN),
    } | changes


def forget(world: World) -> None:
    world.query("DELETE FROM dirty_slots RETURNING slot_ms")


def test_a_box_names_the_finer_segments_of_its_slots_as_the_contract_says(world: World) -> None:
    ingest(world, "a")
    ingest(world, "b", TEN + 3 * SLOT)
    assert world.box_stage(STAGE).boxes == 1
    (body,) = heard(world, STAGE.box_topic)
    assert (body["v"], body["box"]) == (1, world.query("SELECT max(box_id) FROM boxes")[0][0])
    rows = world.query("SELECT segment_id, record_count, file_size, lower(ts_range) FROM metric_seg")
    assert sorted((m["s"], m["rc"], m["fs"], m["st"]) for m in body["m"]) == sorted(
        (segment_id, count, size, rfc3339(start_ms)) for segment_id, count, size, start_ms in rows
    )
    assert {(m["v"], m["o"], m["d"], m["i"], m["sf"], m["tf"]) for m in body["m"]} == {
        (1, str(ORGANIZATION), DAY, 1, 10_000, 60_000)
    }
    assert world.query("SELECT grouping_key, frequency_ms, members FROM boxes WHERE stage = 'metrics.rollup'") == [
        ("10h/60000", 60_000, 2)
    ]


def test_a_slot_in_a_box_is_not_boxed_again_and_another_of_its_hour_is(world: World) -> None:
    ingest(world, "a")
    assert world.box_stage(STAGE).boxes == 1
    ingest(world, "b")
    assert world.box_stage(STAGE).boxes == 0
    ingest(world, "c", TEN + SLOT)
    assert world.box_stage(STAGE).boxes == 1
    world.drain_stage(STAGE)
    assert world.select(Signal.METRICS, "sum(chq_points)::bigint", 60_000) == [(18,)]


def test_a_message_of_another_system_wakes_the_slots_that_it_names(world: World) -> None:
    dirty = "SELECT slot_ms, box_id > 0 FROM dirty_slots WHERE frequency_ms = 60000"
    ingest(world, "a")
    world.box_stage(STAGE)
    world.drain_stage(STAGE)
    ingest(world, "b", TEN + SLOT)
    told_ourselves = 3  # of the segments of a and b, and of that which a rolled up to
    hear(world, STAGE, ROLLUP_TOPIC, told_ourselves)
    forget(world)
    world.box_stage(STAGE)
    assert world.query(dirty) == [], "nobody knows of the slot any more"
    ids = [segment_id for _, segment_id, _ in world.published(Signal.METRICS)]
    world.lake.bus.produce([Message(ROLLUP_TOPIC, "key", told(segment_id)) for segment_id in ids], 10)
    hear(world, STAGE, ROLLUP_TOPIC, told_ourselves + len(ids))
    assert world.query(dirty) == [(TEN + SLOT, True)]


def test_a_box_of_another_boxer_is_taken_up(world: World) -> None:
    ingest(world, "a")
    forget(world)
    members = [told(segment_id) for _, segment_id, _ in world.published(Signal.METRICS)]
    world.lake.bus.produce([Message(STAGE.box_topic, "key", {"v": 1, "m": members, "q": "2026-02-03T12:00:01Z"})], 10)
    dispatch = dispatched(world, STAGE)
    assert (dispatch.dateint, dispatch.frequencies_ms) == (DAY, (60_000,))
    assert dispatch.run_key.startswith("metrics.rollup/acme/edge/2026-02-03/")


def test_what_is_no_message_of_a_segment_is_kept_and_what_is_one_goes_on(world: World) -> None:
    ingest(world, "a")
    kept: list[Any] = [{}, told(1, o="nobody"), told(1, d="today"), told(2**63), told(-1)]
    harmless = [told(7), told(1, o=str(uuid4())), told(1, d=1)]
    world.lake.bus.produce([Message(ROLLUP_TOPIC, "key", body) for body in (*kept, *harmless)], 10)
    report = world.box_stage(STAGE)
    assert (report.dead, report.boxes) == (len(kept), 1)
    with world.lake.lrdb.connection() as conn:
        assert {letter.reason for letter in dead_letters.waiting(conn, 100)} == {"bad_notification"}


def test_a_slot_that_is_marked_again_waits_no_longer_for_it(world: World) -> None:
    ingest(world, "a")
    world.query("UPDATE dirty_slots SET dirty_at = now() - interval '1 hour' RETURNING slot_ms")
    ingest(world, "b")
    assert world.query("SELECT dirty_at < now() - interval '59 minutes' FROM dirty_slots") == [(True,)]
    with world.lake.lrdb.transaction() as conn:
        slot = Slot(ORGANIZATION, 1, 60_000, TEN)
        assert slots.mark(conn, [slot, slot._replace(start_ms=TEN + SLOT)]) == 1
        assert slots.due(conn, 60_000, 3000.0, 10) == [slot]
