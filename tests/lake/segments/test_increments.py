"""What a step of a cumulative series must never be: other than what came, or anything where that is not known."""

from __future__ import annotations

from fractions import Fraction
from itertools import pairwise
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.plain_loop import sketches as plain
from lakerunner_dagster.lake.segments.columns import FIXED_COLUMNS
from lakerunner_dagster.lake.segments.increments import NOWHERE, additive, increments
from lakerunner_dagster.lake.signals import Signal
from lakerunner_dagster.lake.telemetry.metric_rows import DERIVED, PERCENTILES, merge_rows
from tests.lake.segments.plain_rollup import increments as plain_increments
from tests.lake.segments.tables import HOUR

SCHEMA = pa.schema([field for field in FIXED_COLUMNS[Signal.METRICS] if field.name not in DERIVED])
BUCKET = 10_000
MS_NS = 10**6

Row = dict[str, Any]


def sketch_of(*values: float) -> bytes:
    sketch: plain.Sketch = {}
    for value in values:
        plain.count_into(sketch, value, 1)
    return plain.encode(sketch)


def row(bucket: int, *, start_ms: int | None = HOUR - 5000, **values: Any) -> Row:
    """A row of the bucket of this number, without its values."""
    time = (HOUR + bucket * BUCKET) * MS_NS
    return {
        "metric_name": "m",
        "chq_tid": 7,
        "chq_timestamp": HOUR + bucket * BUCKET,
        "chq_tsns": time,
        "chq_last_tsns": time + 5,
        "chq_start_tsns": None if start_ms is None else start_ms * MS_NS,
        "metric_temporality": "cumulative",
        "chq_points": 1,
        "chq_rollup_sum_low": 0.0,
        **values,
    }


def summed(bucket: int, value: float, **other: Any) -> Row:
    """A row of a monotonic sum."""
    values = dict.fromkeys(("chq_rollup_sum", "chq_rollup_min", "chq_rollup_max", "chq_last"), value)
    kind = {"chq_metric_type": "count", "metric_is_monotonic": True, "chq_sketch": sketch_of(value)}
    return row(bucket, **{**kind, **values, "chq_rollup_count": 1.0, **other})


def distributed(bucket: int, *values: float, **other: Any) -> Row:
    """A row of a histogram of just these values."""
    stated = {
        "chq_rollup_count": float(len(values)),
        "chq_rollup_sum": float(sum(values)),
        "chq_rollup_min": min(values, default=None),
        "chq_rollup_max": max(values, default=None),
        "chq_last": None,
    }
    return row(bucket, **{"chq_metric_type": "histogram", "chq_sketch": sketch_of(*values), **stated, **other})


def table_of(*rows: Row) -> pa.Table:
    return pa.Table.from_pylist(list(rows), SCHEMA)


def stepped(*rows: Row, horizon_ms: int = 0) -> list[Row]:
    found: list[Row] = increments(table_of(*rows), horizon_ms=horizon_ms).to_pylist()
    return found


def values_of(one: Row) -> tuple[Any, ...]:
    return tuple(one[f"chq_{name}"] for name in ("rollup_count", "rollup_sum", "rollup_min", "rollup_max", "last"))


@settings(deadline=None)
@given(st.lists(st.floats(0, 1e15) | st.floats(0, 1e-300) | st.integers(0, 2**53).map(float), min_size=2, max_size=8))
def test_an_increment_is_the_exact_difference_rounded(values: list[float]) -> None:
    values.sort()
    steps = stepped(*(summed(bucket, value) for bucket, value in enumerate(values)))
    for (before, after), step in zip(pairwise(values), steps[1:], strict=True):
        assert step["chq_rollup_sum"] == float(Fraction(after) - Fraction(before))


@settings(deadline=None)
@given(st.lists(st.floats(1e-6, 1e9) | st.integers(0, 2**53).map(float), min_size=1, max_size=8))
def test_increments_add_up_to_the_last_value_to_the_last_bit(values: list[float]) -> None:
    values.sort()
    steps = stepped(*(summed(bucket, value) for bucket, value in enumerate(values)))
    exact = sum(Fraction(one["chq_rollup_sum"]) + Fraction(one["chq_rollup_sum_low"]) for one in steps)
    assert exact == Fraction(values[-1])


def test_a_sum_s_increment_is_its_value_and_its_points_are_counted() -> None:
    _, step = stepped(summed(0, 5.0), summed(3, 7.5, chq_rollup_count=4.0, chq_points=4))
    assert values_of(step) == (4.0, 2.5, 2.5, 2.5, 2.5)
    assert (step["metric_temporality"], step["chq_points"]) == ("delta", 4)
    assert step["chq_sketch"] == sketch_of(2.5)
    assert step["chq_timestamp"] == HOUR + 3 * BUCKET


@pytest.mark.parametrize("make", [summed, distributed])
@pytest.mark.parametrize(
    ("start_ms", "horizon_ms", "known"),
    [
        (HOUR - 5000, 0, True),
        (HOUR - 5000, HOUR - 5000, True),
        (HOUR - 5000, HOUR - 4999, False),
        (None, 0, False),
        (HOUR, 0, False),
        (HOUR + 1, 0, False),
    ],
)
def test_nothing_is_made_up_where_it_is_not_known_what_came(
    make: Any,
    start_ms: int | None,
    horizon_ms: int,
    known: bool,  # noqa: FBT001 -- what is expected
) -> None:
    one = make(0, 40.0, start_ms=start_ms)
    [step] = stepped(one, horizon_ms=horizon_ms)
    if known:
        assert values_of(step) == values_of(one)
        assert step["chq_sketch"] == one["chq_sketch"]
    else:
        count = 1.0 if make is summed else 0.0
        assert values_of(step) == (count, 0.0, None, None, None)
        assert step["chq_sketch"] == sketch_of()


def test_a_value_that_falls_came_whole_since() -> None:
    assert [values_of(step)[1] for step in stepped(summed(0, 9.0), summed(1, 4.0), summed(2, 6.0))] == [9.0, 4.0, 2.0]
    first, reset = stepped(distributed(0, 1.0, 2.0), distributed(1, 3.0))
    assert values_of(first)[0] == 2.0
    assert values_of(reset) == (1.0, 3.0, 3.0, 3.0, None)
    assert reset["chq_sketch"] == sketch_of(3.0)


def test_each_start_is_a_sub_series_of_its_own_and_so_is_none() -> None:
    rows = [summed(0, 5.0), summed(1, 1.0, start_ms=None), summed(2, 7.0), summed(3, 2.0, start_ms=None)]
    assert [values_of(step)[1] for step in stepped(*rows)] == [5.0, 0.0, 2.0, 1.0]


def test_an_extreme_that_moved_is_exact_and_another_is_a_bound_within_what_was_seen() -> None:
    seen = [2.0, 50.0]
    _, risen, fallen, between = stepped(
        distributed(0, *seen),
        distributed(1, *seen, 10.0, 90.0),
        distributed(2, *seen, 10.0, 90.0, 1.0, 60.0),
        distributed(3, *seen, 10.0, 90.0, 1.0, 60.0, 1.0, 90.0),
    )
    assert values_of(risen)[3] == 90.0
    assert 10.0 / 1.0203 <= values_of(risen)[2] <= 10.0
    assert values_of(fallen)[2] == 1.0
    assert 60.0 <= values_of(fallen)[3] <= 60.0 * 1.0203
    assert values_of(between)[2:4] == (1.0, 90.0), "the bounds of the bins are beyond what was seen"


def test_a_histogram_without_a_sum_or_without_a_new_value_says_so() -> None:
    _, unknown, same = stepped(
        distributed(0, 1.0),
        distributed(1, 1.0, 2.0, chq_rollup_sum=None, chq_rollup_sum_low=None),
        distributed(2, 1, 2),
    )
    assert values_of(unknown)[:2] == (1.0, None)
    assert values_of(same) == (0.0, None, None, None, None)
    assert same["chq_sketch"] == sketch_of()


values = st.lists(st.floats(-100, 100) | st.sampled_from([0.0, 1.0, 1.0]), max_size=6)


@settings(deadline=None)
@given(st.lists(values, min_size=1, max_size=6))
def test_any_histograms_step_as_the_plain_loop_has_it_with_percentiles_within_the_extremes(
    states: list[list[float]],
) -> None:
    rows = [distributed(bucket, *state) for bucket, state in enumerate(states)]
    found = increments(table_of(*rows), horizon_ms=0)
    assert found.to_pylist() == table_of(*plain_increments(table_of(*rows).to_pylist(), 0)).to_pylist()
    for one in merge_rows(found).to_pylist():
        for name in PERCENTILES:
            low, value, high = one["chq_rollup_min"], one[name], one["chq_rollup_max"]
            assert (value is None and low is None) or low <= value <= high


def test_predecessors_give_no_row_and_additive_rows_stay_as_they_are() -> None:
    delta = summed(2, 3.0, metric_temporality="delta")
    rows = table_of(summed(-3, 5.0), delta, summed(1, 9.0), summed(1, 8.0))
    found, became = additive(rows, start_ms=HOUR, horizon_ms=0)
    first, second = found.to_pylist()
    assert first == table_of(delta).to_pylist()[0]
    assert values_of(second) == (2.0, 4.0, 4.0, 4.0, 4.0)
    assert became.tolist() == [NOWHERE, 0, 1, 1]
