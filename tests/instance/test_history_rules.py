"""Any history: what a turn leaves is what the rules say, computed here without SQL."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import dagster as dg
import psycopg
import pytest
from dagster._core.instance.ref import InstanceRef
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lakerunner_dagster.instance import history as module
from lakerunner_dagster.instance.history import history
from lakerunner_dagster.lake.maintenance.report import Order
from lakerunner_dagster.lake.settings import HistoryPolicy
from tests.conftest import TestDatabases
from tests.instance.past import DAGSTER_YAML

FINISHED = {"SUCCESS", "FAILURE", "CANCELED"}
LOGS_DAYS, RUNS_DAYS = 7, 14
AGES = st.sampled_from([1, 6, 8, 13, 15, 40])


@dataclass(frozen=True)
class Run:
    run_id: str
    status: str
    age: int
    backfill_id: str | None


@dataclass(frozen=True)
class Event:
    run_id: str
    kind: str
    asset: str | None
    partition: str | None
    age: int


@dataclass(frozen=True)
class Check:
    run_id: str
    partition: str | None
    status: str
    age: int


Row = TypeVar("Row", Run, Event, Check)

RUN_IDS = ["r0", "r1", "r2", "r3", ""]
RUNS = st.lists(
    st.builds(
        Run,
        st.sampled_from(RUN_IDS[:4]),
        st.sampled_from([*sorted(FINISHED), "STARTED"]),
        AGES,
        st.sampled_from([None, None, "going", "over"]),
    ),
    unique_by=lambda run: run.run_id,
)
EVENTS = st.lists(
    st.one_of(
        st.builds(Event, st.sampled_from(RUN_IDS), st.just("STEP_START"), st.none(), st.none(), AGES),
        st.builds(
            Event,
            st.sampled_from(RUN_IDS),
            st.sampled_from(["ASSET_MATERIALIZATION", "ASSET_MATERIALIZATION_PLANNED"]),
            st.sampled_from(["a", "b"]),
            st.sampled_from(["1", "2", None]),
            AGES,
        ),
    ),
    max_size=14,
)
CHECKS = st.lists(
    st.builds(
        Check,
        st.sampled_from(RUN_IDS),
        st.sampled_from(["1", None]),
        st.sampled_from(["PLANNED", "SUCCEEDED", "FAILED"]),
        AGES,
    ),
    max_size=6,
    unique_by=lambda check: (check.run_id, check.partition),
)


def in_order(rows: list[Row]) -> list[Row]:
    """As they came: ids grow with time."""
    return sorted(rows, key=lambda row: -row.age)


def left(
    runs: list[Run], events: list[Event], checks: list[Check], kept: int
) -> tuple[set[str], list[Event], list[Check]]:
    """Runs, events and checks that stay, by the rules of docs/operations.md."""
    going = {run.run_id for run in runs if run.status not in FINISHED}

    def event_stays(number: int, event: Event) -> bool:
        if event.asset is None:
            return event.age < LOGS_DAYS or event.run_id in going
        newer = sum(
            (other.asset, other.kind, other.partition) == (event.asset, event.kind, event.partition)
            for other in events[number + 1 :]
        )
        return event.age < RUNS_DAYS or event.run_id in going or newer < kept

    def check_stays(number: int, check: Check) -> bool:
        newer = [other for other in checks[number + 1 :] if other.partition == check.partition]
        if check.status != "PLANNED":
            newer = [other for other in newer if other.status != "PLANNED"]
        return check.age < RUNS_DAYS or not newer

    events_left = [event for number, event in enumerate(events) if event_stays(number, event)]
    checks_left = [check for number, check in enumerate(checks) if check_stays(number, check)]
    needed = going | {event.run_id for event in events_left} | {check.run_id for check in checks_left}
    runs_left = {
        run.run_id for run in runs if run.age < RUNS_DAYS or run.run_id in needed or run.backfill_id == "going"
    }
    return runs_left, events_left, checks_left


@pytest.fixture(scope="module")
def url(postgres: TestDatabases) -> str:
    return postgres.create_database()


@pytest.fixture
def instance(url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[dg.DagsterInstance]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LAKERUNNER_DAGSTER_DATABASE_URL", url.replace("postgresql:", "postgresql+psycopg2:"))
    monkeypatch.setattr(module, "BATCH", 3)
    (tmp_path / "dagster.yaml").write_text(DAGSTER_YAML)
    with dg.DagsterInstance.from_ref(InstanceRef.from_dir(str(tmp_path))) as instance:
        yield instance


def _write(url: str, runs: list[Run], events: list[Event], checks: list[Check]) -> None:
    at = "timezone('UTC', now()) - make_interval(days => %s)"
    with psycopg.connect(url) as conn:
        conn.execute("TRUNCATE runs, run_tags, event_logs, asset_check_executions, bulk_actions RESTART IDENTITY")
        for key, status in (("going", "REQUESTED"), ("over", "COMPLETED_SUCCESS")):
            conn.execute(f"INSERT INTO bulk_actions (key, status, timestamp) VALUES (%s, %s, {at})", (key, status, 1))
        for run in runs:
            conn.execute(
                "INSERT INTO runs (run_id, status, backfill_id, create_timestamp, update_timestamp) "
                f"VALUES (%s, %s, %s, {at}, {at})",
                (run.run_id, run.status, run.backfill_id, run.age, run.age),
            )
        for event in events:
            conn.execute(
                "INSERT INTO event_logs (run_id, event, dagster_event_type, asset_key, partition, timestamp) "
                f"VALUES (%s, '', %s, %s, %s, {at})",
                (event.run_id, event.kind, event.asset, event.partition, event.age),
            )
        for check in checks:
            conn.execute(
                "INSERT INTO asset_check_executions "
                "(asset_key, check_name, run_id, partition, execution_status, create_timestamp) "
                f"VALUES ('a', 'conservation', %s, %s, %s, {at})",
                (check.run_id, check.partition, check.status, check.age),
            )


@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(written=st.tuples(RUNS, EVENTS, CHECKS), kept=st.integers(1, 3))
def test_a_turn_leaves_what_the_rules_say(
    instance: dg.DagsterInstance, url: str, written: tuple[list[Run], list[Event], list[Check]], kept: int
) -> None:
    runs, events, checks = (in_order(written[0]), in_order(written[1]), in_order(written[2]))
    _write(url, runs, events, checks)
    policy = HistoryPolicy(logs_days=LOGS_DAYS, runs_days=RUNS_DAYS, events_kept=kept)
    now_ms = time.time_ns() // 1_000_000
    would = history(instance, policy, Order(True, now_ms)).counts
    did = history(instance, policy, Order(False, now_ms)).counts
    with psycopg.connect(url) as conn:
        run_ids = {run_id for (run_id,) in conn.execute("SELECT run_id FROM runs")}
        event_ids = [number - 1 for (number,) in conn.execute("SELECT id FROM event_logs ORDER BY id")]
        check_ids = [number - 1 for (number,) in conn.execute("SELECT id FROM asset_check_executions ORDER BY id")]
    found = (run_ids, [events[number] for number in event_ids], [checks[number] for number in check_ids])
    assert found == left(runs, events, checks, kept)
    assert would == did
    assert history(instance, policy, Order(False, now_ms)).counts == {}
