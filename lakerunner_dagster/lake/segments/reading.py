"""Segments read anew: their files opened, held against their index rows, and read a batch at a time.

What belongs here: what a segment that is to be merged must be, and what is wrong with one that is not. What does not:
that its rows are in order (``interleave`` sees them beside those of others), how columns are united (``union``).
"""

from __future__ import annotations

import json
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from lakerunner_dagster.lake.errors import ContractBreach, InputError, SegmentUnusable
from lakerunner_dagster.lake.model import Segment
from lakerunner_dagster.lake.segments.columns import FILE, POINTS, attributes_among
from lakerunner_dagster.lake.segments.index import records, time_range
from lakerunner_dagster.lake.segments.overflow import overflowed
from lakerunner_dagster.lake.segments.union import Union, in_form
from lakerunner_dagster.lake.signals import SIGNALS, Signal
from lakerunner_dagster.lake.stages import asset_of
from lakerunner_dagster.lake.telemetry.metric_rows import DERIVED, added_count

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

NEVER_NULL: Mapping[Signal, tuple[str, ...]] = MappingProxyType(
    {
        Signal.LOGS: ("chq_id", "chq_timestamp", "chq_tsns"),
        Signal.METRICS: ("metric_name", "chq_tid", "chq_timestamp", "chq_point_type", "chq_rollup_count", POINTS),
        Signal.TRACES: ("chq_id", "chq_timestamp", "chq_tsns"),
    }
)
"""Columns by which rows are told apart, placed or counted."""


VERIFIED_ROWS = 8192
"""Rows of a file in memory at once while all that is wanted of them is that they can be read."""

PAGE_BYTES = 1 << 20
"""A page of a column, other than its dictionary, is of about so many bytes: one is held while its file is read."""


@dataclass(frozen=True, slots=True)
class MergeInput:
    """A published segment and a local file with the bytes of its object."""

    segment: Segment
    path: Path


@dataclass(frozen=True, slots=True)
class ColumnFacts:
    """What a footer says of a column: how many values it holds (rows, where it does not tell how many are NULL), how
    many of them in row groups where they have a dictionary, and its uncompressed bytes, of all and the largest.
    """

    values: int
    values_in_dictionaries: int
    bytes: int
    largest_bytes: int
    is_bytes: bool

    @property
    def in_dictionaries(self) -> bool:
        """Whether it has texts in dictionaries, somewhere."""
        return self.is_bytes and self.values_in_dictionaries > 0

    @property
    def by_groups(self) -> bool:
        """Whether it is read a row group at a time: its texts may be in a dictionary that is larger than a page.

        A batch at a time, the dictionary would be in memory twice while its row group is read, and again with each
        batch that is held of a column of codes.
        """
        return self.in_dictionaries and self.largest_bytes > PAGE_BYTES


@dataclass(frozen=True, slots=True)
class Opened:
    """An input whose footer agrees with its index row. ``attributes``: its attribute columns."""

    segment: Segment
    path: Path
    metadata: pq.FileMetaData
    columns: Mapping[str, ColumnFacts]
    attributes: frozenset[str]
    original_keys: Mapping[str, str]


def unusable(segment: Segment, reason: str, what: str) -> SegmentUnusable:
    """The error that sets one segment aside."""
    return SegmentUnusable(
        segment,
        reason,
        f"{segment.key}: {what}; it was set aside and left as it is: rebuild its day ({segment.dateint} of collector "
        f"{segment.collector}) of {asset_of(segment.signal, segment.frequency_ms)}",
    )


def opened(given: MergeInput) -> Opened:
    """Read the footer; SegmentUnusable where it is not the index row's."""
    segment = given.segment
    with blamed_on(segment, "not_parquet"):
        metadata = pq.read_metadata(given.path)
        schema = metadata.schema.to_arrow_schema()
    _check_metadata(segment, metadata)
    names = schema.names
    if len(set(names)) < len(names) or metadata.num_columns != len(names):
        raise unusable(segment, "strange_columns", "it has nested columns, or two of one name")
    with blamed_on(segment, "strange_columns"):
        attributes = attributes_among(names, segment.signal)
    return Opened(
        segment, given.path, metadata, _facts(metadata, names), frozenset(attributes), _keys(segment, metadata)
    )


def verify(given: MergeInput) -> None:
    """Read a file to its end; SegmentUnusable where its footer is not the index row's, or a page is not as written."""
    metadata = opened(given).metadata
    with (
        blamed_on(given.segment, "corrupt_data"),
        pq.ParquetFile(given.path, metadata=metadata, page_checksum_verification=True, pre_buffer=False) as file,
    ):
        for _ in file.iter_batches(VERIFIED_ROWS, use_threads=False):
            pass


class Reader:
    """One pass over the rows of an input, in the form of a union, with ``_file`` for the number of the input.

    ``form``: the columns of the rows, but for ``_file``. ``records`` and ``added_count``: of the rows read so far, the
    raw records that they stand for, and the sum of ``metric_rows.added_count``.
    """

    def __init__(self, source: Opened, number: int, union: Union) -> None:
        self.segment = source.segment
        self.records = 0
        self.added_count = 0.0
        self._source = source
        self._number = number
        derived = DERIVED if SIGNALS[self.segment.signal].frequency_ms else ()
        self.form = pa.schema([field for field in union.schema if field.name not in derived])
        self._read = [
            name
            for name, facts in source.columns.items()
            if (facts.values and name in self.form.names) or name in union.overflowing
        ]
        self._moving = {
            name: source.original_keys.get(name, name.split("_", 1)[1])
            for name in sorted(union.overflowing & source.attributes)
        }

    def batches(self, rows: int) -> Iterator[pa.Table]:
        """All rows, at most so many at a time; SegmentUnusable where they are not what the index row says."""
        tables = self._tables(rows)
        left = self.segment.record_count
        while left:
            table = self._checked(self._next(tables))
            left -= table.num_rows
            if not left and self.records != self.segment.records:
                raise unusable(
                    self.segment,
                    "other_records",
                    f"its rows stand for {self.records} records, its index row says {self.segment.records}",
                )
            yield table

    def _next(self, tables: Iterator[pa.Table]) -> pa.Table:
        with blamed_on(self.segment, "corrupt_data"):
            table = next(tables, None)
        if table is None:
            raise unusable(self.segment, "corrupt_data", "it has fewer rows than its footer says")
        return table

    def _tables(self, rows: int) -> Iterator[pa.Table]:
        """The columns as they are in the file, at most so many rows at a time, of one row group each."""
        by_groups = [name for name in self._read if self._source.columns[name].by_groups]
        by_batches = [name for name in self._read if name not in by_groups]
        file = pq.ParquetFile(
            self._source.path,
            metadata=self._source.metadata,
            read_dictionary=[*self._coded(), *by_groups],
            page_checksum_verification=True,
            pre_buffer=False,  # else whole row groups are in memory
        )
        for group in range(file.num_row_groups):
            texts = file.read_row_group(group, by_groups, use_threads=False)
            begin = 0
            for batch in file.iter_batches(rows, [group], by_batches, use_threads=False):
                table = pa.Table.from_batches([batch])
                for name in by_groups:
                    table = table.append_column(name, texts.column(name).slice(begin, batch.num_rows))
                begin += batch.num_rows
                yield table

    def _coded(self) -> list[str]:
        return [
            field.name
            for field in self.form
            if pa.types.is_dictionary(field.type)
            and field.name in self._read
            and self._source.columns[field.name].is_bytes
        ]

    def _checked(self, rows: pa.Table) -> pa.Table:
        with blamed_on(self.segment, "strange_columns"):
            rows = in_form(overflowed(rows, self._moving) if self._moving else rows, self.form)
        if lacking := [name for name in NEVER_NULL[self.segment.signal] if rows.column(name).null_count]:
            raise unusable(self.segment, "missing_values", f"some of its rows have no {' and no '.join(lacking)}")
        start_ms, end_ms = time_range(rows, self.segment.frequency_ms)
        if start_ms < self.segment.start_ms or end_ms > self.segment.end_ms:
            raise unusable(
                self.segment,
                "other_times",
                f"it has rows of [{start_ms}, {end_ms}) ms, its index row says "
                f"[{self.segment.start_ms}, {self.segment.end_ms})",
            )
        self.records += records(rows)
        if self.segment.frequency_ms:
            self.added_count += added_count(rows)
        return rows.append_column(FILE, pa.array(np.full(rows.num_rows, self._number, np.int32)))


@contextmanager
def blamed_on(segment: Segment, reason: str) -> Iterator[None]:
    """Whatever Arrow or we cannot make of the segment's bytes is the segment's fault; a failing disk is not."""
    try:
        yield
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, pa.ArrowTypeError, ContractBreach) as error:
        raise unusable(segment, reason, str(error)) from error
    except InputError as error:
        raise unusable(segment, error.reason, str(error)) from error
    except OSError as error:
        if error.errno is not None:
            raise
        raise unusable(segment, reason, str(error)) from error


def _check_metadata(segment: Segment, metadata: pq.FileMetaData) -> None:
    expected = {
        "lakerunner.organization": str(segment.organization_id),
        "lakerunner.signal": str(segment.signal),
        "lakerunner.frequency_ms": str(segment.frequency_ms),
    }
    given = metadata.metadata or {}
    for name, value in expected.items():
        if given.get(name.encode()) != value.encode():
            found = given.get(name.encode(), b"").decode(errors="replace")
            raise unusable(segment, "other_metadata", f"its footer says {name} = {found!a}, its index row {value!a}")
    if metadata.num_rows != segment.record_count:
        raise unusable(
            segment, "other_rows", f"it has {metadata.num_rows} rows, its index row says {segment.record_count}"
        )


def _facts(metadata: pq.FileMetaData, names: list[str]) -> dict[str, ColumnFacts]:
    groups = [metadata.row_group(group) for group in range(metadata.num_row_groups)]
    return {name: _column_facts([group.column(at) for group in groups]) for at, name in enumerate(names)}


def _column_facts(chunks: list[pq.ColumnChunkMetaData]) -> ColumnFacts:
    values = [_values(chunk) for chunk in chunks]
    sizes = [chunk.total_uncompressed_size for chunk in chunks]
    coded = [count for count, chunk in zip(values, chunks, strict=True) if chunk.has_dictionary_page]
    is_bytes = all(chunk.physical_type == "BYTE_ARRAY" for chunk in chunks)
    return ColumnFacts(sum(values), sum(coded), sum(sizes), max(sizes, default=0), is_bytes)


def _values(chunk: pq.ColumnChunkMetaData) -> int:
    statistics = chunk.statistics
    told = statistics is not None and statistics.has_null_count
    return int(chunk.num_values - (statistics.null_count if told else 0))


def _keys(segment: Segment, metadata: pq.FileMetaData) -> dict[str, str]:
    """Attribute column to original key, as the footer says."""
    try:
        keys = json.loads(metadata.metadata.get(b"lakerunner.columns", b"{}"))
    except ValueError as error:
        raise unusable(segment, "other_metadata", f"its footer's lakerunner.columns is no JSON: {error}") from error
    if not isinstance(keys, dict) or not all(isinstance(key, str) for key in keys.values()):
        raise unusable(segment, "other_metadata", "its footer's lakerunner.columns maps no columns to keys")
    return keys
