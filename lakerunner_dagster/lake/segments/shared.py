"""Columns that share codes: what all rows of one resource, or one list of attributes, have in common, carried once.

A shared column is a column of dictionary codes into structs, whose fields are text columns: dozens of columns move with
one. So they travel from the decoder until the rows of a segment are merged and in order, and are spread out then.

What belongs here: making, looking into and spreading shared columns. What does not: which columns share
(``telemetry.attributes``).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.compute as pc

from lakerunner_dagster.lake.segments.columns import whole

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    import numpy as np
    from numpy.typing import NDArray


def shared(places: NDArray[np.signedinteger], columns: Mapping[str, pa.DictionaryArray]) -> pa.DictionaryArray:
    """One column for several (one or more, of equal length), of which row i has the values at ``places[i]``."""
    structs = pa.StructArray.from_arrays(list(columns.values()), list(columns))
    return pa.DictionaryArray.from_arrays(pa.array(places, pa.int32()), structs)


def is_shared(kind: pa.DataType) -> bool:
    """Whether this is the type of a shared column."""
    return bool(pa.types.is_dictionary(kind) and pa.types.is_struct(kind.value_type))


def fields(column: pa.DictionaryArray) -> Iterator[tuple[str, pa.DictionaryArray]]:
    """The columns that a shared one stands for, each with its name."""
    for field in column.type.value_type:
        yield field.name, _taken(column.dictionary.field(field.name), column.indices)


def found(table: pa.Table, name: str) -> pa.Array | None:
    """A column of the table, shared or not; None where it has none of that name."""
    if name in table.column_names:
        return whole(table.column(name))
    for column in (whole(column) for column in table.columns if is_shared(column.type)):
        if column.type.value_type.get_field_index(name) >= 0:
            return _taken(column.dictionary.field(name), column.indices)
    return None


def spread(table: pa.Table) -> pa.Table:
    """The table with the columns that its shared ones stand for in their place."""
    columns: dict[str, pa.Array] = {}
    for name, column in zip(table.column_names, map(whole, table.columns), strict=True):
        columns.update(fields(column) if is_shared(column.type) else {name: column})
    return pa.table(columns)


def _taken(values: pa.DictionaryArray, rows: pa.Int32Array) -> pa.DictionaryArray:
    return pc.take(values, rows, boundscheck=False)
