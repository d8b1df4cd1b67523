"""What rollup must never do: lose a point in any tier, count one twice, leave a hole, or forget a slot."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest

from lakerunner_dagster.lake.bus import Bus
from lakerunner_dagster.lake.errors import (
    ConservationBreach,
    RequestRefused,
    SegmentUnusable,
    StoreUnavailable,
    WorkIncomplete,
)
from lakerunner_dagster.lake.lrdb import coverage, expiry, faults, lineage, profiles, rolling, segments, slots, swap
from lakerunner_dagster.lake.lrdb.migrate import MIGRATIONS
from lakerunner_dagster.lake.lrdb.slots import Slot
from lakerunner_dagster.lake.maintenance.holes import holes
from lakerunner_dagster.lake.maintenance.report import Order
from lakerunner_dagster.lake.maintenance.retention import retention
from lakerunner_dagster.lake.model import HOUR_MS, Segment, dateint_of, day_start_ms
from lakerunner_dagster.lake.runs.context import Lake
from lakerunner_dagster.lake.runs.drain import drain
from lakerunner_dagster.lake.runs.full_compaction import compact_day
from lakerunner_dagster.lake.runs.full_rollup import roll_up_day
from lakerunner_dagster.lake.runs.rebuild import rebuild
from lakerunner_dagster.lake.runs.report import Step
from lakerunner_dagster.lake.segments.rollup import roll_up
from lakerunner_dagster.lake.settings import MaintenancePolicy, RollupPolicy
from lakerunner_dagster.lake.signals import Signal
from lakerunner_dagster.lake.stages import rollup_stage
from lakerunner_dagster.lake.store import Store
from lakerunner_dagster.lake.ticks.boxer import BoxerTick
from lakerunner_dagster.lake.tiers import TIERS
from tests.lake.killing import kill_everywhere
from tests.lake.requests import counter, gauges
from tests.lake.runs.test_killed_run import source_in
from tests.lake.world import DAY, NOON_MS, World, now_ms, soon

TEN = NOON_MS - 2 * HOUR_MS
ELEVEN = NOON_MS - HOUR_MS
SECOND = 1000
MINUTE = 60_000
STAGE = rollup_stage()
METRICS = Signal.METRICS

FACTS = "sum(chq_points)::bigint, sum(chq_rollup_count), sum(chq_rollup_sum), min(chq_rollup_min), max(chq_rollup_max)"
ROWS = (
    "chq_timestamp, metric_name, chq_tid, chq_points, chq_rollup_count, chq_rollup_sum, chq_rollup_min, chq_rollup_max,"
    " chq_rollup_avg, chq_last, chq_rollup_p50, chq_rollup_p99, chq_sketch"
)


def send(world: World, name: str, data: bytes, event_time_ms: int = TEN) -> None:
    world.send(METRICS, name, data, event_time_ms=event_time_ms)
    world.ingest(METRICS)


def gauge(world: World, name: str, start_ms: int, points: int = 60, every_ms: int = 10 * SECOND) -> None:
    send(world, name, gauges("queue.length", [start_ms + number * every_ms for number in range(points)]), start_ms)


def rows(world: World, frequency_ms: int) -> list[tuple[Any, ...]]:
    return sorted(world.select(METRICS, ROWS, frequency_ms), key=repr)


def dirty(world: World) -> list[tuple[int, int]]:
    return world.query("SELECT frequency_ms, slot_ms FROM dirty_slots ORDER BY 1, 2")


def increments(world: World, frequency_ms: int) -> dict[int, float]:
    """The sum of each bucket, by its time after ten o'clock in ms."""
    pairs = world.select(METRICS, "chq_timestamp, chq_rollup_sum", frequency_ms)
    sums: dict[int, float] = {}
    for time_ms, value in pairs:
        sums[time_ms - TEN] = sums.get(time_ms - TEN, 0.0) + value
    return sums


def rebuilt(world: World, frequency_ms: int) -> list[Step]:
    steps: list[Step] = []
    roll_up_day(world.lake, TIERS[frequency_ms], world.source, DAY, run_id="hand", on_step=steps.append)
    return steps


def test_every_tier_stands_for_the_points_of_the_finer_one(world: World) -> None:
    gauge(world, "a", TEN, points=360)
    gauge(world, "b", ELEVEN, points=90)
    world.roll_up()
    fine = world.select(METRICS, FACTS)
    for frequency_ms, count in ((60_000, 75), (300_000, 15), (1_200_000, 4), (3_600_000, 2)):
        assert world.select(METRICS, FACTS, frequency_ms) == fine
        assert world.select(METRICS, "count(*)", frequency_ms) == [(count,)]
        assert world.select(METRICS, f"count(*) FILTER (chq_timestamp % {frequency_ms} <> 0)", frequency_ms) == [(0,)]
    facts = "SELECT DISTINCT frequency_ms, rolledup, created_by FROM metric_seg WHERE published ORDER BY 1"
    assert world.query(facts) == [
        (10_000, True, 1),
        (60_000, True, 3),
        (300_000, True, 3),
        (1_200_000, True, 3),
        (3_600_000, False, 3),
    ]
    assert (
        world.query("SELECT upper(ts_range) - lower(ts_range) FROM metric_seg WHERE frequency_ms = 3600000")
        == [(HOUR_MS,)] * 2
    )
    assert dirty(world) == []
    assert world.breaches() == []
    assert world.query("SELECT count(*) FROM boxes WHERE stage = 'metrics.rollup' AND state <> 'done'") == [(0,)]


def test_a_late_file_reaches_every_tier_and_only_its_slots_are_computed_again(world: World) -> None:
    gauge(world, "a", TEN, points=360)
    world.roll_up()
    gauge(world, "late", TEN + 25 * MINUTE, points=3)
    assert dirty(world) == [(60_000, TEN + 20 * MINUTE)]
    steps = world.roll_up()
    assert [(step.hour, step.superseded, step.records_written) for step in steps] == [
        (10, 1, 63),
        (10, 1, 363),
        (10, 1, 363),
        (10, 1, 363),
    ]
    for frequency_ms in TIERS:
        assert world.select(METRICS, FACTS, frequency_ms) == world.select(METRICS, FACTS)
    assert world.breaches() == []


def test_increments_of_a_counter_go_on_across_files_slots_and_hours(world: World) -> None:
    values = [(TEN + number * 30 * SECOND, 5.0 * number) for number in range(1, 200)]
    send(world, "b", counter("requests", values[100:], TEN), ELEVEN)
    send(world, "a", counter("requests", values[:100], TEN), TEN)
    world.roll_up()
    for frequency_ms in TIERS:
        assert sum(increments(world, frequency_ms).values()) == 5.0 * 199
    assert set(increments(world, 60_000).values()) == {5.0, 10.0}
    assert world.select(METRICS, "DISTINCT metric_temporality", 60_000) == [("delta",)]


def test_a_late_point_of_a_counter_changes_the_increment_after_it_in_a_later_slot(world: World) -> None:
    send(world, "a", counter("requests", [(TEN + 9 * MINUTE, 100.0)], TEN))
    send(world, "b", counter("requests", [(TEN + 11 * MINUTE, 300.0)], TEN))
    world.roll_up()
    assert increments(world, 60_000) == {9 * MINUTE: 100.0, 11 * MINUTE: 200.0}
    send(world, "late", counter("requests", [(TEN + 9 * MINUTE + 50 * SECOND, 250.0)], TEN))
    assert dirty(world) == [(60_000, TEN), (60_000, TEN + 10 * MINUTE)]
    world.roll_up()
    assert increments(world, 60_000) == {9 * MINUTE: 250.0, 11 * MINUTE: 50.0}
    assert increments(world, 3_600_000) == {0: 300.0}
    assert world.breaches() == []


def test_a_counter_older_than_the_look_back_gives_no_made_up_increment(world: World) -> None:
    send(world, "a", counter("requests", [(TEN + MINUTE, 1000.0), (TEN + 2 * MINUTE, 1010.0)], TEN - 30 * HOUR_MS))
    world.roll_up()
    assert increments(world, 60_000) == {MINUTE: 0.0, 2 * MINUTE: 10.0}
    assert world.query("SELECT reach_ms FROM metric_seg WHERE frequency_ms = 60000") == [(TEN - 24 * HOUR_MS,)]


def test_values_that_have_expired_are_no_evidence_that_a_counter_began_anew(world: World) -> None:
    today_ms = day_start_ms(dateint_of(now_ms()))
    yesterday, before = today_ms - 24 * HOUR_MS, today_ms - 26 * HOUR_MS
    send(world, "a", counter("requests", [(yesterday - MINUTE, 1000.0)], before), yesterday - MINUTE)
    send(world, "b", counter("requests", [(yesterday + MINUTE, 1007.0)], before), yesterday + MINUTE)
    world.roll_up()
    sums = "chq_timestamp, chq_rollup_sum"
    assert (yesterday + MINUTE, 7.0) in world.select(METRICS, sums, 60_000)
    with retained(world, 1):
        retention(world.lake, MaintenancePolicy(), Order(dry_run=False, now_ms=now_ms()))
        gauge(world, "late", yesterday + 2 * MINUTE, points=1)
        world.roll_up()
    assert (yesterday + MINUTE, 0.0) in world.select(METRICS, sums, 60_000)


def test_a_value_found_hours_back_is_the_one_before(world: World) -> None:
    send(world, "a", counter("requests", [(TEN - 5 * HOUR_MS, 1000.0)], TEN - 30 * HOUR_MS), TEN - 5 * HOUR_MS)
    send(world, "b", counter("requests", [(TEN + MINUTE, 1007.0)], TEN - 30 * HOUR_MS))
    world.roll_up()
    assert increments(world, 60_000)[MINUTE] == 7.0


def test_rebuilding_a_day_changes_nothing_and_twice_writes_the_same_objects(world: World) -> None:
    gauge(world, "a", TEN, points=360)
    send(world, "c", counter("requests", [(TEN + n * 20 * SECOND, 2.0 * n) for n in range(1, 300)], TEN))
    world.roll_up()
    before = {frequency_ms: rows(world, frequency_ms) for frequency_ms in TIERS}
    for frequency_ms in TIERS:
        rebuilt(world, frequency_ms)
    once = {frequency_ms: world.published(METRICS, frequency_ms) for frequency_ms in TIERS}
    objects = {path: path.read_bytes() for path in world.segment_files()}
    for frequency_ms in TIERS:
        assert [step.superseded for step in rebuilt(world, frequency_ms)] == [0] * len(once[frequency_ms])
    assert {frequency_ms: world.published(METRICS, frequency_ms) for frequency_ms in TIERS} == once
    assert {path: path.read_bytes() for path in world.segment_files()} == objects
    assert {frequency_ms: rows(world, frequency_ms) for frequency_ms in TIERS} == before
    assert world.breaches() == []


def test_a_compacted_tier_is_computed_as_a_whole_where_a_slot_of_it_is_dirty(world: World) -> None:
    gauge(world, "a", TEN, points=360)
    world.roll_up()
    compact_day(world.lake, METRICS, world.source, DAY, run_id="hand", on_step=lambda _: None)
    assert len(world.published(METRICS, 60_000)) == 1
    assert dirty(world) == []
    gauge(world, "late", TEN + 25 * MINUTE, points=3)
    (first, *_) = world.roll_up()
    assert (first.superseded, first.records_written) == (1, 363)
    assert world.select(METRICS, FACTS, 60_000) == world.select(METRICS, FACTS)
    assert world.breaches() == []


def test_compacting_the_finer_tier_first_changes_no_row_of_the_coarser(world: World) -> None:
    for number in range(4):
        gauge(world, f"f{number}", TEN + number * 15 * MINUTE, points=90)
    world.roll_up()
    before = rows(world, 60_000)
    compact_day(world.lake, METRICS, world.source, DAY, run_id="hand", on_step=lambda _: None)
    rebuilt(world, 60_000)
    assert rows(world, 60_000) == before
    assert world.breaches() == []


def test_rebuilding_the_ingested_day_leaves_no_tier_behind(world: World) -> None:
    gauge(world, "a", TEN, points=30)
    world.roll_up()
    gauge(world, "b", TEN + 5 * MINUTE, points=30)
    rebuild(world.lake, METRICS, world.source, DAY, run_id="rebuild", on_step=lambda _: None)
    world.roll_up()
    for frequency_ms in TIERS:
        assert world.select(METRICS, FACTS, frequency_ms) == world.select(METRICS, FACTS)
    assert world.breaches() == []


def test_rollup_needs_no_message_at_all(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lakerunner_dagster.lake.bus.REQUEST_SECONDS", 0.5)
    gauge(world, "a", TEN)
    away = replace(world.lake, bus=Bus("127.0.0.1:1", prefix=world.place.prefix))
    assert BoxerTick(away, STAGE).run(now_ms(), soon()).boxes == 1
    world.drain_stage(STAGE)
    assert world.select(METRICS, FACTS, 60_000) == world.select(METRICS, FACTS)


def test_changes_gather_before_a_slot_is_computed(world: World) -> None:
    gauge(world, "a", TEN)
    patient = replace(world.lake, rollup=RollupPolicy())
    assert BoxerTick(patient, STAGE).run(now_ms(), soon()).boxes == 0
    with world.lake.lrdb.transaction() as conn:
        conn.execute("UPDATE dirty_slots SET dirty_at = dirty_at - interval '91 seconds'")
    assert BoxerTick(patient, STAGE).run(now_ms(), soon()).boxes == 1


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


def test_a_bad_segment_is_set_aside_and_the_slot_is_computed_without_it_until_it_is_mended(world: World) -> None:
    gauge(world, "a", TEN)
    gauge(world, "b", TEN)
    bad = world.segment_files()[0]
    bad.write_bytes(b"no parquet")
    world.box_stage(STAGE)
    world.drain_stage(STAGE)
    assert world.select(METRICS, "sum(chq_points)::bigint", 60_000) == [(60,)]
    with world.lake.lrdb.connection() as conn:
        assert [fault.error_class for fault in faults.faults(conn, world.source.organization_id)] == ["not_parquet"]
    rebuild(world.lake, METRICS, world.source, DAY, run_id="rebuild", on_step=lambda _: None)
    rebuilt(world, 60_000)
    assert world.select(METRICS, FACTS, 60_000) == world.select(METRICS, FACTS)
    world.roll_up()
    assert world.breaches() == []


@pytest.mark.parametrize("noted", [False, True])
def test_an_unreadable_segment_of_the_day_before_ends_no_run_in_a_loop(world: World, *, noted: bool) -> None:
    midnight = NOON_MS - 12 * HOUR_MS
    send(world, "a", counter("requests", [(midnight - MINUTE, 100.0)], midnight - HOUR_MS), midnight - MINUTE)
    world.roll_up()
    ((yesterday, ingested, _),) = world.published(METRICS)
    next(path for path in world.segment_files() if path.stem == f"tbl_{ingested}").unlink()
    if noted:
        with world.lake.lrdb.transaction() as conn:
            (segment,) = segments.published_segments(conn, world.source, METRICS, yesterday, frequency_ms=10_000)
            faults.mark(conn, segment, "object_missing", "gone", retry_seconds=0.0)
    send(world, "b", counter("requests", [(midnight + MINUTE, 107.0)], midnight - HOUR_MS), midnight + MINUTE)
    world.roll_up()
    with world.lake.lrdb.connection() as conn:
        listed = faults.faults(conn, world.source.organization_id)
    assert [(fault.segment_id, fault.dateint, fault.attempts) for fault in listed] == [(ingested, yesterday, 1 + noted)]
    assert dirty(world) == [(60_000, midnight)], "the slot waits for the segment"
    rebuild(world.lake, METRICS, world.source, yesterday, run_id="rebuild", on_step=lambda _: None)
    rebuilt(world, 60_000)
    world.roll_up()
    assert sorted(world.select(METRICS, "chq_rollup_sum", 60_000)) == [(7.0,), (100.0,)]
    assert world.breaches() == []


def test_a_segment_that_can_never_be_read_does_not_keep_a_run_for_ever(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    gauge(world, "a", TEN)
    world.segment_files()[0].unlink()
    world.box_stage(STAGE)
    monkeypatch.setattr("lakerunner_dagster.lake.runs.segment_files.FAULT_RETRY_SECONDS", 0.0)
    with pytest.raises(WorkIncomplete, match=SegmentUnusable.__name__):
        drain(world.lake, STAGE, world.source, DAY, run_id="r", on_step=lambda _: None)
    assert dirty(world) == [(60_000, TEN)]


def test_a_segment_that_became_unreadable_takes_nothing_from_the_tier(world: World) -> None:
    gauge(world, "a", TEN)
    gauge(world, "b", TEN)
    world.roll_up()
    _, ingested, _ = world.published(METRICS)[0]
    next(path for path in world.segment_files() if path.stem == f"tbl_{ingested}").unlink()
    with pytest.raises(WorkIncomplete, match="cannot be read"):
        rebuilt(world, 60_000)
    assert world.select(METRICS, "sum(chq_points)::bigint", 60_000) == [(120,)]


def emptied(world: World, hour: int, raw: str) -> list[Segment]:
    """Take an hour out of sight, as a rebuild does that rejects all records of a raw object; what was there."""
    with world.lake.lrdb.transaction() as conn:
        gone = segments.published_segments(conn, world.source, METRICS, DAY, frequency_ms=10_000, hour=hour)
        swap.supersede(conn, gone, [], operation="rebuild", run_id="rebuild")
        conn.execute("UPDATE raw_objects SET records_rejected = records_read WHERE key LIKE %s", (f"%/{raw}",))
    return gone


def test_an_hour_that_a_rebuild_has_emptied_goes_from_every_tier(world: World) -> None:
    gauge(world, "a", TEN, points=30)
    gauge(world, "b", ELEVEN, points=6)
    world.roll_up()
    gone = emptied(world, 10, "a")
    with world.lake.lrdb.transaction() as conn:
        slots.touch(conn, gone)
    world.roll_up()
    for frequency_ms in TIERS:
        assert world.select(METRICS, FACTS, frequency_ms) == world.select(METRICS, FACTS)
    assert dirty(world) == []
    assert world.breaches() == []


def test_an_hour_with_nothing_under_it_is_told_and_only_a_person_takes_it_away(world: World) -> None:
    gauge(world, "a", TEN, points=30)
    world.roll_up()
    emptied(world, 10, "a")
    with world.lake.lrdb.connection() as conn:
        found = coverage.holes(conn, world.source.organization_id, DAY)
    assert [(hole.frequency_ms, hole.hour, hole.finer_records, hole.records) for hole in found] == [(60_000, 10, 0, 30)]
    order = Order(dry_run=False, now_ms=NOON_MS, partitions=None)
    assert holes(world.lake, MaintenancePolicy(), order).counts == {"nothing to compute it from": 1}
    assert dirty(world) == []
    rebuilt(world, 60_000)
    world.roll_up()
    assert [world.published(METRICS, frequency_ms) for frequency_ms in TIERS] == [[]] * len(TIERS)
    assert world.breaches() == []


def test_an_hour_under_which_a_tier_has_expired_is_no_hole(world: World) -> None:
    gauge(world, "a", TEN, points=30)
    world.roll_up()
    with world.lake.lrdb.transaction() as conn:
        expiry.expire(conn, world.source, METRICS, frequency_ms=10_000, dateint=DAY, run_id="retention")
    with world.lake.lrdb.connection() as conn:
        assert coverage.holes(conn, world.source.organization_id, DAY) == []


def test_a_slot_of_which_nothing_can_be_read_stays_as_it_is_and_the_others_are_computed(world: World) -> None:
    gauge(world, "a", TEN)
    gauge(world, "b", TEN + 10 * MINUTE)
    world.box_stage(STAGE)
    world.drain_stage(STAGE)
    (*_, (_, unreadable, _)) = world.query(
        "SELECT lower(ts_range), segment_id, records FROM metric_seg WHERE frequency_ms = 10000 ORDER BY 1 DESC"
    )
    file = next(path for path in world.segment_files() if path.stem == f"tbl_{unreadable}")
    data = file.read_bytes()
    file.unlink()
    gauge(world, "c", TEN + 10 * MINUTE, points=6)
    with world.lake.lrdb.transaction() as conn:
        slots.mark(conn, [Slot(world.source.organization_id, world.source.instance_num, 60_000, TEN)])
    world.roll_up()
    assert world.select(METRICS, "sum(chq_points)::bigint", 60_000) == [(126,)]
    assert world.query("SELECT slot_ms, box_id FROM dirty_slots WHERE frequency_ms = 60000") == [(TEN, None)]
    assert world.query("SELECT DISTINCT state FROM boxes WHERE stage = 'metrics.rollup'") == [("done",)]
    file.write_bytes(data)
    with world.lake.lrdb.transaction() as conn:
        faults.forget(conn, world.source.organization_id, [unreadable])
        slots.postpone(conn, [Slot(world.source.organization_id, world.source.instance_num, 60_000, TEN)])
    world.roll_up()
    assert dirty(world) == []
    assert world.breaches() == []


def test_a_slot_of_which_nothing_could_ever_be_read_waits_for_it(world: World) -> None:
    gauge(world, "a", TEN)
    world.segment_files()[0].unlink()
    world.roll_up()
    assert dirty(world) == [(60_000, TEN)]
    assert world.query("SELECT DISTINCT state FROM boxes WHERE stage = 'metrics.rollup'") == [("done",)]
    rebuild(world.lake, METRICS, world.source, DAY, run_id="rebuild", on_step=lambda _: None)
    rebuilt(world, 60_000)
    assert world.select(METRICS, FACTS, 60_000) == world.select(METRICS, FACTS)


@contextmanager
def retained(world: World, days: int) -> Iterator[None]:
    with world.lake.lrdb.transaction() as conn:
        profiles.set_retention(conn, world.source.organization_id, METRICS, days, frequency_ms=10_000)
    yield


def test_a_tier_outlives_the_finer_one_and_is_never_computed_from_what_is_left(world: World) -> None:
    gauge(world, "a", TEN)
    world.roll_up()
    with retained(world, 1):
        gauge(world, "late", TEN, points=2)
        world.box_stage(STAGE)
        world.drain_stage(STAGE)
        assert dirty(world) == []
        assert world.select(METRICS, "sum(chq_points)::bigint", 60_000) == [(60,)]
        with pytest.raises(RequestRefused, match="past its retention"):
            rebuilt(world, 60_000)
        assert world.breaches() == []


def test_a_hole_is_seen_and_heals_itself(world: World) -> None:
    gauge(world, "a", TEN)
    world.roll_up()
    with world.lake.lrdb.transaction() as conn:
        conn.execute("DELETE FROM metric_seg WHERE frequency_ms = 300000")
    assert [breach.invariant for breach in world.breaches() if "tier" in breach.what] == [2]
    with world.lake.lrdb.connection() as conn:
        by_tier = {row.frequency_ms: row.holes for row in coverage.coverage(conn, DAY)}
    assert by_tier == {60_000: 0, 300_000: 1, 1_200_000: 0, 3_600_000: 0}
    order = Order(dry_run=False, now_ms=NOON_MS, partitions=None)
    assert holes(world.lake, MaintenancePolicy(), order).counts == {"marked": 1}
    world.roll_up()
    assert world.select(METRICS, FACTS, 300_000) == world.select(METRICS, FACTS)


def test_a_row_of_an_hour_is_traced_to_its_raw_objects_through_every_tier(world: World) -> None:
    gauge(world, "a", TEN)
    gauge(world, "b", TEN + 20 * MINUTE)
    world.roll_up()
    ((_, segment_id, _),) = world.published(METRICS, 3_600_000)
    with world.lake.lrdb.connection() as conn:
        links = lineage.raw_of_segment(conn, segment_id)
    assert {link.known.raw.key.rpartition("/")[2] for link in links} == {"a", "b"}
    with world.lake.lrdb.connection() as conn:
        found = lineage.ingested_segments(conn, world.source, METRICS, [segment_id])
    ingested = {one for _, one, _ in world.published(METRICS)}
    assert {int(key.rpartition("_")[2].removesuffix(".parquet")) for _, key in found} == ingested
    assert {made for made, _ in found} == {segment_id}


def test_a_store_that_fails_gives_the_box_back_and_the_slot_stays_dirty(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    gauge(world, "a", TEN)
    world.box_stage(STAGE)

    def fail(*_: Any) -> None:
        raise StoreUnavailable("no answer")

    with monkeypatch.context() as patched:
        patched.setattr(Store, "create", fail)
        with pytest.raises(WorkIncomplete, match="no answer"):
            drain(world.lake, STAGE, world.source, DAY, run_id="r", on_step=lambda _: None)
    assert dirty(world) == [(60_000, TEN)]
    world.drain_stage(STAGE)
    assert world.select(METRICS, FACTS, 60_000) == world.select(METRICS, FACTS)


def test_an_output_that_lacks_points_is_refused(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    gauge(world, "a", TEN)
    world.box_stage(STAGE)
    real = roll_up

    def lossy(*arguments: Any, **named: Any) -> Any:
        for made in real(*arguments, **named):
            given = tuple(replace(one, records=one.records - 7) for one in made.output.inputs)
            yield replace(made, output=replace(made.output, inputs=given))

    monkeypatch.setattr("lakerunner_dagster.lake.runs.rollup.roll_up", lossy)
    with pytest.raises(WorkIncomplete, match=ConservationBreach.__name__):
        drain(world.lake, STAGE, world.source, DAY, run_id="r", on_step=lambda _: None)
    assert world.published(METRICS, 60_000) == []
    assert dirty(world) == [(60_000, TEN)]


HOURS = 20
"""Hours that are made ready: more than a run has boundaries, each of which is tried in an hour of its own."""


def roll_up_number(lake: Lake, number: int) -> None:
    """Claim boxes until one is that of the hour; the hours come in order, one at a time."""
    drain(lake, STAGE, source_in(lake), DAY, run_id=f"killed-{number}", on_step=lambda _: None)


def test_a_rollup_killed_at_each_boundary_and_run_again_neither_loses_nor_doubles_a_point(world: World) -> None:
    midnight = NOON_MS - 12 * HOUR_MS
    for hour in range(HOURS):
        start_ms = midnight + hour * HOUR_MS
        values = [(start_ms + n * 20 * SECOND, 2.0 * n) for n in range(1, 9)]
        send(world, f"c{hour}", counter("requests", values, start_ms), start_ms)
    world.box_stage(STAGE)

    boundaries = kill_everywhere(world.place, roll_up_number)

    assert {
        "after a download",
        "after an upload",
        "before a commit",
        "after a commit",
        "before messages are sent",
        "after messages are sent",
    } <= set(boundaries)
    world.expire_leases()
    world.drain_stage(STAGE)
    world.roll_up()
    for frequency_ms in TIERS:
        assert world.select(METRICS, "sum(chq_points)::bigint, sum(chq_rollup_sum)", frequency_ms) == [
            (8 * HOURS, 16.0 * HOURS)
        ]
    assert dirty(world) == []
    assert world.query("SELECT count(*) FROM outbox") == [(0,)]
    assert world.breaches() == []


def _tick(lake: Lake, _: int) -> None:
    BoxerTick(lake, STAGE).run(now_ms(), soon())


def test_a_boxer_killed_at_each_boundary_boxes_each_slot_once(world: World) -> None:
    gauge(world, "a", TEN)
    gauge(world, "b", ELEVEN)
    boundaries = kill_everywhere(world.place, _tick)
    assert "before a commit" in boundaries
    world.drain_stage(STAGE)
    assert world.query("SELECT count(*) FROM boxes WHERE stage = 'metrics.rollup' AND frequency_ms = 60000") == [(2,)]
    assert world.select(METRICS, FACTS, 60_000) == world.select(METRICS, FACTS)


def test_what_was_published_before_there_were_rollups_is_marked_by_the_migration(world: World) -> None:
    gauge(world, "a", TEN, points=100)
    before = dirty(world)
    world.query("DELETE FROM dirty_slots RETURNING slot_ms")
    text = (MIGRATIONS / "0006.rollup.sql").read_text()
    with world.lake.lrdb.transaction() as conn:
        conn.execute(text[text.index("INSERT INTO dirty_slots") :].encode())
    assert dirty(world) == before == [(60_000, TEN), (60_000, TEN + 10 * MINUTE)]
