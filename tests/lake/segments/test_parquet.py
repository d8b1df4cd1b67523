"""What would break if files were written otherwise: other bytes for the same rows, readers that see no strings."""

from __future__ import annotations

import math
import random
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from lakerunner_dagster.lake.segments import parquet
from tests.lake.segments.tables import dictionaries, log_rows


def written(table: pa.Table, **metadata: str) -> bytes:
    return bytes(parquet.write(parquet.encode(table), metadata))


def every_type(count: int) -> pa.Table:
    """Columns of each type that segments have, whose values repeat, hardly repeat, or are not there."""
    random_of = random.Random(count)

    def some(values: Any) -> list[Any]:
        return [value if random_of.random() > 0.1 else None for value in values]

    rows = range(count)
    return pa.table(
        {
            "few_texts": pa.array(some(random_of.choice(["a", "é", ""]) for _ in rows), pa.string()),
            "many_texts": pa.array(some(f"{random_of.random()}" for _ in rows), pa.string()),
            "no_text": pa.nulls(count, pa.string()),
            "few_blobs": pa.array(some(random_of.choice([b"", b"\x00\xff"]) for _ in rows), pa.binary()),
            "many_blobs": pa.array(some(random_of.randbytes(9) for _ in rows), pa.binary()),
            "few_integers": pa.array(some(random_of.choice([-(2**63), 2**63 - 1]) for _ in rows), pa.int64()),
            "many_integers": pa.array(some(random_of.getrandbits(64) - 2**63 for _ in rows), pa.int64()),
            "no_integer": pa.nulls(count, pa.int64()),
            "small_integers": pa.array(some(random_of.randrange(24) for _ in rows), pa.int32()),
            "few_doubles": pa.array(some(random_of.choice([0.0, -1.5]) for _ in rows), pa.float64()),
            "many_doubles": pa.array(some(random_of.random() for _ in rows), pa.float64()),
            "flags": pa.array(some(random_of.random() > 0.5 for _ in rows), pa.bool_()),
        }
    )


@pytest.mark.parametrize("rows", [1, 2, 1000])
def test_what_is_written_is_what_readers_see(rows: int, tmp_path: Path) -> None:
    table = every_type(rows)
    data = written(table)

    assert pq.read_table(pa.BufferReader(data)).equals(table)
    assert pq.read_schema(pa.BufferReader(data)).equals(table.schema)
    path = tmp_path / "segment.parquet"
    path.write_bytes(data)
    with duckdb.connect() as connection:
        assert connection.from_parquet(str(path)).fetchall() == [tuple(row.values()) for row in table.to_pylist()]


def test_rows_of_several_row_groups_are_all_there_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parquet, "ROW_GROUP_ROWS", 300)
    table = every_type(1000)
    data = written(table)
    assert pq.ParquetFile(pa.BufferReader(data)).num_row_groups == 4
    assert pq.read_table(pa.BufferReader(data)).equals(table)
    assert written(table) == data


def test_a_row_group_holds_no_other_row_groups_dictionary(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parquet, "ROW_GROUP_ROWS", 1000)
    long = [f"{number:01000}" for number in range(500)]
    data = written(pa.table({"text": [*long, *long, *["short"] * 1000]}))
    metadata = pq.ParquetFile(pa.BufferReader(data)).metadata
    sizes = [metadata.row_group(group).column(0).total_uncompressed_size for group in range(2)]
    assert sizes[0] > 500_000
    assert sizes[1] < 1_000


def test_how_many_rows_the_writer_takes_at_once_leaves_no_trace(monkeypatch: pytest.MonkeyPatch) -> None:
    """A full row group without plain texts: numbers that do not repeat are its largest pages."""
    rows = np.random.default_rng(0).integers(-(2**63), 2**63 - 1, parquet.ROW_GROUP_ROWS)
    words = pa.array([None, "x", "yy"]).take(pa.array(rows % 3))
    table = pa.table({"integer": rows, "double": rows / 3, "text": words, "blob": words.cast(pa.binary())})
    data = written(table)
    monkeypatch.setattr(parquet, "_NARROW_BATCH_ROWS", 1024)
    assert written(table) == data


def test_values_that_hardly_repeat_are_not_stored_twice() -> None:
    texts = [f"{number:032x}" for number in range(60_000)]
    data = written(pa.table({"text": texts, "time": range(60_000)}))
    columns = [pq.ParquetFile(pa.BufferReader(data)).metadata.row_group(0).column(at) for at in range(2)]
    assert not any(column.has_dictionary_page for column in columns)
    assert columns[0].total_uncompressed_size < 60_000 * 37
    assert "DELTA_BINARY_PACKED" in columns[1].encodings


def test_a_large_dictionary_of_repeating_values_is_kept() -> None:
    texts = [f"{number:01000}" for number in range(5_000)]  # 5 MB, beyond the writer's own bound of 1 MiB
    data = written(pa.table({"text": texts * 3}))
    assert pq.ParquetFile(pa.BufferReader(data)).metadata.row_group(0).column(0).total_uncompressed_size < 6_000_000


NUMBERS = {
    pa.int64(): st.sampled_from([-(2**63), 0, 1, 2, 3, 2**63 - 1]),
    pa.float64(): st.sampled_from([-0.0, 0.0, 1.0, 2.5, math.nan, math.inf]),
}


@st.composite
def alike_columns(draw: st.DrawFn) -> pa.Table:
    """Columns of numbers that differ from the column before in some rows, and mostly not from the row before."""
    columns = {}
    rows = draw(st.integers(1, 12))
    for kind, numbers in NUMBERS.items():
        values = draw(st.lists(st.none() | numbers, min_size=rows, max_size=rows))
        for place in range(draw(st.integers(1, 4))):
            for row in draw(st.sets(st.integers(0, rows - 1), max_size=3)):
                values[row] = draw(st.none() | numbers)
            columns[f"{kind}_{place}"] = pa.array(sorted(values, key=repr) if draw(st.booleans()) else values, kind)
    return pa.table(columns)


@settings(deadline=None)
@given(alike_columns())
@example(pa.table({"one": [0.0, 0.0], "other": [0.0, -0.0]}))
def test_columns_have_a_dictionary_just_where_values_come_twice_on_average(table: pa.Table) -> None:
    group = pq.ParquetFile(pa.BufferReader(written(table))).metadata.row_group(0)
    for place, column in enumerate(table.columns):
        held = column.drop_null()
        if len(held):
            assert group.column(place).has_dictionary_page == (2 * pc.count_distinct(held).as_py() <= len(held))


def test_bytes_do_not_tell_how_the_rows_were_held_in_memory() -> None:
    table = log_rows(2000)
    data = written(table)
    assert written(table) == data
    assert written(dictionaries(table)) == data
    assert written(dictionaries(table, unused=("zz", "other hour"))) == data
    assert written(dictionaries(table, unused=("cart", "cart", "INFO"))) == data  # as codes of two equal values
    assert written(pa.concat_tables([table.slice(0, 700), table.slice(700)])) == data
    assert written(pa.concat_tables([dictionaries(table.slice(0, 700)), dictionaries(table.slice(700))])) == data


def test_the_footer_holds_what_is_given_and_no_schema_of_arrow() -> None:
    file = pq.ParquetFile(pa.BufferReader(written(pa.table({"text": ["a"]}), **{"lakerunner.signal": "logs"})))
    assert file.metadata.metadata == {b"lakerunner.signal": b"logs"}
    assert file.metadata.row_group(0).column(0).compression == "ZSTD"


def test_statistics_let_readers_skip_row_groups() -> None:
    statistics = pq.ParquetFile(pa.BufferReader(written(log_rows(100)))).metadata.row_group(0).column(3).statistics
    assert statistics.has_min_max
    assert statistics.has_null_count


def test_distinct_values_are_those_of_the_rows() -> None:
    table = parquet.encode(dictionaries(log_rows(200), unused=("nobody",)))
    for name in ("resource_service_name", "trace_id", "attr_never"):
        expected = {value for value in table[name].to_pylist() if value is not None}
        assert sorted(parquet.distinct(table[name]).to_pylist()) == sorted(expected)
