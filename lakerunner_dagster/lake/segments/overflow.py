"""Attribute columns → the overflow: what segments had as columns and their union has no room for.

What belongs here: the JSON objects of ``chq_overflow``, with more in them. What does not: which columns have to go
(``union``), the objects that ingest writes (``telemetry.attributes``).
"""

from __future__ import annotations

import json
from functools import cache, reduce
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.compute as pc

from lakerunner_dagster.lake.errors import InputError
from lakerunner_dagster.lake.segments.columns import ATTRIBUTE_PREFIXES, OVERFLOW

if TYPE_CHECKING:
    from collections.abc import Mapping

_GROUPS = tuple(prefix.removesuffix("_") for prefix in ATTRIBUTE_PREFIXES)


def overflowed(table: pa.Table, moving: Mapping[str, str]) -> pa.Table:
    """The rows without the columns ``moving``, whose values are in the overflow under the original keys given.

    A key that is in a row's overflow already has several values: they become an array, the column's first, as ingest
    has it.

    :raises InputError: ``corrupt_overflow``, for an overflow that is no object of objects.
    """
    columns = {name: table.column(name).cast(pa.string()) for name in sorted(moving)}
    kept = table.drop_columns(list(columns))
    had = kept.column(OVERFLOW) if OVERFLOW in kept.column_names else pa.chunked_array([pa.nulls(kept.num_rows)])
    had = had.cast(pa.string())
    concerned = reduce(pc.or_, (column.is_valid() for column in columns.values()))
    places = [(name.split("_", 1)[0], moving[name]) for name in columns]

    @cache
    def written(overflow: str | None, *values: str | None) -> str:
        return _with_more(
            overflow, {place: value for place, value in zip(places, values, strict=True) if value is not None}
        )

    cells = (column.filter(concerned).to_pylist() for column in (had, *columns.values()))
    texts = pa.array([written(*row) for row in zip(*cells, strict=True)], pa.string())
    overflow = pc.replace_with_mask(had.combine_chunks(), concerned.combine_chunks(), texts)
    others = [name for name in kept.column_names if name != OVERFLOW]
    return kept.select(others).append_column(OVERFLOW, overflow)


def _with_more(overflow: str | None, values: Mapping[tuple[str, str], str]) -> str:
    """The object with more in it; ``values`` by group and original key."""
    try:
        objects = {group: dict(members) for group, members in json.loads(overflow or "{}").items()}
    except (ValueError, AttributeError, TypeError) as error:
        raise InputError("corrupt_overflow", f"{OVERFLOW} is no JSON object of objects: {error}") from error
    for (group, key), value in values.items():
        members = objects.setdefault(group, {})
        if key in members:
            others = members[key] if isinstance(members[key], list) else [members[key]]
            members[key] = [value, *others]
        else:
            members[key] = value
    ordered = {group: objects.pop(group) for group in _GROUPS if group in objects}
    return json.dumps(ordered | objects, ensure_ascii=False, separators=(",", ":"))
