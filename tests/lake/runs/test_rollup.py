"""What rollup must never do: lose a point in any tier, count one twice, leave a hole, or forget a slot."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from lakerunner_dagster.lake.bus import Bus
from lakerunner_dagster.lake.errors import ConservationBreach, StoreUnavailable, WorkIncomplete
from lakerunner_dagster.lake.lrdb import lineage
from lakerunner_dagster.lake.lrdb.migrate import MIGRATIONS
from lakerunner_dagster.lake.maintenance.report import Order
from lakerunner_dagster.lake.maintenance.retention import retention
from lakerunner_dagster.lake.model import HOUR_MS, dateint_of, day_start_ms
from lakerunner_dagster.lake.runs.context import Lake
from lakerunner_dagster.lake.runs.drain import drain
from lakerunner_dagster.lake.runs.full_compaction import compact_day
from lakerunner_dagster.lake.runs.rebuild import rebuild
from lakerunner_dagster.lake.segments.rollup import roll_up
from lakerunner_dagster.lake.settings import MaintenancePolicy, RollupPolicy
from lakerunner_dagster.lake.store import Store
from lakerunner_dagster.lake.ticks.boxer import BoxerTick
from lakerunner_dagster.lake.tiers import TIERS
from tests.lake.killing import kill_everywhere
from tests.lake.requests import counter
from tests.lake.runs.rollups import (
    ELEVEN,
    FACTS,
    METRICS,
    MINUTE,
    SECOND,
    STAGE,
    TEN,
    dirty,
    gauge,
    increments,
    rebuilt,
    retained,
    rows,
    send,
)
from tests.lake.runs.test_killed_run import source_in
from tests.lake.world import DAY, NOON_MS, World, now_ms, soon


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
