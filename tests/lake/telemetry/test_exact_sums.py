"""Sums are exact: neither order nor grouping can be told from them, and what is not known stays unknown."""

from __future__ import annotations

import math
from fractions import Fraction
from random import Random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lakerunner_dagster.lake.telemetry.exact_sums import exact_sums

anything = st.floats(allow_nan=False, allow_infinity=False)
alike = st.floats(-1e9, 1e9).map(lambda number: round(number, 4)) | st.integers(-(10**10), 10**10).map(float)
"""Of up to 30 of these, added in any way, the sum has no more than 106 significant bits."""

Pair = tuple[float, float]


def added(pairs: list[Pair]) -> Pair:
    high, low = exact_sums(np.array([one for one, _ in pairs]), np.array([two for _, two in pairs]), np.array([0]))
    return float(high[0]), float(low[0])


@settings(deadline=None)
@given(groups=st.lists(st.lists(anything, min_size=1, max_size=12), min_size=1, max_size=6))
def test_a_sum_is_the_exact_one_rounded_once_and_what_rounding_took(groups: list[list[float]]) -> None:
    starts = np.cumsum([0, *map(len, groups[:-1])])
    flat = np.array([number for group in groups for number in group])
    highs, lows = exact_sums(flat, np.zeros(len(flat)), starts)
    for group, high, low in zip(groups, highs.tolist(), lows.tolist(), strict=True):
        exact = sum(map(Fraction, group), Fraction())
        try:
            rounded = float(exact)
        except OverflowError:
            assert math.isnan(high)
            continue
        assert (high, low) == (rounded, float(exact - Fraction(rounded)))


@settings(deadline=None)
@given(numbers=st.lists(alike, min_size=1, max_size=30), seed=st.integers(0, 2**32))
def test_adding_in_any_order_and_in_any_pieces_gives_the_same_bits(numbers: list[float], seed: int) -> None:
    rng = Random(seed)
    whole = added([(number, 0.0) for number in numbers])
    pairs = [(number, 0.0) for number in numbers]
    while len(pairs) > 1:
        rng.shuffle(pairs)
        some = rng.randrange(2, len(pairs) + 1)
        pairs = [added(pairs[:some]), *pairs[some:]]
    assert pairs[0] == whole


@pytest.mark.parametrize("hole", [0, 1, 2])
def test_a_sum_with_an_unknown_term_is_unknown_and_its_neighbours_are_not(hole: int) -> None:
    numbers = np.array([1.0, 2.0, 3.0, 10.0])
    numbers[hole] = np.nan
    highs, lows = exact_sums(numbers, np.zeros(4), np.array([0, 3]))
    assert np.isnan(highs).tolist() == np.isnan(lows).tolist() == [True, False]
    assert highs[1] == 10.0


def test_terms_beyond_two_doubles_are_still_added_exactly() -> None:
    assert added([(1e300, 0.0), (1.0, 0.0), (-1e300, 0.0), (2.0**-200, 0.0)]) == (1.0, 2.0**-200)
    assert added([(1.7e308, 0.0), (1.7e308, 0.0), (-1.7e308, 0.0)]) == (1.7e308, 0.0)
