"""What would break if integers were sorted wrongly: rows of a segment in another order, rows merged that are apart."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from lakerunner_dagster.lake.segments.radix import dense, stable_order

LIMITS = {"int64": (-(2**63), 2**63 - 1), "uint64": (0, 2**64 - 1)}


@st.composite
def keys(draw: st.DrawFn) -> Any:
    """Few or many different values, near to each other or all over their range."""
    kind = draw(st.sampled_from(sorted(LIMITS)))
    low, high = LIMITS[kind]
    edges = st.sampled_from([low, low + 1, 0, 1, 2**16 - 1, 2**16, 2**32, high - 1, high])
    elements = draw(st.sampled_from([edges, st.integers(low, high), st.integers(0, 3)]))
    return draw(arrays.arrays(kind, st.integers(0, 50), elements=elements))


@given(keys())
@example(np.zeros(0, np.uint64))
def test_order_is_that_of_a_stable_comparison_sort(keys: Any) -> None:
    assert stable_order(keys).tolist() == np.argsort(keys, kind="stable").tolist()


@given(keys())
@example(np.zeros(0, np.int64))
def test_numbers_are_those_of_the_distinct_values_in_order(keys: Any) -> None:
    distinct, expected = np.unique(keys, return_inverse=True)
    numbers, count = dense(keys)
    assert (numbers.tolist(), count) == (expected.tolist(), max(len(distinct), 1))


@pytest.mark.parametrize("kind", sorted(LIMITS))
def test_many_keys_over_all_digits_are_in_order(kind: Any) -> None:
    low, high = LIMITS[kind]
    keys = np.random.default_rng(0).integers(low, high, 100_000, kind, endpoint=True)
    assert (keys[stable_order(keys)] == np.sort(keys)).all()
