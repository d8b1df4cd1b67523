"""Sorted runs of rows → one sorted stream, holding a bounded number of rows of each.

What belongs here: which rows may go on, and in which order. What does not: where runs come from (``reading``), how many
rows are held of each (``budget``), and what becomes of the stream (``merge``).

Some rows are held of each run. Those that precede the last row held of every run that goes on are final: no row to come
can precede them. They alone are put in order, by ``order``, so that ties and NULLs are where a segment that is sorted
at once has them. Rows that merge need less: that those of equal keys come together.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from lakerunner_dagster.lake.segments.columns import whole
from lakerunner_dagster.lake.segments.order import TIE_BREAK, RowKey, count_before, row_key, row_order, sort_codes
from lakerunner_dagster.lake.segments.stretches import stretch_starts

if TYPE_CHECKING:
    import numpy.typing as npt

    Ints = npt.NDArray[np.int64]
    Codes = npt.NDArray[np.uint64]


class Run:
    """Sorted rows that come in tables, ``length`` of them in all; at least ``ahead`` are held, if there are as many.

    Rows held are picked, the first ones first, and later taken all at once. ``unsorted()`` is what is raised where rows
    turn out not to be sorted.
    """

    def __init__(self, tables: Iterator[pa.Table], length: int, ahead: int, unsorted: Callable[[], Exception]) -> None:
        self.unsorted = unsorted
        self.picked = 0
        self._tables = tables
        self._ahead = ahead
        self._to_come = length
        self._held: list[pa.Table] = []
        self._unpicked = 0

    @property
    def ended(self) -> bool:
        """Whether all its rows are held, picked or taken."""
        return self._to_come == 0

    def __len__(self) -> int:
        """How many rows are held that are not picked."""
        return self._unpicked

    def fill(self, more: int = 0) -> None:
        """Hold the rows that should be, or so many more than are."""
        wanted = max(self._ahead, len(self) + more)
        while len(self) < wanted and not self.ended:
            self._held.append(next(self._tables))
            self._to_come -= self._held[-1].num_rows
            self._unpicked += self._held[-1].num_rows
        if self.ended:
            self._tables = iter(())  # and what reading them took is let go

    def held(self, names: Sequence[str]) -> pa.Table:
        """The rows held that are not picked, with these columns alone."""
        return pa.concat_tables([table.select(names) for table in self._held]).slice(self.picked)

    def held_before(self, key: RowKey | None, names: Sequence[str]) -> pa.Table:
        """Those of them that come before a key, or all."""
        held = self.held(names)
        return held if key is None else held.slice(0, count_before(held, key, names))

    def last_key(self, names: Sequence[str]) -> RowKey:
        """The key of the last row held."""
        return row_key(self._held[-1], self._held[-1].num_rows - 1, names)

    def pick(self, count: int) -> None:
        """Pick so many rows more."""
        self.picked += count
        self._unpicked -= count

    def take(self) -> list[pa.Table]:
        """The rows picked, which are held no longer."""
        taken: list[pa.Table] = []
        while self.picked:
            table = self._held.pop(0)
            if table.num_rows > self.picked:
                self._held.insert(0, table.slice(self.picked))
            taken.append(table.slice(0, self.picked))
            self.picked -= taken[-1].num_rows
        return taken


def interleaved(runs: Sequence[Run], keys: Sequence[str], most: int) -> Iterator[pa.Table]:
    """The rows of all runs in the order of a segment sorted by ``keys``, in tables of ``most`` rows to twice as many.

    A run's rows must be in that order themselves: else its ``unsorted`` is raised.
    """
    picks: list[_Pick] = []
    for final in _final(runs, list(dict.fromkeys([*keys, *TIE_BREAK]))):
        for pick in _in_order(runs, final, keys, most):
            picks.append(pick)
            if sum(run.picked for run in runs) >= most:
                yield _taken(runs, picks)
                picks = []
    if picks:
        yield _taken(runs, picks)


def gathered(runs: Sequence[Run], keys: Sequence[str], most: int) -> Iterator[pa.Table]:
    """The rows of all runs, in tables that follow one another in the order of ``keys``, each (but the last) of ``most``
    rows or just so many more that rows of equal keys are in one table: what merges them sees them all.

    Within a table rows are in no order but that of each run. A run's rows must be in the order of the keys: else its
    ``unsorted`` is raised.
    """
    for final in _final(runs, list(keys)):
        for shares in _shares(runs, final, keys, most):
            for run, share in zip(runs, shares.tolist(), strict=True):
                run.pick(share)
            if sum(run.picked for run in runs) >= most:
                yield _at_once(runs)
    if any(run.picked for run in runs):
        yield _at_once(runs)


@dataclass(frozen=True, slots=True)
class _Pick:
    """The next rows: the i-th is row ``rows[i]`` of those picked of run ``owners[i]`` and not taken yet."""

    owners: Ints
    rows: Ints


def _final(runs: Sequence[Run], names: Sequence[str]) -> Iterator[list[pa.Table]]:
    """Of each run the rows held that may go on, with the columns ``names`` alone, by which it is sorted. They must be
    picked before the next are asked for.
    """
    while going := [run for run in runs if len(run) or not run.ended]:
        for run in going:
            run.fill()
        lasts = {run: run.last_key(names) for run in going if not run.ended}
        frontier = min(lasts.values(), default=None)
        final = {run: run.held_before(frontier, names) for run in going}
        if any(rows.num_rows for rows in final.values()):
            none = next(iter(final.values())).slice(0, 0)
            yield [final.get(run, none) for run in runs]
        else:
            _go_beyond(frontier, [run for run, last in lasts.items() if last == frontier], names)


def _in_order(runs: Sequence[Run], final: Sequence[pa.Table], keys: Sequence[str], most: int) -> Iterator[_Pick]:
    """The first rows of each run, ``final``, in order; at most so many at once."""
    table, owners = _joined(final)
    order = row_order(table, keys)
    _check_sorted(runs, owners, _places(order))
    unpicked = np.cumsum([0, *(rows.num_rows for rows in final[:-1])])  # of each run, the first that is not picked yet
    for begin in range(0, len(order), most):
        rows = order[begin : begin + most]
        shares = np.bincount(owners[rows], minlength=len(runs))
        moved = np.array([run.picked for run in runs], np.int64) - unpicked
        pick = _Pick(owners[rows], rows + moved[owners[rows]])
        for run, share in zip(runs, shares.tolist(), strict=True):
            run.pick(share)
        yield pick
        unpicked += shares


def _shares(runs: Sequence[Run], final: Sequence[pa.Table], keys: Sequence[str], most: int) -> Iterator[Ints]:
    """How many of the first rows of each run, ``final``, come next, so that ``most`` rows are picked, and again."""
    table, owners = _joined(final)
    firsts = np.union1d(
        stretch_starts([whole(column) for column in table.columns]), np.flatnonzero(np.diff(owners, prepend=-1))
    )
    lengths = np.diff(firsts, append=len(owners))
    codes, owners = sort_codes(table.take(firsts), keys), owners[firsts]
    _check_sorted(runs, owners, codes)
    order = np.argsort(codes, kind="stable")
    picked = sum(run.picked for run in runs)
    for begin, end in pairwise(_cuts(codes[order], lengths[order], most - picked, most)):
        stretches = order[begin:end]
        yield np.bincount(owners[stretches], lengths[stretches], len(runs)).astype(np.int64)


def _joined(final: Sequence[pa.Table]) -> tuple[pa.Table, Ints]:
    """The rows of all runs, and the run of each."""
    return pa.concat_tables(final), np.repeat(np.arange(len(final)), [rows.num_rows for rows in final])


def _cuts(codes: Codes, lengths: Ints, first: int, most: int) -> list[int]:
    """Where to cut stretches of rows with these sorted codes and lengths, both ends included: not between equal ones,
    and as soon as there are so many rows, of the first piece ``first``.
    """
    ends = np.flatnonzero(np.append(codes[1:] != codes[:-1], True)) + 1
    rows = np.cumsum(lengths)[ends - 1]
    cuts, wanted = [0], first
    while cuts[-1] < len(codes):
        at = min(int(np.searchsorted(rows, wanted)), len(ends) - 1)
        cuts.append(int(ends[at]))
        wanted = int(rows[at]) + most
    return cuts


def _go_beyond(frontier: RowKey | None, runs: Sequence[Run], names: Sequence[str]) -> None:
    """Hold twice as many rows of runs whose rows held all have one key, the first of all."""
    for run in runs:
        if row_key(run.held(names), 0, names) != frontier:
            raise run.unsorted()
        run.fill(more=len(run))


def _check_sorted(runs: Sequence[Run], owners: Ints, numbers: Ints | Codes) -> None:
    """``numbers`` must not fall from one row of a run to the next; ``owners``: the run of each row.

    That no row falls behind one picked earlier is known: the last key held then was found to lie between them.
    """
    falls = (numbers[1:] < numbers[:-1]) & (owners[1:] == owners[:-1])
    if falls.any():
        raise runs[owners[1:][falls][0]].unsorted()


def _places(order: Ints) -> Ints:
    """Where each row comes in an order."""
    places = np.empty(len(order), np.int64)
    places[order] = np.arange(len(order))
    return places


def _at_once(runs: Sequence[Run]) -> pa.Table:
    """The rows picked, taken from their runs, one run's after another's."""
    table = pa.concat_tables([piece for run in runs for piece in run.take()])
    return pa.table([whole(column) for column in table.columns], table.schema)


def _taken(runs: Sequence[Run], picks: Sequence[_Pick]) -> pa.Table:
    """The rows picked, taken from their runs in their order."""
    counts = [run.picked for run in runs]
    owners = np.concatenate([pick.owners for pick in picks])
    rows = np.concatenate([pick.rows for pick in picks]) + np.cumsum([0, *counts[:-1]])[owners]
    table = pa.concat_tables([piece for run in runs for piece in run.take()])
    return pa.table([_chosen(column, rows) for column in table.columns], table.schema)


def _chosen(column: pa.ChunkedArray, rows: Ints) -> pa.Array:
    if column.null_count == len(column):  # as most columns of a wide table, in any one place of it
        return pa.nulls(len(rows), column.type)
    return pc.take(whole(column), rows, boundscheck=False)
