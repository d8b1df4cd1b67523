"""What work looks for stays cheap however much is done: told by the rows and pages read, never by a clock."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from psycopg import sql

from lakerunner_dagster.lake.lrdb import boxes, coverage, debt, deletions, intake, overdue, quarantine, status
from lakerunner_dagster.lake.lrdb.connection import Conn, Lrdb
from lakerunner_dagster.lake.lrdb.partitions import ensure_partitions
from lakerunner_dagster.lake.model import Source
from lakerunner_dagster.lake.settings import CompactionPolicy
from lakerunner_dagster.lake.signals import Signal
from lakerunner_dagster.lake.stages import ingest_stage
from tests.lake.lrdb.work import DAY, NOW_MS, SETTINGS, add_source, notification, notify, open_box, replace_hour

DONE = 40_000
"""Objects that are done, in boxes of ten: reading through them would touch a thousand pages."""

PAGES = 250
"""More than a look-up through an index touches, and far less than reading through all that is done."""

LATEST_PAGES = PAGES + 4 * status.LATENCY_BOXES
"""The objects of a source's latest boxes are looked up too: they tell its latency, and are always as many."""

FILL_BOXES = """
    INSERT INTO boxes (organization_id, instance_num, stage, signal, dateint, grouping_key, members, bytes, reason,
                       state, ended_at)
    SELECT %(organization)s, 1, 'logs.ingest', 'logs', %(day)s, '', 10, 1, 'age', 'done', now()
    FROM generate_series(1, %(count)s / 10)
"""

FILL_OBJECTS = """
    INSERT INTO raw_objects (organization_id, instance_num, collector, signal, bucket, key, etag, identity, size,
                             event_time_ms, event_dateint, adapter, state, box_id, ended_at, records_read,
                             records_rejected, rejected)
    SELECT %(organization)s, 1, 'edge', 'logs', 'lake', 'done/' || n, 'e', md5(n::text), 1000, 0, %(day)s, 'test',
           'ingested', (SELECT min(box_id) FROM boxes) + n / 10, now(), 11, 1, '{"time_ahead": 1}'
    FROM generate_series(0, %(count)s - 1) n
"""

FILL_LINEAGE = """
    INSERT INTO lineage (organization_id, instance_num, signal, frequency_ms, dateint, hour, segment_id, input_kind,
                         input_id, records, operation, run_id, code_version)
    SELECT organization_id, 1, 'logs', 0, event_dateint, 1, box_id, 'raw', raw_object_id, 10, 'ingest', 'run', '1'
    FROM raw_objects
"""

FILL_METRICS = """
    INSERT INTO boxes (organization_id, instance_num, stage, signal, dateint, grouping_key, members, bytes, reason,
                       state, ended_at)
    SELECT %(organization)s, 1, 'metrics.ingest', 'metrics', %(day)s, '', 10, 1, 'age', 'done',
           now() - n * interval '1 minute'
    FROM generate_series(1, %(count)s) n
"""

FILL_LEDGER = """
    INSERT INTO ledger (committed_at, run_id, operation, code_version, organization_id, instance_num, signal, dateint,
                        frequency_ms, records_read, records_written, records_rejected, rejected, rows_written,
                        rollup_count_read, rollup_count_written, bytes_in, bytes_out, seconds, peak_memory_bytes)
    SELECT now() - n * interval '1 minute', 'run', 'ingest', '1', %(organization)s, 1, 'metrics', %(day)s,
           10000, 1, 1, 0, '{}', 1, 1, 1, 1, 1, 1, 1
    FROM generate_series(1, %(count)s) n
"""

FILL_RATIOS = """
    INSERT INTO compression_ratios (organization_id, instance_num, signal, ratio)
    SELECT %(organization)s, 1, 'metrics', 8
"""

FILL_EXPIRED = """
    INSERT INTO supersessions (organization_id, instance_num, signal, frequency_ms, dateint, segment_id, operation,
                               run_id, replaced_by, superseded_at, deleted_at)
    SELECT %(organization)s, 1, 'logs', 0, %(day)s, n, 'retention', 'run', '{}', now() - interval '1 day', now()
    FROM generate_series(1, %(count)s) n
"""

FILLS = (FILL_EXPIRED, FILL_BOXES, FILL_OBJECTS, FILL_LINEAGE, FILL_METRICS, FILL_LEDGER, FILL_RATIOS)


@pytest.fixture(scope="module")
def old(postgres: Any, migrated_template: str) -> Iterator[tuple[Lrdb, Source]]:
    """A lrdb with a long past, and a little to do."""
    with Lrdb(postgres.create_database(template=migrated_template)) as lrdb:
        edge = add_source(lrdb, "acme", "edge")
        parameters = {"organization": edge.organization_id, "day": DAY, "count": DONE}
        with lrdb.connection() as conn:
            for fill in FILLS:
                conn.execute(fill, parameters)
            conn.execute("VACUUM ANALYZE")
        open_box(lrdb, edge)
        notify(lrdb, notification(edge), notification(edge))
        yield lrdb, edge


LARGE = ("raw_objects", "boxes", "lineage", "ledger", "supersessions")


def pages_read(lrdb: Lrdb, work: Callable[[Conn], object], tables: tuple[str, ...] = LARGE) -> int:
    """Pages of the large tables (or of these) and their indexes that a piece of work looks at."""
    query = sql.SQL("""
        SELECT sum(heap_blks_hit + heap_blks_read + idx_blks_hit + idx_blks_read)::bigint
        FROM pg_statio_user_tables WHERE relname = ANY({tables})
    """).format(tables=list(tables))
    with lrdb.connection() as conn:
        before = after = _flushed(conn, query)
        with conn.transaction():
            work(conn)
        after = _flushed(conn, query)
    return after - before


def _flushed(conn: Conn, query: sql.Composed) -> int:
    conn.execute("SELECT pg_stat_force_next_flush()")
    conn.execute("SELECT pg_stat_clear_snapshot()")
    row = conn.execute(query).fetchone()
    assert row is not None
    return int(row[0])


def test_reading_everything_would_be_noticed(old: tuple[Lrdb, Source]) -> None:
    lrdb, _ = old
    assert pages_read(lrdb, lambda conn: conn.execute("SELECT count(error_text) FROM raw_objects")) > 2 * PAGES


def test_work_that_waits_is_found_without_reading_what_is_done(old: tuple[Lrdb, Source]) -> None:
    lrdb, edge = old
    stage = ingest_stage(Signal.LOGS).name
    asked: dict[str, Callable[[Conn], object]] = {
        "pending": lambda conn: intake.pending(conn, Signal.LOGS, 20_000, 3600),
        "waiting": lambda conn: boxes.waiting_partitions(conn, stage),
        "claim": lambda conn: boxes.claim(conn, stage, edge, DAY, run_id="run", settings=SETTINGS),
        "overdue": lambda conn: overdue.overdue(conn, Signal.LOGS, 0.0, 100),
        "reopen": lambda conn: boxes.reopen_failed(conn, stage, edge, DAY),
        "set aside": lambda conn: quarantine.set_aside(conn, edge.organization_id, 100),
        "upsert": lambda conn: intake.upsert_raw_objects(conn, [notification(edge)]),
    }
    for name, work in asked.items():
        assert pages_read(lrdb, work) < PAGES, name


def test_an_empty_hour_is_replaced_without_reading_all_lineage(old: tuple[Lrdb, Source]) -> None:
    lrdb, edge = old
    assert pages_read(lrdb, lambda _: replace_hour(lrdb, edge, [], [])) < PAGES


def test_the_standing_checks_do_not_read_what_is_done(old: tuple[Lrdb, Source]) -> None:
    lrdb, edge = old
    asked: dict[str, Callable[[Conn], object]] = {
        "status": status.status,
        "failed boxes": lambda conn: status.failed_boxes(conn, edge.organization_id),
        "coverage": lambda conn: coverage.coverage(conn, DAY),
        "debt": lambda conn: debt.debt(conn, Signal.METRICS, CompactionPolicy(), NOW_MS),
    }
    for name, work in asked.items():
        assert pages_read(lrdb, work, ("boxes", "lineage", "ledger")) < PAGES, name
        assert pages_read(lrdb, work, ("raw_objects",)) < LATEST_PAGES, name


def test_what_is_to_be_deleted_is_found_without_reading_the_notes_of_what_has_expired(old: tuple[Lrdb, Source]) -> None:
    lrdb, edge = old
    ensure_partitions(lrdb, Signal.LOGS, edge.organization_id, [DAY])
    asked: dict[str, Callable[[Conn], object]] = {
        "days": lambda conn: deletions.superseded_days(conn, edge, Signal.LOGS, grace_seconds=0.0),
        "day": lambda conn: deletions.superseded(conn, edge, Signal.LOGS, DAY, grace_seconds=0.0, limit=100),
    }
    for name, work in asked.items():
        assert pages_read(lrdb, work) < PAGES, name
