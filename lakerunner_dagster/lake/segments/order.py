"""The order of the rows of a segment: total, and a function of the rows alone.

Ascending by the signal's sort keys, strings by their UTF-8 bytes, **NULL after every value**. Rows that tie follow
``chq_tsns`` and the unique ``chq_id``; rows of metrics, which have none, all their other columns by name. So it does
not matter in which order files were read, and the same set of rows is the same bytes.

What belongs here: computing the permutation, and applying it. What does not: which keys (``signals``).
"""

from __future__ import annotations

from bisect import bisect_left
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from lakerunner_dagster.lake.segments.radix import dense, stable_order
from lakerunner_dagster.lake.segments.shared import found, spread

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

RowKey: TypeAlias = tuple[tuple[bool, Any], ...]
"""What compares as rows do by some columns: of each, whether it is NULL, and the value; texts as UTF-8."""

TIE_BREAK = ("chq_tsns", "chq_id")
"""Columns that follow the sort keys where rows are records, each with its id."""

_KEY_SPACE = 1 << 64
_NARROW = 1 << 48  # integers spread less than this (an hour in ns is 2^42) are their own code, less the smallest


def row_order(table: pa.Table, keys: Sequence[str], codes: NDArray[np.uint64] | None = None) -> NDArray[np.int64]:
    """Row numbers of ``table`` in the order of a segment sorted by ``keys``. A key that is no column is all NULL.

    Rows alike in all that orders them stay in the order in which they come. ``codes``: what :func:`sort_codes` gives,
    where it is known.
    """
    key = sort_codes(table, keys) if codes is None else codes
    order = stable_order(key)
    in_order = key[order]
    same = in_order[1:] == in_order[:-1]
    tied = np.flatnonzero(np.append(same, False) | np.append(False, same))
    if len(tied):
        rows = order[tied]
        order[tied] = rows[_tie_order(table, keys, rows, in_order[tied])]
    return order


def ordered(table: pa.Table, keys: Sequence[str], codes: NDArray[np.uint64]) -> pa.Table:
    """The rows in the order that :func:`row_order` gives; ``codes`` as there."""
    order = row_order(table, keys, codes)
    if (order[1:] > order[:-1]).all():
        return table
    return pc.take(table, pa.array(order), boundscheck=False)


def sort_codes(table: pa.Table, keys: Sequence[str]) -> NDArray[np.uint64]:
    """One integer a row that sorts as its keys do: digits of a mixed radix, re-coded where 64 bits are too few."""
    key, space = np.zeros(table.num_rows, np.uint64), 1
    for column in (column for column in (found(table, name) for name in keys) if column is not None):
        codes, count = _codes(column)
        if space * count > _KEY_SPACE:
            key, space = dense(key)
        if space * count > _KEY_SPACE:
            codes, count = dense(codes)
        key = key * np.uint64(count) + codes
        space *= count
    return key


def row_key(table: pa.Table, row: int, names: Sequence[str]) -> RowKey:
    """The key of one row by these columns."""
    return tuple(_comparable(table.column(name)[row]) for name in names)


def count_before(table: pa.Table, key: RowKey, names: Sequence[str]) -> int:
    """How many rows of a table that is sorted by these columns come before a key of them."""
    columns = [table.column(name) for name in names]

    def before(row: int) -> bool:
        for column, other in zip(columns, key, strict=True):
            own = _comparable(column[row])
            if own != other:
                return own < other
        return False

    return bisect_left(range(table.num_rows), True, key=lambda row: not before(row))


def _comparable(cell: pa.Scalar) -> tuple[bool, Any]:
    held = cell.value if isinstance(cell, pa.DictionaryScalar) else cell
    if not held.is_valid:
        return True, None
    return False, held.as_buffer().to_pybytes() if isinstance(held, pa.StringScalar) else held.as_py()


def _codes(column: pa.Array) -> tuple[NDArray[np.uint64], int]:
    """Integers below the returned count that sort as the column does, NULL as the largest."""
    if pa.types.is_integer(column.type):
        extremes = pc.min_max(column).as_py()
        low, high = extremes["min"] or 0, extremes["max"] or 0
        if (null := high - low + 1) < _NARROW:
            return pc.subtract(column, low).fill_null(null).to_numpy().astype(np.uint64), null + 1
        if not column.null_count:
            return dense(column.to_numpy())
    encoded = column if pa.types.is_dictionary(column.type) else column.dictionary_encode()
    ranks = pc.rank(encoded.dictionary, tiebreaker="dense").cast(pa.int64())
    null = len(ranks) + 1
    return ranks.take(encoded.indices).fill_null(null).to_numpy().astype(np.uint64), null + 1


def _tie_order(
    table: pa.Table, keys: Sequence[str], rows: NDArray[np.int64], key: NDArray[np.uint64]
) -> NDArray[np.int64]:
    """The order of ``rows`` by their composite ``key``, then by what breaks ties."""
    others = _tie_breakers(table, keys, rows)
    columns: dict[str, Any] = {name: _plain(others.column(name)) for name in others.column_names}
    tied = pa.table({"": key, **columns, "row": rows})
    by = [(name, "ascending", "at_end") for name in tied.column_names]
    order: NDArray[np.int64] = pc.sort_indices(tied, sort_keys=by).to_numpy().astype(np.int64)
    return order


def _tie_breakers(table: pa.Table, keys: Sequence[str], rows: NDArray[np.int64]) -> pa.Table:
    """The columns of these rows that break ties, in the order in which they do."""
    if "chq_id" in table.column_names:
        return table.select(TIE_BREAK).take(rows)
    taken = spread(table.take(rows))
    return taken.select(sorted(set(taken.column_names) - set(keys)))


def _plain(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """The column without dictionary codes, which cannot be sorted."""
    return column.cast(column.type.value_type) if pa.types.is_dictionary(column.type) else column
