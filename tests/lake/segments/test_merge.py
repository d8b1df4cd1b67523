"""What a merge must never do: lose, double or change a row, break the order, or say of its outputs what is not so."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from hypothesis import given as hypothesis_given
from hypothesis import settings
from hypothesis import strategies as st

from bench.grow import real_data
from lakerunner_dagster.lake.model import CreatedBy, InputKind
from lakerunner_dagster.lake.segments import parquet
from lakerunner_dagster.lake.segments.columns import FILE, OVERFLOW
from lakerunner_dagster.lake.segments.fingerprints import index_fingerprints
from lakerunner_dagster.lake.segments.merge import MergeInput
from lakerunner_dagster.lake.segments.parquet import encode
from lakerunner_dagster.lake.segments.split import split_by_hour
from lakerunner_dagster.lake.settings import Limits
from lakerunner_dagster.lake.signals import SIGNALS, Signal
from lakerunner_dagster.lake.telemetry.decode import decode
from tests.lake.segments.merging import built, given, merged, parted, read, read_built, stored
from tests.lake.segments.tables import ORGANIZATION, log_rows, span_rows
from tests.lake.segments.test_real_files import payloads

TABLES = {Signal.LOGS: log_rows, Signal.TRACES: span_rows}
PLAIN = list(TABLES)
ORDER = {
    Signal.LOGS: ["resource_service_name", "chq_fingerprint", "chq_timestamp", "chq_tsns", "chq_id"],
    Signal.TRACES: ["span_trace_id", "chq_tsns", "chq_id"],
}


def in_order(inputs: list[MergeInput], signal: Signal, columns: list[str]) -> list[tuple[Any, ...]]:
    """The rows of all inputs, sorted by DuckDB."""
    paths = [str(one.path) for one in inputs]
    named = ", ".join(columns)
    keys = ", ".join(f"{key} NULLS LAST" for key in ORDER[signal] if key in columns)
    query = f"SELECT {named} FROM read_parquet({paths!r}, union_by_name = true) ORDER BY {keys}"
    with duckdb.connect() as connection:
        return connection.execute(query).fetchall()


def as_rows(table: pa.Table) -> list[tuple[Any, ...]]:
    return list(zip(*(column.to_pylist() for column in table.columns), strict=True))


@pytest.mark.parametrize("signal", PLAIN)
@pytest.mark.parametrize("parts", [2, 3, 9])
def test_every_row_comes_out_once_and_in_order(signal: Signal, parts: int, tmp_path: Path) -> None:
    inputs = given(signal, parted(TABLES[signal](400), parts), tmp_path)
    [one] = merged(inputs, tmp_path)
    table = read(one.path)
    assert as_rows(table) == in_order(inputs, signal, table.column_names)


@pytest.mark.parametrize("signal", PLAIN)
def test_merging_the_parts_is_ingesting_the_whole(signal: Signal, tmp_path: Path) -> None:
    rows = TABLES[signal](300)
    [one] = merged(given(signal, parted(rows, 4), tmp_path), tmp_path)
    whole = built(signal, rows)
    assert read(one.path).equals(read_built(whole))
    own, ingested = one.output.segment, whole.output.segment
    assert own == replace(
        ingested,
        segment_id=own.segment_id,
        file_size=own.file_size,
        created_by=CreatedBy.COMPACTION,
        compacted=True,
    )


@settings(max_examples=60)
@hypothesis_given(
    rows=st.integers(2, 60),
    parts=st.integers(2, 6),
    seed=st.integers(0, 10_000),
    group=st.sampled_from([1, 2, 7, 1000]),
    signal=st.sampled_from(PLAIN),
    memory=st.sampled_from([1, 1 << 30]),
)
def test_any_rows_dealt_out_in_any_way_come_out_once_and_in_order(  # noqa: PLR0917
    tmp_path_factory: pytest.TempPathFactory, rows: int, parts: int, seed: int, group: int, signal: Signal, memory: int
) -> None:
    directory = tmp_path_factory.mktemp("merge")
    tables = [part for part in parted(TABLES[signal](rows, seed=seed), parts, seed) if part.num_rows]
    inputs = given(signal, tables, directory)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parquet, "ROW_GROUP_ROWS", group)
        outputs = merged(inputs, directory, target_bytes=2000, memory_bytes=memory)
    tables = [read(one.path) for one in outputs]
    whole = pa.concat_tables(tables, promote_options="default")
    assert as_rows(whole) == in_order(inputs, signal, whole.column_names)
    assert Counter(c.input_id for one in outputs for c in one.output.inputs).keys() == {
        one.segment.segment_id for one in inputs
    }
    for one, table in zip(outputs, tables, strict=True):
        assert one.output.segment.record_count == table.num_rows == sum(c.records for c in one.output.inputs)


@pytest.mark.parametrize("signal", PLAIN)
def test_neither_the_order_of_the_inputs_nor_memory_changes_a_byte(signal: Signal, tmp_path: Path) -> None:
    inputs = given(signal, parted(TABLES[signal](500), 7), tmp_path)
    outcomes = []
    for number, (order, memory) in enumerate([(inputs, 1 << 30), (inputs[::-1], 1 << 30), (inputs, 1)]):
        directory = tmp_path / str(number)
        directory.mkdir()
        outcomes.append([(one.output, one.path.read_bytes()) for one in merged(order, directory, memory_bytes=memory)])
    assert outcomes[0] == outcomes[1] == outcomes[2]


def test_outputs_are_filled_to_the_target_and_hold_the_rows_between_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parquet, "ROW_GROUP_ROWS", 50)
    inputs = given(Signal.LOGS, parted(log_rows(1000), 5), tmp_path)
    outputs = merged(inputs, tmp_path, target_bytes=20_000)
    assert len(outputs) > 2
    sizes = [one.output.segment.file_size for one in outputs]
    assert all(20_000 <= size < 2 * 20_000 for size in sizes[:-1])
    assert len({one.output.segment.segment_id for one in outputs}) == len(outputs)
    tables = [read(one.path) for one in outputs]
    whole = pa.concat_tables(tables, promote_options="default")
    assert as_rows(whole) == in_order(inputs, Signal.LOGS, whole.column_names)
    given_records: Counter[int] = Counter()
    for one, table in zip(outputs, tables, strict=True):
        segment = one.output.segment
        times = pc.min_max(table.column("chq_timestamp")).as_py()
        assert (segment.start_ms, segment.end_ms) == (times["min"], times["max"] + 1)
        assert segment.fingerprints == index_fingerprints(encode(table)), "the index is not that of the rows written"
        assert set(segment.stream_ids or ()) == set(table.column("resource_service_name").to_pylist()) - {None}
        given_records.update({contribution.input_id: contribution.records for contribution in one.output.inputs})
        assert one.output.input_kind is InputKind.SEGMENT
        assert segment.file_size == one.path.stat().st_size
    assert given_records == {one.segment.segment_id: one.segment.records for one in inputs}


def test_the_day_of_ingest_and_the_state_of_rollup_are_carried_forward(tmp_path: Path) -> None:
    inputs = given(Signal.LOGS, parted(log_rows(20), 3), tmp_path)
    days = [20260107, 20260103, 20260105]
    dated = [
        MergeInput(replace(one.segment, ingest_dateint=day, rolledup=True), one.path)
        for one, day in zip(inputs, days, strict=True)
    ]
    [one] = merged(dated, tmp_path)
    assert (one.output.segment.ingest_dateint, one.output.segment.rolledup) == (20260103, True)


def test_columns_that_only_some_inputs_have_are_null_in_the_rows_of_the_others(tmp_path: Path) -> None:
    rows = log_rows(60)
    left, right = parted(rows, 2)
    left = left.append_column("attr_new", pa.array(["x"] * left.num_rows))
    inputs = stored(
        [
            built(Signal.LOGS, left.drop_columns(["scope_build"]), "l", {"attr_new": "new"}),
            built(Signal.LOGS, right, "r"),
        ],
        tmp_path,
    )
    [one] = merged(inputs, tmp_path)
    table = read(one.path)
    assert as_rows(table) == in_order(inputs, Signal.LOGS, table.column_names)
    assert table.column("attr_new").null_count == right.num_rows
    assert one.output.segment.label_name_map["attr_new"] == "new"


def test_a_column_of_an_older_narrower_type_is_widened(tmp_path: Path) -> None:
    inputs = given(Signal.LOGS, parted(log_rows(40), 2), tmp_path)
    old = read(inputs[0].path)
    flags = old.schema.get_field_index("chq_flags")
    narrow = old.set_column(flags, "chq_flags", old.column("chq_flags").cast(pa.int32()))
    footer = {key.decode(): value.decode() for key, value in pq.read_metadata(inputs[0].path).metadata.items()}
    with pq.ParquetWriter(inputs[0].path, narrow.schema, store_schema=False) as writer:
        writer.write_table(narrow)
        writer.add_key_value_metadata(footer)
    [one] = merged(inputs, tmp_path)
    assert read(one.path).schema.field("chq_flags").type == pa.int64()


def test_of_two_original_keys_of_one_column_the_first_names_it_and_no_value_moves(tmp_path: Path) -> None:
    left, right = parted(log_rows(40), 2)
    inputs = stored(
        [
            built(Signal.LOGS, left, "l", {"attr_http_status": "http/status"}),
            built(Signal.LOGS, right, "r", {"attr_http_status": "http.status"}),
        ],
        tmp_path,
    )
    [one] = merged(inputs, tmp_path)
    assert one.output.segment.label_name_map["attr_http_status"] == "http.status"
    table = read(one.path)
    assert as_rows(table) == in_order(inputs, Signal.LOGS, table.column_names)


def test_the_rarest_columns_beyond_the_limit_overflow_under_their_original_keys(tmp_path: Path) -> None:
    rows = log_rows(40)
    rare = pa.array(["r" if number == 3 else None for number in range(40)])
    rows = rows.append_column("attr_rare_one", rare)
    keys = {"attr_rare_one": "rare.one"}
    inputs = stored([built(Signal.LOGS, part, str(n), keys) for n, part in enumerate(parted(rows, 2))], tmp_path)
    attributes = {name for name in read(inputs[0].path).column_names if name.startswith(("attr_", "resource_"))}
    [one] = merged(inputs, tmp_path, most_columns=len(attributes | {"attr_rare_one", "scope_build"}) - 1)
    table = read(one.path)
    assert "attr_rare_one" not in table.column_names
    overflows = [text for text in table.column(OVERFLOW).to_pylist() if text and "rare.one" in text]
    assert len(overflows) == 1
    assert '"rare.one":"r"' in overflows[0]
    assert table.num_rows == 40


needs_real_data = pytest.mark.skipif(not real_data().is_dir(), reason=f"no real telemetry in {real_data()}")


def real_parts(signal: Signal) -> list[tuple[pa.Table, list[pa.Table], dict[str, str]]]:
    """For each hour of the real files: its rows, and the same file by file."""
    decoded = decode(signal, payloads(signal), ORGANIZATION, Limits())
    hours = []
    for _, _, rows in split_by_hour(decoded.table):
        numbers = sorted(set(rows.column(FILE).to_pylist()))
        if len(numbers) == 1:
            half = rows.num_rows // 2
            parts = [rows.slice(0, half), rows.slice(half)] if half else []
        else:
            parts = [rows.filter(pc.equal(rows.column(FILE), number)) for number in numbers]
        if parts:
            hours.append((rows, parts, dict(decoded.original_keys)))
    return hours


@needs_real_data
@pytest.mark.parametrize("signal", Signal)
def test_real_telemetry_ingested_in_pieces_and_merged_is_what_it_is_ingested_at_once(
    signal: Signal, tmp_path: Path
) -> None:
    hours = real_parts(signal)
    assert hours
    for number, (rows, parts, keys) in enumerate(hours):
        directory = tmp_path / str(number)
        directory.mkdir()
        inputs = stored([built(signal, part, str(n), keys) for n, part in enumerate(parts)], directory)
        [one] = merged(inputs, directory)
        whole = built(signal, rows, keys=keys)
        assert read(one.path).equals(read_built(whole))
        assert one.output.segment.fingerprints == whole.output.segment.fingerprints
        assert one.output.segment.rollup_count == whole.output.segment.rollup_count


METRIC_ORACLE = """
    WITH rows AS (
        SELECT *, metric_temporality = 'cumulative' AND (chq_metric_type = 'histogram' OR metric_is_monotonic) AS latest
        FROM read_parquet({paths!r}, union_by_name = true)
    )
    SELECT metric_name, chq_tid, chq_timestamp, metric_temporality, chq_metric_type,
           CASE WHEN latest THEN chq_start_tsns END AS start,
           sum(chq_points)::BIGINT AS points,
           min(chq_tsns) AS first,
           CASE WHEN bool_or(latest) THEN arg_max(chq_rollup_sum, chq_last_tsns) ELSE sum(chq_rollup_sum) END AS total,
           CASE WHEN bool_or(latest) AND chq_metric_type = 'histogram' THEN arg_max(chq_rollup_count, chq_last_tsns)
                ELSE sum(chq_rollup_count) END AS count,
           CASE WHEN bool_or(latest) THEN arg_max(chq_rollup_min, chq_last_tsns) ELSE min(chq_rollup_min) END AS low,
           CASE WHEN bool_or(latest) THEN arg_max(chq_rollup_max, chq_last_tsns) ELSE max(chq_rollup_max) END AS high,
           max(chq_last_tsns) AS last
    FROM rows GROUP BY 1, 2, 3, 4, 5, 6, latest ORDER BY 1, 2, 3, 4, 5, 6
"""
"""What merging means for metrics, in SQL."""


@needs_real_data
def test_rows_of_a_series_and_bucket_become_one_as_sql_has_it(tmp_path: Path) -> None:
    rng = random.Random(5)
    checked = 0
    for number, (rows, _, keys) in enumerate(real_parts(Signal.METRICS)):
        directory = tmp_path / str(number)
        directory.mkdir()
        parts = [part for part in parted(rows, 4, rng.randrange(99)) if part.num_rows]
        inputs = stored([built(Signal.METRICS, part, str(n), keys) for n, part in enumerate(parts)], directory)
        [one] = merged(inputs, directory)
        with duckdb.connect() as connection:
            expected, found = (
                connection.execute(METRIC_ORACLE.format(paths=paths)).fetchall()
                for paths in ([str(each.path) for each in inputs], [str(one.path)])
            )
        assert len(found) == one.output.segment.record_count
        for row, expectation in zip(found, expected, strict=True):
            for value, wanted in zip(row, expectation, strict=True):
                assert value == (pytest.approx(wanted, rel=1e-12) if isinstance(wanted, float) else wanted)
        table = read(one.path)
        keys_of = as_rows(table.select(SIGNALS[Signal.METRICS].sort_keys))
        assert keys_of == sorted(keys_of)
        checked += sum(each.segment.record_count for each in inputs) - len(found)
    assert checked > 0, "no two rows were merged"
