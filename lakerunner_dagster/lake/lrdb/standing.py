"""What readers see now, told by raw object and hour: what a rebuild must read, and what it compares its own count with.

What belongs here: queries from published segments of the ingest tier down to raw objects, and back. What does not: the
history of either (``lineage``), changing what is published (``publish``).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from typing import TYPE_CHECKING, NamedTuple
from uuid import UUID

from psycopg import sql

from lakerunner_dagster.lake.lrdb import lineage, partitions, segments
from lakerunner_dagster.lake.lrdb.rows import RAW_OBJECT, raw_object
from lakerunner_dagster.lake.model import RawObject, Source
from lakerunner_dagster.lake.signals import SIGNALS, Signal

if TYPE_CHECKING:
    from lakerunner_dagster.lake.lrdb.connection import Conn


class Hour(NamedTuple):
    """A UTC hour (0-23) of a day (YYYYMMDD)."""

    dateint: int
    hour: int


def hours_of_day(conn: Conn, source: Source, signal: Signal, dateint: int) -> set[Hour]:
    """The hours of a day that have a published segment."""
    frequency_ms = SIGNALS[signal].frequency_ms
    published = segments.published_segments(conn, source, signal, dateint, frequency_ms=frequency_ms)
    return {Hour(dateint, segment.hour) for segment in published}


def objects_of_hour(conn: Conn, source: Source, signal: Signal, hour: Hour) -> list[RawObject]:
    """The raw objects that an hour's published segments stand on, oldest first."""
    published = segments.published_segments(
        conn, source, signal, hour.dateint, frequency_ms=SIGNALS[signal].frequency_ms, hour=hour.hour
    )
    stand_on = lineage.raw_inputs(conn, source.organization_id, [segment.segment_id for segment in published])
    return _objects(conn, source, set().union(*stand_on.values()))


def rejecting_objects(conn: Conn, source: Source, signal: Signal, dateint: int) -> list[RawObject]:
    """The ingested objects of a day of event time of which records were rejected, oldest first."""
    rows = conn.execute(
        """
        SELECT raw_object_id FROM raw_objects
        WHERE organization_id = %s AND instance_num = %s AND signal = %s AND event_dateint = %s
          AND state = 'ingested' AND records_rejected > 0
        """,
        (source.organization_id, source.instance_num, str(signal), dateint),
    )
    return _objects(conn, source, {raw_object_id for (raw_object_id,) in rows})


def unseen_objects(conn: Conn, source: Source, signal: Signal, dateint: int) -> list[RawObject]:
    """The ingested objects, oldest first, that gave records to a day, and of which readers see none there.

    Nor elsewhere instead: they have expired, or their segments' rows were lost.
    """
    frequency_ms = SIGNALS[signal].frequency_ms
    published = segments.published_segments(conn, source, signal, dateint, frequency_ms=frequency_ms)
    seen = lineage.raw_inputs(conn, source.organization_id, [segment.segment_id for segment in published])
    rows = conn.execute(
        """
        SELECT r.raw_object_id, r.records_read - r.records_rejected FROM raw_objects r
        WHERE r.organization_id = %(organization)s AND r.state = 'ingested' AND r.raw_object_id = ANY(ARRAY(
            SELECT l.input_id FROM lineage l
            WHERE l.organization_id = %(organization)s AND l.instance_num = %(instance)s AND l.signal = %(signal)s
              AND l.dateint = %(dateint)s AND l.frequency_ms = %(frequency)s AND l.input_kind = 'raw'
            EXCEPT SELECT unnest(%(seen)s::bigint[])))
        """,
        {
            "organization": source.organization_id,
            "instance": source.instance_num,
            "signal": str(signal),
            "dateint": dateint,
            "frequency": frequency_ms,
            "seen": sorted(set().union(*seen.values())),
        },
    )
    accepted: dict[int, int] = dict(rows.fetchall())
    elsewhere = records_by_hour(conn, source, signal, accepted)
    return _objects(conn, source, {id_ for id_, records in accepted.items() if elsewhere[id_].total() < records})


def published_records(conn: Conn, raw: RawObject) -> int:
    """How many records of a raw object readers see."""
    seen = _records_by_hour(conn, raw.organization_id, raw.signal, [raw.raw_object_id])
    return seen[raw.raw_object_id].total()


def records_by_hour(
    conn: Conn, source: Source, signal: Signal, raw_object_ids: Collection[int]
) -> dict[int, Counter[Hour]]:
    """How many records of each raw object readers see in each hour; an entry for every object asked for.

    A segment that was merged into others is seen through them.
    """
    return _records_by_hour(conn, source.organization_id, signal, raw_object_ids)


def _records_by_hour(
    conn: Conn, organization_id: UUID, signal: Signal, raw_object_ids: Collection[int]
) -> dict[int, Counter[Hour]]:
    parameters = {
        "organization": organization_id,
        "objects": list(raw_object_ids),
        "signal": str(signal),
        "frequency": SIGNALS[signal].frequency_ms,
    }
    found: dict[int, Counter[Hour]] = {raw_object_id: Counter() for raw_object_id in raw_object_ids}
    days = [dateint for (dateint,) in conn.execute(_DAYS_OF_OBJECTS, parameters)]
    query = _RECORDS_BY_HOUR.format(table=sql.Identifier(SIGNALS[signal].segment_table))
    for batch in partitions.batches(days):
        for raw_object_id, dateint, hour, records in conn.execute(query, parameters | {"days": batch}):
            found[raw_object_id][Hour(dateint, hour)] = records
    return found


_DAYS_OF_OBJECTS = """
    SELECT DISTINCT dateint FROM lineage
    WHERE organization_id = %(organization)s AND input_kind = 'raw' AND input_id = ANY(%(objects)s)
      AND signal = %(signal)s AND frequency_ms = %(frequency)s
    ORDER BY dateint
"""

# A segment's heirs of its own tier are of its hour: the days of all are those of the first.
_RECORDS_BY_HOUR = sql.SQL("""
    WITH RECURSIVE base AS (
        SELECT l.input_id, l.segment_id, l.dateint, l.hour, l.records FROM lineage l
        WHERE l.organization_id = %(organization)s AND l.input_kind = 'raw' AND l.input_id = ANY(%(objects)s)
          AND l.signal = %(signal)s AND l.frequency_ms = %(frequency)s AND l.dateint = ANY(%(days)s)
    ), heir (segment_id, heir_id, dateint) AS (
        SELECT DISTINCT segment_id, segment_id, dateint FROM base
        UNION
        SELECT h.segment_id, l.segment_id, l.dateint FROM heir h
        JOIN lineage l ON l.organization_id = %(organization)s AND l.input_kind = 'segment'
            AND l.input_id = h.heir_id AND l.frequency_ms = %(frequency)s
    )
    SELECT b.input_id, b.dateint, b.hour, sum(b.records)::bigint FROM base b
    WHERE EXISTS (
        SELECT FROM heir h JOIN {table} s ON s.organization_id = %(organization)s AND s.dateint = ANY(%(days)s)
            AND s.dateint = h.dateint AND s.segment_id = h.heir_id AND s.published
        WHERE h.segment_id = b.segment_id)
    GROUP BY b.input_id, b.dateint, b.hour
""")


def _objects(conn: Conn, source: Source, raw_object_ids: Collection[int]) -> list[RawObject]:
    rows = conn.execute(
        sql.SQL("""
        SELECT {raw_object} FROM raw_objects r
        WHERE r.organization_id = %s AND r.raw_object_id = ANY(%s) ORDER BY r.raw_object_id
        """).format(raw_object=RAW_OBJECT),
        (source.organization_id, list(raw_object_ids)),
    )
    return [raw_object(row) for row in rows]
