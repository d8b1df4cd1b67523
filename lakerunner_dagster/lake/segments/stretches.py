"""Stretches of neighbouring rows that are alike in some columns: what is sorted by them is few pieces, not many rows.

What belongs here: where stretches begin. What does not: what rows that are alike have to do with one another.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray


def stretch_starts(columns: Sequence[pa.Array]) -> NDArray[np.int64]:
    """The first row of each stretch of rows that are alike in these columns (one or more); NULL is like NULL alone.

    Dictionary codes are compared as they are: a text that is twice in its dictionary may part a stretch.
    """
    begins = np.zeros(len(columns[0]), np.bool_)
    begins[:1] = True
    for values in (values for column in columns for values in _comparable(column)):
        begins[1:] |= values[1:] != values[:-1]
    return np.flatnonzero(begins)


def _comparable(column: pa.Array) -> Iterator[NDArray[np.generic]]:
    """What rows that are alike have in common."""
    if column.null_count == len(column):
        return
    if not pa.types.is_primitive(column.type):
        column = (column if pa.types.is_dictionary(column.type) else column.dictionary_encode()).indices
    if pa.types.is_boolean(column.type):
        column = column.cast(pa.int8())
    if column.null_count:
        yield column.is_null().to_numpy(zero_copy_only=False)
        column = column.fill_null(0)
    yield column.to_numpy()
