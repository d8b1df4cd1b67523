"""Histograms and summaries become sketches inside their own bounds, whatever they leave unsaid."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest

from lakerunner_dagster.lake.telemetry.distributions import (
    Distributions,
    Lists,
    Stated,
    explicit,
    exponential,
    summary,
)
from lakerunner_dagster.lake.telemetry.sketch import quantiles

NAN = math.nan


def lists(*points: list[float]) -> Lists:
    offsets = np.cumsum([0, *map(len, points)])
    return Lists(offsets, np.array([value for point in points for value in point], np.float64))


def stated(count: float, total: float = NAN, low: float = NAN, high: float = NAN) -> Stated:
    return Stated(np.array([count]), np.array([total]), np.array([low]), np.array([high]))


def histogram(bounds: list[float], counts: list[float], total: float = NAN, **extremes: float) -> Distributions:
    return explicit(lists(counts), lists(bounds), stated(sum(counts), total, **extremes))


def extremes(of: Distributions) -> tuple[float, float]:
    return of.lows.item(), of.highs.item()


def values(of: Distributions) -> list[float]:
    """Every value that a sketch counts, by rank."""
    total = int(of.sketches.counts.sum())
    ranked: list[float] = quantiles(of.sketches, [rank / max(total - 1, 1) + 1e-12 for rank in range(total)])[
        0
    ].tolist()
    return ranked


def test_the_values_of_a_bucket_lie_evenly_within_its_bounds() -> None:
    found = histogram([10, 20], [0, 4, 0])
    assert extremes(found) == (10, 20)
    assert values(found) == pytest.approx([11.25, 13.75, 16.25, 18.75], rel=0.011)


@pytest.mark.parametrize(
    ("bounds", "counts", "given", "expected"),
    [
        ([10, 20], [2, 0, 0], {}, (0, 10)),  # underflow begins at 0 below a positive bound
        ([-10, 20], [2, 0, 0], {}, (-10, -10)),  # and is its bound below another
        ([10, 20], [0, 0, 2], {}, (20, 20)),  # overflow is its bound
        ([10, 20], [1, 0, 1], {"low": -5, "high": 80}, (-5, 80)),
        ([10, 20], [0, 3, 0], {"low": 12, "high": 13}, (12, 13)),
        ([10, 20], [0, 3, 0], {"low": 13, "high": 12}, (10, 20)),  # contradictory: as absent
        ([10, 20], [0, 3, 0], {"low": math.inf, "high": NAN}, (10, 20)),
        ([], [4], {"total": 10}, (2.5, 2.5)),  # one bucket for everything: the mean
        ([], [4], {"total": 10, "low": 1, "high": 4}, (1, 4)),
        ([], [4], {"total": 10, "low": 1}, (1, 2.5)),
    ],
)
def test_underflow_overflow_and_extremes_bound_the_values(
    bounds: list[float], counts: list[float], given: dict[str, float], expected: tuple[float, float]
) -> None:
    found = histogram(bounds, counts, **given)
    assert extremes(found) == expected
    assert found.sketches.counts.sum() == sum(counts)
    lowest, highest = expected
    assert all(min(lowest * 0.98, lowest * 1.02) <= one <= max(highest * 0.98, highest * 1.02) for one in values(found))


def test_a_count_without_buckets_is_its_mean_and_without_a_sum_unknown() -> None:
    mean = explicit(lists([]), lists([]), stated(4, 10))
    assert values(mean) == pytest.approx([2.5] * 4, rel=0.011)
    unknown = explicit(lists([]), lists([]), stated(4))
    assert values(unknown) == []
    assert np.isnan([unknown.lows, unknown.highs]).all()


def test_no_values_have_no_extremes() -> None:
    found = explicit(lists([0, 0]), lists([5]), stated(0, 0, 1, 2))
    assert np.isnan([found.lows, found.highs]).all()
    assert len(found.sketches.slots) == 0


@pytest.mark.parametrize("scale", [-3, 0, 3, 6, 20])
def test_an_exponential_histogram_places_its_values_between_the_powers_of_its_base(scale: int) -> None:
    base = 2.0 ** (2.0**-scale)
    side, none = (np.array([1]), lists([1, 0, 5])), (np.array([0]), lists([]))
    found = exponential(np.array([scale]), np.array([2.0]), side, none, stated(8))
    assert found.lows.item() == 0
    assert found.highs.item() == pytest.approx(base**4)
    edges = [base**power for power in (1, 2, 3, 4)]
    zero, one, five = values(found)[:2], values(found)[2], values(found)[3:]
    assert zero == [0, 0]
    assert edges[0] * 0.99 <= one <= edges[1] * 1.01
    assert all(edges[2] * 0.99 <= value <= edges[3] * 1.01 for value in five)


def test_negative_buckets_mirror_positive_ones() -> None:
    side, none = (np.array([-2]), lists([4, 8, 0, 4])), (np.array([0]), lists([]))
    above = exponential(np.array([2]), np.array([0.0]), side, none, stated(16))
    below = exponential(np.array([2]), np.array([0.0]), none, side, stated(16))
    assert extremes(below) == tuple(-one for one in reversed(extremes(above)))
    assert values(below) == [-one for one in reversed(values(above))]


@pytest.mark.parametrize("scale", [-(2**31), -40, 1_200, 2**31 - 1])
@pytest.mark.parametrize("offset", [-(2**31), 0, 2**31 - 1])
def test_scales_and_offsets_beyond_all_doubles_stay_finite(scale: int, offset: int) -> None:
    side = (np.array([offset]), lists([1, 2]))
    found = exponential(np.array([scale]), np.array([1.0]), side, side, stated(7))
    assert np.isfinite(extremes(found)).all()
    assert np.isfinite(values(found)).all()
    assert found.sketches.counts.sum() == 7


def test_the_quantiles_of_a_summary_come_out_as_they_went_in() -> None:
    fractions, at = [0.99, 0.0, 0.5, 0.9], np.array([300.0, 1.0, 20.0, 100.0])
    found = summary(lists(fractions), at, stated(1_000, 30_000))
    assert found.sketches.counts.sum() == 1_000
    assert extremes(found) == (1, 300)
    assert quantiles(found.sketches, [0.5, 0.9, 0.99])[0] == pytest.approx([20, 100, 300], rel=0.011)


def test_quantiles_of_a_summary_that_are_no_numbers_say_nothing() -> None:
    found = summary(lists([0.5, 0.9, 2.0, NAN]), np.array([NAN, NAN, 5, 5]), stated(4, 10))
    assert extremes(found) == (2.5, 2.5)
    assert found.sketches.counts.sum() == 4


def test_points_are_placed_together_as_each_alone() -> None:
    rng = np.random.default_rng(1)
    counts = rng.integers(0, 30, (40, 6)).astype(np.float64)
    bounds = [1.0, 2.0, 5.0, 10.0, 100.0]
    together = Stated(counts.sum(axis=1), *(np.full(40, NAN),) * 3)
    whole = explicit(lists(*counts.tolist()), lists(*[bounds] * 40), together).sketches
    for number, (begin, end) in enumerate(pairwise(whole.offsets.tolist())):
        alone = histogram(bounds, counts[number].tolist()).sketches
        assert (alone.slots == whole.slots[begin:end]).all()
        assert (alone.counts == whole.counts[begin:end]).all()
