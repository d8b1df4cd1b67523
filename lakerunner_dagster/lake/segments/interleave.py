"""Sorted runs of rows → one sorted stream, holding a bounded number of rows of each.

What belongs here: which rows may go on, and in which order. What does not: where runs come from (``reading``), how many
rows are held of each, and what becomes of the stream (``merge``).

Some rows are held of each run, and all that are held are put in order together. Those that precede the last row held of
every run that goes on are final: no row to come can precede them. So rows are compared in one place alone, ``order``,
and ties and NULLs are where a segment that is sorted at once has them.
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
from lakerunner_dagster.lake.segments.order import TIE_BREAK, row_order, sort_codes

if TYPE_CHECKING:
    import numpy.typing as npt

    Ints = npt.NDArray[np.int64]
    Codes = npt.NDArray[np.uint64]


class Run:
    """Sorted rows that come in tables, ``length`` of them in all; at least ``ahead`` are held, if there are as many.

    ``unsorted()`` is what is raised where they turn out not to be sorted.
    """

    def __init__(self, tables: Iterator[pa.Table], length: int, ahead: int, unsorted: Callable[[], Exception]) -> None:
        self.unsorted = unsorted
        self._tables = tables
        self._ahead = ahead
        self._to_come = length
        self._held: list[pa.Table] = []

    @property
    def ended(self) -> bool:
        """Whether all its rows are held, or taken."""
        return self._to_come == 0

    def __len__(self) -> int:
        return sum(table.num_rows for table in self._held)

    def held(self, names: Sequence[str]) -> pa.Table:
        """The rows held, with these columns alone."""
        return pa.concat_tables([table.select(names) for table in self._held])

    def fill(self, more: int = 0) -> None:
        """Hold the rows that should be, or so many more than are."""
        wanted = max(self._ahead, len(self) + more)
        while len(self) < wanted and not self.ended:
            self._held.append(next(self._tables))
            self._to_come -= self._held[-1].num_rows

    def take(self, count: int) -> list[pa.Table]:
        """So many of the rows held, the first, which are so no longer."""
        taken: list[pa.Table] = []
        while count:
            table = self._held.pop(0)
            if table.num_rows > count:
                self._held.insert(0, table.slice(count))
            taken.append(table.slice(0, count))
            count -= taken[-1].num_rows
        return taken


def interleaved(runs: Sequence[Run], keys: Sequence[str], most: int, *, together: bool) -> Iterator[pa.Table]:
    """The rows of all runs in the order of a segment sorted by ``keys``, in tables of ``most`` rows where so many can.

    ``together``: rows of equal keys are neither parted nor ordered among themselves: what merges them sees them all.
    A run's rows must be in that order themselves (or, of ``together``, in the order of the keys): else its
    ``unsorted`` is raised.
    """
    going = list(runs)
    while going := [run for run in going if len(run) or not run.ended]:
        for run in going:
            run.fill()
        window = _Window.of(going, keys, together=together)
        if not window.final:
            for run in window.blocking():
                run.fill(more=len(run))
        yield from window.tables(most)


@dataclass(frozen=True, slots=True)
class _Window:
    """The rows held of some runs: row ``order[i]`` is the i-th of them, ``codes`` sort as their keys do.

    Row r is of run ``owners[r]``. The first ``final`` of them are final. ``together``: see :func:`interleaved`.
    """

    runs: Sequence[Run]
    owners: Ints
    codes: Codes
    order: Ints
    final: int
    together: bool

    @classmethod
    def of(cls, runs: Sequence[Run], keys: Sequence[str], *, together: bool) -> _Window:
        names = list(dict.fromkeys([*keys, *(() if together else TIE_BREAK)]))
        rows = pa.concat_tables([run.held(names) for run in runs])
        codes = sort_codes(rows, keys)
        order = np.argsort(codes) if together else row_order(rows, keys, codes)
        places = np.empty(len(order), np.int64)
        places[order] = np.arange(len(order))
        lengths = [len(run) for run in runs]
        owners = np.repeat(np.arange(len(runs)), lengths)
        _check_sorted(runs, owners, codes if together else places)
        lasts = (np.cumsum(lengths) - 1)[[not run.ended for run in runs]]
        final = int(places[lasts].min(initial=len(order)))
        if together and final < len(order):
            final = int(np.searchsorted(codes[order], codes[order[final]]))
        return cls(runs, owners, codes, order, final, together)

    def blocking(self) -> list[Run]:
        """The runs that go on and of which all rows held may be of the first keys of all."""
        lasts = np.cumsum([len(run) for run in self.runs]) - 1
        first = self.codes[lasts] == self.codes[self.order[0]]
        return [run for run, blocks in zip(self.runs, first, strict=True) if blocks and not run.ended]

    def tables(self, most: int) -> Iterator[pa.Table]:
        """The final rows, taken from their runs."""
        unseen = np.cumsum([0, *(len(run) for run in self.runs[:-1])])  # of each run, the first row not taken yet
        for begin, end in pairwise(self._cuts(most)):
            rows = self.order[begin:end]
            owners = self.owners[rows]
            counts = np.bincount(owners, minlength=len(self.runs))
            pieces = [piece for run, count in zip(self.runs, counts, strict=True) for piece in run.take(count)]
            rows = rows + (np.cumsum(counts) - counts - unseen)[owners]
            unseen += counts
            yield _taken(pa.concat_tables(pieces), rows)

    def _cuts(self, most: int) -> list[int]:
        """Where to cut the final rows, both ends included."""
        final = self.final
        if not self.together:
            if final > most and not all(run.ended for run in self.runs):
                final -= final % most  # what is left comes with the next rows, so that tables are full
            return [*range(0, final, most), final]
        codes = self.codes[self.order[:final]]
        ends = np.flatnonzero(np.append(codes[1:] != codes[:-1], True)) + 1  # of rows of equal keys
        cuts = [0]
        while cuts[-1] < final:
            at = int(np.searchsorted(ends, cuts[-1] + most, side="right"))
            cuts.append(int(ends[at - 1] if at and ends[at - 1] > cuts[-1] else ends[at]))
        return cuts


def _taken(table: pa.Table, rows: Ints) -> pa.Table:
    return pa.table(
        {
            name: pc.take(whole(column), rows, boundscheck=False)
            for name, column in zip(table.column_names, table.columns, strict=True)
        }
    )


def _check_sorted(runs: Sequence[Run], owners: Ints, places: Ints | Codes) -> None:
    """``places``: numbers that must not fall from one row of a run to the next."""
    falls = (places[1:] < places[:-1]) & (owners[1:] == owners[:-1])
    if falls.any():
        raise runs[owners[1:][falls][0]].unsorted()
