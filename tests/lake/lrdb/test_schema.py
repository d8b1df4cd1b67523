"""The tables that Lakerunner's query API reads are what spec/lrdb.md says, and refuse what could not be read."""

from __future__ import annotations

from typing import Any

import psycopg
import pytest

from lakerunner_dagster.lake.lrdb.connection import Lrdb
from lakerunner_dagster.lake.lrdb.partitions import ensure_partitions
from lakerunner_dagster.lake.model import HOUR_MS, Source, day_start_ms
from lakerunner_dagster.lake.signals import SIGNALS, Signal
from tests.lake.lrdb.work import DAY, NOON_MS, do

CONTRACT = {
    "log_seg": (
        "organization_id uuid!, dateint int4!, segment_id int8!, instance_num int2!, ts_range int8range!, "
        "record_count int8!, file_size int8!, ingest_dateint int4!, published bool!, compacted bool!, "
        "created_by int2!, created_at timestamptz!, fingerprints _int8!, sort_version int2!, "
        "label_name_map jsonb, stream_ids _text, stream_id_field text, agg_fields _text"
    ),
    "metric_seg": (
        "organization_id uuid!, dateint int4!, frequency_ms int4!, segment_id int8!, instance_num int2!, "
        "ts_range int8range!, record_count int8!, file_size int8!, ingest_dateint int4!, published bool!, "
        "compacted bool!, rolledup bool!, created_by int2!, created_at timestamptz!, fingerprints _int8!, "
        "sort_version int2!, label_name_map jsonb, metric_names _text, metric_types _int2"
    ),
    "trace_seg": (
        "organization_id uuid!, dateint int4!, segment_id int8!, instance_num int2!, ts_range int8range!, "
        "record_count int8!, file_size int8!, ingest_dateint int4!, published bool!, compacted bool!, "
        "created_by int2!, created_at timestamptz!, fingerprints _int8!, label_name_map jsonb"
    ),
}

OURS = {"log_seg": ["records"], "metric_seg": ["records", "rollup_count", "reach_ms"], "trace_seg": ["records"]}

INDEXES = {
    "log_seg": {
        "btree (organization_id, dateint, segment_id, instance_num)",
        "gist (ts_range)",
        "gin (fingerprints)",
        "gin (label_name_map)",
        "gin (stream_ids)",
    },
    "metric_seg": {
        "btree (organization_id, dateint, frequency_ms, segment_id, instance_num)",
        "gist (ts_range)",
        "gin (fingerprints)",
        "gin (label_name_map)",
        "gin (metric_names)",
        "btree (organization_id, dateint, frequency_ms) INCLUDE (instance_num, segment_id, published) WHERE published",
    },
    "trace_seg": {
        "btree (organization_id, dateint, segment_id, instance_num)",
        "gist (ts_range)",
        "gin (fingerprints)",
        "gin (label_name_map)",
    },
}


@pytest.mark.parametrize("table", CONTRACT)
def test_a_segment_table_has_the_columns_of_the_contract_first(lrdb: Lrdb, table: str) -> None:
    with lrdb.connection() as conn:
        rows = conn.execute(
            "SELECT attname, typname || CASE WHEN attnotnull THEN '!' ELSE '' END FROM pg_attribute"
            " JOIN pg_type t ON t.oid = atttypid WHERE attrelid = %s::regclass AND attnum > 0 ORDER BY attnum",
            (table,),
        ).fetchall()
    contract = [tuple(column.split()) for column in CONTRACT[table].split(", ")]
    assert rows[: len(contract)] == contract
    assert [name for name, _ in rows[len(contract) :]] == OURS[table]


@pytest.mark.parametrize("table", INDEXES)
def test_a_segment_table_has_the_indexes_of_the_contract(lrdb: Lrdb, table: str) -> None:
    with lrdb.connection() as conn:
        rows = conn.execute("SELECT indexdef FROM pg_indexes WHERE tablename = %s", (table,)).fetchall()
    assert {definition.split(" USING ")[1] for (definition,) in rows} >= INDEXES[table]


def test_only_metrics_can_be_rolled_up(lrdb: Lrdb) -> None:
    with lrdb.connection() as conn:
        rows = conn.execute(
            "SELECT table_name FROM information_schema.columns"
            " WHERE column_name = 'rolledup' AND table_name LIKE '%_seg'"
        ).fetchall()
    assert rows == [("metric_seg",)]


def insert(lrdb: Lrdb, source: Source, table: str, **changes: Any) -> None:
    row: dict[str, Any] = {
        "organization_id": source.organization_id,
        "dateint": DAY,
        "segment_id": 1,
        "instance_num": source.instance_num,
        "ts_range": f"[{NOON_MS},{NOON_MS + 10_000})",
        "record_count": 1,
        "file_size": 1,
        "published": True,
        "created_by": 1,
    }
    if table == "metric_seg":
        row["frequency_ms"] = 10_000
    row |= changes
    columns, places = ", ".join(row), ", ".join(f"%({name})s" for name in row)
    with lrdb.connection() as conn:
        conn.execute(f"INSERT INTO {table} ({columns}) VALUES ({places})", row)


@pytest.fixture
def leaves(lrdb: Lrdb, edge: Source) -> None:
    for signal in Signal:
        ensure_partitions(lrdb, signal, edge.organization_id, [DAY])


@pytest.mark.usefixtures("leaves")
@pytest.mark.parametrize("table", CONTRACT)
def test_another_system_can_insert_with_the_columns_of_the_contract_alone(lrdb: Lrdb, edge: Source, table: str) -> None:
    insert(lrdb, edge, table)


BAD_ROWS: list[dict[str, Any]] = [
    {"ts_range": "empty"},
    {"ts_range": f"[{NOON_MS},)"},
    {"ts_range": f"(,{NOON_MS})"},
    {"ts_range": f"[{NOON_MS},{NOON_MS + 24 * HOUR_MS})"},
    {"ts_range": f"[{day_start_ms(DAY) - 1},{day_start_ms(DAY) + 5})"},
    {"segment_id": 0},
    {"record_count": 0},
    {"file_size": 0},
    {"ingest_dateint": 0},
    {"created_by": 4},
    {"ts_range": None},
    {"fingerprints": None},
]


@pytest.mark.usefixtures("leaves")
@pytest.mark.parametrize("table", CONTRACT)
@pytest.mark.parametrize("changes", BAD_ROWS, ids=str)
def test_a_row_that_readers_could_not_use_is_refused(
    lrdb: Lrdb, edge: Source, table: str, changes: dict[str, Any]
) -> None:
    with pytest.raises(psycopg.IntegrityError):
        insert(lrdb, edge, table, **changes)


@pytest.mark.usefixtures("leaves")
@pytest.mark.parametrize(
    ("table", "changes"),
    [
        ("log_seg", {"stream_ids": ["a"]}),
        ("log_seg", {"stream_id_field": "resource_service_name"}),
        ("metric_seg", {"metric_names": ["a", "b"], "metric_types": [1]}),
        ("metric_seg", {"frequency_ms": 0}),
    ],
)
def test_columns_that_go_together_come_together(lrdb: Lrdb, edge: Source, table: str, changes: dict[str, Any]) -> None:
    with pytest.raises(psycopg.IntegrityError):
        insert(lrdb, edge, table, **changes)


@pytest.mark.usefixtures("leaves")
def test_the_last_ms_of_a_day_is_of_that_day(lrdb: Lrdb, edge: Source) -> None:
    end = day_start_ms(DAY) + 24 * HOUR_MS
    insert(lrdb, edge, "log_seg", ts_range=f"[{end - 1},{end})")


@pytest.mark.parametrize("signal", list(Signal))
def test_a_row_without_its_leaf_is_refused(lrdb: Lrdb, edge: Source, signal: Signal) -> None:
    with pytest.raises(psycopg.errors.CheckViolation, match="no partition"):
        insert(lrdb, edge, SIGNALS[signal].segment_table, dateint=20260203)


@pytest.mark.usefixtures("leaves")
def test_a_reader_of_one_organization_and_day_touches_one_leaf(lrdb: Lrdb, edge: Source) -> None:
    do(lrdb, "ANALYZE metric_seg")
    with lrdb.connection() as conn:
        plan = conn.execute(
            "EXPLAIN SELECT segment_id FROM metric_seg WHERE organization_id = %s AND dateint = %s AND published"
            " AND frequency_ms = 10000 AND ts_range && int8range(%s, %s) AND fingerprints && ARRAY[1::bigint]",
            (edge.organization_id, DAY, NOON_MS, NOON_MS + 1),
        ).fetchall()
    touched = {line for (line,) in plan if "metric_seg_" in line and "Index Cond" not in line}
    assert touched
    assert all(f"metric_seg_{edge.organization_id.hex}_{DAY}" in line or "idx" in line for line in touched)
