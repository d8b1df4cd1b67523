"""The totals of what a source's boxes have made count each box once, whatever is killed and whoever comes twice."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import psycopg
import pytest

from lakerunner_dagster.lake.errors import LakeDatabaseUnavailable, LeaseLost
from lakerunner_dagster.lake.lrdb import boxes, check
from lakerunner_dagster.lake.lrdb.connection import Conn, Lrdb
from lakerunner_dagster.lake.lrdb.migrate import migrate
from lakerunner_dagster.lake.model import ClaimedBox, Source
from tests.lake.lrdb.work import add_source, do, expire, ingest, must_claim, one, open_box

TOTALS = "SELECT organization_id, instance_num, stage, ingested, segments, records FROM box_totals ORDER BY 1, 2, 3"
SUMS = """
    SELECT organization_id, instance_num, stage, sum(ingested)::bigint, sum(segments)::bigint, sum(records)::bigint
    FROM boxes WHERE state = 'done' GROUP BY 1, 2, 3 ORDER BY 1, 2, 3
"""


def total(lrdb: Lrdb) -> list[tuple[int, int, int]]:
    """Objects, segments and records by the totals, which are what the check finds to be right."""
    with lrdb.snapshot() as conn:
        assert check.breaches(conn) == []
        assert conn.execute(TOTALS).fetchall() == conn.execute(SUMS).fetchall()
        return [row[3:] for row in conn.execute(TOTALS)]


def finish(conn: Conn, box: ClaimedBox) -> None:
    boxes.finish(conn, box.lease, box.source.organization_id, segments=1, records=30, ingested=3)


def finish_and_fail(lrdb: Lrdb, box: ClaimedBox) -> None:
    with lrdb.transaction() as conn:
        finish(conn, box)
        conn.execute("SELECT 1 / 0")


def finish_and_be_killed(lrdb: Lrdb, box: ClaimedBox) -> None:
    with lrdb.transaction() as conn:
        finish(conn, box)
        do(lrdb, "SELECT pg_terminate_backend(%s, 10000)", conn.info.backend_pid)
        conn.execute("SELECT 1")


def test_a_transaction_that_is_rolled_back_after_ending_its_box_counts_nothing(lrdb: Lrdb, edge: Source) -> None:
    ingest(lrdb, edge)
    open_box(lrdb, edge)
    box = must_claim(lrdb, edge)
    with pytest.raises(psycopg.errors.DivisionByZero):
        finish_and_fail(lrdb, box)
    assert total(lrdb) == [(3, 1, 30)]


def test_a_run_killed_after_ending_its_box_counts_nothing_and_the_next_counts_once(lrdb: Lrdb, edge: Source) -> None:
    open_box(lrdb, edge)
    box = must_claim(lrdb, edge)
    with pytest.raises(LakeDatabaseUnavailable):
        finish_and_be_killed(lrdb, box)
    assert total(lrdb) == []
    expire(lrdb, box.lease.box_id)
    ingest(lrdb, edge)  # claims the oldest box, which is the one that was killed
    assert total(lrdb) == [(3, 1, 30)]


def test_a_box_that_is_ended_twice_counts_once(lrdb: Lrdb, edge: Source) -> None:
    box, _ = ingest(lrdb, edge)
    with pytest.raises(LeaseLost), lrdb.transaction() as conn:
        finish(conn, box)
    assert total(lrdb) == [(3, 1, 30)]


def test_a_run_whose_box_is_anothers_by_now_counts_nothing(lrdb: Lrdb, edge: Source) -> None:
    open_box(lrdb, edge)
    late = must_claim(lrdb, edge, run="late")
    expire(lrdb, late.lease.box_id)
    must_claim(lrdb, edge, run="next")
    with pytest.raises(LeaseLost), lrdb.transaction() as conn:
        finish(conn, late)
    assert total(lrdb) == []


def test_boxes_that_end_at_once_are_all_counted(lrdb: Lrdb, edge: Source) -> None:
    other = add_source(lrdb, "acme", "other")
    for source in (edge, other):
        ingest(lrdb, source)
    claimed = []
    for source in (edge, other) * 5:
        open_box(lrdb, source, objects=1)
        claimed.append(must_claim(lrdb, source))

    def end(box: ClaimedBox) -> None:
        with lrdb.transaction() as conn:
            boxes.finish(conn, box.lease, box.source.organization_id, segments=1, records=10, ingested=1)

    with ThreadPoolExecutor(len(claimed)) as pool:
        list(pool.map(end, claimed))
    with lrdb.connection() as conn:
        rows = conn.execute(TOTALS).fetchall()
        assert rows == conn.execute(SUMS).fetchall()
    assert [row[3:] for row in rows] == [(8, 6, 80), (8, 6, 80)]


def test_what_was_done_before_there_were_totals_is_in_them(before_history: str) -> None:
    with Lrdb(before_history) as lrdb:
        edge = add_source(lrdb, "acme", "edge")
        add_source(lrdb, "acme", "idle")
        for state in ("done", "done", "open"):
            do(
                lrdb,
                "INSERT INTO boxes (organization_id, instance_num, stage, signal, dateint, grouping_key, members,"
                " bytes, reason, state, ended_at, ingested, segments, records) SELECT %s, %s, 'logs.ingest', 'logs',"
                " 20260105, '', 3, 1, 'age', %s, CASE %s WHEN 'done' THEN now() END, 2, 1, 20",
                edge.organization_id,
                edge.instance_num,
                state,
                state,
            )
        assert migrate(before_history) == ["0008.history"]
        assert one(lrdb, "SELECT (ingested, segments, records)::text FROM box_totals") == "(4,2,40)"
        with lrdb.connection() as conn:
            assert conn.execute(TOTALS).fetchall() == conn.execute(SUMS).fetchall()
