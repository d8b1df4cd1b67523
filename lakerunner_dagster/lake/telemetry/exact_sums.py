"""Sums of doubles by group, exact, so that neither order nor grouping can be told from the result.

What belongs here: addition. What does not: what is added.

A sum is a pair of doubles: ``high`` is the exact sum, correctly rounded, and ``low`` what rounding took from it. As
long as an exact sum has no more than 106 significant bits (values of a bucket within 2^50 of one another), the pair is
the exact sum itself, and adding pairs is associative and commutative to the last bit.
"""

from __future__ import annotations

from fractions import Fraction

import numpy as np

from lakerunner_dagster.lake.telemetry.sketch import Floats, Ints

_PAIR_BITS = 102
"""A sum whose terms are multiples of 2^k and stay below 2^(k + this) is exact in pairs of doubles at every step."""

_MANTISSA_BITS = 53
_GREATEST_EXPONENT = 1023
_NONE = 1 << 20
"""Stands for the exponent of zero, which has none."""


def exact_sums(high: Floats, low: Floats, starts: Ints) -> tuple[Floats, Floats]:
    """The sums (high, low) of consecutive groups of such sums; ``starts``: where each group begins; none is empty.

    A NaN is an unknown term, and makes its sum (NaN, NaN); so does a sum beyond the range of doubles.
    """
    lengths = np.diff(starts, append=len(high))
    unknown = np.logical_or.reduceat(np.isnan(high), starts)
    high, low = np.nan_to_num(high, nan=0.0), np.nan_to_num(low, nan=0.0)
    sums, rests = _paired(high, low, lengths)
    fits = _all_fit_pairs(high, low, lengths) or _fits_pairs(high, low, starts, lengths)
    for group in np.flatnonzero(~(unknown | fits)):
        rows = slice(starts[group], starts[group] + lengths[group])
        sums[group], rests[group] = _by_fractions(high[rows], low[rows])
    sums[unknown] = rests[unknown] = np.nan
    return sums, rests


def _all_fit_pairs(high: Floats, low: Floats, lengths: Ints) -> bool:
    """Whether all terms are so near to one another that it is so of any group of them: cheaper to see than of each."""
    terms = np.abs(np.concatenate((high, low)))
    terms = terms[terms > 0]
    if not len(terms):
        return True
    top = np.frexp(terms.max())[1] + np.frexp(float(lengths.max()))[1]
    bottom = np.frexp(terms.min())[1] - _MANTISSA_BITS
    return bool(top - bottom <= _PAIR_BITS and top <= _GREATEST_EXPONENT)


def _fits_pairs(high: Floats, low: Floats, starts: Ints, lengths: Ints) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
    """Whether each group can be added as pairs of doubles without rounding."""
    exponents = np.where(high == 0, -_NONE, np.frexp(high)[1])
    top = np.maximum.reduceat(exponents, starts) + np.frexp(lengths.astype(np.float64))[1]
    bottom = np.minimum.reduceat(np.minimum(_lowest_bits(high), _lowest_bits(low)), starts)
    fits: np.ndarray[tuple[int], np.dtype[np.bool_]] = (top - bottom <= _PAIR_BITS) & (top <= _GREATEST_EXPONENT)
    return fits


def _lowest_bits(values: Floats) -> Ints:
    """Exponent of the lowest bit that is set in each value."""
    fractions, exponents = np.frexp(values)
    mantissas = np.ldexp(fractions, _MANTISSA_BITS).astype(np.int64)
    lowest = np.frexp((mantissas & -mantissas).astype(np.float64))[1] - 1
    bits: Ints = np.where(values == 0, _NONE, exponents - _MANTISSA_BITS + lowest)
    return bits


def _paired(high: Floats, low: Floats, lengths: Ints) -> tuple[Floats, Floats]:
    """Sums of groups of these lengths, by adding neighbours until one is left of each."""
    with np.errstate(over="ignore", invalid="ignore"):
        while (lengths > 1).any():
            kept = (lengths + 1) // 2
            group = np.repeat(np.arange(len(kept)), kept)
            left = 2 * (np.arange(len(group)) - (np.cumsum(kept) - kept)[group]) + (np.cumsum(lengths) - lengths)[group]
            alone = left + 1 >= np.cumsum(lengths)[group]
            right = np.where(alone, left, left + 1)
            high, low = _added(
                high[left], low[left], np.where(alone, 0.0, high[right]), np.where(alone, 0.0, low[right])
            )
            lengths = kept
    return high.copy(), low.copy()


def _added(high: Floats, low: Floats, other_high: Floats, other_low: Floats) -> tuple[Floats, Floats]:
    """Sums of pairs of doubles, with the error of each step carried along (Knuth, Dekker)."""
    total, error = _two_sum(high, other_high)
    rest, lost = _two_sum(low, other_low)
    total, error = _two_sum(total, error + rest)
    return _two_sum(total, error + lost)


def _two_sum(one: Floats, other: Floats) -> tuple[Floats, Floats]:
    """The rounded sum and its exact rounding error."""
    total = one + other
    part = total - one
    return total, (one - (total - part)) + (other - part)


def _by_fractions(high: Floats, low: Floats) -> tuple[float, float]:
    """The same for one group, in exact rational numbers."""
    exact = sum(map(Fraction, (*high.tolist(), *low.tolist())), Fraction())
    try:
        rounded = float(exact)
    except OverflowError:
        return np.nan, np.nan
    return rounded, float(exact - Fraction(rounded))
