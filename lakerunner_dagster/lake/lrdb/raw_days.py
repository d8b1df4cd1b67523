"""Raw objects by their day: what lrdb knows of a source's days, and what readers see of them.

What belongs here: counting, and the contents that a key has had. What does not: what the store holds
(``runs.raw_replay``), what is to be done about it (``planning.replay``).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple
from uuid import UUID

from psycopg import sql

from lakerunner_dagster.lake.lrdb.backfill import Span
from lakerunner_dagster.lake.lrdb.rows import RAW_OBJECT, raw_object
from lakerunner_dagster.lake.model import RawObject, RawState, Source
from lakerunner_dagster.lake.planning.replay import KnownDay
from lakerunner_dagster.lake.signals import SIGNALS, Signal

if TYPE_CHECKING:
    from lakerunner_dagster.lake.lrdb.connection import Conn


class SeenDay(NamedTuple):
    """What readers see of a day as it was ingested, merged or not: segments, records and bytes of objects."""

    segments: int = 0
    records: int = 0
    bytes: int = 0


class Version(NamedTuple):
    """A content of a key that has a row, and where: its source's number, signal and day (YYYYMMDD)."""

    key: str
    etag: str
    instance_num: int
    signal: Signal
    dateint: int
    state: RawState


def known_days(conn: Conn, source: Source, signal: Signal, span: Span) -> dict[int, KnownDay]:
    """The days of the span that have raw objects in any state."""
    rows = conn.execute(
        """
        SELECT event_dateint, count(*), sum(size)::bigint, count(*) FILTER (WHERE state = 'ingested') FROM raw_objects
        WHERE organization_id = %s AND instance_num = %s AND signal = %s AND event_dateint BETWEEN %s AND %s
        GROUP BY 1
        """,
        (source.organization_id, source.instance_num, str(signal), span.first, span.last),
    )
    return {dateint: KnownDay(*counts) for dateint, *counts in rows}


def seen_days(conn: Conn, source: Source, signal: Signal, span: Span) -> dict[int, SeenDay]:
    """The days of the span of which readers see anything, of the tier that is ingested."""
    spec = SIGNALS[signal]
    rows = conn.execute(
        sql.SQL("""
        SELECT dateint, count(*), sum(records)::bigint, sum(file_size)::bigint FROM {table}
        WHERE organization_id = %s AND instance_num = %s AND dateint BETWEEN %s AND %s AND published AND {tier} = %s
        GROUP BY 1
        """).format(
            table=sql.Identifier(spec.segment_table), tier=sql.SQL("frequency_ms" if spec.frequency_ms else "0")
        ),
        (source.organization_id, source.instance_num, span.first, span.last, spec.frequency_ms),
    )
    return {dateint: SeenDay(*counts) for dateint, *counts in rows}


def versions(conn: Conn, organization_id: UUID, bucket: str, keys: Sequence[str]) -> list[Version]:
    """Every content that an organization's keys of a bucket have had."""
    rows = conn.execute(
        """
        SELECT key, etag, instance_num, signal, event_dateint, state FROM raw_objects
        WHERE organization_id = %s AND bucket = %s AND key = ANY(%s)
        """,
        (organization_id, bucket, list(keys)),
    )
    return [
        Version(key, etag, instance_num, Signal(signal), dateint, RawState(state))
        for key, etag, instance_num, signal, dateint, state in rows
    ]


def ingested(conn: Conn, source: Source, signal: Signal, dateint: int) -> list[RawObject]:
    """The ingested raw objects of a day, oldest first."""
    rows = conn.execute(
        sql.SQL("""
        SELECT {raw_object} FROM raw_objects r
        WHERE r.organization_id = %s AND r.instance_num = %s AND r.signal = %s AND r.event_dateint = %s
          AND r.state = 'ingested' ORDER BY r.raw_object_id
        """).format(raw_object=RAW_OBJECT),
        (source.organization_id, source.instance_num, str(signal), dateint),
    )
    return [raw_object(row) for row in rows]
