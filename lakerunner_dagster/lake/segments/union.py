"""The columns of several segments together: which there are, in what form they are held, and how they are written.

What belongs here: decisions, from the footers alone, so that they are a function of the set of segments; and bringing
rows into the form decided on. What does not: reading footers and rows (``reading``), the overflow (``overflow``).
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING

import pyarrow as pa

from lakerunner_dagster.lake.segments.columns import OVERFLOW, segment_schema, typed, whole
from lakerunner_dagster.lake.segments.parquet import is_text
from lakerunner_dagster.lake.signals import Signal
from lakerunner_dagster.lake.telemetry.metrics import RESOURCE_COLUMNS
from lakerunner_dagster.lake.telemetry.parents import PINNED_COLUMNS

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    from lakerunner_dagster.lake.segments.reading import Opened

PINNED: Mapping[Signal, frozenset[str]] = MappingProxyType(
    {Signal.LOGS: PINNED_COLUMNS, Signal.METRICS: RESOURCE_COLUMNS, Signal.TRACES: PINNED_COLUMNS}
)
"""Attribute columns that never go to the overflow."""

_CODE_BYTES = 4
"""A column of texts of so few bytes a row in its files is held and written as dictionary codes: the texts are few, or
short. Others would make dictionaries of many MiB, which every merge to come would hold for each of its inputs; without
one a column of log messages is hardly larger and is written in half the time."""


@dataclass(frozen=True, slots=True)
class Union:
    """``schema``: the columns, in order; those of texts that are few as dictionary codes.

    ``repeating``: columns that are written with dictionaries: those of such texts, and the others that had one in most
    of the rows read. ``overflowing``: the attribute columns of some inputs that have to go. ``original_keys``: of the
    others; where inputs differ, the first in sorted order.
    """

    schema: pa.Schema
    repeating: frozenset[str]
    overflowing: frozenset[str]
    original_keys: Mapping[str, str]


def union_of(inputs: Sequence[Opened], signal: Signal, most_columns: int) -> Union:
    """The union of segments, with at most so many attribute columns; the rarest go, at a tie the last by name.

    An attribute column stays if any row of any input holds a value in it.
    """
    values: Counter[str] = Counter()
    in_dictionaries: Counter[str] = Counter()
    bytes_of: Counter[str] = Counter()
    for opened in inputs:
        for name, facts in opened.columns.items():
            values[name] += facts.values
            in_dictionaries[name] += facts.values_in_dictionaries
            bytes_of[name] += facts.bytes
    held = {name for one in inputs for name in one.attributes if values[name]}
    by_rank = sorted(held, key=lambda name: (name not in PINNED[signal], -values[name], name))
    attributes, overflowing = by_rank[:most_columns], frozenset(by_rank[most_columns:])

    plain = segment_schema(signal, attributes)
    room = _CODE_BYTES * sum(opened.segment.record_count for opened in inputs)
    repeating = frozenset(
        field.name
        for field in plain
        if 2 * in_dictionaries[field.name] >= values[field.name]
        and not (is_text(field.type) and bytes_of[field.name] > room)
        and not (overflowing and field.name == OVERFLOW)
    )
    return Union(
        schema=_coded(plain, repeating),
        repeating=repeating,
        overflowing=overflowing,
        original_keys=_original_keys(inputs, attributes),
    )


def in_form(rows: pa.Table, schema: pa.Schema) -> pa.Table:
    """The rows with exactly the columns of a schema, each whole; NULL where absent.

    :raises ContractBreach: for values that do not fit their type.
    """
    absent = {kind: pa.nulls(rows.num_rows, kind) for kind in set(schema.types)}
    given = dict(zip(rows.column_names, rows.columns, strict=True))
    columns = [
        _formed(whole(given[field.name]), field) if field.name in given else absent[field.type] for field in schema
    ]
    return pa.table(columns, schema=schema)


def _formed(column: pa.Array, field: pa.Field) -> pa.Array:
    """The column in the type of the field, as dictionary codes or not as the field has it."""
    if column.type == field.type and not pa.types.is_dictionary(field.type):
        return column
    if not pa.types.is_dictionary(field.type):
        column = typed(column, field)
        return column.cast(field.type) if pa.types.is_dictionary(column.type) else column
    column = typed(column, pa.field(field.name, field.type.value_type))
    return column if pa.types.is_dictionary(column.type) else column.dictionary_encode()


def plain_columns(schema: pa.Schema, names: Collection[str]) -> pa.Schema:
    """The schema with the texts themselves in the columns named, where it has dictionary codes."""
    return pa.schema(
        [
            (field.name, field.type.value_type) if field.name in names and pa.types.is_dictionary(field.type) else field
            for field in schema
        ]
    )


def _original_keys(inputs: Sequence[Opened], attributes: Collection[str]) -> Mapping[str, str]:
    return {
        name: min(keys)
        for name in attributes
        if (keys := [opened.original_keys[name] for opened in inputs if name in opened.original_keys])
    }


def _coded(schema: pa.Schema, names: Collection[str]) -> pa.Schema:
    """The schema with dictionary codes for the texts among the columns named."""
    return pa.schema(
        [
            (field.name, pa.dictionary(pa.int32(), field.type))
            if field.name in names and is_text(field.type)
            else field
            for field in schema
        ]
    )
