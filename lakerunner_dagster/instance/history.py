"""Dagster's own history, kept within bounds: what runs said, superseded events, and runs that nothing refers to.

What belongs here: which rows of Dagster's tables may go. What does not: files (``captured``), the lake's tables
(``lake.maintenance``), and when a turn is due (``jobs.maintenance``).

Dagster deletes a run with its materialisations, and by them it knows which partition is green. So the rows go, and not
the runs: of each partition and asset the newest events of each kind stay for ever, with the runs that they are of. On
them stand a partition's status, its latest metadata and its way back to a run.

Each statement is a short transaction over a bounded range of ids, and passes over rows that somebody has locked: the
daemon never waits for it. A turn that is killed is taken up by the next one. The room of deleted rows is used again
once PostgreSQL's autovacuum has been there.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import dagster as dg
import sqlalchemy
from dagster._core.definitions.run_request import InstigatorType
from dagster._core.execution.backfill import BULK_ACTION_TERMINAL_STATUSES
from dagster._core.storage.dagster_run import FINISHED_STATUSES
from dagster_postgres.event_log import PostgresEventLogStorage

from lakerunner_dagster.instance.captured import take_captured
from lakerunner_dagster.lake.errors import ConfigurationError
from lakerunner_dagster.lake.maintenance.report import Findings, Order, Report
from lakerunner_dagster.lake.settings import HistoryPolicy

NAME = "history"
SUMMARY = "Delete what old runs said and wrote, and old events that newer ones supersede, from Dagster's own storage."

BATCH = 2000
"""Rows that one statement looks at."""

_FINISHED = ", ".join(sorted(f"'{status.value}'" for status in FINISHED_STATUSES))
_OVER = ", ".join(sorted({f"'{status.value}'" for status in BULK_ACTION_TERMINAL_STATUSES}))


def _superseded(event: str) -> str:
    """Whether there are ``:kept`` newer events of the kind for the same asset and partition."""
    same = (
        f"n.asset_key = {event}.asset_key AND n.dagster_event_type = {event}.dagster_event_type AND n.id > {event}.id"
    )
    newer = "EXISTS (SELECT FROM event_logs n WHERE {} AND {} OFFSET :kept - 1)"
    return (
        f"({newer.format(same, f'n.partition = {event}.partition')} OR "
        f"{event}.partition IS NULL AND {newer.format(same, 'n.partition IS NULL')})"
    )


def _expired_event(event: str) -> str:
    """What a run said goes with time; what is of an asset goes with time once it is superseded."""
    return (
        f"(CASE WHEN {event}.asset_key IS NULL THEN {event}.timestamp < :said_before "
        f"ELSE {event}.timestamp < :before AND {_superseded(event)} END "
        f"AND NOT EXISTS (SELECT FROM runs u WHERE u.run_id = {event}.run_id AND u.status NOT IN ({_FINISHED})))"
    )


def _expired_check(check: str) -> str:
    """Of each check and partition the newest execution stays, and the newest that has ended."""
    return (
        f"({check}.create_timestamp < :before AND EXISTS (SELECT FROM asset_check_executions n "
        f"WHERE n.asset_key = {check}.asset_key AND n.check_name = {check}.check_name "
        f"AND coalesce(n.partition, '') = coalesce({check}.partition, '') AND n.id > {check}.id "
        f"AND ({check}.execution_status = 'PLANNED' OR n.execution_status <> 'PLANNED')))"
    )


_ENDED_AT = "coalesce(to_timestamp(t.end_time) AT TIME ZONE 'UTC', t.update_timestamp)"


@dataclass(frozen=True, slots=True)
class _Sweep:
    """Rows of a table to go: those for which ``expired`` holds of ``t``, and what hangs on them.

    Ids grow with ``time`` (of ``t``): a sweep ends where no row is older than ``before``, the latest of its bounds.
    """

    outcome: str
    table: str
    time: str
    before: str
    expired: str
    dependents: str = ""


_SWEEPS = (
    _Sweep(
        "event rows",
        "event_logs",
        "t.timestamp",
        "greatest(:said_before, :before)",
        _expired_event("t"),
        "tags AS (DELETE FROM asset_event_tags g USING doomed WHERE g.event_id = doomed.id),",
    ),
    _Sweep("check executions", "asset_check_executions", "t.create_timestamp", ":before", _expired_check("t")),
    _Sweep(
        "runs",
        "runs",
        "t.create_timestamp",
        ":before",
        f"t.status IN ({_FINISHED}) AND {_ENDED_AT} < :before "  # noqa: S608  # nothing in it comes from outside
        f"AND NOT EXISTS (SELECT FROM event_logs e WHERE e.run_id = t.run_id AND {_expired_event('e')} IS NOT TRUE) "
        "AND NOT EXISTS (SELECT FROM asset_check_executions c "
        f"WHERE c.run_id = t.run_id AND {_expired_check('c')} IS NOT TRUE) "
        f"AND NOT EXISTS (SELECT FROM bulk_actions b WHERE b.key = t.backfill_id AND b.status NOT IN ({_OVER}))",
    ),
    _Sweep(
        "backfills",
        "bulk_actions",
        "t.timestamp",
        ":backfills_before",
        f"t.status IN ({_OVER}) AND t.timestamp < :backfills_before",
        "tags AS (DELETE FROM backfill_tags g USING doomed, bulk_actions b "
        "WHERE b.id = doomed.id AND g.backfill_id = b.key),",
    ),
    _Sweep("heartbeats", "daemon_heartbeats", "t.timestamp", ":before", "t.timestamp < :before"),
)


def history(instance: dg.DagsterInstance, policy: HistoryPolicy, order: Order) -> Report:
    """One turn; ConfigurationError where Dagster's storage is not PostgreSQL."""
    storage = instance.event_log_storage
    if not isinstance(storage, PostgresEventLogStorage):
        raise ConfigurationError(
            "Dagster's history is bounded in PostgreSQL alone: set LAKERUNNER_DAGSTER_DATABASE_URL, and name "
            "SettingsPostgresStorage in dagster.yaml"
        )
    now = datetime.fromtimestamp(order.now_ms / 1000, UTC).replace(tzinfo=None)
    said_before = now - timedelta(days=policy.logs_days)
    bounds = {
        "kept": policy.events_kept,
        "said_before": said_before,
        "before": now - timedelta(days=policy.runs_days),
        "backfills_before": now - timedelta(days=policy.backfills_days),
    }
    findings = Findings(NAME, order)
    for sweep in _SWEEPS:
        _take(storage, sweep, bounds, findings)
    ticks, tick_bounds = _ticks(instance, now)
    _take(storage, ticks, tick_bounds, findings)
    take_captured(instance, said_before, findings)
    return findings.report()


def _ticks(instance: dg.DagsterInstance, now: datetime) -> tuple[_Sweep, dict[str, datetime]]:
    """Ticks beyond dagster.yaml's ``retention``, which Dagster's daemon deletes of sensors alone that still exist."""
    bounds: dict[str, datetime] = {}
    expired = ["false"]
    for kind in InstigatorType:
        for status, days in instance.get_tick_retention_settings(kind).items():
            if days >= 0:
                bound = f"{kind.value}_{status.value}".lower()
                bounds[bound] = now - timedelta(days=days)
                expired.append(f"t.type = '{kind.value}' AND t.status = '{status.value}' AND t.timestamp < :{bound}")
    bounds["before"] = max(bounds.values(), default=now)
    return _Sweep("ticks", "job_ticks", "t.timestamp", ":before", f"({' OR '.join(expired)})"), bounds


def _take(storage: PostgresEventLogStorage, sweep: _Sweep, bounds: Mapping[str, Any], findings: Findings) -> None:
    """Delete what has expired, or with a dry run count it, range after range of ids."""
    statement = sqlalchemy.text(_statement(sweep, dry_run=findings.order.dry_run))
    after = 0
    while True:
        with storage.index_connection() as conn:
            last, any_old, count = conn.execute(statement, {**bounds, "after": after, "batch": BATCH}).one()
        findings.count(sweep.outcome, count)
        if not any_old:
            return
        after = last


def _statement(sweep: _Sweep, *, dry_run: bool) -> str:
    """Looks at a range of ids; gives its last one, whether any row in it was old, and how many have expired."""
    deletes = f"gone AS (DELETE FROM {sweep.table} d USING doomed WHERE d.id = doomed.id),"  # noqa: S608
    return f"""
        WITH range AS MATERIALIZED (
            SELECT t.id, {sweep.time} < {sweep.before} AS is_old
            FROM {sweep.table} t WHERE t.id > :after ORDER BY t.id LIMIT :batch
        ), doomed AS MATERIALIZED (
            SELECT t.id FROM {sweep.table} t JOIN range USING (id)
            WHERE {sweep.expired} {"" if dry_run else "FOR UPDATE OF t SKIP LOCKED"}
        ), {"" if dry_run else sweep.dependents + deletes} counted AS (SELECT count(*) FROM doomed)
        SELECT max(id), coalesce(bool_or(is_old), false), (SELECT count FROM counted) FROM range
    """  # noqa: S608  # nothing in it comes from outside
