"""The fields of an index row, computed anew from the rows that are written.

What belongs here: what lrdb says of a segment's content (how its fingerprints are made: ``fingerprints``). What does
not: the segment's identity (``work``), how lrdb stores a row.
"""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING, TypedDict

import pyarrow as pa
import pyarrow.compute as pc

from lakerunner_dagster.lake.segments.columns import POINTS, coded
from lakerunner_dagster.lake.segments.fingerprints import Fingerprints
from lakerunner_dagster.lake.segments.parquet import distinct
from lakerunner_dagster.lake.signals import Signal

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

STREAM_FIELDS = ("resource_customer_domain", "resource_service_name")
"""Columns that may tell log streams apart (contract): the first that holds a value in the segment does."""

METRIC_TYPES: Mapping[str, int] = MappingProxyType(
    {"gauge": 1, "sum": 2, "histogram": 3, "exponential_histogram": 4, "summary": 5}
)
"""``chq_point_type`` to the number in ``metric_types`` (contract)."""

_LISTED_BYTES = 2048  # PostgreSQL refuses a row of which an entry of a GIN index passes 2.7 kB


class ContentFields(TypedDict, total=False):
    """Fields of ``model.Segment`` that only some signals have."""

    rollup_count: float
    stream_ids: tuple[str, ...] | None
    stream_id_field: str | None
    metric_names: tuple[str, ...]
    metric_types: tuple[int, ...]


class Contents:
    """What the index row of a segment says of its rows, which come a table at a time: all at once, or by row groups.

    ``start_ms`` and ``end_ms``: [start, end) of the rows so far, see :func:`time_range`. ``record_count``: rows;
    ``records``: raw records that they stand for.
    """

    def __init__(self, signal: Signal, frequency_ms: int) -> None:
        self.start_ms = self.end_ms = self.record_count = self.records = 0
        self._signal = signal
        self._frequency_ms = frequency_ms
        self._fingerprints = Fingerprints()
        self._parts: list[ContentFields] = []

    def add(self, rows: pa.Table) -> None:
        """Count in one or more rows of an encoded table."""
        start_ms, end_ms = time_range(rows, self._frequency_ms)
        self.start_ms = min(start_ms, self.start_ms) if self.record_count else start_ms
        self.end_ms = max(end_ms, self.end_ms)
        self.record_count += rows.num_rows
        self.records += records(rows)
        self._fingerprints.add(rows)
        self._parts.append(CONTENT_FIELDS[self._signal](rows))

    def labels(self, original_keys: Mapping[str, str]) -> dict[str, str]:
        """Attribute column to original key, for the columns that hold a value, by column name."""
        return {name: original_keys[name] for name in sorted(self._fingerprints.held) if name in original_keys}

    def fingerprints(self) -> tuple[int, ...]:
        """See :class:`~lakerunner_dagster.lake.segments.fingerprints.Fingerprints`."""
        return self._fingerprints.found()

    def own_fields(self) -> ContentFields:
        """The fields that only some signals have."""
        return _JOINED[self._signal](self._parts)


def time_range(table: pa.Table, frequency_ms: int) -> tuple[int, int]:
    """[start, end) in ms: a bucket lasts for its frequency, a single record for its millisecond."""
    extremes = pc.min_max(table.column("chq_timestamp")).as_py()
    return extremes["min"], extremes["max"] + (frequency_ms or 1)


def records(table: pa.Table) -> int:
    """Raw records that the rows stand for."""
    return int(pc.sum(table.column(POINTS)).as_py()) if POINTS in table.column_names else int(table.num_rows)


def _stream_fields(table: pa.Table) -> ContentFields:
    for field in (field for field in STREAM_FIELDS if field in table.column_names):
        if values := {listed(value) for value in distinct(table.column(field)).to_pylist() if value}:
            return {"stream_ids": tuple(sorted(values)), "stream_id_field": field}
    return {}


def _metric_fields(table: pa.Table) -> ContentFields:
    """A name that has points of several types is listed once, with the least of their numbers."""
    name_of, kind_of = (coded(table.column(name)) for name in ("metric_name", "chq_point_type"))
    kinds = len(kind_of.dictionary)
    types: dict[str, int] = {}
    for pair in pc.add(pc.multiply(name_of.indices.cast(pa.int64()), kinds), kind_of.indices).unique().to_pylist():
        name = listed(name_of.dictionary[pair // kinds].as_py())
        number = METRIC_TYPES[kind_of.dictionary[pair % kinds].as_py()]
        types[name] = min(number, types.get(name, number))
    names = sorted(types)
    return {
        "rollup_count": float(pc.sum(table.column("chq_rollup_count")).as_py() or 0),
        "metric_names": tuple(names),
        "metric_types": tuple(types[name] for name in names),
    }


def _joined_streams(parts: Sequence[ContentFields]) -> ContentFields:
    for field in STREAM_FIELDS:
        if ids := {one for part in parts if part.get("stream_id_field") == field for one in part["stream_ids"] or ()}:
            return {"stream_ids": tuple(sorted(ids)), "stream_id_field": field}
    return {}


def _joined_metrics(parts: Sequence[ContentFields]) -> ContentFields:
    types: dict[str, int] = {}
    for part in parts:
        for name, number in zip(part["metric_names"], part["metric_types"], strict=True):
            types[name] = min(number, types.get(name, number))
    return {
        "rollup_count": sum(part["rollup_count"] for part in parts),
        "metric_names": tuple(sorted(types)),
        "metric_types": tuple(types[name] for name in sorted(types)),
    }


CONTENT_FIELDS: Mapping[Signal, Callable[[pa.Table], ContentFields]] = MappingProxyType(
    {Signal.LOGS: _stream_fields, Signal.METRICS: _metric_fields, Signal.TRACES: lambda _: {}}
)
"""What the index says of the content of one signal's segments alone, from an encoded table."""

_JOINED: Mapping[Signal, Callable[[Sequence[ContentFields]], ContentFields]] = MappingProxyType(
    {Signal.LOGS: _joined_streams, Signal.METRICS: _joined_metrics, Signal.TRACES: lambda _: {}}
)
"""The same of several tables, from what it says of each."""


def listed(text: str) -> str:
    """The text as PostgreSQL can hold and index it: without NUL, and not longer than any sane name."""
    return text.replace("\0", "\N{REPLACEMENT CHARACTER}").encode()[:_LISTED_BYTES].decode(errors="ignore")
