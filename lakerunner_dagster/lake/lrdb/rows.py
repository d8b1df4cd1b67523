"""How rows that several modules read become values of the domain.

What belongs here: the columns of a value and the value of a row. What does not: which rows (every other module).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from psycopg import sql

from lakerunner_dagster.lake.model import RawObject
from lakerunner_dagster.lake.signals import Signal

RAW_OBJECT = sql.SQL(
    "r.raw_object_id, r.organization_id, r.instance_num, r.collector, r.signal, r.bucket, r.key, r.etag, r.size,"
    " r.event_time_ms"
)
"""Columns of raw_objects, read as ``r``, that :func:`raw_object` takes."""


def raw_object(row: Sequence[Any]) -> RawObject:
    """The raw object of a row of :data:`RAW_OBJECT`."""
    raw_object_id, organization_id, instance_num, collector, signal, bucket, key, etag, size, event_time_ms = row
    return RawObject(
        raw_object_id=raw_object_id,
        organization_id=organization_id,
        instance_num=instance_num,
        collector=collector,
        signal=Signal(signal),
        bucket=bucket,
        key=key,
        etag=etag,
        size=size,
        event_time_ms=event_time_ms,
    )
