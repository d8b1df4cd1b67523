"""What work looks for stays cheap however much is done: told by the rows and pages read, never by a clock."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from psycopg import sql

from lakerunner_dagster.lake.lrdb import boxes, intake, quarantine
from lakerunner_dagster.lake.lrdb.connection import Conn, Lrdb
from lakerunner_dagster.lake.model import Source
from lakerunner_dagster.lake.signals import Signal
from lakerunner_dagster.lake.stages import ingest_stage
from tests.lake.lrdb.work import DAY, SETTINGS, add_source, notification, notify, open_box, replace_hour

DONE = 40_000
"""Objects that are done, in boxes of ten: reading through them would touch a thousand pages."""

PAGES = 250
"""More than a look-up through an index touches, and far less than reading through all that is done."""

FILL_BOXES = """
    INSERT INTO boxes (organization_id, instance_num, stage, signal, dateint, grouping_key, members, bytes, reason,
                       state, ended_at)
    SELECT %(organization)s, 1, 'logs.ingest', 'logs', %(day)s, '', 10, 1, 'age', 'done', now()
    FROM generate_series(1, %(count)s / 10)
"""

FILL_OBJECTS = """
    INSERT INTO raw_objects (organization_id, instance_num, collector, signal, bucket, key, etag, identity, size,
                             event_time_ms, event_dateint, adapter, state, box_id, ended_at)
    SELECT %(organization)s, 1, 'edge', 'logs', 'lake', 'done/' || n, 'e', md5(n::text), 1000, 0, %(day)s, 'test',
           'ingested', (SELECT min(box_id) FROM boxes) + n / 10, now()
    FROM generate_series(0, %(count)s - 1) n
"""

FILL_LINEAGE = """
    INSERT INTO lineage (organization_id, instance_num, signal, frequency_ms, dateint, hour, segment_id, input_kind,
                         input_id, records, operation, run_id, code_version)
    SELECT organization_id, 1, 'logs', 0, event_dateint, 1, box_id, 'raw', raw_object_id, 10, 'ingest', 'run', '1'
    FROM raw_objects
"""


@pytest.fixture(scope="module")
def old(postgres: Any, migrated_template: str) -> Iterator[tuple[Lrdb, Source]]:
    """A lrdb with a long past, and a little to do."""
    with Lrdb(postgres.create_database(template=migrated_template)) as lrdb:
        edge = add_source(lrdb, "acme", "edge")
        parameters = {"organization": edge.organization_id, "day": DAY, "count": DONE}
        with lrdb.connection() as conn:
            for fill in (FILL_BOXES, FILL_OBJECTS, FILL_LINEAGE):
                conn.execute(fill, parameters)
            conn.execute("VACUUM ANALYZE")
        open_box(lrdb, edge)
        notify(lrdb, notification(edge), notification(edge))
        yield lrdb, edge


def pages_read(lrdb: Lrdb, work: Callable[[Conn], object]) -> int:
    """Pages of the large tables and their indexes that a piece of work looks at."""
    query = sql.SQL("""
        SELECT sum(heap_blks_hit + heap_blks_read + idx_blks_hit + idx_blks_read)::bigint
        FROM pg_statio_user_tables WHERE relname IN ('raw_objects', 'boxes', 'lineage')
    """)
    with lrdb.connection() as conn:
        before = after = _flushed(conn, query)
        with conn.transaction():
            work(conn)
        after = _flushed(conn, query)
    return after - before


def _flushed(conn: Conn, query: sql.SQL) -> int:
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
        "reopen": lambda conn: boxes.reopen_failed(conn, stage, edge, DAY),
        "set aside": lambda conn: quarantine.set_aside(conn, edge.organization_id, 100),
        "upsert": lambda conn: intake.upsert_raw_objects(conn, [notification(edge)]),
    }
    for name, work in asked.items():
        assert pages_read(lrdb, work) < PAGES, name


def test_an_empty_hour_is_replaced_without_reading_all_lineage(old: tuple[Lrdb, Source]) -> None:
    lrdb, edge = old
    assert pages_read(lrdb, lambda _: replace_hour(lrdb, edge, [], [])) < PAGES
