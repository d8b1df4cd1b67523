"""DDSketch as columns: many sketches at once, built, merged and asked without a Python loop per sketch.

What belongs here: the quantile sketch itself, of relative accuracy 1 %. What does not: its bytes (``sketch_encoding``),
and what an OTLP point says about its distribution (``distributions``).

A sketch counts values in bins: a store of bins for positive values, one for negative ones, and a bin for zero. Bin i of
a store holds magnitudes in [gamma^i, gamma^(i+1)) with gamma = 1.01/0.99, and stands for gamma^i * 1.01, which is
within 1 % of all of them: the convention of DataDog's own readers, whose index offset is 0. Powers of gamma are rounded
correctly, so that a value falls into the same bin and a bin stands for the same value on every machine. Counts are
integers, so that merging is exact, associative and commutative; they saturate at 2^45.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import numpy.typing as npt

Ints: TypeAlias = np.ndarray[tuple[int], np.dtype[np.int64]]
Floats: TypeAlias = np.ndarray[tuple[int], np.dtype[np.float64]]
Table: TypeAlias = np.ndarray[tuple[int, int], np.dtype[np.float64]]

ALPHA = 0.01
"""Relative accuracy: a quantile is within this fraction of the value that has its rank."""

GAMMA = (1 + ALPHA) / (1 - ALPHA)
"""Ratio of the bounds of a bin."""

QUANTILES = (0.25, 0.50, 0.75, 0.90, 0.95, 0.99)
"""The quantiles that every row of a metric segment has."""

MOST = 2**45
"""Where the count of a bin saturates: no sum over a sketch overflows, and an encoded count keeps to eight bytes."""

LOWEST = -35_418
"""Index of the first bin: below it lie only the smallest normal doubles and the subnormal, which count as zero."""

HIGHEST = 35_487
"""Index of the last bin, which holds the largest double."""

AT_ONCE = 65_536
"""Bins worked on at once: arrays of so many stay in a core's cache, and bound the memory of a batch."""

_SLOTS = HIGHEST - LOWEST + 1
"""Bins of a store. Slots number the bins of all stores by value: 0 is zero, 1 and -1 the bins nearest to it."""

_SPAN = 2 * _SLOTS + 1


_MOST_CELLS, _CELLS_PER_BIN = 1 << 21, 32
"""Bins are added up in a table of sketches by slots, where it has no more cells than that: faster than sorting."""


@dataclass(frozen=True, slots=True)
class Sketches:
    """Sketches in one column: sketch k has the bins ``offsets[k]`` to ``offsets[k + 1]``.

    ``offsets``: int64, one more than there are sketches. ``slots``: int64, ascending and distinct within a sketch.
    ``counts``: int64, positive.
    """

    offsets: Ints
    slots: Ints
    counts: Ints

    @classmethod
    def none(cls) -> Sketches:
        """No sketch at all."""
        return cls(np.zeros(1, np.int64), np.zeros(0, np.int64), np.zeros(0, np.int64))

    @classmethod
    def empty(cls) -> Sketches:
        """One sketch of no value."""
        return cls(np.zeros(2, np.int64), np.zeros(0, np.int64), np.zeros(0, np.int64))

    @classmethod
    def joined(cls, parts: Sequence[Sketches]) -> Sketches:
        """The sketches of one or more columns, one after another."""
        lengths = np.concatenate([np.diff(part.offsets) for part in parts])
        return cls(
            np.concatenate(([0], np.cumsum(lengths))),
            np.concatenate([part.slots for part in parts]),
            np.concatenate([part.counts for part in parts]),
        )

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def slice(self, begin: int, end: int) -> Sketches:
        """The sketches from ``begin`` to before ``end``."""
        first, last = self.offsets[begin], self.offsets[end]
        return Sketches(self.offsets[begin : end + 1] - first, self.slots[first:last], self.counts[first:last])

    def owners(self) -> Ints:
        """For each bin, the sketch that it belongs to."""
        return np.repeat(np.arange(len(self)), np.diff(self.offsets))


def pieces(offsets: Ints, most: int = AT_ONCE) -> Iterator[tuple[int, int]]:
    """Cuts lists into ranges of lists (first, one after the last) that hold at most ``most`` elements together.

    List k has the elements ``offsets[k]`` to ``offsets[k + 1]``; one longer than ``most`` is a range of its own.
    """
    begin = 0
    while begin < len(offsets) - 1:
        end = max(begin + 1, int(np.searchsorted(offsets, offsets[begin] + most, side="right")) - 1)
        yield begin, end
        begin = end


def slots_of(values: Floats) -> Ints:
    """The slot of each value. Values must be finite; magnitudes below the smallest normal double count as zero."""
    lower = _lower_bounds()
    magnitudes = np.abs(values)
    counted = magnitudes >= lower[0]
    safe = np.where(counted, magnitudes, 1.0)
    places = np.floor(np.log(safe) / math.log(GAMMA)).astype(np.int64) - LOWEST
    # The logarithm may be off by its last bit, which matters beside a bound: the table decides.
    places = np.clip(places, 0, _SLOTS - 1)
    places -= safe < lower[places]
    places += safe >= lower[places + 1]
    return np.where(counted, np.where(values < 0, -1 - places, 1 + places), 0)


def singles(values: Floats) -> tuple[Ints, Sketches]:
    """Sketches of one value each, for finite ``values``: for each value the number of its sketch, and the sketches.

    Values of one bin share a sketch, so there are few.
    """
    slots = slots_of(values)
    present = np.zeros(_SPAN, np.bool_)
    present[slots + _SLOTS] = True
    distinct = np.flatnonzero(present) - _SLOTS
    numbers = (np.cumsum(present) - 1)[slots + _SLOTS]
    return numbers, Sketches(np.arange(len(distinct) + 1), distinct, np.ones(len(distinct), np.int64))


def gathered(owners: Ints, values: Floats, counts: Ints, sketches: int) -> Sketches:
    """``sketches`` sketches: each of the finite ``values`` counted ``counts`` times (≥ 0) in the sketch ``owners``."""
    return collected(owners, slots_of(values), counts, sketches)


def merged(sketches: Sketches, groups: Ints, group_count: int) -> Sketches:
    """One sketch for each group, of all that was counted in its members. ``groups``: the group of each sketch."""
    owners = np.repeat(groups, np.diff(sketches.offsets))
    return collected(owners, sketches.slots, sketches.counts, group_count)


def merged_runs(sketches: Sketches, rows: Ints, lengths: Ints) -> Sketches:
    """One sketch for each run of so many of the sketches at ``rows``, of all that was counted in these."""
    ends = np.concatenate(([0], np.cumsum(lengths)))
    bins = np.concatenate(([0], np.cumsum(np.diff(sketches.offsets)[rows])))
    parts = [Sketches.none()]
    for begin, end in pieces(bins[ends]):
        groups = np.repeat(np.arange(end - begin), lengths[begin:end])
        parts.append(merged(taken(sketches, rows[ends[begin] : ends[end]]), groups, end - begin))
    return Sketches.joined(parts)


def differences(sketches: Sketches, later: Ints, earlier: Ints) -> Sketches:
    """What each of the sketches at ``later`` has counted that the one at ``earlier`` beside it had not.

    Values are counted by rank: the result has as many of them up to a bin as the later sketch has more than the earlier
    one, but never less than up to the bin before, nor more than in all. So it is exact where the later sketch has all
    that the earlier one has, and a sketch even where it has not (a bucket's values move as its bounds become known).
    """
    lengths = np.diff(sketches.offsets)
    both = np.concatenate(([0], np.cumsum(lengths[later] + lengths[earlier])))
    parts = [
        _differences(taken(sketches, later[begin:end]), taken(sketches, earlier[begin:end]))
        for begin, end in pieces(both)
    ]
    return Sketches.joined([Sketches.none(), *parts])


def bounds_of(slots: Ints) -> tuple[Floats, Floats]:
    """The lowest and the highest value of each slot."""
    lower = _lower_bounds()
    places = np.abs(slots)
    nearer = np.where(places > 0, lower[places - 1], 0.0)
    farther = np.where(places > 0, np.minimum(lower[places], np.finfo(np.float64).max), 0.0)
    return np.where(slots < 0, -farther, nearer), np.where(slots < 0, -nearer, farther)


def taken(sketches: Sketches, rows: Ints) -> Sketches:
    """The sketches at ``rows``, in that order; a row may come more than once."""
    if len(rows) and rows[-1] - rows[0] == len(rows) - 1 and (np.diff(rows) == 1).all():
        return sketches.slice(int(rows[0]), int(rows[-1]) + 1)
    lengths = np.diff(sketches.offsets)[rows]
    offsets = np.concatenate(([0], np.cumsum(lengths)))
    bins = np.arange(offsets[-1]) + np.repeat(sketches.offsets[rows] - offsets[:-1], lengths)
    return Sketches(offsets, sketches.slots[bins], sketches.counts[bins])


def quantiles(sketches: Sketches, fractions: Sequence[float] = QUANTILES) -> Table:
    """Shape (sketches, fractions): the value of rank floor(q * (n - 1)), within 1 %; NaN of an empty sketch.

    Callers that know the exact extremes clamp to them.
    """
    answers = np.full((len(sketches), len(fractions)), np.nan)
    filled = np.flatnonzero(np.diff(sketches.offsets))
    if not len(filled):
        return answers
    starts = sketches.offsets[filled]
    running = np.cumsum(sketches.counts)
    before = running[starts] - sketches.counts[starts]
    lengths = sketches.offsets[filled + 1] - starts
    ranked = running - np.repeat(before, lengths)
    last = ranked[starts + lengths - 1] - 1
    values = _slot_values()
    for column, fraction in enumerate(fractions):
        ranks = np.floor(fraction * last).astype(np.int64)
        passed = np.add.reduceat(ranked <= np.repeat(ranks, lengths), starts, dtype=np.int64)
        answers[filled, column] = values[sketches.slots[starts + passed] + _SLOTS]
    return answers


def listed(sizes: Ints, slots: Ints, counts: Ints) -> Sketches:
    """Sketches that have so many of these bins each, one after another. As :func:`collected`, and faster where the bins
    of each ascend already.
    """
    offsets = np.concatenate(([0], np.cumsum(sizes)))
    ascends = np.ones(len(slots) + 1, np.bool_)
    ascends[1:-1] = slots[1:] > slots[:-1]
    ascends[offsets] = True
    if ascends.all() and (counts > 0).all():
        return Sketches(offsets, slots, np.minimum(counts, MOST))
    return collected(np.repeat(np.arange(len(sizes)), sizes), slots, counts, len(sizes))


def collected(owners: Ints, slots: Ints, counts: Ints, sketches: int) -> Sketches:
    """Sketches from bins (sketch, slot, count) in any order, where several may be the same bin of the same sketch."""
    if (counts <= 0).any():
        some = counts > 0
        owners, slots, counts = owners[some], slots[some], counts[some]
    ascends = (owners[1:] > owners[:-1]) | ((owners[1:] == owners[:-1]) & (slots[1:] > slots[:-1]))
    if not ascends.all():
        owners, slots, counts = _added_up(owners, slots, counts, sketches)
    offsets = np.concatenate(([0], np.cumsum(np.bincount(owners, minlength=sketches))))
    return Sketches(offsets, slots, np.minimum(counts, MOST))


def _added_up(owners: Ints, slots: Ints, counts: Ints, sketches: int) -> tuple[Ints, Ints, Ints]:
    """Bins in order, each once. Doubles add integers exactly up to 2^53, and whatever is above saturates."""
    lowest = int(slots.min())
    width = int(slots.max()) - lowest + 1
    if sketches * width <= min(_MOST_CELLS, _CELLS_PER_BIN * len(slots)):
        cells = np.bincount(owners * width + (slots - lowest), counts, sketches * width)
        filled = cells > 0
        owners = np.repeat(np.arange(sketches), np.count_nonzero(filled.reshape(sketches, width), axis=1))
        return owners, np.flatnonzero(filled) - owners * width + lowest, _saturated(cells[filled])
    keys = owners * _SPAN + slots
    order = np.argsort(keys, kind="stable")  # which is fast where owners ascend
    starts = np.flatnonzero(np.diff(keys[order], prepend=np.iinfo(np.int64).min))
    bins = order[starts]
    return owners[bins], slots[bins], _saturated(np.add.reduceat(counts[order].astype(np.float64), starts))


def _saturated(counts: npt.NDArray[Any]) -> Ints:
    saturated: Ints = np.minimum(counts, MOST).astype(np.int64)
    return saturated


def _differences(later: Sketches, earlier: Sketches) -> Sketches:
    keys = np.concatenate([part.owners() * _SPAN + (part.slots + _SLOTS) for part in (later, earlier)])
    order = np.argsort(keys, kind="stable")
    keys = keys[order]
    starts = np.flatnonzero(np.diff(keys, prepend=-1))
    more = np.add.reduceat(np.concatenate((later.counts, -earlier.counts))[order], starts) if len(starts) else starts
    owners, slots = keys[starts] // _SPAN, keys[starts] % _SPAN - _SLOTS
    bins = np.searchsorted(owners, np.arange(len(later) + 1))
    running = np.concatenate(([0], np.cumsum(more)))
    before, totals = running[bins[:-1]], np.maximum(np.diff(running[bins]), 0)
    below = np.cumsum(totals) - totals  # so that no sketch is below the one before, and one pass raises all
    raised = np.clip(running[1:] - before[owners], 0, totals[owners]) + below[owners]
    counts = np.diff(np.maximum.accumulate(raised), prepend=0)
    return collected(owners, slots, counts, len(later))


@cache
def _lower_bounds() -> Floats:
    """Lower bound of each bin of a store, and +Inf after the last: powers of gamma, each rounded correctly."""
    one = 1 << 160
    numerator = int(GAMMA * 2**52)  # a double below 2 has 52 binary places: exact
    power, rising, falling = one, [1.0], []
    for index in range(1, max(-LOWEST, HIGHEST) + 1):
        power = power * numerator >> 52
        if index <= HIGHEST:
            rising.append(power / one)
        if index <= -LOWEST:
            falling.append(one / power)
    return np.array([*reversed(falling), *rising, math.inf])


@cache
def _slot_values() -> Floats:
    """What each slot stands for, from the most negative to the most positive."""
    largest = np.finfo(np.float64).max
    magnitudes = np.minimum(_lower_bounds()[:-1], largest / (1 + ALPHA)) * (1 + ALPHA)
    return np.concatenate((-magnitudes[::-1], [0.0], magnitudes))
