"""Thirty days of Dagster's own history, with ``lakerunner maintain history`` each day and without it.

What belongs here: a few real runs of the real platform, their rows repeated in SQL for days of many runs, and what is
in Dagster's tables at the end of each day. What does not: ticks, which Dagster itself deletes by ``dagster.yaml``.

Of a day's runs each has a partition of that day: of ``SOURCES`` sources and the assets below, so that a partition has
several; every twentieth run fails. Run it with ``python -m bench.history [--scale N]``: 1 is 5,000 runs a day, the
default 10 a tenth of the runs and of the sources.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import dagster as dg
import psycopg
from dagster._core.instance.ref import InstanceRef
from psycopg import sql
from rich.console import Console
from rich.table import Table

from bench.dagster_overhead import feed, finished_runs
from lakerunner_dagster.instance.history import history
from lakerunner_dagster.lake.maintenance.report import Order
from lakerunner_dagster.lake.settings import HistoryPolicy, Settings
from lakerunner_dagster.lake.stages import STAGES
from lakerunner_dagster.local.dev import DAGSTER_YAML, platform

DAYS = 30
SHOWN_DAYS = (1, 5, 10, 15, 20, 25, 30)
RUNS_A_DAY = 5000
SOURCES = 40
TEMPLATES = 6
ASSETS = [asset.name for stage in STAGES.values() for asset in stage.assets]
TABLES = ("event_logs", "asset_event_tags", "asset_check_executions", "runs", "run_tags")

_TEMPLATES = """
    CREATE TABLE template AS
        SELECT row_number() OVER (ORDER BY id) - 1 AS number, runs.*, split_part(partition, '|', 1) AS day,
            split_part(partition, '|', 2) AS source
        FROM runs WHERE status = 'SUCCESS' AND partition LIKE '%%|%%' ORDER BY id LIMIT %(templates)s;
    CREATE TABLE template_events AS SELECT e.*, number FROM event_logs e JOIN template USING (run_id);
    CREATE TABLE template_tags AS SELECT g.* FROM asset_event_tags g JOIN template_events e ON g.event_id = e.id;
    CREATE TABLE template_checks AS SELECT c.*, number FROM asset_check_executions c JOIN template USING (run_id);
    CREATE TABLE template_run_tags AS SELECT g.*, number FROM run_tags g JOIN template USING (run_id);
    TRUNCATE runs, run_tags, event_logs, asset_event_tags, asset_check_executions, asset_keys, job_ticks;
    CREATE TABLE today (number bigint, run bigint, run_id text, asset text, source text, day text, starts timestamp,
        moved interval, fails boolean);
    CREATE FUNCTION as_of_today(body text, t template, d today) RETURNS text IMMUTABLE LANGUAGE sql AS $$
        SELECT replace(replace(replace(replace(body, t.run_id, d.run_id), t.source, d.source), t.day, d.day),
            'log_segments', d.asset)
    $$;
"""
_DAY = """
    TRUNCATE today;
    INSERT INTO today
        SELECT t.number, run, md5(%(day)s || run)::uuid::text, (%(assets)s::text[])[1 + run / %(sources)s %% %(kinds)s],
            regexp_replace(t.source, '[0-9]+$', lpad((run %% %(sources)s)::text, 3, '0')), %(day)s,
            %(midnight)s + run * interval '1 day' / %(runs)s,
            %(midnight)s + run * interval '1 day' / %(runs)s - t.create_timestamp, run %% 20 = 7
        FROM generate_series(0, %(runs)s - 1) run JOIN template t ON t.number = run %% (SELECT count(*) FROM template);
    INSERT INTO runs (run_id, snapshot_id, pipeline_name, mode, status, run_body, partition, partition_set,
            create_timestamp, update_timestamp, start_time, end_time)
        SELECT d.run_id, snapshot_id, pipeline_name, mode, CASE WHEN fails THEN 'FAILURE' ELSE status END,
            as_of_today(run_body, t, d), d.day || '|' || d.source, partition_set, create_timestamp + moved,
            update_timestamp + moved, start_time + extract(epoch FROM moved), end_time + extract(epoch FROM moved)
        FROM today d JOIN template t USING (number) ORDER BY run;
    INSERT INTO run_tags (run_id, key, value)
        SELECT d.run_id, key, as_of_today(value, t, d)
        FROM today d JOIN template t USING (number) JOIN template_run_tags g USING (number) ORDER BY run, g.id;
    CREATE TEMP TABLE events ON COMMIT DROP AS
        SELECT e.id AS old_id, run, nextval('event_logs_id_seq') AS id, d.number
        FROM (SELECT * FROM today ORDER BY run) d JOIN template_events e USING (number)
        WHERE NOT fails OR dagster_event_type IS DISTINCT FROM 'ASSET_MATERIALIZATION' ORDER BY run, e.id;
    INSERT INTO event_logs (id, run_id, event, dagster_event_type, timestamp, step_key, asset_key, partition)
        SELECT n.id, d.run_id, as_of_today(event, t, d), dagster_event_type, timestamp + moved,
            as_of_today(step_key, t, d), as_of_today(e.asset_key, t, d), as_of_today(e.partition, t, d)
        FROM events n JOIN template_events e ON e.id = n.old_id JOIN today d USING (run)
        JOIN template t ON t.number = d.number ORDER BY n.id;
    INSERT INTO asset_event_tags (event_id, asset_key, key, value, event_timestamp)
        SELECT n.id, as_of_today(g.asset_key, t, d), key, as_of_today(value, t, d), event_timestamp + moved
        FROM events n JOIN template_tags g ON g.event_id = n.old_id JOIN today d USING (run)
        JOIN template t ON t.number = d.number;
    INSERT INTO asset_check_executions (asset_key, check_name, partition, run_id, execution_status, evaluation_event,
            evaluation_event_timestamp, evaluation_event_storage_id, materialization_event_storage_id, create_timestamp)
        SELECT as_of_today(asset_key, t, d), check_name, c.partition, d.run_id, execution_status,
            as_of_today(evaluation_event, t, d), evaluation_event_timestamp + moved, n.id,
            materialization_event_storage_id, c.create_timestamp + moved
        FROM today d JOIN template t USING (number) JOIN template_checks c USING (number)
        JOIN events n ON n.run = d.run AND n.old_id = c.evaluation_event_storage_id;
"""


@dataclass(frozen=True, slots=True)
class Load:
    """What happens in a day: so many runs, of so many sources."""

    runs: int
    sources: int

    @property
    def partitions(self) -> int:
        """Partitions (of each asset one) that get runs."""
        return min(self.runs, self.sources * len(ASSETS))


def main() -> None:
    """Live through the days in two databases, and print what is in them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--scale", type=int, default=10)
    scale = parser.parse_args().scale
    load = Load(RUNS_A_DAY // scale, max(1, SOURCES // scale))
    console = Console(width=140)
    with tempfile.TemporaryDirectory(prefix="lakerunner-bench-") as directory:
        Path(directory).chmod(0o711)
        os.environ["PYTHONPATH"] = str(Path(__file__).parents[1])
        os.chdir(directory)
        with platform(Settings(), 0, console.print) as running:
            feed(running, TEMPLATES)
            finished_runs(running, TEMPLATES)
            running.children.stop()
            _simulate(load, console)


def _simulate(load: Load, console: Console) -> None:
    url = os.environ["LAKERUNNER_DAGSTER_DATABASE_URL"].replace("postgresql+psycopg2:", "postgresql:")
    server = url.rpartition("/")[0]
    with psycopg.connect(url, cursor_factory=psycopg.ClientCursor) as conn:
        conn.execute(_TEMPLATES, {"templates": TEMPLATES})
    with psycopg.connect(f"{server}/postgres", autocommit=True) as conn:
        for name in ("with_history", "without_history"):
            conn.execute(sql.SQL("CREATE DATABASE {} TEMPLATE dagster").format(sql.Identifier(name)))
    first = datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0, tzinfo=None) - timedelta(days=DAYS)
    days = Table("day", "MB with", "MB without", "rows with", "rows without", "turn, s", title=f"{load}")
    with _instance(f"{server}/with_history") as kept, _instance(f"{server}/without_history") as whole:
        for day in range(1, DAYS + 1):
            midnight = first + timedelta(days=day - 1)
            for name in ("with_history", "without_history"):
                _live(f"{server}/{name}", load, midnight)
            began = time.perf_counter()
            now_ms = int((midnight + timedelta(days=1)).replace(tzinfo=UTC).timestamp() * 1000)
            history(kept, HistoryPolicy(), Order(False, now_ms))
            seconds = time.perf_counter() - began
            if day in SHOWN_DAYS:
                sizes = [_sizes(f"{server}/{name}") for name in ("with_history", "without_history")]
                megabytes, rows = ([sum(size[i] for size in each.values()) for each in sizes] for i in (1, 0))
                cells = [*(f"{each:,.1f}" for each in megabytes), *(f"{each:,}" for each in rows)]
                days.add_row(str(day), *cells, f"{seconds:.1f}")
        same = _standing(kept) == _standing(whole)
    tables = Table("table", "rows with", "MB with", "rows without", "MB without", title=f"after {DAYS} days")
    for name in TABLES:
        (kept_rows, kept_mb), (all_rows, all_mb) = (size[name] for size in sizes)
        tables.add_row(name, f"{kept_rows:,}", f"{kept_mb:,.1f}", f"{all_rows:,}", f"{all_mb:,.1f}")
    console.print(days, tables)
    console.print(f"{load.partitions * DAYS:,} partitions, and the status of each is kept: {same}")
    assert same, "a partition has lost its status"


def _live(url: str, load: Load, midnight: datetime) -> None:
    """A day's runs; then what autovacuum does in its own time."""
    day = {
        "day": midnight.date().isoformat(),
        "midnight": midnight,
        "runs": load.runs,
        "sources": load.sources,
        "assets": ASSETS,
        "kinds": len(ASSETS),
    }
    with psycopg.connect(url, cursor_factory=psycopg.ClientCursor) as conn:
        conn.execute(_DAY, day)
    _vacuum(url)


def _vacuum(url: str) -> None:
    with psycopg.connect(url, autocommit=True) as conn:
        for table in TABLES:
            conn.execute(sql.SQL("VACUUM (ANALYZE) {}").format(sql.Identifier(table)))


def _sizes(url: str) -> dict[str, tuple[int, float]]:
    """Rows and MB of each table, its indexes included."""
    _vacuum(url)
    with psycopg.connect(url) as conn:
        query = sql.SQL("SELECT count(*), pg_total_relation_size({}) FROM {}")
        found = {
            table: conn.execute(query.format(sql.Literal(table), sql.Identifier(table))).fetchone() or (0, 0)
            for table in TABLES
        }
    return {table: (rows, size / 1e6) for table, (rows, size) in found.items()}


@contextmanager
def _instance(url: str) -> Iterator[dg.DagsterInstance]:
    """Dagster on that database, by the project's dagster.yaml."""
    os.environ["LAKERUNNER_DAGSTER_DATABASE_URL"] = url.replace("postgresql:", "postgresql+psycopg2:")
    home = Path(url.rpartition("/")[2])
    home.mkdir()
    (home / "dagster.yaml").write_text(DAGSTER_YAML.read_text())
    with dg.DagsterInstance.from_ref(InstanceRef.from_dir(str(home.absolute()))) as instance:
        yield instance


def _standing(instance: dg.DagsterInstance) -> dict[str, Any]:
    """Of each asset: which partitions are green, which run made each last, and which are not though they were tried."""
    storage = instance.event_log_storage
    standing = {}
    for key in map(dg.AssetKey, ASSETS):
        green = instance.get_materialized_partitions(key)
        tried = storage.get_latest_asset_partition_materialization_attempts_without_materializations(key)
        latest = storage.get_latest_storage_id_by_partition(key, dg.DagsterEventType.ASSET_MATERIALIZATION)
        records = storage.get_event_records(
            dg.EventRecordsFilter(dg.DagsterEventType.ASSET_MATERIALIZATION, storage_ids=list(latest.values()))
        )
        runs = {record.partition_key: record.run_id for record in records}
        known = {run.run_id for run in instance.get_runs()}
        assert known.issuperset([*runs.values(), *(run for run, _ in tried.values())]), "a run is gone that is needed"
        standing[key.to_user_string()] = (green, {partition: run for partition, (run, _) in tried.items()}, runs)
    return standing


if __name__ == "__main__":
    main()
