"""The fields of an index row, computed anew from the rows that are written.

What belongs here: what lrdb says of a segment's content, but for its fingerprints (``fingerprints``). What does not:
the segment's identity and size (``build``), how lrdb stores a row.
"""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING, TypedDict

import pyarrow as pa
import pyarrow.compute as pc

from lakerunner_dagster.lake.segments.columns import POINTS, coded
from lakerunner_dagster.lake.segments.parquet import distinct
from lakerunner_dagster.lake.signals import Signal

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

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


def time_range(table: pa.Table, frequency_ms: int) -> tuple[int, int]:
    """[start, end) in ms: a bucket lasts for its frequency, a single record for its millisecond."""
    extremes = pc.min_max(table.column("chq_timestamp")).as_py()
    return extremes["min"], extremes["max"] + (frequency_ms or 1)


def records(table: pa.Table) -> int:
    """Raw records that the rows stand for."""
    return int(pc.sum(table.column(POINTS)).as_py()) if POINTS in table.column_names else int(table.num_rows)


def label_name_map(table: pa.Table, original_keys: Mapping[str, str]) -> dict[str, str]:
    """Attribute column to original key, for the columns that the table has, by column name."""
    return {name: original_keys[name] for name in sorted(table.column_names) if name in original_keys}


def _stream_fields(table: pa.Table) -> ContentFields:
    for field in (field for field in STREAM_FIELDS if field in table.column_names):
        if values := {_listed(value) for value in distinct(table.column(field)).to_pylist() if value}:
            return {"stream_ids": tuple(sorted(values)), "stream_id_field": field}
    return {}


def _metric_fields(table: pa.Table) -> ContentFields:
    """A name that has points of several types is listed once, with the least of their numbers."""
    name_of, kind_of = (coded(table.column(name)) for name in ("metric_name", "chq_point_type"))
    kinds = len(kind_of.dictionary)
    types: dict[str, int] = {}
    for pair in pc.add(pc.multiply(name_of.indices.cast(pa.int64()), kinds), kind_of.indices).unique().to_pylist():
        name = _listed(name_of.dictionary[pair // kinds].as_py())
        number = METRIC_TYPES[kind_of.dictionary[pair % kinds].as_py()]
        types[name] = min(number, types.get(name, number))
    names = sorted(types)
    return {
        "rollup_count": float(pc.sum(table.column("chq_rollup_count")).as_py() or 0),
        "metric_names": tuple(names),
        "metric_types": tuple(types[name] for name in names),
    }


CONTENT_FIELDS: Mapping[Signal, Callable[[pa.Table], ContentFields]] = MappingProxyType(
    {Signal.LOGS: _stream_fields, Signal.METRICS: _metric_fields, Signal.TRACES: lambda _: {}}
)
"""What the index says of the content of one signal's segments alone, from an encoded table."""


def _listed(text: str) -> str:
    """The text as PostgreSQL can hold and index it: without NUL, and not longer than any sane name."""
    return text.replace("\0", "\N{REPLACEMENT CHARACTER}").encode()[:_LISTED_BYTES].decode(errors="ignore")
