"""Sketches are within 1 % of the exact quantile, merge exactly in any order, and read as DataDog writes them."""

from __future__ import annotations

import math
from collections.abc import Callable
from fractions import Fraction
from itertools import pairwise

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.plain_loop import sketches as plain
from lakerunner_dagster.lake.telemetry import sketch as sketch_module
from lakerunner_dagster.lake.telemetry.sketch import (
    ALPHA,
    GAMMA,
    MOST,
    QUANTILES,
    Sketches,
    bounds_of,
    differences,
    gathered,
    merged,
    merged_runs,
    quantiles,
    singles,
    slots_of,
    taken,
)

Floats = npt.NDArray[np.float64]

SAMPLES = 20_001
DISTRIBUTIONS: dict[str, Callable[[np.random.Generator], Floats]] = {
    "normal": lambda rng: rng.normal(size=SAMPLES),
    "shifted normal": lambda rng: rng.normal(1e6, 3, SAMPLES),
    "lognormal": lambda rng: rng.lognormal(0, 1, SAMPLES),
    "wide lognormal": lambda rng: rng.lognormal(0, 20, SAMPLES),
    "exponential": lambda rng: rng.exponential(1e-3, SAMPLES),
    "pareto": lambda rng: rng.pareto(1.1, SAMPLES) + 1,
    "uniform": lambda rng: rng.uniform(0, 1, SAMPLES),
    "uniform around zero": lambda rng: rng.uniform(-5, 5, SAMPLES),
    "negative uniform": lambda rng: rng.uniform(-200, -100, SAMPLES),
    "gamma": lambda rng: rng.gamma(0.3, 2, SAMPLES),
    "beta": lambda rng: rng.beta(0.5, 0.5, SAMPLES),
    "weibull": lambda rng: rng.weibull(0.7, SAMPLES),
    "cauchy": lambda rng: rng.standard_cauchy(SAMPLES),
    "laplace": lambda rng: rng.laplace(0, 1e9, SAMPLES),
    "logistic": lambda rng: rng.logistic(10, 3, SAMPLES),
    "poisson": lambda rng: rng.poisson(3, SAMPLES).astype(np.float64),
    "geometric": lambda rng: rng.geometric(0.01, SAMPLES).astype(np.float64),
    "zipf": lambda rng: rng.zipf(1.5, SAMPLES).astype(np.float64),
    "two humps": lambda rng: np.where(rng.random(SAMPLES) < 0.5, rng.normal(1, 0.1, SAMPLES), rng.normal(1e3, 9)),
    "mostly zero": lambda rng: np.where(rng.random(SAMPLES) < 0.8, 0.0, rng.exponential(1, SAMPLES)),
    "one value": lambda rng: np.full(SAMPLES, rng.random()),
    "powers of ten": lambda rng: np.power(10.0, rng.integers(-300, 300, SAMPLES).astype(np.float64)),
    "staircase": lambda rng: rng.permutation(np.repeat(np.arange(1.0, SAMPLES // 3 + 1), 3)),
}

values = st.floats(allow_nan=False, allow_infinity=False) | st.sampled_from([0.0, -0.0, 1.0, -1.0, GAMMA, 1.01])
some_values = st.lists(values, max_size=30)


def of_values(*columns: list[float]) -> Sketches:
    """One sketch for each list of values."""
    owners = np.repeat(np.arange(len(columns)), [len(column) for column in columns])
    flat = np.array([value for column in columns for value in column], np.float64)
    return gathered(owners, flat, np.ones(len(flat), np.int64), len(columns))


def lists(sketches: Sketches) -> tuple[list[int], list[int], list[int]]:
    return sketches.offsets.tolist(), sketches.slots.tolist(), sketches.counts.tolist()


def exact(numbers: Floats, fraction: float) -> float:
    """The value of rank floor(q * (n - 1))."""
    return float(np.sort(numbers)[math.floor(fraction * (len(numbers) - 1))])


@pytest.mark.parametrize("name", DISTRIBUTIONS)
@pytest.mark.parametrize("pieces", [1, 13])
def test_every_quantile_is_within_alpha_of_the_exact_one_however_often_merged(name: str, pieces: int) -> None:
    numbers = DISTRIBUTIONS[name](np.random.default_rng(7))
    apart = gathered(np.arange(len(numbers)) % pieces, numbers, np.ones(len(numbers), np.int64), pieces)
    whole = merged(apart, np.zeros(pieces, np.int64), 1)
    fractions = (*QUANTILES, 0.0, 0.01, 0.999, 1.0)
    for fraction, answer in zip(fractions, quantiles(whole, fractions)[0], strict=True):
        truth = exact(numbers, fraction)
        assert abs(answer - truth) <= ALPHA * abs(truth) * (1 + 1e-9)


def test_answers_are_unbiased_over_the_values_of_a_bin() -> None:
    numbers = np.exp(np.linspace(0, 20, 200_001))
    ratio = quantiles(Sketches(np.arange(len(numbers) + 1), slots_of(numbers), np.ones(len(numbers), np.int64)), (0.5,))
    errors = ratio[:, 0] / numbers - 1
    assert abs(errors.mean()) < ALPHA / 100
    assert np.isclose(errors.max(), ALPHA, rtol=1e-2)
    assert np.isclose(errors.min(), -ALPHA, rtol=1e-2)


@settings(deadline=None)
@given(numbers=st.lists(values, min_size=1, max_size=40))
def test_a_value_falls_into_the_bin_whose_exact_bounds_hold_it(numbers: list[float]) -> None:
    for number, slot in zip(numbers, slots_of(np.array(numbers)).tolist(), strict=True):
        sign, index = plain.bin_of(number)
        assert (slot > 0) - (slot < 0) == sign
        if sign:
            first, lower = plain.bounds()
            assert abs(slot) - 1 == index - first
            assert Fraction(lower[index - first]) <= Fraction(abs(number))


def test_bounds_of_bins_and_what_lies_just_beside_them_are_told_apart() -> None:
    _, lower = plain.bounds()
    bounds = np.array(lower)
    at, before = slots_of(bounds), slots_of(np.nextafter(bounds, 0))
    assert (at == np.arange(1, len(bounds) + 1)).all()
    assert (before == at - 1).all()
    assert (slots_of(-bounds) == -at).all()


def test_the_largest_and_smallest_doubles_have_a_place() -> None:
    edge = np.array([np.finfo(np.float64).max, np.finfo(np.float64).tiny, 5e-324, 0.0])
    answers = quantiles(Sketches(np.arange(5), slots_of(edge), np.ones(4, np.int64)), (0.5,))[:, 0]
    assert np.isfinite(answers).all()
    assert abs(answers[0] / edge[0] - 1) <= ALPHA
    assert answers[2] == answers[3] == 0


@settings(deadline=None)
@given(columns=st.lists(some_values, min_size=1, max_size=6), data=st.data())
def test_merging_is_associative_and_commutative_and_loses_nothing(
    columns: list[list[float]], data: st.DataObject
) -> None:
    everything = [value for column in columns for value in column]
    whole = lists(of_values(everything))
    apart = of_values(*columns)
    order = np.array(data.draw(st.permutations(range(len(columns)))), np.int64)
    groups = np.array(data.draw(st.lists(st.integers(0, 2), min_size=len(columns), max_size=len(columns))), np.int64)
    in_steps = merged(merged(taken(apart, order), groups, 3), np.zeros(3, np.int64), 1)
    assert lists(in_steps) == lists(merged(apart, np.zeros(len(columns), np.int64), 1)) == whole


@settings(deadline=None)
@given(numbers=st.lists(values, max_size=40))
def test_single_values_share_the_sketches_of_their_bins(numbers: list[float]) -> None:
    places, sketches = singles(np.array(numbers))
    assert lists(taken(sketches, places)) == lists(of_values(*([number] for number in numbers)))
    assert len({*sketches.slots.tolist()}) == len(sketches)


@settings(deadline=None)
@given(columns=st.lists(some_values, min_size=1, max_size=5))
def test_quantiles_are_those_of_the_plain_sketch(columns: list[list[float]]) -> None:
    answers = quantiles(of_values(*columns))
    for column, row in zip(columns, answers, strict=True):
        sketch: plain.Sketch = {}
        for value in column:
            plain.count_into(sketch, value, 1)
        expected = [plain.quantile(sketch, fraction) for fraction in QUANTILES]
        assert [None if math.isnan(value) else value for value in row.tolist()] == expected


@settings(deadline=None)
@given(before=some_values, more=some_values)
def test_what_a_sketch_has_more_than_one_that_it_holds_is_exactly_what_came(
    before: list[float], more: list[float]
) -> None:
    sketches = of_values(before, [*before, *more], more)
    found = differences(sketches, np.array([1, 0]), np.array([0, 1]))
    assert lists(taken(found, np.array([0]))) == lists(taken(sketches, np.array([2])))
    assert lists(taken(found, np.array([1]))) == lists(of_values([]))


@settings(deadline=None)
@given(columns=st.lists(some_values, min_size=2, max_size=6), data=st.data())
def test_differences_of_any_sketches_are_sketches_of_as_many_values_as_came_and_are_the_same_in_any_company(
    columns: list[list[float]], data: st.DataObject
) -> None:
    sketches = of_values(*columns)
    rows = st.lists(st.integers(0, len(columns) - 1), min_size=4, max_size=4)
    later, earlier = np.array(data.draw(rows)), np.array(data.draw(rows))
    found = differences(sketches, later, earlier)
    alone = [differences(sketches, later[k : k + 1], earlier[k : k + 1]) for k in range(4)]
    assert lists(found) == lists(Sketches.joined(alone))
    for at, (after, before) in enumerate(zip(later.tolist(), earlier.tolist(), strict=True)):
        came = max(len(columns[after]) - len(columns[before]), 0)
        assert taken(found, np.array([at])).counts.sum() == came


@settings(deadline=None)
@given(columns=st.lists(some_values, min_size=1, max_size=8), cells=st.sampled_from([0, 1 << 21]), data=st.data())
def test_runs_of_sketches_merge_to_what_all_their_values_make_by_sorting_or_in_a_table(
    columns: list[list[float]], cells: int, data: st.DataObject
) -> None:
    lengths = data.draw(st.lists(st.integers(1, 3), min_size=1, max_size=4))
    rows = data.draw(st.lists(st.integers(0, len(columns) - 1), min_size=sum(lengths), max_size=sum(lengths)))
    ends = np.cumsum([0, *lengths]).tolist()
    expected = [[value for row in rows[a:b] for value in columns[row]] for a, b in pairwise(ends)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sketch_module, "_MOST_CELLS", cells)
        found = merged_runs(of_values(*columns), np.array(rows), np.array(lengths))
    assert lists(found) == lists(of_values(*expected))


@settings(deadline=None)
@given(numbers=st.lists(values, min_size=1, max_size=20))
def test_a_value_lies_between_the_bounds_of_its_slot(numbers: list[float]) -> None:
    lows, highs = bounds_of(slots_of(np.array(numbers)))
    ((least,), _) = bounds_of(np.array([1]))
    for number, low, high in zip(numbers, lows.tolist(), highs.tolist(), strict=True):
        assert low <= number <= high or abs(number) < least


def test_counts_saturate_instead_of_overflowing() -> None:
    owners, ones = np.zeros(3, np.int64), np.ones(3)
    sketch = gathered(owners, ones, np.array([MOST, MOST, 2**62]), 1)
    assert sketch.counts.tolist() == [MOST]
    assert merged(sketch, np.zeros(1, np.int64), 1).counts.tolist() == [MOST]
    assert quantiles(sketch)[0].tolist() == [quantiles(of_values([1.0]))[0][0]] * len(QUANTILES)


def test_an_empty_sketch_has_no_quantiles_and_changes_no_other() -> None:
    sketches = of_values([], [5.0], [], [])
    assert np.isnan(quantiles(sketches)).all(axis=1).tolist() == [True, False, True, True]
    assert lists(merged(sketches, np.zeros(4, np.int64), 1)) == lists(of_values([5.0]))
