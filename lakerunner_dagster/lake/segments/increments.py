"""Values since a start → what came with each row: cumulative sums and histograms as rows that add.

What belongs here: what a row of a sub-series (the rows of a series that share ``chq_start_tsns``; NULL is a start of
its own) adds to the row before it, and where that cannot be told. What does not: which row is before the first of a
slot (``preceding``), what is done with rows that add (``rollup``).

- The increment is the value less that of the row before. It is exact: increments add up to the last value less the
  first, to the last bit.
- A value that falls (a sum, or the count of a histogram) was reset: all of it came since.
- Without a row before, all of it came since the start, if the start is one: within what was looked at for earlier rows,
  and before the row's own first point (receivers that know no start write the time of their first point).
- Otherwise the increment is not known, and nothing is made up: the row adds no value.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from lakerunner_dagster.lake.segments.columns import whole
from lakerunner_dagster.lake.segments.union import in_form
from lakerunner_dagster.lake.telemetry.exact_sums import exact_sums
from lakerunner_dagster.lake.telemetry.metric_rows import (
    HISTOGRAM,
    NO_TIME,
    doubles,
    holds,
    is_latest,
    merge_rows_tracked,
    nullable,
    numbered,
)
from lakerunner_dagster.lake.telemetry.records import NS_PER_MS
from lakerunner_dagster.lake.telemetry.sketch import Sketches, bounds_of, differences, singles
from lakerunner_dagster.lake.telemetry.sketch_column import SketchColumn

if TYPE_CHECKING:
    from lakerunner_dagster.lake.telemetry.metric_rows import Bools
    from lakerunner_dagster.lake.telemetry.sketch import Floats, Ints

DELTA = "delta"
"""``metric_temporality`` of increments."""

SUB_SERIES = ("metric_name", "chq_tid", "chq_metric_type", "metric_is_monotonic", "chq_start_tsns")
"""Columns that the latest rows of a sub-series have in common."""

NOWHERE = -1
"""The row that a predecessor becomes: none."""


def additive(rows: pa.Table, *, start_ms: int, horizon_ms: int) -> tuple[pa.Table, Ints]:
    """The rows of a slot with each latest row replaced by its increment, and what became of each row of ``rows``: the
    number of a row given back, or ``NOWHERE``.

    ``rows``: all of the series that they are of, without ``metric_rows.DERIVED``. Latest rows before ``start_ms`` are
    predecessors: they give no row. Starts before ``horizon_ms`` lie beyond what was looked at for them.

    Raises InputError ``corrupt_sketch`` as ``metric_rows.merge_rows`` does.
    """
    latest = is_latest(rows)
    became = np.arange(rows.num_rows)
    if not latest.any():
        return rows, became
    merged, merged_into = merge_rows_tracked(rows.filter(pa.array(latest)))
    inside = merged.column("chq_timestamp").to_numpy() >= start_ms
    added = in_form(increments(merged, horizon_ms=horizon_ms).filter(pa.array(inside)), rows.schema)
    others = int((~latest).sum())
    became[~latest] = np.arange(others)
    became[latest] = np.where(inside, others + np.cumsum(inside) - 1, NOWHERE)[merged_into]
    return pa.concat_tables([rows.filter(pa.array(~latest)), added]), became


def increments(rows: pa.Table, *, horizon_ms: int) -> pa.Table:
    """Each row as what it adds to the one before it in its sub-series: an additive row, in the place of the row.

    ``rows``: latest rows, no two of one sub-series and ``chq_timestamp``; ``horizon_ms``: see :func:`additive`.
    """
    steps = _Steps.of(rows, horizon_ms)
    column = _sketches(rows, steps)
    lows, highs = _extremes(rows, steps, column)
    known = {
        "chq_rollup_count": steps.counts,
        "chq_rollup_sum": steps.sums,
        "chq_rollup_sum_low": steps.rests,
        "chq_rollup_min": lows,
        "chq_rollup_max": highs,
        "chq_last": np.where(steps.histogram, np.nan, highs),
    }
    changed = {name: nullable(values) for name, values in known.items()}
    changed |= {"metric_temporality": pa.array([DELTA] * rows.num_rows), "chq_sketch": column.array()}
    return pa.table({name: changed.get(name, rows.column(name)) for name in rows.column_names})


@dataclass(frozen=True, slots=True)
class _Steps:
    """How each row goes on from the row ``before`` it in its sub-series (itself, if it is the first).

    ``stepped``: rows that add the difference. ``whole``: rows that add all that they hold. Of the others nothing is
    known. ``counts``, ``sums`` and ``rests`` (what rounding took from the sums): what rows add.
    """

    before: Ints
    stepped: Bools
    whole: Bools
    histogram: Bools
    counts: Floats
    sums: Floats
    rests: Floats

    @classmethod
    def of(cls, rows: pa.Table, horizon_ms: int) -> _Steps:
        before = _rows_before(rows)
        first = before == np.arange(rows.num_rows)
        histogram = holds(rows.column("chq_metric_type"), HISTOGRAM)
        counts, sums, rests = (doubles(rows, f"chq_rollup_{name}") for name in ("count", "sum", "sum_low"))
        more, more_rest = _less(sums, rests, before)
        more_counts = counts - counts[before]
        fell = ~first & (np.where(histogram, more_counts, more) < 0)
        whole = fell | (first & _starts_within(rows, horizon_ms))
        stepped = ~first & ~fell

        def added(differences: Floats, values: Floats) -> Floats:
            return np.select([stepped, whole], [differences, values], 0.0)

        return cls(
            before=before,
            stepped=stepped,
            whole=whole,
            histogram=histogram,
            counts=np.where(histogram, added(more_counts, counts), counts),
            sums=added(more, sums),
            rests=added(more_rest, rests),
        )

    @property
    def known(self) -> Bools:
        """Rows of which it is known what they add."""
        return self.stepped | self.whole


def _rows_before(rows: pa.Table) -> Ints:
    sub_series = numbered([whole(rows.column(name)) for name in SUB_SERIES])
    order = np.lexsort((rows.column("chq_timestamp").to_numpy(), sub_series))
    follows = np.append(False, np.diff(sub_series[order]) == 0)
    before = np.empty(len(order), np.int64)
    before[order] = np.where(follows, np.roll(order, 1), order)
    return before


def _starts_within(rows: pa.Table, horizon_ms: int) -> Bools:
    """Rows since whose start all that came is theirs."""
    starts = rows.column("chq_start_tsns").fill_null(NO_TIME).to_numpy()
    first = rows.column("chq_tsns").fill_null(NO_TIME).to_numpy()
    within: Bools = (starts // NS_PER_MS >= horizon_ms) & (starts < first)
    return within


def _less(sums: Floats, rests: Floats, before: Ints) -> tuple[Floats, Floats]:
    """Each sum less the one of the row before it, and what rounding takes from that."""
    pairs = np.arange(0, 2 * len(sums), 2)
    high, low = (np.column_stack((values, -values[before])).ravel() for values in (sums, rests))
    return exact_sums(high, low, pairs)


def _sketches(rows: pa.Table, steps: _Steps) -> SketchColumn:
    """The sketch of what each row adds."""
    held = SketchColumn.of(rows.column("chq_sketch"))
    codes = held.codes.copy()

    values = np.flatnonzero(~steps.histogram & steps.known & np.isfinite(steps.sums))
    numbers, sketches = singles(steps.sums[values])
    column, added = held.added(sketches)
    codes[values] = added[numbers]

    differing = np.flatnonzero(steps.histogram & steps.stepped)
    column, added = column.added(differences(held.pool, held.codes[differing], held.codes[steps.before[differing]]))
    codes[differing] = added

    column, added = column.added(Sketches.empty())
    codes[~steps.known | ~np.isfinite(steps.sums) & ~steps.histogram] = added[0]
    return SketchColumn(codes, column.pool, column.blobs)


def _extremes(rows: pa.Table, steps: _Steps, column: SketchColumn) -> tuple[Floats, Floats]:
    """The lowest and the highest value of what each row adds; NaN where there is none, or none is known.

    Of a histogram's difference an extreme is exact where it moved; else it is the bound of the outermost bin, but not
    beyond what the row has seen since its start.
    """
    lowest, highest = doubles(rows, "chq_rollup_min"), doubles(rows, "chq_rollup_max")
    offsets, codes = column.pool.offsets, column.codes
    filled = np.flatnonzero(steps.histogram & steps.stepped & (np.diff(offsets)[codes] > 0))
    lows, highs = np.full(len(codes), np.nan), np.full(len(codes), np.nan)
    lows[filled] = bounds_of(column.pool.slots[offsets[codes[filled]]])[0]
    highs[filled] = bounds_of(column.pool.slots[offsets[codes[filled] + 1] - 1])[1]
    lows, highs = (np.fmin(np.fmax(bounds, lowest), highest) for bounds in (lows, highs))
    lows = np.where(lowest < lowest[steps.before], lowest, lows)
    highs = np.where(highest > highest[steps.before], highest, highs)
    has_values = steps.counts > 0

    def told(differences: Floats, values: Floats) -> Floats:
        of_histograms = np.select([steps.stepped & has_values, steps.whole], [differences, values], np.nan)
        return np.where(steps.histogram, of_histograms, np.where(steps.known, steps.sums, np.nan))

    return told(lows, lowest), told(highs, highest)
