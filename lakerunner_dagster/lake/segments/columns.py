"""The columns of a segment: which there are, their types and their order (spec/segments.md).

What belongs here: the fixed columns of each signal and the form that every table of rows must have before it is
sorted and written. What does not: how values come to be (``telemetry``), how they are encoded (``parquet``).
"""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING

import pyarrow as pa

from lakerunner_dagster.lake.errors import ContractBreach
from lakerunner_dagster.lake.signals import Signal

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping

FILE = "_file"
"""Working column of a decoded table, never written: int32 ordinal of the raw payload that a row comes from."""

POINTS = "chq_points"
"""Column of metrics: raw data points that a row stands for. It always adds up."""

OVERFLOW = "chq_overflow"
"""Last column of every segment: JSON object of the attributes that have no column, by original key."""

ATTRIBUTE_PREFIXES = ("resource_", "scope_", "attr_")
"""What the name of an attribute column begins with, in the order in which they stand in a file."""

_ID_COLUMNS = [("chq_customer_id", pa.string()), ("chq_telemetry_type", pa.string())]

FIXED_COLUMNS: Mapping[Signal, pa.Schema] = MappingProxyType(
    {
        Signal.LOGS: pa.schema(
            [
                ("chq_id", pa.string()),
                *_ID_COLUMNS,
                ("chq_timestamp", pa.int64()),
                ("chq_tsns", pa.int64()),
                ("chq_fingerprint", pa.int64()),
                ("log_level", pa.string()),
                ("log_message", pa.string()),
                ("metric_name", pa.string()),
                ("scope_name", pa.string()),
                ("scope_version", pa.string()),
                ("trace_id", pa.string()),
                ("span_id", pa.string()),
                ("chq_severity_number", pa.int32()),
                ("chq_observed_tsns", pa.int64()),
                ("chq_flags", pa.int64()),
                ("chq_event_name", pa.string()),
            ]
        ),
        Signal.METRICS: pa.schema(
            [
                *_ID_COLUMNS,
                ("metric_name", pa.string()),
                ("chq_description", pa.string()),
                ("chq_unit", pa.string()),
                ("chq_metric_type", pa.string()),
                ("chq_scope_name", pa.string()),
                ("chq_scope_url", pa.string()),
                ("chq_tid", pa.int64()),
                ("chq_timestamp", pa.int64()),
                ("chq_tsns", pa.int64()),
                *[(f"chq_rollup_{value}", pa.float64()) for value in ("count", "sum", "min", "max", "avg")],
                *[(f"chq_rollup_p{percent}", pa.float64()) for percent in (25, 50, 75, 90, 95, 99)],
                ("chq_sketch", pa.binary()),
                ("metric_temporality", pa.string()),
                ("metric_is_monotonic", pa.bool_()),
                ("chq_last", pa.float64()),
                ("chq_last_tsns", pa.int64()),
                ("chq_start_tsns", pa.int64()),
                ("chq_rollup_sum_low", pa.float64()),  # what rounding took from the sum: see telemetry.metric_rows
                (POINTS, pa.int64()),
                ("chq_point_type", pa.string()),  # OTLP's own word, and the name as it came: see telemetry.metrics
                ("chq_metric_name", pa.string()),
            ]
        ),
        Signal.TRACES: pa.schema(
            [
                *_ID_COLUMNS,
                ("chq_id", pa.string()),
                ("chq_timestamp", pa.int64()),
                ("chq_tsns", pa.int64()),
                ("chq_fingerprint", pa.int64()),
                ("span_trace_id", pa.string()),
                ("span_id", pa.string()),
                ("span_parent_span_id", pa.string()),
                ("span_name", pa.string()),
                ("span_kind", pa.string()),
                ("span_status_code", pa.string()),
                ("span_status_message", pa.string()),
                ("span_end_timestamp", pa.int64()),
                ("span_duration", pa.int64()),
                ("chq_duration_ns", pa.int64()),
                ("scope_name", pa.string()),
                ("scope_version", pa.string()),
                ("span_events", pa.string()),
                ("span_links", pa.string()),
                ("span_trace_state", pa.string()),
            ]
        ),
    }
)


def whole(column: pa.ChunkedArray) -> pa.Array:
    """The column as one array; ``combine_chunks`` would copy what is one already."""
    return column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()


def coded(column: pa.ChunkedArray) -> pa.DictionaryArray:
    """The column as one array of dictionary codes."""
    array = whole(column)
    return array if pa.types.is_dictionary(array.type) else array.dictionary_encode()


def attributes_among(names: Iterable[str], signal: Signal) -> set[str]:
    """The attribute columns among the columns of a table of rows.

    :raises ContractBreach: for a column that no segment has.
    """
    attributes = set(names) - set(FIXED_COLUMNS[signal].names) - {OVERFLOW}
    if strangers := sorted(name for name in attributes if not name.startswith(ATTRIBUTE_PREFIXES)):
        raise ContractBreach(f"Columns {strangers} have no place in a {signal} segment: nothing is written.")
    return attributes


def segment_schema(signal: Signal, attributes: Collection[str]) -> pa.Schema:
    """Fixed columns, then the attribute columns sorted within each prefix, then the overflow."""
    sorted_names = (name for prefix in ATTRIBUTE_PREFIXES for name in sorted(attributes) if name.startswith(prefix))
    return pa.schema([*FIXED_COLUMNS[signal], *((name, pa.string()) for name in (*sorted_names, OVERFLOW))])


def conform(table: pa.Table, signal: Signal) -> pa.Table:
    """The rows with exactly the columns of a segment, in the order of the spec.

    Fixed columns first, NULL where the table lacks one, of their declared type; then the attribute columns that hold a
    value, sorted within each prefix; then the overflow. Strings may be dictionary-encoded, before and after.

    :raises ContractBreach: for a column that no segment has, or one whose values do not fit its type.
    """
    given = dict(zip(table.column_names, map(whole, table.columns), strict=True))
    attributes = attributes_among(given, signal)
    absent = pa.nulls(table.num_rows)
    columns = {field.name: typed(given.get(field.name, absent), field) for field in segment_schema(signal, attributes)}
    empty = {name for name in attributes if columns[name].null_count == table.num_rows}
    return pa.table({name: column for name, column in columns.items() if name not in empty})


def typed(column: pa.Array, field: pa.Field) -> pa.Array:
    """The column as one of the field's type, or of dictionary codes into that type.

    :raises ContractBreach: for values that do not fit it.
    """
    if pa.types.is_dictionary(column.type) and column.dictionary.null_count:
        column = column.dictionary_decode()  # a code that means NULL would pass for a value wherever NULLs are counted
    held = column.type.value_type if pa.types.is_dictionary(column.type) else column.type
    if held == field.type:
        return column
    try:
        return column.cast(field.type)
    except pa.ArrowInvalid as error:
        raise ContractBreach(f"Column {field.name} is {column.type} and does not fit {field.type}: {error}") from error
