"""One sorted stream of rows → files of about the size aimed at, each with its index row and what it stands on.

What belongs here: where row groups and files are cut, and that a finished file holds what was written. What does not:
where the rows come from (``merge``), how a row group is encoded (``parquet``).

Cuts depend on the rows alone, never on the tables in which they come: a row group has ``parquet.ROW_GROUP_ROWS`` rows,
or fewer where texts are so long that it holds ``ROW_GROUP_BYTES`` of them; a file ends with the row group by which it
reaches the size aimed at.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from lakerunner_dagster.lake.errors import ConservationBreach
from lakerunner_dagster.lake.model import Contribution, CreatedBy, InputKind, Output, Segment
from lakerunner_dagster.lake.segments import parquet
from lakerunner_dagster.lake.segments.index import Contents
from lakerunner_dagster.lake.segments.union import Union
from lakerunner_dagster.lake.segments.work import Work
from lakerunner_dagster.lake.telemetry.metric_rows import added_count

if TYPE_CHECKING:
    import numpy.typing as npt

    Ints = npt.NDArray[np.int64]

ROW_GROUP_BYTES = 128 * 1024 * 1024
"""Bytes of texts, those held as dictionary codes aside, that fill a row group before its rows do."""


@dataclass(frozen=True, slots=True)
class MergedSegment:
    """A segment that is not in the store yet: ``path`` is its file, to be put at ``output.segment.key``."""

    output: Output
    path: Path


@dataclass(frozen=True, slots=True)
class Shares:
    """What rows stand on: row ``rows[i]`` stands for ``records[i]`` records of input ``inputs[i]``; rows ascend."""

    rows: Ints
    inputs: Ints
    records: Ints

    def between(self, begin: int, end: int) -> tuple[Ints, Ints]:
        """(input, records) of what rows ``begin`` to before ``end`` stand on."""
        span = slice(*np.searchsorted(self.rows, [begin, end]))
        return self.inputs[span], self.records[span]


@dataclass(frozen=True, slots=True)
class Made:
    """What segments are besides their rows: fields of their index rows, and the Zstandard level of their files."""

    created_by: CreatedBy
    compacted: bool
    rolledup: bool
    reach_ms: int | None
    level: int


class Outputs:
    """Rows in order go in, finished segments come out; what is unfinished when the context is left is deleted.

    ``work`` is that of the first file, the others count up. ``inputs``: the segments that :class:`Shares` number.
    ``added_count``: ``metric_rows.added_count`` of the rows written so far.
    """

    def __init__(
        self, work: Work, union: Union, inputs: Sequence[Segment], made: Made, *, directory: Path, target_bytes: int
    ) -> None:
        self.added_count = 0.0
        self._work = work
        self._union = union
        self._inputs = inputs
        self._made = made
        self._directory = directory
        self._target_bytes = target_bytes
        self._group = _Group(len(inputs))
        self._file: _File | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            self._file.discard()

    def add(self, rows: pa.Table, shares: Shares) -> Iterator[MergedSegment]:
        """Write rows, in the form of the union's schema."""
        sizes = _text_bytes(rows)
        begin = 0
        while begin < rows.num_rows:
            end = begin + self._group.room(sizes[begin:])
            self._group.add(rows.slice(begin, end - begin), sizes[begin:end], *shares.between(begin, end))
            if self._group.full:
                yield from self._write_group()
            begin = end

    def finish(self) -> Iterator[MergedSegment]:
        """Write what is left."""
        if self._group.rows:
            yield from self._write_group()
        if self._file is not None:
            yield self._finished(self._file)

    def _write_group(self) -> Iterator[MergedSegment]:
        if self._file is None:
            self._file = _File(self._work, self._union, len(self._inputs), self._made, self._directory)
        rows = self._group.encoded()
        if self._work.frequency_ms:
            self.added_count += added_count(rows)
        self._file.add(rows, self._group.records)
        self._group = _Group(len(self._inputs))
        if self._file.size >= self._target_bytes:
            yield self._finished(self._file)

    def _finished(self, file: _File) -> MergedSegment:
        merged = file.finish(self._union.original_keys, self._inputs)
        self._file = None
        self._work = replace(self._work, ordinal=self._work.ordinal + 1)
        return merged


class _Group:
    """A row group that fills. ``rows``: how many it has; ``records``: by input, those that they stand for."""

    def __init__(self, inputs: int) -> None:
        self.rows = 0
        self.records = np.zeros(inputs, np.int64)
        self._bytes = 0
        self._chunks: defaultdict[str, list[pa.Array]] = defaultdict(list)

    @property
    def full(self) -> bool:
        return self.rows >= parquet.ROW_GROUP_ROWS or self._bytes >= ROW_GROUP_BYTES

    def room(self, sizes: Ints) -> int:
        """How many of the rows to come, of these sizes, still belong to it."""
        by_bytes = int(np.searchsorted(np.cumsum(sizes), ROW_GROUP_BYTES - self._bytes)) + 1
        return min(by_bytes, parquet.ROW_GROUP_ROWS - self.rows, len(sizes))

    def add(self, rows: pa.Table, sizes: Ints, inputs: Ints, records: Ints) -> None:
        for name, column in zip(rows.column_names, rows.columns, strict=True):
            self._chunks[name].extend(column.chunks)
        self.rows += rows.num_rows
        self._bytes += int(sizes.sum())
        self.records += np.bincount(inputs, records, len(self.records)).astype(np.int64)  # exact below 2^53

    def encoded(self) -> pa.Table:
        """All its rows, once: column by column they are let go, so that they are not in memory twice."""
        names = list(self._chunks)
        return pa.table({name: parquet.of_row_group(pa.chunked_array(self._chunks.pop(name))) for name in names})


class _File:
    """One file that grows, and what its index row will say."""

    def __init__(self, work: Work, union: Union, inputs: int, made: Made, directory: Path) -> None:
        self._work = work
        self._made = made
        self._path = directory / f"tbl_{work.segment_id}.parquet"
        self._sink = pa.OSFile(str(self._path), "wb")
        self._writer = parquet.opened_writer(self._sink, union.schema, union.repeating, made.level)
        self._contents = Contents(work.signal, work.frequency_ms)
        self._records = np.zeros(inputs, np.int64)

    @property
    def size(self) -> int:
        """Bytes written so far, without the footer."""
        return int(self._sink.tell())

    def add(self, rows: pa.Table, records: Ints) -> None:
        self._writer.write_table(rows, row_group_size=rows.num_rows)
        self._contents.add(rows)
        self._records += records

    def finish(self, original_keys: Mapping[str, str], inputs: Sequence[Segment]) -> MergedSegment:
        """Close the file; ConservationBreach unless it holds what was written, and that is what its inputs gave."""
        labels = self._contents.labels(original_keys)
        self._writer.add_key_value_metadata(self._work.footer(labels))
        self._close()
        self._check()
        segment = self._work.segment(
            self._contents,
            labels,
            file_size=self._path.stat().st_size,
            ingest_dateint=min(given.ingest_dateint for given in inputs),
            created_by=self._made.created_by,
            compacted=self._made.compacted,
            rolledup=self._made.rolledup,
            reach_ms=self._made.reach_ms,
        )
        contributions = tuple(
            Contribution(given.segment_id, count)
            for given, count in zip(inputs, self._records.tolist(), strict=True)
            if count
        )
        return MergedSegment(Output(segment, contributions, InputKind.SEGMENT), self._path)

    def discard(self) -> None:
        self._close()
        self._path.unlink()

    def _close(self) -> None:
        self._writer.close()
        self._sink.close()

    def _check(self) -> None:
        footer = pq.read_metadata(self._path)
        at = footer.schema.names.index("chq_timestamp")
        times = [footer.row_group(group).column(at).statistics for group in range(footer.num_row_groups)]
        start_ms = min(extremes.min for extremes in times)
        end_ms = max(extremes.max for extremes in times) + (self._work.frequency_ms or 1)
        found = (footer.num_rows, start_ms, end_ms)
        contents = self._contents
        expected = (contents.record_count, contents.start_ms, contents.end_ms)
        if found != expected or self._records.sum() != contents.records:
            raise ConservationBreach(
                f"{self._path.name}: (rows, first and last ms) are {found} and should be {expected}; its inputs gave "
                f"{self._records.sum()} records and its rows stand for {contents.records}: nothing may be published."
            )


def _text_bytes(rows: pa.Table) -> Ints:
    """Bytes of the texts of each row that are not held as dictionary codes."""
    sizes = np.zeros(rows.num_rows, np.int64)
    for column in rows.columns:
        if parquet.is_text(column.type) and not pa.types.is_dictionary(column.type):
            sizes += pc.binary_length(column).fill_null(0).to_numpy()
    return sizes
