"""Rows of metrics that belong together → one row: ingest merges points to 10 s rows by it, compaction 10 s rows.

What belongs here: which rows belong together, and how each column of them merges. What does not: making rows of OTLP
(``metrics``), sorting and writing them (``segments``), coarser buckets (rollups).

Rows belong together when they are of one series and bucket: equal ``metric_name``, ``chq_tid``, ``chq_timestamp``,
``chq_metric_type``, ``metric_temporality`` and ``metric_is_monotonic``. There are two kinds:

- **Additive** rows (gauges, delta sums, delta histograms, summaries, cumulative sums that are not monotonic) add:
  count, sum and sketch add, min and max are those of all, the last value is the later one.
- **Latest** rows (cumulative histograms, monotonic cumulative sums) hold what came since ``chq_start_tsns``, which must
  be equal too: the row that is later by ``chq_last_tsns`` stays as it is. The larger wins a tie.

In both, ``chq_points`` adds, as does the count of a cumulative sum (which counts its points), and ``chq_tsns`` is the
first. Columns of text hold the least of the rows' texts (they hardly ever differ: all but the descriptive ones are part
of the series' id). So merging is associative and commutative to the last bit: sums carry what rounding takes from them
(``exact_sums``; column ``chq_rollup_sum_low``), sketches count in integers, and percentiles and the average are
computed from these, last of all. A sum that is NULL is not known, and with it none that it is part of; counts are exact
up to 2^53.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from lakerunner_dagster.lake.segments.columns import POINTS, whole
from lakerunner_dagster.lake.segments.radix import stable_order
from lakerunner_dagster.lake.segments.shared import fields, is_shared, spread
from lakerunner_dagster.lake.segments.stretches import stretch_starts
from lakerunner_dagster.lake.telemetry.exact_sums import exact_sums
from lakerunner_dagster.lake.telemetry.sketch import QUANTILES, Floats, Ints, Sketches, merged_runs, quantiles, taken
from lakerunner_dagster.lake.telemetry.sketch_column import SketchColumn

if TYPE_CHECKING:
    from collections.abc import Sequence

Codes: TypeAlias = npt.NDArray[np.uint64]
Bools: TypeAlias = np.ndarray[tuple[int], np.dtype[np.bool_]]
_Number = TypeVar("_Number", bound=np.generic)

PERCENTILES = tuple(f"chq_rollup_p{round(100 * quantile)}" for quantile in QUANTILES)
"""Columns of the quantiles, in their order."""

DERIVED = ("chq_rollup_avg", *PERCENTILES)
"""Columns that ``merge_rows`` computes anew from the others; its input need not have them."""

CUMULATIVE = "cumulative"
"""``metric_temporality`` of values since a start."""

HISTOGRAM = "histogram"
"""``chq_metric_type`` of everything that is a distribution."""

_SAME = ("chq_tid", "chq_timestamp", "metric_name", "chq_metric_type", "metric_temporality", "metric_is_monotonic")
"""Columns that rows which belong together have in common."""

_DOUBLES = ("chq_rollup_count", "chq_rollup_sum", "chq_rollup_sum_low", "chq_rollup_min", "chq_rollup_max", "chq_last")
_TIMES = ("chq_tsns", "chq_last_tsns", "chq_start_tsns")
_PRECEDENCE = (
    "chq_last",
    "chq_start_tsns",
    "chq_rollup_count",
    "chq_rollup_sum",
    "chq_rollup_sum_low",
    "chq_rollup_min",
    "chq_rollup_max",
)
"""What decides between rows of one time; the sketch decides last."""

NO_TIME = np.iinfo(np.int64).min
"""Stands for a time that is NULL."""

_CODE_LIMIT = 2**63


def merge_rows(table: pa.Table) -> pa.Table:
    """One row for each series and bucket (and start, of latest rows), in no particular order.

    ``table`` has the columns of a metric segment, but for ``DERIVED``, as ``metrics`` or Parquet give them: texts and
    sketches may be dictionary-encoded (and then no text is twice in its dictionary). The result has the same columns
    and ``DERIVED``.

    Raises InputError ``corrupt_sketch`` for a sketch that is not of this lake.
    """
    return merge_rows_tracked(table)[0]


def merge_rows_tracked(table: pa.Table) -> tuple[pa.Table, Ints]:
    """What :func:`merge_rows` gives, and for each row of ``table`` the number of the row of it that it went into."""
    table = _whole(table)
    sketches = SketchColumn.of(table.column("chq_sketch"))
    groups = _grouped(table)
    became = np.arange(table.num_rows)
    if len(groups.starts) < table.num_rows:
        became[groups.rows] = np.repeat(np.arange(len(groups.starts)), groups.lengths())
        table, sketches = _merged(table, sketches, groups)
    return _completed(table, sketches), became


def merge_in_order(table: pa.Table, codes: Codes) -> tuple[pa.Table, Codes]:
    """What :func:`merge_rows` gives, in ascending order of their codes, and the code of each.

    ``codes``: one of each row of ``table``, by columns that rows which belong together have in common
    (``segments.order.sort_codes``): a sort serves both, merging and order.
    """
    table = _whole(table)
    sketches = SketchColumn.of(table.column("chq_sketch"))
    groups = _grouped_in_order(table, codes)
    heads = groups.heads()
    if len(heads) < table.num_rows:
        table, sketches = _merged(table, sketches, groups)
    else:
        table = pc.take(table, pa.array(heads), boundscheck=False)
        sketches = SketchColumn(sketches.codes[heads], sketches.pool, sketches.blobs)
    return _completed(table, sketches), codes[heads]


def added_count(table: pa.Table) -> float:
    """Sum of chq_rollup_count over the rows whose counts add when they merge: the same before and after."""
    later_counts = is_latest(table) & holds(table.column("chq_metric_type"), HISTOGRAM)
    return float(doubles(table, "chq_rollup_count")[~later_counts].sum())


@dataclass(frozen=True, slots=True)
class _Groups:
    """Rows that belong together: ``rows[starts[k]:starts[k + 1]]`` are those of group k.

    ``as_they_lie``: the rows are all there are, in their order.
    """

    rows: Ints
    starts: Ints
    as_they_lie: bool

    @classmethod
    def of(cls, numbers: Ints, lengths: Ints) -> _Groups:
        """From stretches of so many rows each; those of one number belong together."""
        firsts = np.cumsum(lengths) - lengths
        order = np.argsort(numbers, kind="stable")  # which is fast where most are in order
        begins = np.flatnonzero(np.diff(numbers[order], prepend=-1))
        if len(begins) == len(numbers):
            return cls(np.arange(int(lengths.sum())), firsts, as_they_lie=True)
        firsts, lengths = firsts[order], lengths[order]
        before = np.cumsum(lengths) - lengths
        rows = np.arange(int(lengths.sum())) + np.repeat(firsts - before, lengths)
        return cls(rows, before[begins], as_they_lie=False)

    def heads(self) -> npt.NDArray[np.int32]:
        """The first row of each group; Arrow takes by narrow numbers much faster."""
        return self.rows[self.starts].astype(np.int32)

    def lengths(self) -> Ints:
        return np.diff(self.starts, append=len(self.rows))

    def of_several(self) -> _Groups:
        """Only the groups of more than one row."""
        lengths = self.lengths()
        several = lengths > 1
        if several.all():
            return self
        kept = lengths[several]
        return _Groups(self.rows[np.repeat(several, lengths)], np.cumsum(kept) - kept, as_they_lie=False)

    def values(self, column: npt.NDArray[_Number]) -> npt.NDArray[_Number]:
        """The values of an array that has one for each row, group by group."""
        return column if self.as_they_lie else column[self.rows]


def numbered(keys: Sequence[pa.Array]) -> Ints:
    """A number for each row of some columns (at least one), equal where all of them are; NULL equals NULL."""
    numbers = np.zeros(len(keys[0]), np.int64)
    size = 1
    for key in map(_codes, keys):
        count = int(key.max(initial=0)) + 1
        if size * count >= _CODE_LIMIT:
            numbers = _codes(pa.array(numbers))
            size = int(numbers.max(initial=0)) + 1
        numbers = numbers * count + key
        size *= count
    return numbers


def holds(column: pa.ChunkedArray, value: str | bool) -> Bools:  # noqa: FBT001 -- a value of a column, not a switch
    """Which rows hold that value."""
    array = whole(column)
    if array.null_count == len(array):
        return np.zeros(len(array), np.bool_)
    if not pa.types.is_dictionary(array.type):
        equal = pc.equal(array, value)
    elif (code := array.dictionary.index(value).as_py()) >= 0:
        equal = pc.equal(array.indices, code)
    else:
        return np.zeros(len(array), np.bool_)
    rows: Bools = equal.fill_null(False).to_numpy(zero_copy_only=False)
    return rows


def is_latest(table: pa.Table) -> Bools:
    """Which rows hold what came since their start; the others are additive."""
    cumulative = holds(table.column("metric_temporality"), CUMULATIVE)
    if not cumulative.any():
        return cumulative
    values = holds(table.column("chq_metric_type"), HISTOGRAM) | holds(table.column("metric_is_monotonic"), True)
    return cumulative & values


def doubles(table: pa.Table, name: str) -> Floats:
    """A column of doubles, NULL as NaN."""
    column = table.column(name)
    values: Floats = (column.fill_null(np.nan) if column.null_count else column).to_numpy()
    return values


def nullable(values: Floats | Ints) -> pa.Array:
    """The column of some numbers, where NaN and ``NO_TIME`` are NULL."""
    return pa.array(values, mask=np.isnan(values) if values.dtype == np.float64 else values == NO_TIME)


def _whole(table: pa.Table) -> pa.Table:
    """The columns that merge, each as one array."""
    return pa.table({name: whole(table.column(name)) for name in table.column_names if name not in DERIVED})


def _grouped(table: pa.Table) -> _Groups:
    keys = _keys(table)
    firsts = stretch_starts(keys)
    if 2 * len(firsts) > table.num_rows:
        return _Groups.of(numbered(keys), np.ones(table.num_rows, np.int64))
    heads = pa.array(firsts.astype(np.int32))
    return _Groups.of(numbered([key.take(heads) for key in keys]), np.diff(firsts, append=table.num_rows))


def _grouped_in_order(table: pa.Table, codes: Codes) -> _Groups:
    """The groups in the order of their codes. Those of one code are told apart, which takes long, only where several
    rows have it.
    """
    rows = stable_order(codes)
    begins = np.ones(len(rows), np.bool_)
    begins[1:] = codes[rows[1:]] != codes[rows[:-1]]
    alone = begins & np.append(begins[1:], True)
    places = np.flatnonzero(~alone)
    together = rows[places]
    group = numbered(_keys(table.select([*_SAME, "chq_start_tsns"]).take(pa.array(together))))
    by_group = stable_order(group)
    by_code = by_group[stable_order(codes[together[by_group]])]
    rows[places] = together[by_code]
    begins[places] |= np.diff(group[by_code], prepend=-1) != 0
    return _Groups(rows, np.flatnonzero(begins), as_they_lie=False)


def _keys(table: pa.Table) -> list[pa.Array]:
    """What rows that belong together have in common."""
    keys = [whole(table.column(name)) for name in _SAME]
    latest = is_latest(table)
    if latest.any():
        keys.append(pc.if_else(pa.array(latest), whole(table.column("chq_start_tsns")), None))
    return keys


def _codes(array: pa.Array) -> Ints:
    """Small integers that are equal where the values are; 0 is NULL."""
    if array.null_count == len(array):
        return np.zeros(len(array), np.int64)
    indices = (array if pa.types.is_dictionary(array.type) else array.dictionary_encode()).indices
    codes: Ints = (indices.fill_null(-1) if indices.null_count else indices).to_numpy() + np.int64(1)
    return codes


def _merged(table: pa.Table, sketches: SketchColumn, groups: _Groups) -> tuple[pa.Table, SketchColumn]:
    """One row a group: its first, but for what merges in groups of several."""
    several = groups.of_several()
    shared = [name for name in table.column_names if is_shared(table.schema.field(name).type)]
    if any(_differ(whole(table.column(name)), several) for name in shared):
        table, shared = spread(table), []
    places = np.flatnonzero(groups.lengths() > 1)
    heads = groups.heads()
    numbers = _numbers(table)
    winners = _winners(numbers, sketches, several)
    latest = is_latest(table)[winners]
    counted = latest & holds(table.column("chq_metric_type"), HISTOGRAM)[winners]

    codes = sketches.codes[heads]
    codes[places[latest]] = sketches.codes[winners[latest]]
    added = _added_sketches(sketches, several, latest)
    sketches = SketchColumn(codes, sketches.pool, sketches.blobs).replaced(places[~latest], added)

    columns: dict[str, pa.Array] = {"chq_sketch": sketches.array()}
    for name, values in _merged_numbers(numbers, several, winners, latest, counted).items():
        column = numbers[name][heads]
        column[places] = values
        columns[name] = nullable(column)
    for name in (*_SAME, *shared):
        columns[name] = whole(table.column(name)).take(pa.array(heads))
    for name in table.column_names:
        if name not in columns:
            columns[name] = _least(whole(table.column(name)), heads, places, several)
    return pa.table({name: columns[name] for name in table.column_names}), sketches


def _numbers(table: pa.Table) -> dict[str, Any]:
    """The columns that merge as numbers; NULL as NaN, or as ``NO_TIME``."""
    values = {name: doubles(table, name) for name in _DOUBLES}
    times = {name: table.column(name).fill_null(NO_TIME).to_numpy() for name in _TIMES}
    return {**values, **times, POINTS: table.column(POINTS).to_numpy()}


def _winners(numbers: dict[str, Any], sketches: SketchColumn, groups: _Groups) -> Ints:
    """The row of each group that is later than the others; among the latest, the one with the largest values."""
    group_of = np.repeat(np.arange(len(groups.starts)), groups.lengths())
    times = groups.values(numbers["chq_last_tsns"])
    last = np.flatnonzero(times == np.maximum.reduceat(times, groups.starts)[group_of])
    alone = np.bincount(group_of[last], minlength=len(groups.starts)) == 1
    winners = np.zeros(len(groups.starts), np.int64)
    winners[group_of[last]] = groups.rows[last]
    tied = last[~alone[group_of[last]]]
    if len(tied):
        rows = groups.rows[tied]
        values = [_known_first(numbers[name][rows]) for name in _PRECEDENCE]
        order = np.lexsort((sketches.ranks(rows), *reversed(values), group_of[tied]))
        winners[group_of[tied][order]] = rows[order]  # of several assignments to one place, the last one holds
    return winners


def _known_first(values: Floats | Ints) -> Floats | Ints:
    """Values to compare by, where any known one precedes NULL."""
    return np.where(np.isnan(values), -np.inf, values) if values.dtype == np.float64 else values


def _merged_numbers(
    numbers: dict[str, Any], groups: _Groups, winners: Ints, latest: Bools, counted: Bools
) -> dict[str, Any]:
    """What each group holds. ``latest``: groups of latest rows; ``counted``: those that have a count of their own."""
    starts = groups.starts
    held = {name: groups.values(values) for name, values in numbers.items()}
    sums, rests = exact_sums(held["chq_rollup_sum"], held["chq_rollup_sum_low"], starts)
    added = {
        "chq_rollup_sum": sums,
        "chq_rollup_sum_low": rests,
        "chq_rollup_min": np.fmin.reduceat(held["chq_rollup_min"], starts),
        "chq_rollup_max": np.fmax.reduceat(held["chq_rollup_max"], starts),
    }
    counts = np.add.reduceat(held["chq_rollup_count"], starts)
    return {
        **{name: np.where(latest, numbers[name][winners], values) for name, values in added.items()},
        **{name: numbers[name][winners] for name in ("chq_last", "chq_last_tsns", "chq_start_tsns")},
        "chq_rollup_count": np.where(counted, numbers["chq_rollup_count"][winners], counts),
        "chq_tsns": np.minimum.reduceat(held["chq_tsns"], starts),
        POINTS: np.add.reduceat(held[POINTS], starts),
    }


def _added_sketches(sketches: SketchColumn, groups: _Groups, latest: Bools) -> Sketches:
    """What was counted in each group but the ``latest`` ones."""
    held = groups.values(sketches.codes)
    if latest.any():
        held = held[np.repeat(~latest, groups.lengths())]
    return merged_runs(sketches.pool, held, groups.lengths()[~latest])


def _least(texts: pa.Array, heads: npt.NDArray[np.int32], places: Ints, groups: _Groups) -> pa.Array:
    """The text of each head row; the least one in a group of several that differ. ``places``: heads of the several."""
    if not _differ(texts, groups):
        return texts.take(pa.array(heads))
    encoded_texts = texts if pa.types.is_dictionary(texts.type) else texts.dictionary_encode()
    by_rank = pc.sort_indices(encoded_texts.dictionary).to_numpy().astype(np.int64)
    ranks = np.empty(len(by_rank) + 1, np.int64)
    ranks[by_rank + 1] = np.arange(len(by_rank))
    ranks[0] = len(by_rank)  # NULL is the least of nothing but NULL
    codes = ranks[_codes(encoded_texts)]
    chosen = codes[heads]
    chosen[places] = np.minimum.reduceat(groups.values(codes), groups.starts)
    indices = pa.array(chosen.astype(np.int32), mask=chosen == len(by_rank))
    return pa.DictionaryArray.from_arrays(indices, encoded_texts.dictionary.take(pa.array(by_rank)))


def _differ(values: pa.Array, groups: _Groups) -> bool:
    """Whether those of some group do; those of a shared column need not where its codes do."""
    if values.null_count == len(values) or not len(groups.rows):
        return False
    if pa.types.is_dictionary(values.type) and len(values.dictionary) == 1 and not values.null_count:
        return False
    if not groups.as_they_lie:
        values = pc.take(values, pa.array(groups.rows.astype(np.int32)), boundscheck=False)
    return _change(values, groups.starts)


def _change(values: pa.Array, starts: Ints) -> bool:
    """The same for values group by group; ``starts``: where each group begins."""
    codes = _codes(values)
    changes = codes[1:] != codes[:-1]
    changes[starts[1:] - 1] = False
    if not changes.any():
        return False
    return not is_shared(values.type) or any(_change(column, starts) for _, column in fields(values))


def _completed(table: pa.Table, sketches: SketchColumn) -> pa.Table:
    """The rows with their average and percentiles."""
    counts, sums = doubles(table, "chq_rollup_count"), doubles(table, "chq_rollup_sum")
    whole = is_latest(table) & ~holds(table.column("chq_metric_type"), HISTOGRAM)
    averages = np.divide(sums, np.where(whole, 1.0, counts), out=np.full(len(counts), np.nan), where=counts > 0)
    table = table.append_column("chq_rollup_avg", nullable(averages))

    lows, highs = doubles(table, "chq_rollup_min"), doubles(table, "chq_rollup_max")
    used = np.zeros(len(sketches.pool), np.bool_)
    used[sketches.codes] = True
    values = quantiles(taken(sketches.pool, np.flatnonzero(used)))
    rows = (np.cumsum(used) - 1)[sketches.codes]
    empty = np.isnan(values[:, 0])[rows]
    unsettled = np.flatnonzero((lows != highs) | empty)  # elsewhere the extremes leave but one value
    found = values[rows[unsettled]]
    clamped = np.fmin(np.fmax(found, lows[unsettled, None]), highs[unsettled, None])
    clamped[empty[unsettled]] = np.nan
    for name, some in zip(PERCENTILES, clamped.T, strict=True):
        column = lows.copy()
        column[unsettled] = some
        table = table.append_column(name, nullable(column))
    return table
