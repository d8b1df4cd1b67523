"""What an OTLP point says about the distribution of its values → sketch, lowest and highest value, for many points.

What belongs here: explicit histograms, exponential histograms and summaries, and the rules by which the values that
they do not tell are placed. What does not: the sketch itself (``sketch``), and which points are accepted (``metrics``).

The rules, where OTLP leaves it open:

- The values of a bucket lie evenly between its bounds: it is cut into at most ``PARTS`` parts of equal count, each
  standing in its middle.
- The point's own min and max bound every bucket, and close the first (underflow) and the last (overflow). Without them
  the underflow bucket begins at 0 where its bound is positive, else it is its bound, and the overflow bucket is its
  bound, as Prometheus has it; then the lowest and highest value are the ends of the outermost buckets that hold any.
- A point with values but no buckets is its mean, or the range between its min and max; without a sum, nothing is known.
- The values of an exponential histogram's zero bucket are 0.
- A quantile of a summary stands for the ranks that are nearer to it than to its neighbours; quantiles that are not a
  number (Prometheus writes them when it has seen no value lately) say nothing.
- A min above the max, or one that is not finite, is as absent.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from lakerunner_dagster.lake.telemetry.sketch import (
    MOST,
    Floats,
    Ints,
    Sketches,
    gathered,
    slots_of,
)

PARTS = 4
"""Most parts that the values of one bucket are placed in."""

_LEAST_EXPONENT, _GREATEST_EXPONENT = -1075.0, float(np.nextafter(1024.0, 0.0))
"""Powers of two between these are finite doubles."""

_COARSEST, _FINEST = -12, 1100
"""Scales beyond these differ in no double: one bucket has them all, or all buckets are 1."""


@dataclass(frozen=True, slots=True)
class Stated:
    """What points say of themselves, one element a point; NaN is unknown. Counts are whole numbers ≥ 0."""

    counts: Floats
    sums: Floats
    lows: Floats
    highs: Floats

    def sane(self) -> Stated:
        """Without extremes that are not finite, contradict each other, or are those of no value."""
        known = (self.counts > 0) & ~(self.lows > self.highs)
        return Stated(
            self.counts,
            self.sums,
            np.where(known & np.isfinite(self.lows), self.lows, np.nan),
            np.where(known & np.isfinite(self.highs), self.highs, np.nan),
        )


@dataclass(frozen=True, slots=True)
class Lists:
    """One list a point: that of point k is ``values[offsets[k]:offsets[k + 1]]``."""

    offsets: Ints
    values: Floats

    def owners(self) -> Ints:
        """For each value, the point that it belongs to."""
        return np.repeat(np.arange(len(self.offsets) - 1), np.diff(self.offsets))

    def places(self) -> Ints:
        """For each value, its place in its list."""
        return np.arange(len(self.values)) - np.repeat(self.offsets[:-1], np.diff(self.offsets))

    def without(self, refused: npt.NDArray[np.bool_]) -> Lists:
        """The lists, those of refused points empty."""
        lengths = np.where(refused, 0, np.diff(self.offsets))
        return Lists(np.concatenate(([0], np.cumsum(lengths))), self.values[~refused[self.owners()]])


@dataclass(frozen=True, slots=True)
class Distributions:
    """One element a point: its sketch, and its lowest and highest value (NaN where there is none, or none is known)."""

    sketches: Sketches
    lows: Floats
    highs: Floats


@dataclass(frozen=True, slots=True)
class _Ranges:
    """Values of points, as counts between two bounds; a bound may be infinite."""

    owners: Ints
    lows: Floats
    highs: Floats
    counts: Floats

    @classmethod
    def joined(cls, *parts: _Ranges) -> _Ranges:
        return cls(
            np.concatenate([part.owners for part in parts]),
            np.concatenate([part.lows for part in parts]),
            np.concatenate([part.highs for part in parts]),
            np.concatenate([part.counts for part in parts]),
        )

    def where(self, chosen: npt.NDArray[np.bool_]) -> _Ranges:
        return _Ranges(self.owners[chosen], self.lows[chosen], self.highs[chosen], self.counts[chosen])


def explicit(buckets: Lists, bounds: Lists, stated: Stated) -> Distributions:
    """Of explicit histograms: bucket i holds (bound i-1, bound i]. Each list of buckets is empty or one longer than its
    bounds, which are finite and ascend.
    """
    owners, places = buckets.owners(), buckets.places()
    last = np.diff(bounds.offsets)[owners]
    above = bounds.offsets[owners] + places
    edges = np.append(bounds.values, np.inf)
    lows = np.where(places > 0, edges[np.minimum(above - 1, len(bounds.values))], -np.inf)
    highs = np.where(places < last, edges[np.minimum(above, len(bounds.values))], np.inf)
    return _distributed(_Ranges(owners, lows, highs, buckets.values), stated)


def exponential(
    scales: Ints, zeros: Floats, positive: tuple[Ints, Lists], negative: tuple[Ints, Lists], stated: Stated
) -> Distributions:
    """Of exponential histograms: bucket i of a side with offset o holds magnitudes in (b^(o+i), b^(o+i+1)], where
    b = 2^(2^-scale). A side is (its offset for each point, its buckets); ``zeros`` are the counts of the zero buckets.
    """
    points = len(scales)
    nothing = np.zeros(points)
    zero = _Ranges(np.arange(points), nothing, nothing, zeros)
    above, below = (_magnitudes(scales, offsets, buckets) for offsets, buckets in (positive, negative))
    mirrored = _Ranges(below.owners, -below.highs, -below.lows, below.counts)
    return _distributed(_Ranges.joined(mirrored, zero, above), stated)


def summary(fractions: Lists, values: Floats, stated: Stated) -> Distributions:
    """Of summaries: ``values`` are those at the quantiles ``fractions``, in any order."""
    usable = np.isfinite(values) & (fractions.values >= 0) & (fractions.values <= 1)
    owners = fractions.owners()[usable]
    order = np.lexsort((values[usable], fractions.values[usable], owners))
    owners, at, values = owners[order], fractions.values[usable][order], values[usable][order]
    counts = np.minimum(stated.counts[owners], MOST)
    first = owners != np.roll(owners, 1)
    last = owners != np.roll(owners, -1)
    if len(owners):
        first[0] = last[-1] = True
    upto = np.rint(np.where(last, 1.0, (at + np.roll(at, -1)) / 2) * counts)
    before = np.where(first, 0.0, np.roll(upto, 1))
    return _distributed(_Ranges(owners, values, values, upto - before), stated, keep_empty=True)


def _magnitudes(scales: Ints, offsets: Ints, buckets: Lists) -> _Ranges:
    """The ranges of one side of exponential histograms, as magnitudes."""
    owners = buckets.owners()
    indexes = (offsets[owners] + buckets.places()).astype(np.float64)
    shifts = -np.clip(scales, _COARSEST, _FINEST)[owners]

    def bounds(powers: Floats) -> Floats:
        exponents = np.clip(np.ldexp(powers, shifts), _LEAST_EXPONENT, _GREATEST_EXPONENT)
        magnitudes: Floats = np.exp2(exponents)
        return magnitudes

    return _Ranges(owners, bounds(indexes), bounds(indexes + 1), buckets.values)


def _distributed(ranges: _Ranges, stated: Stated, *, keep_empty: bool = False) -> Distributions:
    """Sketches and extremes of points from the ranges of their values. ``keep_empty``: ranges without a value are
    evidence of the extremes too.
    """
    stated = stated.sane()
    filled = ranges.where(stated.counts[ranges.owners] > 0 if keep_empty else ranges.counts > 0)
    bare = np.flatnonzero((stated.counts > 0) & (np.bincount(filled.owners, minlength=len(stated.counts)) == 0))
    everything = np.full(len(bare), np.inf)
    closed = _closed(_Ranges.joined(filled, _Ranges(bare, -everything, everything, stated.counts[bare])), stated)
    lows, highs = np.full(len(stated.counts), np.inf), np.full(len(stated.counts), -np.inf)
    np.minimum.at(lows, closed.owners, closed.lows)
    np.maximum.at(highs, closed.owners, closed.highs)
    return Distributions(
        gathered(*_placed(closed), len(stated.counts)),
        np.where(np.isnan(stated.lows), np.where(np.isfinite(lows), lows, np.nan), stated.lows),
        np.where(np.isnan(stated.highs), np.where(np.isfinite(highs), highs, np.nan), stated.highs),
    )


def _closed(ranges: _Ranges, stated: Stated) -> _Ranges:
    """The ranges with finite bounds, by the rules above; those of which nothing is known are left out."""
    lowest, highest = stated.lows[ranges.owners], stated.highs[ranges.owners]
    means = (stated.sums / np.maximum(stated.counts, 1))[ranges.owners]
    under, over = np.isneginf(ranges.lows), np.isposinf(ranges.highs)
    lows = np.where(under, np.where(over, means, np.minimum(ranges.highs, 0.0)), ranges.lows)
    highs = np.where(over, np.where(under, means, ranges.lows), ranges.highs)
    lows = np.where(under & ~np.isnan(lowest), lowest, lows)
    highs = np.where(over & ~np.isnan(highest), highest, highs)
    known = np.isfinite(lows) & np.isfinite(highs)
    lows, highs = (np.fmin(np.fmax(bounds, lowest), highest) for bounds in (lows, highs))
    return _Ranges(ranges.owners, np.minimum(lows, highs), np.maximum(lows, highs), ranges.counts).where(known)


def _placed(ranges: _Ranges) -> tuple[Ints, Floats, Ints]:
    """The values of each range: at most ``PARTS`` of them, each with the count that it stands for."""
    counts = np.minimum(ranges.counts, MOST).astype(np.int64)
    bins = slots_of(ranges.highs) - slots_of(ranges.lows) + 1
    parts = np.minimum(np.minimum(counts, bins), PARTS)
    ranged = np.repeat(np.arange(len(parts)), parts)
    nth = np.arange(len(ranged)) - (np.cumsum(parts) - parts)[ranged]
    share = (nth + 0.5) / parts[ranged]
    values = ranges.lows[ranged] * (1 - share) + ranges.highs[ranged] * share
    counts, parts = counts[ranged], parts[ranged]
    return ranges.owners[ranged], values, (nth + 1) * counts // parts - nth * counts // parts
