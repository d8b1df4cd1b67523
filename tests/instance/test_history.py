"""What goes of Dagster's history is what nobody looks at: every partition's status stays, with what it stands on."""

from __future__ import annotations

import itertools
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dagster as dg
import psycopg
import pytest
from dagster._core.definitions.run_request import InstigatorType
from dagster._core.execution.backfill import BulkActionStatus, PartitionBackfill
from dagster._core.scheduler.instigation import TickData, TickStatus
from dagster._core.storage.noop_compute_log_manager import NoOpComputeLogManager
from dagster_shared.error import SerializableErrorInfo

from lakerunner_dagster.instance import history as module
from lakerunner_dagster.instance.history import history
from lakerunner_dagster.lake.errors import ConfigurationError
from lakerunner_dagster.lake.maintenance.report import Order, Report
from lakerunner_dagster.lake.settings import HistoryPolicy
from tests.conftest import TestDatabases
from tests.instance.past import COMPACTED, LOGS, SOURCES, TIMES, Past, past_at

POLICY = HistoryPolicy()
DB, WEB = SOURCES


@pytest.fixture
def past(postgres: TestDatabases, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Past]:
    url = postgres.create_database()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LAKERUNNER_DAGSTER_DATABASE_URL", url.replace("postgresql:", "postgresql+psycopg2:"))
    with past_at(url, tmp_path / "home") as past:
        yield past


def _turn(past: Past, policy: HistoryPolicy = POLICY, *, dry_run: bool = False) -> dict[str, int]:
    return dict(_report(past, policy, dry_run=dry_run).counts)


def _report(past: Past, policy: HistoryPolicy = POLICY, *, dry_run: bool = False) -> Report:
    return history(past.instance, policy, Order(dry_run, time.time_ns() // 1_000_000))


def _a_month(past: Past) -> dict[str, str]:
    """Partitions of every status, of runs that are a month old; the runs that must stay, by what they tell."""
    for source in (DB, WEB):
        past.run(LOGS, "2026-01-05", source)
        past.run(LOGS, "2026-01-05", source, breach="true")
        past.run(COMPACTED, "2026-01-05", source)
    past.run(LOGS, "2026-01-06", DB, fail="true")
    kept = {
        "materialised twice": past.run(LOGS, "2026-01-05", DB),
        "breached": past.run(LOGS, "2026-01-05", WEB, breach="true"),
        "compacted": past.run(COMPACTED, "2026-01-05", WEB),
        "compacted too": past.run(COMPACTED, "2026-01-05", DB),
        "good before it failed": past.run(LOGS, "2026-01-07", DB),
        "failed after it was good": past.run(LOGS, "2026-01-07", DB, fail="true"),
        "failed only": past.run(LOGS, "2026-01-06", DB, fail="true"),
        "good after it failed": past.run(LOGS, "2026-01-08", WEB),
    }
    past.age(30)
    return kept


def test_every_partition_keeps_its_status_its_latest_metadata_and_its_run(past: Past) -> None:
    kept = _a_month(past)
    statuses, pages, rows = past.statuses(), past.asset_pages(), past.rows()
    told = pages["log_segments"]["assetNodeOrError"]["partitionStats"]
    assert (told["numMaterialized"], told["numFailed"]) == (3, 2)

    gone = _turn(past)
    assert {run for (run,) in past.query("SELECT run_id FROM runs")} == set(kept.values())
    assert gone["runs"] == rows["runs"] - len(kept)
    assert past.statuses() == statuses
    assert past.asset_pages() == pages


def test_a_run_that_stays_has_its_page_without_its_log(past: Past) -> None:
    run = _a_month(past)["compacted"]
    before = past.run_page(run)
    assert len(before["logsForRun"]["events"]) > 10
    _turn(past)
    after = past.run_page(run)
    for told in ("id", "status", "startTime", "endTime", "assets"):
        assert after["runOrError"][told] == before["runOrError"][told]
    assert len(after["logsForRun"]["events"]) == 2, "the materialisation, and that it was planned"


def test_what_was_said_goes_first_then_what_is_superseded(past: Past) -> None:
    for _ in range(3):
        past.run(LOGS, "2026-01-05")
    assert _turn(past) == {}
    past.age(POLICY.logs_days + 1)
    assert set(_turn(past)) == {"event rows", "captured outputs"}
    assert past.rows() | {"asset_event_tags": 0} == {
        **dict.fromkeys(TIMES, 0),
        "event_logs": 3 * 2,
        "asset_check_executions": 3,
        "runs": 3,
    }
    past.age(POLICY.runs_days - POLICY.logs_days)
    assert _turn(past) == {"event rows": 2 * 2, "check executions": 2, "runs": 2}
    assert _turn(past) == {}
    assert past.query("SELECT count(*) FROM run_tags WHERE run_id NOT IN (SELECT run_id FROM runs)") == [(0,)]
    assert past.query("SELECT count(*) FROM asset_event_tags WHERE event_id NOT IN (SELECT id FROM event_logs)") == [
        (0,)
    ]
    assert past.rows()["asset_event_tags"] > 0


def test_a_dry_run_counts_what_would_go_and_changes_nothing(past: Past) -> None:
    _a_month(past)
    before = past.rows()
    would = _turn(past, dry_run=True)
    assert past.rows() == before
    assert _turn(past) == would
    assert {"event rows", "check executions", "runs"} <= set(would)


def test_a_run_that_goes_on_for_a_month_keeps_all_that_it_said(past: Past) -> None:
    run = past.run(LOGS, "2026-01-05")
    past.run(LOGS, "2026-01-05")
    past.query("UPDATE runs SET status = 'STARTED', end_time = NULL WHERE run_id = %s", run)
    past.age(30)
    before = past.query("SELECT id FROM event_logs WHERE run_id = %s", run)
    _turn(past)
    assert past.query("SELECT id FROM event_logs WHERE run_id = %s", run) == before
    assert past.instance.get_run_by_id(run) is not None


def _backfill(past: Past, backfill_id: str, status: BulkActionStatus) -> str:
    backfill = PartitionBackfill(
        backfill_id=backfill_id,
        status=status,
        from_failure=False,
        tags={"lakerunner/backfill": backfill_id},
        backfill_timestamp=time.time(),
        asset_selection=[LOGS],
    )
    past.instance.add_backfill(backfill)
    return past.run(LOGS, "2026-01-05", **{"dagster/backfill": backfill_id})


def test_a_backfill_that_goes_on_keeps_its_runs_and_one_that_is_over_goes(past: Past) -> None:
    going = _backfill(past, "going", BulkActionStatus.REQUESTED)
    over = _backfill(past, "over", BulkActionStatus.COMPLETED_SUCCESS)
    past.run(LOGS, "2026-01-05")
    past.age(POLICY.backfills_days + 1)
    assert _turn(past)["backfills"] == 1
    assert [one.backfill_id for one in past.instance.get_backfills()] == ["going"]
    assert past.query("SELECT DISTINCT backfill_id FROM backfill_tags") == [("going",)]
    assert past.instance.get_run_by_id(going) is not None
    assert past.instance.get_run_by_id(over) is None


def test_what_sensors_report_without_a_run_is_bounded_too(past: Past) -> None:
    key = dg.AssetKey("raw_logs")
    for rows in (1, 2, 3):
        past.instance.report_runless_asset_event(
            dg.AssetObservation(key, partition="2026-01-05|acme/db", metadata={"rows": rows})
        )
        past.instance.report_runless_asset_event(dg.AssetCheckEvaluation(LOGS, "freshness", passed=rows == 3))
    past.age(30)
    assert _turn(past) == {"event rows": 3 + 2, "check executions": 2}
    (record,) = past.instance.fetch_observations(key, limit=10).records
    assert record.asset_observation is not None
    assert record.asset_observation.metadata["rows"].value == 3
    check = dg.AssetCheckKey(LOGS, "freshness")
    latest = past.instance.event_log_storage.get_latest_asset_check_execution_by_key([check])[check]
    assert latest.event is not None
    assert latest.status.value == "SUCCEEDED"


def test_ticks_of_a_sensor_that_is_gone_go_when_dagster_yaml_says(past: Past) -> None:
    now = time.time()
    for status in TickStatus:
        for days in (0, 2, 8, 40):
            past.instance.create_tick(
                TickData(
                    "origin",
                    "sensor",
                    InstigatorType.SENSOR,
                    status,
                    now - days * 86400,
                    selector_id="selector",
                    run_ids=[],
                    error=SerializableErrorInfo("failed", [], None) if status is TickStatus.FAILURE else None,
                )
            )
    assert _turn(past) == {"ticks": 3 + 2 + 2 + 1}
    left = Counter(tick.status for tick in past.instance.get_ticks("origin", "selector"))
    assert left == {TickStatus.SKIPPED: 1, TickStatus.STARTED: 2, TickStatus.SUCCESS: 2, TickStatus.FAILURE: 3}


def test_a_row_that_somebody_has_locked_is_passed_over_until_the_next_turn(past: Past) -> None:
    _a_month(past)
    would = _turn(past, dry_run=True)
    (locked,) = past.query("SELECT min(id) FROM event_logs")[0]
    with psycopg.connect(past._url) as conn:
        conn.execute("SELECT FROM event_logs WHERE id = %s FOR UPDATE", (locked,))
        _turn(past)
        assert conn.execute("SELECT count(*) FROM event_logs WHERE id = %s", (locked,)).fetchone() == (1,)
    _turn(past)
    assert past.query("SELECT count(*) FROM event_logs WHERE id = %s", locked) == [(0,)]
    assert would["runs"] > 0
    assert _turn(past) == {}


def test_a_turn_that_dies_after_any_statement_is_ended_by_the_next(past: Past, monkeypatch: pytest.MonkeyPatch) -> None:
    _a_month(past)
    monkeypatch.setattr(module, "BATCH", 20)
    storage: Any = past.instance.event_log_storage
    connect = storage.index_connection
    statuses, pages = past.statuses(), past.asset_pages()

    def dies_at(statement: int) -> bool:
        """Whether a turn came so far."""
        passed = itertools.count(1)

        def connection() -> Any:
            if next(passed) == statement:
                raise ConnectionError("killed")
            return connect()

        with monkeypatch.context() as patched:
            patched.setattr(storage, "index_connection", connection)
            try:
                _turn(past)
            except ConnectionError:
                return True
        return False

    for statement in itertools.count(1):
        if not dies_at(statement):
            break
        assert past.statuses() == statuses
    assert statement > 5, "it would not have died in the middle"
    assert _turn(past) == {}
    assert past.asset_pages() == pages


def test_what_runs_wrote_goes_with_their_log_and_that_of_no_other_run(past: Past) -> None:
    old, going = past.run(LOGS, "2026-01-05"), past.run(LOGS, "2026-01-05")
    past.query("UPDATE runs SET status = 'STARTED', end_time = NULL WHERE run_id = %s", going)
    storage = Path(past.instance.storage_directory())
    beside = storage / "log_segments" / "compute_logs"
    beside.mkdir(parents=True)
    (beside / "of_an_io_manager").touch()
    past.age(POLICY.logs_days + 1)
    young = past.run(LOGS, "2026-01-05")
    outputs = {run: storage / run / "compute_logs" for run in (old, going, young)}
    before = {run: sorted(file.name for file in output.iterdir()) for run, output in outputs.items()}
    assert {"complete", "err", "out"} <= {name.rpartition(".")[2] for name in before[old]}

    assert _turn(past, dry_run=True)["captured outputs"] == 1
    assert outputs[old].is_dir()
    assert _turn(past)["captured outputs"] == 1
    assert not outputs[old].parent.exists()
    assert {run: sorted(file.name for file in outputs[run].iterdir()) for run in (going, young)} == {
        run: before[run] for run in (going, young)
    }
    assert sorted(file.name for file in beside.iterdir()) == ["of_an_io_manager"]
    past.query("UPDATE runs SET status = 'SUCCESS' WHERE run_id = %s", going)
    assert _turn(past)["captured outputs"] == 1


def test_a_captured_output_of_which_a_killed_turn_left_a_part_goes_next(
    past: Past, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = Path(past.instance.storage_directory()) / past.run(LOGS, "2026-01-05") / "compute_logs"
    past.age(POLICY.logs_days + 1)

    def killed(**_of: Any) -> None:
        for file in output.iterdir():
            file.unlink()
        raise OSError("killed")

    with monkeypatch.context() as patched:
        patched.setattr(past.instance.compute_log_manager, "delete_logs", killed)
        report = _report(past)
    assert (report.failed, report.counts.get("captured outputs")) == (1, None)
    assert _turn(past) == {"captured outputs": 1}
    assert not output.parent.exists()


def test_what_another_manager_keeps_is_left_alone_and_said_so(past: Past, monkeypatch: pytest.MonkeyPatch) -> None:
    class Elsewhere:
        """Any manager that keeps no files of ours."""

    output = Path(past.instance.storage_directory()) / past.run(LOGS, "2026-01-05")
    past.age(POLICY.logs_days + 1)
    monkeypatch.setattr(past.instance, "_compute_log_manager", Elsewhere())
    report = _report(past)
    (item,) = report.items
    assert (item.outcome, item.subject) == ("left alone", "captured outputs of Elsewhere")
    assert report.failed == 0
    assert output.is_dir()
    monkeypatch.setattr(past.instance, "_compute_log_manager", NoOpComputeLogManager())
    assert _turn(past) == {}


def test_dagster_without_postgresql_is_told_so() -> None:
    with dg.DagsterInstance.ephemeral() as instance, pytest.raises(ConfigurationError, match="PostgreSQL alone"):
        history(instance, POLICY, Order(False, 0))
