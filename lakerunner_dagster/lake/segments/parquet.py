"""Arrow rows in order → the bytes of a Parquet file, the same for the same rows.

What belongs here: encodings, row groups, the footer. What does not: order (``order``), columns (``columns``).

Columns whose values repeat go to Arrow's writer as dictionary codes: it then neither hashes every value again nor falls
back to plain text beyond a dictionary of 1 MiB. Three traps lie there, and :func:`encode` and :func:`write` avoid them:
a dictionary holds just the values used, in the order of their first use, else the bytes would tell which other rows had
been decoded with these; each row group gets a dictionary of its own, else each would hold that of the whole file; and a
column whose values hardly repeat is written without one, else it would be stored twice. Without Arrow's own schema in
the footer every reader sees plain strings.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from lakerunner_dagster.lake.segments.columns import whole

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

ROW_GROUP_ROWS = 122_880
"""Rows of a row group: DuckDB's own, one thread's share of a scan."""

_BATCH_ROWS = 8192
"""Rows that the writer takes at once: with its own 1,024 a quarter of its time goes into taking them."""

_NARROW_BATCH_ROWS = 32_768
"""The same where no column has plain texts: only these fill pages, which end after a batch, within a row group."""

INGEST_LEVEL = 1
"""Zstandard level of freshly ingested segments; compaction writes them anew with more effort."""

COMPACTION_LEVEL = 3
"""Zstandard level of compacted segments, which are kept."""


def encode(table: pa.Table) -> pa.Table:
    """The same rows with each string or binary column dictionary-encoded where its values repeat, plain elsewhere."""
    return pa.table(
        {
            name: _encoded(whole(column)) if is_text(column.type) else column
            for name, column in zip(table.column_names, table.columns, strict=True)
        }
    )


def write(table: pa.Table, metadata: Mapping[str, str], level: int = INGEST_LEVEL) -> pa.Buffer:
    """The file of an encoded table (see :func:`encode`); ``metadata`` becomes the footer's key-value pairs."""
    stream = pa.BufferOutputStream()
    with opened_writer(stream, table.schema, _repeating(table), level) as writer:
        for start in range(0, table.num_rows, ROW_GROUP_ROWS):
            writer.write_table(_row_group(table, start), row_group_size=ROW_GROUP_ROWS)
        writer.add_key_value_metadata(dict(metadata))
    return stream.getvalue()


def opened_writer(sink: pa.NativeFile, schema: pa.Schema, repeating: Collection[str], level: int) -> pq.ParquetWriter:
    """The writer of a file whose ``repeating`` columns have dictionaries; each table that it is given is a row group.

    Texts that repeat must be dictionary codes in the schema, and others not.
    """
    deltas = {
        field.name: "DELTA_BINARY_PACKED"
        for field in schema
        if pa.types.is_integer(field.type) and field.name not in repeating
    }
    plain_texts = any(is_text(field.type) and not pa.types.is_dictionary(field.type) for field in schema)
    return pq.ParquetWriter(
        sink,
        schema,
        compression="zstd",
        compression_level=level,
        use_dictionary=list(repeating),
        column_encoding=deltas,
        write_statistics=True,
        write_page_checksum=True,  # what rots in the store must not pass into what is merged of it
        store_schema=False,
        write_batch_size=_BATCH_ROWS if plain_texts else _NARROW_BATCH_ROWS,
    )


def of_row_group(column: pa.ChunkedArray) -> pa.Array:
    """The column of some rows of a larger table as one array; a dictionary is that of these rows alone."""
    return _compact(whole(column)) if pa.types.is_dictionary(column.type) else whole(column)


def distinct(column: pa.ChunkedArray) -> pa.Array:
    """The different values of a column of an encoded table, without NULL."""
    if pa.types.is_dictionary(column.type):
        return whole(column).dictionary
    return column.unique().drop_null()


def is_text(kind: pa.DataType) -> bool:
    """Whether values of the type are strings or bytes, dictionary-encoded or not."""
    held = kind.value_type if pa.types.is_dictionary(kind) else kind
    return bool(pa.types.is_string(held) or pa.types.is_binary(held))


def _row_group(table: pa.Table, start: int) -> pa.Table:
    """The rows from ``start`` on that go into one row group."""
    if table.num_rows <= ROW_GROUP_ROWS:
        return table
    rows = table.slice(start, ROW_GROUP_ROWS)
    return pa.table(dict(zip(rows.column_names, map(of_row_group, rows.columns), strict=True)))


def _encoded(column: pa.Array) -> pa.Array:
    coded = _compact(column) if pa.types.is_dictionary(column.type) else column.dictionary_encode()
    if _pays(len(coded.dictionary), coded):
        return coded
    return coded.dictionary_decode() if pa.types.is_dictionary(column.type) else column


def _compact(column: pa.DictionaryArray) -> pa.DictionaryArray:
    """The same values over a dictionary of just those, each once, in the order of their first use."""
    if len(column.dictionary) == 1 and column.null_count < len(column):
        return column
    used = column.indices.unique().drop_null()
    values = column.dictionary.take(used).dictionary_encode()
    places = np.zeros(len(column.dictionary), np.int32)
    places[used] = values.indices
    return pa.DictionaryArray.from_arrays(pa.array(places).take(column.indices), values.dictionary, safe=False)


def _repeating(table: pa.Table) -> list[str]:
    """The columns whose values repeat.

    Counting different numbers takes long, and is mostly spared: a column has at most one for each row that differs from
    the row before; and, as the numbers of a row are often alike (a single value is its own sum, least and greatest), at
    most one more than the column before for each row where the two differ.
    """
    repeating = []
    before: dict[pa.DataType, tuple[pa.Array, int]] = {}
    for name, column in zip(table.column_names, map(whole, table.columns), strict=True):
        if is_text(column.type):
            pays = bool(pa.types.is_dictionary(column.type))
        else:
            other, most = before.get(column.type, (column, len(column)))
            most += _differing(column, other)
            if not _pays(most, column):
                most = 1 + _differing(column[1:], column[:-1])
            if not _pays(most, column):
                most = pc.count_distinct(column).as_py()
            before[column.type] = column, most
            pays = _pays(most, column)
        if pays:
            repeating.append(name)
    return repeating


def _differing(column: pa.Array, other: pa.Array) -> int:
    """In how many rows, at most, the column has a value that the other has not; and one more, since 0.0 is equal to
    -0.0 but another value.
    """
    alike: int = pc.sum(pc.equal(column, other)).as_py() or 0
    return len(column) - int(column.null_count) - alike + 1


def _pays(different: int, column: pa.Array) -> bool:
    """Whether values repeat so often, twice on average, that a dictionary of them is worth its bytes."""
    return 2 * different <= len(column) - int(column.null_count)
