"""Superseded segments go after their grace period, object and row, and nothing else does."""

from __future__ import annotations

from lakerunner_dagster.lake.lrdb import deletions
from lakerunner_dagster.lake.maintenance.deleting import BATCH
from lakerunner_dagster.lake.model import HOUR_MS
from lakerunner_dagster.lake.settings import MaintenancePolicy
from lakerunner_dagster.lake.signals import Signal
from tests.lake.maintenance.turns import everything, keys_of, rebuild_day, refusing, subjects, turn
from tests.lake.requests import expected, gauges, logs
from tests.lake.world import NOON_MS, World


def replaced(world: World) -> set[str]:
    """Two boxes' segments of two hours, replaced by a rebuild's; the keys of those that readers see no longer."""
    for name in ("a", "b"):
        world.send(Signal.LOGS, name, logs(name, [NOON_MS, NOON_MS - HOUR_MS]))
        world.ingest(Signal.LOGS)
    before = keys_of(world.segment_files(), world)
    rebuild_day(world)
    assert len(before) == 4
    return before


def test_what_was_replaced_goes_and_what_readers_see_stays(world: World) -> None:
    before = replaced(world)
    world.send(Signal.METRICS, "m", gauges("queue.length", [NOON_MS]))
    world.ingest(Signal.METRICS)
    rebuild_day(world, Signal.METRICS)
    report = turn(world.lake, "superseded")
    assert set(subjects(report, "deleted")) > before
    assert report.counts == {"deleted": 5}
    assert not keys_of(world.segment_files(), world) & before
    assert world.messages() == expected(a=2, b=2)
    assert world.query("SELECT count(*) FROM log_seg WHERE NOT published") == [(0,)]
    assert world.query("SELECT count(*) FROM supersessions") == [(0,)]
    assert world.breaches() == []
    assert turn(world.lake, "superseded").counts == {}
    rebuild_day(world)
    assert world.messages() == expected(a=2, b=2)


def test_a_reader_that_holds_a_list_of_keys_can_read_them_through_the_grace_period(world: World) -> None:
    held = replaced(world)
    policy = MaintenancePolicy()
    assert turn(world.lake, "superseded", policy=policy).counts == {}
    with world.lake.lrdb.transaction() as conn:
        conn.execute("UPDATE supersessions SET superseded_at = now() - interval '59 minutes'")
    assert turn(world.lake, "superseded", policy=policy).counts == {}
    store = world.lake.stores.of(world.source.bucket)
    assert all(store.read(key, 1 << 20)[0] for key in held)
    with world.lake.lrdb.transaction() as conn:
        conn.execute("UPDATE supersessions SET superseded_at = now() - interval '61 minutes'")
    assert turn(world.lake, "superseded", policy=policy).counts == {"deleted": 4}


def test_an_object_that_cannot_be_deleted_keeps_its_rows_and_is_tried_again(world: World) -> None:
    before = replaced(world)
    stubborn = min(before)
    with refusing(world, {stubborn}):
        for _ in range(2):
            report = turn(world.lake, "superseded")
            assert subjects(report, "failed") == [stubborn]
            assert report.failed == 1
    assert world.query("SELECT count(*) FROM log_seg WHERE NOT published") == [(1,)]
    assert world.query("SELECT count(*) FROM supersessions") == [(1,)]
    assert world.query("SELECT key FROM deletions WHERE confirmed_at IS NULL") == [(stubborn,)]
    assert turn(world.lake, "superseded").counts == {"deleted": 1}
    assert world.breaches() == []


def test_a_dry_run_tells_what_would_go_and_changes_nothing(world: World) -> None:
    before = replaced(world)
    with refusing(world, {min(before)}):
        turn(world.lake, "superseded")
    untouched = everything(world)
    report = turn(world.lake, "superseded", dry_run=True)
    assert subjects(report, "deleted") == [min(before)]
    assert everything(world) == untouched


def test_another_deleter_at_work_is_left_alone(world: World) -> None:
    replaced(world)
    with deletions.turn(world.lake.lrdb, world.source) as held:
        assert held is not None
        assert turn(world.lake, "superseded").counts == {"left to another deleter": 1}
    assert turn(world.lake, "superseded").counts == {"deleted": 4}


def test_more_than_a_batch_goes_in_one_turn(world: World) -> None:
    for name in ("a", "b"):
        world.send(Signal.LOGS, name, logs(name, [NOON_MS]))
    world.ingest(Signal.LOGS)
    rebuild_day(world)
    copies = BATCH + 5
    with world.lake.lrdb.transaction() as conn:
        columns = "organization_id, dateint, instance_num, ts_range, record_count, file_size, created_by, published"
        conn.execute(
            f"INSERT INTO log_seg (segment_id, {columns}) SELECT n, {columns} FROM log_seg, generate_series(1, %s) AS n"
            " WHERE NOT published AND segment_id > 10000 ORDER BY segment_id LIMIT %s",
            (copies, copies),
        )
        conn.execute(
            "INSERT INTO supersessions (organization_id, instance_num, signal, frequency_ms, dateint, segment_id,"
            " operation, run_id, replaced_by) SELECT organization_id, instance_num, 'logs', 0, dateint, segment_id,"
            " 'rebuild', 'run', '{}' FROM log_seg WHERE NOT published AND segment_id <= %s",
            (copies,),
        )
    (waiting,) = world.query("SELECT count(*) FROM log_seg WHERE NOT published")[0]
    assert waiting > BATCH
    report = turn(world.lake, "superseded")
    assert report.counts["deleted"] == waiting
    assert len(report.items) < waiting
