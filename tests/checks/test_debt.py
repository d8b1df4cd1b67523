"""Small-file debt: what compaction owes is counted, and only what it should have done by now is a warning."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import dagster as dg

from lakerunner_dagster.checks import debt
from lakerunner_dagster.checks.standing import results
from lakerunner_dagster.lake.lrdb import debt as owed
from lakerunner_dagster.lake.lrdb.debt import SourceDebt
from lakerunner_dagster.lake.settings import CompactionPolicy
from lakerunner_dagster.lake.signals import Signal
from lakerunner_dagster.lake.stages import compaction_stage
from tests.lake.requests import logs, minutes
from tests.lake.world import COLLECTOR, NOON_MS, World, now_ms

STAGE = compaction_stage(Signal.LOGS)


def _ingest(world: World, count: int) -> None:
    for number in range(count):
        name = f"{number}.binpb.gz"
        world.send(Signal.LOGS, name, logs(name, minutes(NOON_MS, 5)))
        world.ingest(Signal.LOGS)


def _owed(world: World, policy: CompactionPolicy | None = None) -> list[SourceDebt]:
    with world.lake.lrdb.connection() as conn:
        return owed.debt(conn, Signal.LOGS, policy or world.lake.compaction, now_ms())


def _check(world: World) -> dg.AssetCheckResult:
    (result,) = results(world.lake, STAGE)
    assert result.check_name == debt.NAME
    return result


def test_a_lake_without_small_files_owes_nothing(world: World) -> None:
    assert _owed(world) == []
    assert _check(world).passed


def test_what_is_to_be_merged_is_owed_until_it_is_merged(world: World) -> None:
    _ingest(world, 4)
    size = world.query("SELECT sum(file_size)::bigint FROM log_seg")[0][0]
    (row,) = _owed(world)
    assert (row.source, row.stage, row.hours, row.segments, row.bytes) == (
        f"acme/{COLLECTOR}",
        "logs.compact",
        1,
        4,
        size,
    )
    assert (row.merges, row.merge_bytes, row.drain_seconds, row.overdue) == (1, size, None, 1)
    failed = _check(world)
    assert (failed.passed, failed.severity) == (False, dg.AssetCheckSeverity.WARN)
    assert failed.metadata["merges to come"].value == 1

    world.compact(Signal.LOGS)
    assert _owed(world) == []
    assert _check(world).passed


def test_a_hot_hour_is_owed_but_not_overdue(world: World) -> None:
    _ingest(world, 3)
    hot = CompactionPolicy(cold_seconds=1e9)
    (row,) = _owed(world, hot)
    assert (row.merges, row.overdue) == (1, 0)
    (result,) = results(replace(world.lake, compaction=hot), STAGE)
    assert result.passed


def test_the_time_to_drain_is_told_from_what_was_merged_lately(world: World) -> None:
    _ingest(world, 3)
    world.compact(Signal.LOGS)
    for number in range(3):
        world.send(Signal.LOGS, f"more{number}", logs(f"more{number}", minutes(NOON_MS, 5)))
        world.ingest(Signal.LOGS)
    (row,) = _owed(world)
    (pace,) = world.query("SELECT sum(bytes_in)::float / sum(seconds) FROM ledger WHERE operation = 'compact'")[0]
    assert row.drain_seconds == row.merge_bytes / pace


def test_a_segment_that_cannot_be_read_is_a_warning(world: World) -> None:
    _ingest(world, 3)
    bad = world.published(Signal.LOGS)[0][1]
    (path,) = Path(world.place.bucket).glob(f"db/**/tbl_{bad}.parquet")
    path.unlink()
    world.compact(Signal.LOGS)
    (row,) = _owed(world)
    assert (row.aside, row.merges) == (1, 0)
    assert not _check(world).passed
