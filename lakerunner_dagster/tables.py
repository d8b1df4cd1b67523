"""Tables in the metadata of Dagster's events.

What belongs here: their form and their longest length. What does not: what stands in one.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice

import dagster as dg

SHOWN_ROWS = 100
"""Longest table in one event: events are kept for years, and lrdb holds the rest."""


def table(columns: dict[str, str], rows: Iterable[tuple[str | float, ...]]) -> dg.TableMetadataValue:
    """The first rows under columns of these names and types (``string``, ``int``, ``float``)."""
    return dg.MetadataValue.table(
        records=[dg.TableRecord(dict(zip(columns, row, strict=True))) for row in islice(rows, SHOWN_ROWS)],
        schema=dg.TableSchema([dg.TableColumn(name, kind) for name, kind in columns.items()]),
    )
