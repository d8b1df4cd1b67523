"""Slots under which something is gone, has expired or cannot be read: no tier loses a point for it."""

from __future__ import annotations

import pytest

from lakerunner_dagster.lake.errors import RequestRefused, SegmentUnusable, WorkIncomplete
from lakerunner_dagster.lake.lrdb import coverage, expiry, faults, segments, slots, swap
from lakerunner_dagster.lake.lrdb.slots import Slot
from lakerunner_dagster.lake.maintenance.holes import holes
from lakerunner_dagster.lake.maintenance.report import Order
from lakerunner_dagster.lake.maintenance.retention import retention
from lakerunner_dagster.lake.model import HOUR_MS, Segment
from lakerunner_dagster.lake.runs.drain import drain
from lakerunner_dagster.lake.runs.rebuild import rebuild
from lakerunner_dagster.lake.settings import MaintenancePolicy
from lakerunner_dagster.lake.tiers import TIERS
from tests.lake.requests import counter
from tests.lake.runs.rollups import (
    ELEVEN,
    FACTS,
    METRICS,
    MINUTE,
    STAGE,
    TEN,
    dirty,
    gauge,
    increments,
    rebuilt,
    retained,
    send,
)
from tests.lake.world import DAY, NOON_MS, World, now_ms


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


def test_a_tier_outlives_the_finer_one_and_is_never_computed_from_what_is_left(world: World) -> None:
    gauge(world, "a", TEN)
    world.roll_up()
    with retained(world, 1):
        retention(world.lake, MaintenancePolicy(), Order(dry_run=False, now_ms=now_ms()))
        gauge(world, "late", TEN, points=2)
        world.box_stage(STAGE)
        world.drain_stage(STAGE)
        assert dirty(world) == []
        assert world.select(METRICS, "sum(chq_points)::bigint", 60_000) == [(60,)]
        with pytest.raises(RequestRefused, match="past its retention"):
            rebuilt(world, 60_000)
        assert world.breaches() == []


def test_a_day_does_not_expire_before_the_next_tier_is_computed_from_it(world: World) -> None:
    send(world, "a", counter("requests", [(TEN + 9 * MINUTE, 100.0), (TEN + 11 * MINUTE, 300.0)], TEN))
    ingested = world.published(METRICS)
    with retained(world, 1):
        for dry_run in (True, False):
            report = retention(world.lake, MaintenancePolicy(), Order(dry_run=dry_run, now_ms=now_ms()))
            assert report.counts == {"kept for the next tier": 1}
            assert "2 slots of the 1m tier" in report.items[0].note
        assert world.published(METRICS) == ingested
        world.roll_up()
        assert increments(world, 60_000) == {9 * MINUTE: 100.0, 11 * MINUTE: 200.0}
        assert increments(world, 3_600_000) == {0: 300.0}
        report = retention(world.lake, MaintenancePolicy(), Order(dry_run=False, now_ms=now_ms()))
        assert report.counts == {"expired": 1}
        assert world.published(METRICS) == []
        assert increments(world, 3_600_000) == {0: 300.0}
        assert world.breaches() == []


def test_a_day_waits_for_no_tier_that_is_kept_no_longer(world: World) -> None:
    gauge(world, "a", TEN)
    with retained(world, 1), retained(world, 1, 60_000):
        report = retention(world.lake, MaintenancePolicy(), Order(dry_run=False, now_ms=now_ms()))
        assert report.counts == {"expired": 1}
        world.box_stage(STAGE)
        world.drain_stage(STAGE)
        assert dirty(world) == []
        assert world.published(METRICS, 60_000) == []


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
