"""The memory of a merge: how many rows are held of each run, and what is done with more runs than there is room for.

What belongs here: estimates from footers, and merging in several passes where one would need too much. What does not:
merging itself (``interleave``). Nothing here changes what comes out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from lakerunner_dagster.lake.errors import ContractBreach
from lakerunner_dagster.lake.segments import parquet
from lakerunner_dagster.lake.segments.interleave import Run, gathered, interleaved
from lakerunner_dagster.lake.segments.order import sort_codes
from lakerunner_dagster.lake.segments.reading import PAGE_BYTES, ColumnFacts, Opened, Reader, unusable
from lakerunner_dagster.lake.segments.union import Union

LEAST_AHEAD = 512
"""Rows that are held of each run even where memory is short: with fewer, every batch costs more than its rows do."""

MOST_AHEAD = 32_768
"""Rows held of each run where there is memory for more, unless runs are so few that a row group needs more."""

AT_ONCE = 20_480
"""Rows that are taken at once: enough that the many columns of a table cost no more than its rows."""

AT_ONCE_TOGETHER = 6 * AT_ONCE
"""The same of rows that merge, of which only some go on."""

_SPILL_ROWS = 4096
"""Rows of a table that is read back from a file of rows already merged."""

_CELL_BYTES = 8
"""Bytes of a value or a code, its share of the work of ordering included; texts that are not coded come on top."""

_CODE_BYTES = 4
"""A dictionary code."""

_COPIES = 3
"""A run holds up to twice the rows that it should, and some are being copied into their order."""


@dataclass(frozen=True, slots=True)
class Stream:
    """Sorted rows that can be read once.

    ``tables(rows)``: at most so many at a time. ``fixed_bytes``: what is held while they are read, besides them;
    ``row_bytes``: of a row held. ``unsorted()``: the error where they are not sorted.
    """

    rows: int
    fixed_bytes: int
    row_bytes: float
    tables: Callable[[int], Iterator[pa.Table]]
    unsorted: Callable[[], Exception]


def stream_of(reader: Reader, source: Opened, union: Union) -> Stream:
    """An input as a stream."""
    coded = {field.name for field in union.schema if pa.types.is_dictionary(field.type)}
    rows = source.segment.record_count
    texts = sum(facts.bytes for name, facts in source.columns.items() if facts.is_bytes and name not in coded)
    return Stream(
        rows=rows,
        fixed_bytes=sum(_fixed_bytes(facts, rows) for facts in source.columns.values()),
        row_bytes=_CELL_BYTES * len(union.schema) + texts / max(rows, 1),
        tables=reader.batches,
        unsorted=lambda: unusable(source.segment, "unsorted", "its rows are not in the order of its signal"),
    )


def _fixed_bytes(facts: ColumnFacts, rows: int) -> int:
    """What is held of a column while its file is read: the codes and texts of a row group, or the page as it is in the
    file and its dictionary, which Arrow has twice: as it is in the file and as texts.
    """
    if facts.by_groups:
        return facts.largest_bytes + _CODE_BYTES * min(rows, parquet.ROW_GROUP_ROWS)
    if facts.in_dictionaries:
        return 2 * facts.largest_bytes
    return min(facts.largest_bytes, PAGE_BYTES)


def merged_streams(
    streams: Sequence[Stream], keys: Sequence[str], *, together: bool, memory_bytes: int, directory: Path
) -> Iterator[pa.Table]:
    """The rows of all streams, ``interleaved`` or, ``together``, ``gathered``, with about so much memory for the rows
    and pages held.

    What does not fit is merged in groups first, whose rows go through files in ``directory``.
    """
    passes = 0
    while len(groups := _groups(streams, memory_bytes)) > 1:
        streams = [
            _spilled(group, keys, directory / f"{passes}-{number}.arrow", together=together, memory_bytes=memory_bytes)
            for number, group in enumerate(groups)
        ]
        passes += 1
    yield from _interleaved(streams, keys, together=together, memory_bytes=memory_bytes)


def _groups(streams: Sequence[Stream], memory_bytes: int) -> list[list[Stream]]:
    """Neighbours that can be merged at once, at least two each (the last may be alone)."""
    groups: list[list[Stream]] = []
    left = 0.0
    for stream in streams:
        needed = stream.fixed_bytes + _COPIES * LEAST_AHEAD * stream.row_bytes
        if not groups or (needed > left and len(groups[-1]) > 1):
            groups.append([])
            left = memory_bytes
        groups[-1].append(stream)
        left -= needed
    return groups


def _interleaved(
    streams: Sequence[Stream], keys: Sequence[str], *, together: bool, memory_bytes: int
) -> Iterator[pa.Table]:
    free = memory_bytes - sum(stream.fixed_bytes for stream in streams)
    affordable = int(free / (_COPIES * sum(stream.row_bytes for stream in streams)))
    useful = max(MOST_AHEAD, 2 * parquet.ROW_GROUP_ROWS // len(streams))
    ahead = max(LEAST_AHEAD, min(affordable, useful))
    runs = [Run(stream.tables(ahead), stream.rows, ahead, stream.unsorted) for stream in streams]
    yield from gathered(runs, keys, AT_ONCE_TOGETHER) if together else interleaved(runs, keys, AT_ONCE)


def _spilled(
    streams: Sequence[Stream], keys: Sequence[str], path: Path, *, together: bool, memory_bytes: int
) -> Stream:
    """The rows of some streams in one file."""
    tables = _interleaved(streams, keys, together=together, memory_bytes=memory_bytes)
    if together:
        tables = (table.take(np.argsort(sort_codes(table, keys), kind="stable")) for table in tables)
    first = next(tables)
    with (
        pa.OSFile(str(path), "wb") as sink,
        pa.ipc.new_stream(sink, first.schema, options=pa.ipc.IpcWriteOptions(compression="lz4")) as writer,
    ):
        writer.write_table(first, _SPILL_ROWS)
        for table in tables:
            writer.write_table(table, _SPILL_ROWS)
    rows = sum(stream.rows for stream in streams)
    return Stream(
        rows=rows,
        fixed_bytes=0,
        row_bytes=sum(stream.rows * stream.row_bytes for stream in streams) / rows,
        tables=lambda _: _read_back(path),
        unsorted=lambda: ContractBreach("Rows merged in an earlier pass are not sorted: a fault of the merge."),
    )


def _read_back(path: Path) -> Iterator[pa.Table]:
    with pa.OSFile(str(path)) as source, pa.ipc.open_stream(source) as batches:
        for batch in batches:
            yield pa.Table.from_batches([batch])
    path.unlink()
