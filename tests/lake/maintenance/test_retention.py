"""Days go as a whole, each tier by its own rule, and what must be kept is kept."""

from __future__ import annotations

import threading
from datetime import UTC, datetime, timedelta
from uuid import uuid4

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lakerunner_dagster.lake.errors import WorkIncomplete
from lakerunner_dagster.lake.lrdb import partitions, profiles
from lakerunner_dagster.lake.lrdb.expiry import NEVER, first_kept_day
from lakerunner_dagster.lake.model import HOUR_MS, dateint_of, day_start_ms
from lakerunner_dagster.lake.signals import Signal
from tests.lake.maintenance.turns import DAY_MS, add_source, everything, rebuild_day, subjects, turn
from tests.lake.requests import expected, gauges, logs
from tests.lake.world import DAY, NOON_MS, ORGANIZATION, World

NOW_MS = NOON_MS + DAY_MS
"""The noon after DAY's."""


def keep(world: World, signal: Signal, days: int, frequency_ms: int = 0) -> None:
    with world.lake.lrdb.transaction() as conn:
        profiles.set_retention(conn, ORGANIZATION, signal, days, frequency_ms)


def send_days(world: World, *names: str) -> None:
    """A log record at noon of each of the days up to DAY, the last name's."""
    for ago, name in enumerate(reversed(names)):
        noon = NOON_MS - ago * DAY_MS
        world.send(Signal.LOGS, name, logs(name, [noon]), event_time_ms=noon)
    world.ingest(Signal.LOGS)


def leaves(world: World, table: str = "log_seg") -> set[int]:
    rows = world.query("SELECT relname FROM pg_class WHERE relispartition AND relkind = 'r'")
    return {int(name[-8:]) for (name,) in rows if name.startswith(f"{table}_")}


@given(days=st.integers(1, 5000), now=st.datetimes(datetime(2025, 1, 1), datetime(2100, 1, 1)))  # noqa: DTZ001
def test_a_day_expires_once_its_last_moment_is_older_than_the_rule_says(days: int, now: datetime) -> None:
    now_ms = int(now.replace(tzinfo=UTC).timestamp() * 1000)
    first = first_kept_day(days, now_ms)
    oldest_allowed = now_ms - days * DAY_MS
    assert day_start_ms(first) + DAY_MS > oldest_allowed
    before = int((datetime.strptime(str(first), "%Y%m%d") - timedelta(days=1)).strftime("%Y%m%d"))  # noqa: DTZ007
    assert day_start_ms(before) + DAY_MS <= oldest_allowed
    assert first_kept_day(0, now_ms) == NEVER


def test_nothing_expires_where_no_rule_says_so(world: World) -> None:
    send_days(world, "a", "b")
    keep(world, Signal.LOGS, 0)
    assert turn(world.lake, "retention", now_ms=NOW_MS + 10_000 * DAY_MS).counts == {}
    assert world.messages() == expected(a=1, b=1)


def test_an_expired_day_goes_out_of_sight_then_out_of_the_store_and_its_raw_objects_stay(world: World) -> None:
    send_days(world, "a", "b", "c")
    keep(world, Signal.LOGS, 2)
    raw = sorted(world.place.bucket.glob("otel-raw/**/*"))
    report = turn(world.lake, "retention", now_ms=NOW_MS)
    assert subjects(report, "expired") == ["acme/edge, logs, 2026-02-01"]
    assert world.messages() == expected(b=1, c=1)
    assert len(world.segment_files()) == 3, "a reader may still hold its key"
    assert leaves(world) == {DAY - 2, DAY - 1, DAY}
    assert turn(world.lake, "superseded").counts == {"deleted": 1}
    assert len(world.segment_files()) == 2
    assert subjects(turn(world.lake, "retention", now_ms=NOW_MS), "leaf dropped") == ["acme, log_seg, 2026-02-01"]
    assert leaves(world) == {DAY - 1, DAY}
    assert sorted(world.place.bucket.glob("otel-raw/**/*")) == raw
    assert world.breaches() == []
    assert turn(world.lake, "retention", now_ms=NOW_MS).counts == {}


def test_late_data_of_an_expired_day_goes_with_the_next_turn(world: World) -> None:
    send_days(world, "a", "b")
    keep(world, Signal.LOGS, 1)
    for job in ("retention", "superseded", "retention"):
        turn(world.lake, job, now_ms=NOW_MS)
    world.send(Signal.LOGS, "late", logs("late", [NOON_MS - DAY_MS]), event_time_ms=NOON_MS - DAY_MS)
    world.ingest(Signal.LOGS)
    assert world.messages() == expected(late=1, b=1)
    for job in ("retention", "superseded"):
        turn(world.lake, job, now_ms=NOW_MS)
    assert world.messages() == expected(b=1)
    rebuild_day(world, noon_ms=NOON_MS - DAY_MS)
    assert world.messages() == expected(b=1)
    assert world.breaches() == []


def test_each_metric_tier_has_a_rule_of_its_own(world: World) -> None:
    times = [NOON_MS - DAY_MS]
    world.send(Signal.METRICS, "m", gauges("queue.length", times), event_time_ms=times[0])
    world.ingest(Signal.METRICS)
    columns = "organization_id, dateint, instance_num, ts_range, record_count, file_size, created_by"
    with world.lake.lrdb.transaction() as conn:
        conn.execute(
            f"INSERT INTO metric_seg (segment_id, published, frequency_ms, {columns}) SELECT f, published, f, {columns}"
            " FROM metric_seg, unnest(ARRAY[60000, 300000]) AS f"
        )
        conn.execute("DELETE FROM dirty_slots")
    keep(world, Signal.METRICS, 1)
    keep(world, Signal.METRICS, 30, 60_000)
    keep(world, Signal.METRICS, 0, 300_000)
    report = turn(world.lake, "retention", now_ms=NOW_MS)
    assert subjects(report, "expired") == ["acme/edge, metrics of 10 s, 2026-02-02"]
    assert subjects(turn(world.lake, "retention", now_ms=NOW_MS + 30 * DAY_MS), "expired") == [
        "acme/edge, metrics of 60 s, 2026-02-02"
    ]
    assert world.query("SELECT frequency_ms FROM metric_seg WHERE published") == [(300_000,)]


def test_one_tenants_rule_touches_no_other(world: World) -> None:
    other = add_source(world, "acme1", uuid4(), "edge")
    send_days(world, "a")
    partitions.ensure_partitions(world.lake.lrdb, Signal.LOGS, other.organization_id, [DAY - 100])
    keep(world, Signal.LOGS, 1)
    turn(world.lake, "retention", now_ms=NOW_MS + 50 * DAY_MS)
    assert world.messages() == expected()
    assert DAY - 100 in leaves(world)


def test_a_leaf_that_is_read_is_left_for_the_next_time(world: World) -> None:
    partitions.ensure_partitions(world.lake.lrdb, Signal.LOGS, ORGANIZATION, [DAY - 100])
    keep(world, Signal.LOGS, 1)
    with world.lake.lrdb.transaction() as conn:
        conn.execute("SELECT count(*) FROM log_seg WHERE organization_id = %s", (ORGANIZATION,))
        assert turn(world.lake, "retention", now_ms=NOW_MS).counts == {"leaf left for the next time": 1}
    assert turn(world.lake, "retention", now_ms=NOW_MS).counts == {"leaf dropped": 1}


def test_a_leaf_into_which_a_row_has_just_come_is_not_dropped(world: World) -> None:
    send_days(world, "a")
    assert not partitions.drop_leaf(world.lake.lrdb, Signal.LOGS, ORGANIZATION, DAY)
    with world.lake.lrdb.connection() as conn:
        assert partitions.empty_leaves(conn, Signal.LOGS, ORGANIZATION, DAY + 1) == []
    assert world.messages() == expected(a=1)


def test_makers_and_droppers_of_leaves_at_once_leave_what_was_made_last(world: World) -> None:
    lrdb, stop = world.lake.lrdb, threading.Event()

    def drop() -> None:
        while not stop.is_set():
            partitions.drop_leaf(lrdb, Signal.LOGS, ORGANIZATION, DAY)

    dropper = threading.Thread(target=drop)
    dropper.start()
    try:
        for _ in range(20):
            partitions.ensure_partitions(lrdb, Signal.LOGS, ORGANIZATION, [DAY])
    finally:
        stop.set()
        dropper.join()
    send_days(world, "a")
    assert world.messages() == expected(a=1)


def expire(world: World, days: int = 1) -> None:
    """Whatever is older than so many days goes, out of sight and out of the store."""
    keep(world, Signal.LOGS, days)
    for job in ("retention", "superseded", "retention"):
        assert turn(world.lake, job, now_ms=NOW_MS).failed == 0


def test_what_a_wrong_rule_took_comes_back_by_a_rebuild_once_the_rule_is_lifted(world: World) -> None:
    noon = NOON_MS - DAY_MS
    send_days(world, "a", "b")
    rebuild_day(world, noon_ms=noon)
    before = world.published(Signal.LOGS)
    expire(world)
    rebuild_day(world, noon_ms=noon)
    assert world.messages() == expected(b=1), "a rebuild brings back what is past its retention"
    keep(world, Signal.LOGS, 0)
    rebuild_day(world, noon_ms=noon)
    assert world.published(Signal.LOGS) == before
    assert world.messages() == expected(a=1, b=1)
    assert world.breaches() == []
    rebuild_day(world, noon_ms=noon)
    assert world.published(Signal.LOGS) == before
    expire(world)
    assert world.messages() == expected(b=1)
    assert world.breaches() == []


def test_what_came_back_and_is_lost_then_has_not_expired(world: World) -> None:
    send_days(world, "a", "b")
    expire(world)
    keep(world, Signal.LOGS, 0)
    rebuild_day(world, noon_ms=NOON_MS - DAY_MS)
    assert world.breaches() == []
    with world.lake.lrdb.transaction() as conn:
        conn.execute("DELETE FROM log_seg WHERE dateint < %s", (DAY,))
    assert [breach.what for breach in world.breaches()] == ["accepted records of a raw object are published nowhere"]


def test_what_has_not_come_back_of_an_hour_has_expired_still(world: World) -> None:
    for name in ("gone", "a"):
        noon = NOON_MS - DAY_MS
        key = world.put(Signal.LOGS, name, logs(name, [noon]))
        world.notify(key, event_time_ms=noon)
        if name == "gone":
            gone = world.place.bucket / key
    world.ingest(Signal.LOGS)
    expire(world)
    keep(world, Signal.LOGS, 0)
    gone.unlink()
    with pytest.raises(WorkIncomplete, match="ObjectMissing"):
        rebuild_day(world, noon_ms=NOON_MS - DAY_MS)
    assert world.messages() == expected(a=1)
    assert world.breaches() == []


def test_ingested_days_that_had_expired_come_back_whole_with_what_crosses_midnight(world: World) -> None:
    midnight = day_start_ms(DAY)
    for name, times, stored in (
        ("a", [midnight - 2 * HOUR_MS, midnight - 1], midnight - 1000),
        ("across", [midnight - 1, midnight, midnight + HOUR_MS], midnight - 1),
        ("late", [midnight - HOUR_MS], NOON_MS),
        ("b", [midnight, NOON_MS], NOON_MS),
    ):
        world.send(Signal.LOGS, name, logs(name, times), event_time_ms=stored)
        world.ingest(Signal.LOGS)
    whole = world.messages()
    keep(world, Signal.LOGS, 1)
    for job in ("retention", "superseded", "retention"):
        turn(world.lake, job, now_ms=NOW_MS + 2 * DAY_MS)
    assert world.messages() == expected()
    keep(world, Signal.LOGS, 0)
    for noon_ms in (NOON_MS, NOON_MS - DAY_MS):
        rebuild_day(world, noon_ms=noon_ms)
        assert world.breaches() == []
    assert world.messages() == whole


def test_rows_that_were_lost_come_back_by_a_rebuild(world: World) -> None:
    world.send(Signal.LOGS, "a", logs("a", [NOON_MS, NOON_MS + HOUR_MS]))
    world.ingest(Signal.LOGS)
    with world.lake.lrdb.transaction() as conn:
        conn.execute("DELETE FROM log_seg")
    assert [breach.invariant for breach in world.breaches()] == [2]
    rebuild_day(world)
    assert world.messages() == expected(a=2)
    assert world.breaches() == []


def test_a_rebuild_names_the_raw_object_without_which_what_was_lost_cannot_come_back(world: World) -> None:
    gone = world.send(Signal.LOGS, "gone", logs("gone", [NOON_MS]))
    world.send(Signal.LOGS, "a", logs("a", [NOON_MS]))
    world.ingest(Signal.LOGS)
    with world.lake.lrdb.transaction() as conn:
        conn.execute("DELETE FROM log_seg")
    (world.place.bucket / gone).unlink()
    with pytest.raises(WorkIncomplete, match=f"ObjectMissing: .*{gone}"):
        rebuild_day(world)
    assert world.messages() == expected(a=1)


def test_points_that_a_wrong_rule_took_come_back_and_their_tiers_stand_for_them(world: World) -> None:
    world.send(Signal.METRICS, "m", gauges("queue.length", [NOON_MS]))
    world.ingest(Signal.METRICS)
    world.roll_up()
    keep(world, Signal.METRICS, 1, 10_000)
    for job in ("retention", "superseded"):
        turn(world.lake, job, now_ms=NOW_MS + 2 * DAY_MS)
    assert world.select(Signal.METRICS, "sum(chq_points)::int") == []
    keep(world, Signal.METRICS, 0, 10_000)
    rebuild_day(world, Signal.METRICS)
    world.roll_up()
    for frequency_ms in (10_000, 60_000, 3_600_000):
        assert world.select(Signal.METRICS, "sum(chq_points)::int", frequency_ms) == [(1,)]
    assert world.breaches() == []


@pytest.mark.parametrize("hour", [0, 23])
def test_a_day_is_kept_to_its_last_hour(world: World, hour: int) -> None:
    time_ms = day_start_ms(DAY) + hour * HOUR_MS
    world.send(Signal.LOGS, "a", logs("a", [time_ms]), event_time_ms=time_ms)
    world.ingest(Signal.LOGS)
    keep(world, Signal.LOGS, 3)
    last = day_start_ms(DAY) + 4 * DAY_MS
    assert dateint_of(last - 1) == DAY + 3
    assert turn(world.lake, "retention", now_ms=last - 1).counts == {}
    assert turn(world.lake, "retention", now_ms=last).counts == {"expired": 1}


def test_a_dry_run_tells_what_would_go_and_changes_nothing(world: World) -> None:
    send_days(world, "a", "b")
    partitions.ensure_partitions(world.lake.lrdb, Signal.LOGS, ORGANIZATION, [DAY - 100])
    keep(world, Signal.LOGS, 1)
    untouched = everything(world)
    report = turn(world.lake, "retention", now_ms=NOW_MS, dry_run=True)
    assert report.counts == {"expired": 1, "leaf dropped": 1}
    assert everything(world) == untouched
