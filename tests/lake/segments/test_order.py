"""What would break if rows were not in one total order: the same work would give other bytes, merges would go wrong."""

from __future__ import annotations

from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from lakerunner_dagster.lake.segments.order import row_order
from lakerunner_dagster.lake.signals import SIGNALS, Signal
from tests.lake.segments.tables import dictionaries, log_rows, shuffled, span_rows

INT64 = st.integers(-(2**63), 2**63 - 1)
ROWS = st.lists(
    st.fixed_dictionaries(
        {
            "text": st.none() | st.text(st.sampled_from("aAé\U0001f600\x00"), max_size=3),
            "wide": st.none() | st.sampled_from([-(2**63), -1, 0, 1, 2**63 - 1]) | INT64,
            "near": st.none() | st.integers(-3, 3),
            "chq_tsns": st.integers(0, 1),
        }
    ),
    max_size=30,
)
KEYS = ("text", "wide", "near", "absent")


def nulls_last(value: Any) -> tuple[bool, Any]:
    value = value.encode() if isinstance(value, str) else value
    return (value is None, 0 if value is None else value)


def keyed(rows: list[dict[str, Any]], *, unique: bool) -> pa.Table:
    types = {"text": pa.string(), "wide": pa.int64(), "near": pa.int64(), "chq_tsns": pa.int64()}
    columns = {name: pa.array([row[name] for row in rows], kind) for name, kind in types.items()}
    if unique:
        columns["chq_id"] = pa.array([f"{number:04}" for number in range(len(rows))], pa.string())
    return pa.table(columns)


@settings(max_examples=150, deadline=None)
@given(rows=ROWS, seed=st.integers(0, 5), encode=st.booleans(), unique=st.booleans())
@example(rows=[], seed=0, encode=False, unique=True)
def test_rows_are_in_the_order_that_python_gives(
    *, rows: list[dict[str, Any]], seed: int, encode: bool, unique: bool
) -> None:
    table = keyed(rows, unique=unique)
    ties = ["chq_tsns", "chq_id"] if unique else ["chq_tsns"]
    names = [name for name in (*KEYS, *ties) if name in table.column_names]
    expected = sorted(table.to_pylist(), key=lambda row: [nulls_last(row[name]) for name in names])
    mixed = shuffled(table, seed)

    order = row_order(dictionaries(mixed) if encode else mixed, KEYS)

    assert sorted(order.tolist()) == list(range(len(rows)))
    assert mixed.take(order).to_pylist() == expected


def test_a_key_of_many_wide_columns_outgrows_no_integer() -> None:
    random = np.random.default_rng(0)
    columns = {name: pa.array(random.integers(-(2**63), 2**63 - 1, 500)) for name in "abcdefgh"}
    columns |= {name: pa.array(random.integers(0, 2, 500)) for name in "ab"}  # so that later columns matter too
    columns |= {name: pa.array(random.integers(0, 2**47, 500)) for name in "cd"}
    table = pa.table(columns | {"chq_tsns": np.zeros(500, np.int64), "chq_id": [f"{n:03}" for n in range(500)]})
    order = row_order(table, tuple("abcdefgh"))
    rows = list(zip(*(table[name].to_pylist() for name in "abcdefgh"), strict=True))
    assert [rows[position] for position in order] == sorted(rows)


def test_rows_without_an_id_are_ordered_by_all_they_hold() -> None:
    """Metrics: two restarts of one series in a bucket differ in columns that are no sort keys, of every type."""
    table = pa.table(
        {
            "metric_name": ["m"] * 6,
            "flag": [True, None, False, True, True, True],
            "sketch": pa.array([b"\x01", b"", b"\xff", None, b"\x01", b"\x00"], pa.binary()),
            "value": [1.0, -0.5, None, 2.0, 1.5, 1.0],
            "word": pa.array(["x", "y", None, "x", "x", "x"]).dictionary_encode(),
        }
    )
    first = table.take(row_order(table, ("metric_name",))).to_pylist()
    for seed in range(10):
        mixed = shuffled(table, seed)
        assert mixed.take(row_order(mixed, ("metric_name",))).to_pylist() == first
    assert [row["flag"] for row in first] == [False, True, True, True, True, None]


@pytest.mark.parametrize(("signal", "rows"), [(Signal.LOGS, log_rows(5000)), (Signal.TRACES, span_rows(5000))])
def test_duckdb_agrees_on_the_order_of_real_columns(signal: Signal, rows: pa.Table) -> None:
    keys = ", ".join(f"{key} NULLS LAST" for key in (*SIGNALS[signal].sort_keys, "chq_tsns", "chq_id"))
    with duckdb.connect() as connection:
        expected = connection.execute(f"SELECT chq_id FROM rows ORDER BY {keys}").fetchall()
    found = rows["chq_id"].take(row_order(rows, SIGNALS[signal].sort_keys)).to_pylist()
    assert found == [chq_id for (chq_id,) in expected]
