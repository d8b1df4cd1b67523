"""Rows of one series and bucket merge to one, exactly: in any order, in any pieces, twice over."""

from __future__ import annotations

import math
from random import Random
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bench.plain_loop import sketches as plain
from bench.plain_loop.metrics import merged_rows
from lakerunner_dagster.lake.errors import InputError
from lakerunner_dagster.lake.segments.order import sort_codes
from lakerunner_dagster.lake.segments.shared import shared, spread
from lakerunner_dagster.lake.signals import SIGNALS, Signal
from lakerunner_dagster.lake.telemetry.metric_rows import DERIVED, PERCENTILES, merge_in_order, merge_rows

TEXT = pa.dictionary(pa.int32(), pa.string())
SCHEMA = pa.schema(
    {
        "chq_customer_id": TEXT,
        "metric_name": TEXT,
        "chq_description": TEXT,
        "chq_metric_type": TEXT,
        "metric_temporality": TEXT,
        "metric_is_monotonic": pa.bool_(),
        "chq_tid": pa.int64(),
        "chq_timestamp": pa.int64(),
        "chq_tsns": pa.int64(),
        "chq_last_tsns": pa.int64(),
        "chq_start_tsns": pa.int64(),
        "chq_rollup_count": pa.float64(),
        "chq_rollup_sum": pa.float64(),
        "chq_rollup_sum_low": pa.float64(),
        "chq_rollup_min": pa.float64(),
        "chq_rollup_max": pa.float64(),
        "chq_last": pa.float64(),
        "chq_sketch": pa.dictionary(pa.int32(), pa.binary()),
        "chq_points": pa.int64(),
        "attr_a": TEXT,
        "chq_overflow": pa.string(),
    }
)
SECOND = 1_000_000_000
START = 1_766_000_000 * SECOND

Row = dict[str, Any]


def table_of(rows: list[Row]) -> pa.Table:
    return pa.Table.from_pylist(rows, SCHEMA)


def rows_of(table: pa.Table) -> list[Row]:
    """In an order that depends on their content alone; floats to the last bit."""
    rows: list[Row] = table.to_pylist()
    return sorted(rows, key=repr)


def point(
    value: float,
    *,
    at: int = 0,
    kind: str = "gauge",
    temporality: str | None = None,
    monotonic: bool | None = None,
    start: int | None = None,
    **others: Any,
) -> Row:
    """A row of one number, so many ns into its bucket."""
    sketch: plain.Sketch = {}
    plain.count_into(sketch, value, 1)
    return {
        "chq_customer_id": "org",
        "metric_name": "m",
        "chq_description": None,
        "chq_metric_type": kind,
        "metric_temporality": temporality,
        "metric_is_monotonic": monotonic,
        "chq_tid": 1,
        "chq_timestamp": START // 1_000_000,
        "chq_tsns": START + at,
        "chq_last_tsns": START + at,
        "chq_start_tsns": start,
        "chq_rollup_count": 1.0,
        "chq_rollup_sum": value,
        "chq_rollup_sum_low": 0.0,
        "chq_rollup_min": value,
        "chq_rollup_max": value,
        "chq_last": value,
        "chq_sketch": plain.encode(sketch),
        "chq_points": 1,
        "attr_a": "x",
        "chq_overflow": None,
        **others,
    }


def histogram(values: list[float], *, at: int = 0, temporality: str = "delta", **others: Any) -> Row:
    """A row of a distribution of these values."""
    sketch: plain.Sketch = {}
    for value in values:
        plain.count_into(sketch, value, 1)
    row = point(0.0, at=at, kind="histogram", temporality=temporality)
    return {
        **row,
        "chq_rollup_count": float(len(values)),
        "chq_rollup_sum": math.fsum(values),
        "chq_rollup_min": min(values, default=None),
        "chq_rollup_max": max(values, default=None),
        "chq_last": None,
        "chq_sketch": plain.encode(sketch),
        **others,
    }


def cumulative(value: float, at: int, start: int = 1, **others: Any) -> Row:
    return point(value, at=at, kind="count", temporality="cumulative", monotonic=True, start=start, **others)


_values = st.floats(-1e9, 1e9).map(lambda number: round(number, 6) + 0.0) | st.sampled_from([0.0, 1.0, 0.1, -3.5])
_times = st.integers(0, 3)
_starts = st.none() | st.integers(1, 2)
_texts = {
    "chq_description": st.sampled_from([None, "d", "e"]),
    "chq_overflow": st.sampled_from([None, "{}", '{"a":1}']),
    "attr_a": st.sampled_from([None, "x", "y"]),
}
_places = {
    "chq_tid": st.integers(1, 2),
    "chq_timestamp": st.sampled_from([START // 1_000_000, START // 1_000_000 + 10_000]),
}
_temporalities = st.sampled_from([None, "delta", "cumulative"])
_gauges = {"at": _times, **_texts}
_sums = {"kind": st.just("count"), "temporality": _temporalities, "monotonic": st.booleans(), "start": _starts}
_up_down = {**_sums, "temporality": st.just("cumulative"), "monotonic": st.just(False)}
_counters = {**_sums, "temporality": st.just("cumulative"), "monotonic": st.just(True)}
_totals = {"chq_start_tsns": _starts, "chq_rollup_sum": st.none() | _values}
_members = st.lists(_values, max_size=4)
_any_row = st.one_of(
    st.builds(point, _values, **_gauges, **_places),
    st.builds(point, _values, **_gauges, **_sums, **_places),
    st.builds(histogram, _members, temporality=_temporalities, **_gauges, **_totals, **_places),
)
some_rows = st.one_of(
    st.lists(_any_row, min_size=1, max_size=14),
    *(
        st.lists(one_series, min_size=1, max_size=10)
        for one_series in (
            st.builds(point, _values, **_gauges),
            st.builds(point, _values, **_gauges, **_up_down),
            st.builds(point, _values, **_gauges, **_counters),
            st.builds(histogram, _members, **_gauges),
            st.builds(histogram, _members, temporality=st.just("cumulative"), **_gauges, **_totals),
        )
    ),
)
fuzz = settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])


@fuzz
@given(rows=some_rows)
def test_rows_merge_as_the_plain_loop_merges_them(rows: list[Row]) -> None:
    expected = pa.Table.from_pylist(merged_rows(rows), merge_rows(table_of(rows)).schema)
    assert rows_of(merge_rows(table_of(rows))) == rows_of(expected)


@fuzz
@given(rows=some_rows, seed=st.integers(0, 2**32))
def test_order_and_pieces_leave_no_trace_in_any_bit(rows: list[Row], seed: int) -> None:
    rng = Random(seed)
    whole = rows_of(merge_rows(table_of(rows)))
    pieces = [table_of([row]) for row in rng.sample(rows, len(rows))]
    while len(pieces) > 1:
        rng.shuffle(pieces)
        some = rng.randrange(2, len(pieces) + 1)
        together = merge_rows(pa.concat_tables([bare(piece) for piece in pieces[:some]], promote_options="permissive"))
        pieces = [together, *pieces[some:]]
    assert rows_of(merge_rows(pieces[0])) == whole


@fuzz
@given(rows=some_rows, repeats=st.integers(2, 4), several=st.booleans())
def test_rows_that_lie_together_merge_as_those_that_lie_apart(
    rows: list[Row],
    repeats: int,
    several: bool,  # noqa: FBT001 -- hypothesis hands it over by name
) -> None:
    """``several``: in more than one stretch of each series and bucket."""
    apart = rows * repeats
    beside = [row for row in rows for _ in range(repeats - several)] + rows * several
    assert rows_of(merge_rows(table_of(beside))) == rows_of(merge_rows(table_of(apart)))


@fuzz
@given(rows=some_rows, seed=st.integers(0, 2**32))
def test_rows_merged_in_order_are_those_merged_in_none_and_in_order(rows: list[Row], seed: int) -> None:
    """Rows of one code may be of several groups, and come between each other."""
    table = table_of(Random(seed).sample(rows, len(rows)))
    keys = SIGNALS[Signal.METRICS].sort_keys
    merged, codes = merge_in_order(table, sort_codes(table, keys))
    assert rows_of(merged) == rows_of(merge_rows(table))
    assert codes.tolist() == sorted(codes.tolist())
    own_codes = sort_codes(merged, keys)
    assert (np.unique(codes, return_inverse=True)[1] == np.unique(own_codes, return_inverse=True)[1]).all()


def bare(table: pa.Table) -> pa.Table:
    """Without what merging computes anew, and as Parquet gives it: texts and sketches plain."""
    kept = [name for name in table.column_names if name not in DERIVED]
    fields = [
        (name, pa.binary() if name == "chq_sketch" else plain_type(table.schema.field(name).type)) for name in kept
    ]
    return table.select(kept).cast(pa.schema(fields))


def plain_type(kind: pa.DataType) -> pa.DataType:
    return kind.value_type if pa.types.is_dictionary(kind) else kind


@fuzz
@given(rows=some_rows)
def test_merging_again_changes_nothing_and_points_are_conserved(rows: list[Row]) -> None:
    once = merge_rows(table_of(rows))
    assert rows_of(merge_rows(once)) == rows_of(once)
    assert sum(once.column("chq_points").to_pylist()) == len(rows)


@fuzz
@given(rows=some_rows)
def test_percentiles_stay_between_min_and_max(rows: list[Row]) -> None:
    for row in merge_rows(table_of(rows)).to_pylist():
        ranked = [row[name] for name in PERCENTILES if row[name] is not None]
        if ranked:
            assert row["chq_rollup_min"] <= ranked[0]
            assert ranked[-1] <= row["chq_rollup_max"]
            assert ranked == sorted(ranked)


def merged(*rows: Row) -> Row:
    [row] = merge_rows(table_of(list(rows))).to_pylist()
    return dict(row)


def shown(row: Row, *names: str) -> list[Any]:
    return [row[f"chq_{name}"] for name in names]


SUMMARY = ("rollup_count", "rollup_sum", "rollup_min", "rollup_max", "rollup_avg", "last", "points")


def test_a_single_value_is_its_own_every_percentile() -> None:
    row = merged(point(123.456))
    assert [row[name] for name in PERCENTILES] == [123.456] * 6
    assert shown(row, *SUMMARY) == [1, 123.456, 123.456, 123.456, 123.456, 123.456, 1]


def test_gauges_and_delta_sums_add_and_keep_the_last_by_time() -> None:
    for kind, temporality in (("gauge", None), ("count", "delta")):
        rows = [point(value, at=at, kind=kind, temporality=temporality) for value, at in ((5.0, 3), (1.0, 1), (3.0, 2))]
        row = merged(*rows)
        assert shown(row, *SUMMARY) == [3, 9, 1, 5, 3, 5, 3]
        assert shown(row, "tsns", "last_tsns") == [START + 1, START + 3]


def test_a_monotonic_cumulative_sum_keeps_the_later_value_and_counts_its_points() -> None:
    row = merged(cumulative(10, at=1), cumulative(25, at=3), cumulative(15, at=2))
    assert shown(row, *SUMMARY) == [3, 25, 25, 25, 25, 25, 3]
    assert [row[name] for name in PERCENTILES] == [25] * 6
    assert shown(row, "tsns", "last_tsns", "start_tsns") == [START + 1, START + 3, 1]


def test_of_two_cumulative_values_at_one_time_the_larger_stays() -> None:
    assert merged(cumulative(10, at=1), cumulative(11, at=1))["chq_last"] == 11


def test_a_restarted_counter_has_a_row_for_each_start() -> None:
    table = merge_rows(table_of([cumulative(90, at=1), cumulative(100, at=2), cumulative(3, at=3, start=2)]))
    assert sorted((row["chq_start_tsns"], row["chq_last"]) for row in table.to_pylist()) == [(1, 100), (2, 3)]


def test_a_cumulative_histogram_keeps_the_later_distribution_whole() -> None:
    row = merged(
        histogram([1, 2], at=1, temporality="cumulative"), histogram([1, 2, 9], at=2, temporality="cumulative")
    )
    assert shown(row, "rollup_count", "rollup_sum", "rollup_max", "points") == [3, 12, 9, 2]


def test_delta_histograms_add_their_own_counts_and_sums() -> None:
    row = merged(histogram([1, 2]), histogram([10, 20, 30]), histogram([]))
    assert shown(row, "rollup_count", "rollup_sum", "rollup_min", "rollup_max", "rollup_avg") == [5, 63, 1, 30, 12.6]
    assert row["chq_rollup_p50"] == pytest.approx(10, rel=0.01)


def test_a_distribution_without_values_has_no_average_and_no_percentiles() -> None:
    row = merged(histogram([]))
    assert [row[name] for name in DERIVED] == [None] * len(DERIVED)
    assert shown(row, "rollup_count", "rollup_sum", "rollup_min") == [0, 0, None]


def test_a_sum_that_one_row_does_not_know_is_not_known() -> None:
    row = merged(histogram([1, 2]), histogram([3], chq_rollup_sum=None, chq_rollup_sum_low=None))
    assert shown(row, "rollup_count", "rollup_sum", "rollup_avg") == [3, None, None]


def test_up_down_counters_aggregate_though_they_are_cumulative() -> None:
    rows = [
        point(value, at=at, kind="count", temporality="cumulative", monotonic=False, start=at)
        for at, value in enumerate((7.0, 3.0, 5.0), start=1)
    ]
    row = merged(*rows)
    assert shown(row, *SUMMARY, "start_tsns") == [3, 15, 3, 7, 5, 5, 3, 3]


def test_delta_and_cumulative_rows_of_one_series_stay_apart() -> None:
    rows = [point(1, kind="count", temporality="delta", monotonic=True), cumulative(5, at=1)]
    assert merge_rows(table_of(rows)).num_rows == 2


@pytest.mark.parametrize("texts", [["x", "x", "z"], ["y", "x", "z"], [None, "x", "z"]])
def test_rows_of_several_parents_merge_as_their_texts_do(texts: list[str | None]) -> None:
    """Rows of one series may be of several resources; only where ids collide may these differ in a column."""
    rows = table_of([point(1, at=1), point(2, at=2), point(3, at=3), {**point(4), "chq_tid": 2}])
    texts_of_parents = pa.array(texts, pa.string()).dictionary_encode()
    sharing = rows.append_column("attr", shared(np.array([0, 1, 0, 2]), {"attr_k": texts_of_parents}))
    apart = rows.append_column("attr_k", pa.array([texts[parent] for parent in (0, 1, 0, 2)], pa.string()))
    assert rows_of(spread(merge_rows(sharing))) == rows_of(merge_rows(apart))


def test_what_rounding_takes_from_a_sum_is_carried_along() -> None:
    tenths = merge_rows(table_of([point(0.1, at=at) for at in range(10)])).to_pylist()[0]
    assert tenths["chq_rollup_sum"] == 1.0  # 0.1 ten times over is a little more than 1: 0.1 is
    assert tenths["chq_rollup_sum_low"] == 10 * 5.551115123125783e-18


def test_a_damaged_sketch_is_named() -> None:
    with pytest.raises(InputError, match="sketch"):
        merge_rows(table_of([{**point(1), "chq_sketch": b"\x02rest"}]))
