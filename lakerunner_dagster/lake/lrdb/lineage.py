"""Which raw objects made which segments, over any number of steps between them.

What belongs here: lineage rows, followed both ways. What does not: whether they add up (``publish``, ``check``).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from uuid import UUID

from psycopg import sql

from lakerunner_dagster.lake.errors import RequestRefused
from lakerunner_dagster.lake.lrdb import segments
from lakerunner_dagster.lake.lrdb.connection import storable
from lakerunner_dagster.lake.lrdb.rows import RAW_OBJECT, raw_object
from lakerunner_dagster.lake.model import Output, RawObject, RawState, Source, segment_key
from lakerunner_dagster.lake.signals import SIGNALS, Signal

if TYPE_CHECKING:
    from lakerunner_dagster.lake.lrdb.connection import Conn


SEGMENT_KEY = re.compile(r"db/(?P<organization>[0-9a-f-]{36})/.+/tbl_(?P<segment>[0-9]{1,19})\.parquet")
"""Object key of a segment (spec/segments.md)."""


@dataclass(frozen=True, slots=True)
class KnownObject:
    """A raw object and where it is on its way."""

    raw: RawObject
    state: RawState


@dataclass(frozen=True, slots=True)
class MadeSegment:
    """A segment as its lineage knows it, which outlives its row and its object.

    ``published`` is what readers see; the object of one that is not may be gone from the store.
    """

    source: Source
    signal: Signal
    dateint: int
    hour: int
    frequency_ms: int
    segment_id: int
    operation: str
    run_id: str
    code_version: str
    published: bool

    @property
    def key(self) -> str:
        """Object key (contract, spec/segments.md)."""
        return segment_key(
            self.source.organization_id,
            self.source.collector,
            dateint=self.dateint,
            signal=self.signal,
            hour=self.hour,
            segment_id=self.segment_id,
        )


@dataclass(frozen=True, slots=True)
class Link:
    """A segment and a raw object that it stands on. ``records`` are the object's in it; None over several steps."""

    segment: MadeSegment
    known: KnownObject
    records: int | None


def add(conn: Conn, outputs: Iterable[Output], *, operation: str, run_id: str, code_version: str) -> None:
    """Say which raw objects or segments made new segments; an error where that was said already."""
    with (
        conn.cursor() as cursor,
        cursor.copy(
            "COPY lineage (organization_id, instance_num, signal, frequency_ms, dateint, hour, segment_id, input_kind,"
            " input_id, records, operation, run_id, code_version) FROM STDIN"
        ) as copy,
    ):
        for output in outputs:
            segment = output.segment
            for given in output.inputs:
                copy.write_row(
                    (
                        segment.organization_id,
                        segment.instance_num,
                        str(segment.signal),
                        segment.frequency_ms,
                        segment.dateint,
                        segment.hour,
                        segment.segment_id,
                        str(output.input_kind),
                        given.input_id,
                        given.records,
                        operation,
                        run_id,
                        code_version,
                    )
                )


def forget(conn: Conn, organization_id: UUID, segment_ids: Sequence[int]) -> None:
    """Make room for saying anew what made these segments: for those that are written again under the same id."""
    conn.execute(
        "DELETE FROM lineage WHERE organization_id = %s AND segment_id = ANY(%s)", (organization_id, list(segment_ids))
    )


def raw_inputs(conn: Conn, organization_id: UUID, segment_ids: Sequence[int]) -> dict[int, set[int]]:
    """The raw objects that each segment stands on, over any number of steps; no entry where there is no lineage."""
    rows = conn.execute(
        """
        WITH RECURSIVE origin (segment_id, via) AS (
            SELECT id, id FROM unnest(%(segments)s::bigint[]) AS given (id)
            UNION
            SELECT o.segment_id, l.input_id FROM origin o
            JOIN lineage l ON l.organization_id = %(organization)s AND l.segment_id = o.via AND l.input_kind = 'segment'
        )
        SELECT o.segment_id, array_agg(DISTINCT l.input_id) FROM origin o
        JOIN lineage l ON l.organization_id = %(organization)s AND l.segment_id = o.via AND l.input_kind = 'raw'
        GROUP BY o.segment_id
        """,
        {"segments": list(segment_ids), "organization": organization_id},
    )
    return {segment_id: set(inputs) for segment_id, inputs in rows}


def ingested_segments(conn: Conn, source: Source, signal: Signal, segment_ids: Sequence[int]) -> list[tuple[int, str]]:
    """(id of one of these segments, object key of a segment of the ingest tier that it stands on), in order.

    Over any number of tiers, down to the first of the ingest tier: that may have been merged of others.
    """
    rows = conn.execute(
        """
        WITH RECURSIVE origin (segment_id, via, frequency_ms, dateint, hour) AS (
            SELECT DISTINCT l.segment_id, l.segment_id, l.frequency_ms, l.dateint, l.hour FROM lineage l
            WHERE l.organization_id = %(organization)s AND l.segment_id = ANY(%(segments)s)
            UNION
            SELECT o.segment_id, i.segment_id, i.frequency_ms, i.dateint, i.hour FROM origin o
            JOIN lineage l ON l.organization_id = %(organization)s AND l.segment_id = o.via AND l.input_kind = 'segment'
            JOIN lineage i ON i.organization_id = %(organization)s AND i.segment_id = l.input_id
            WHERE o.frequency_ms <> %(ingested)s
        )
        SELECT segment_id, via, dateint, hour FROM origin WHERE frequency_ms = %(ingested)s ORDER BY 1, 3, 4, 2
        """,
        {
            "organization": source.organization_id,
            "segments": list(segment_ids),
            "ingested": SIGNALS[signal].frequency_ms,
        },
    )
    return [
        (
            segment_id,
            segment_key(
                source.organization_id, source.collector, dateint=dateint, signal=signal, hour=hour, segment_id=via
            ),
        )
        for segment_id, via, dateint, hour in rows
    ]


def raw_objects_at(conn: Conn, key: str, bucket: str | None = None) -> list[KnownObject]:
    """What is known of an object key: a row for each content that it has had, the latest first."""
    rows = conn.execute(
        sql.SQL("""
        SELECT {raw_object}, r.state FROM raw_objects r
        WHERE r.bucket = ANY(ARRAY(SELECT bucket_name FROM bucket_configurations
                                   WHERE %(bucket)s::text IS NULL OR bucket_name = %(bucket)s))
          AND r.key = %(key)s
        ORDER BY r.raw_object_id DESC
        """).format(raw_object=RAW_OBJECT),
        {"bucket": bucket, "key": storable(key)},
    )
    return [_known(row) for row in rows]


def raw_objects_of_day(
    conn: Conn, source: Source, signal: Signal, dateint: int, hour: int | None = None
) -> list[KnownObject]:
    """What a rebuild of a day (or one UTC hour) must look at, in any state, oldest first.

    These are the objects that ever gave records to it, and those whose event time is on it.
    """
    rows = conn.execute(
        sql.SQL("""
        WITH touching AS (
            SELECT l.input_id FROM lineage l
            WHERE l.organization_id = %(organization)s AND l.instance_num = %(instance)s AND l.signal = %(signal)s
              AND l.dateint = %(dateint)s AND l.frequency_ms = %(frequency)s AND l.input_kind = 'raw'
              AND (%(hour)s::int IS NULL OR l.hour = %(hour)s)
            UNION
            SELECT raw_object_id FROM raw_objects
            WHERE organization_id = %(organization)s AND instance_num = %(instance)s AND signal = %(signal)s
              AND event_dateint = %(dateint)s AND (%(hour)s::int IS NULL OR event_time_ms / 3600000 %% 24 = %(hour)s)
        )
        SELECT {raw_object}, r.state FROM touching t
        JOIN raw_objects r ON r.raw_object_id = t.input_id AND r.organization_id = %(organization)s
        ORDER BY r.raw_object_id
        """).format(raw_object=RAW_OBJECT),
        {
            "organization": source.organization_id,
            "instance": source.instance_num,
            "signal": str(signal),
            "dateint": dateint,
            "frequency": SIGNALS[signal].frequency_ms,
            "hour": hour,
        },
    )
    return [_known(row) for row in rows]


def segments_of_raw(conn: Conn, key: str, bucket: str | None = None) -> list[Link]:
    """Every segment that stands on what an object key has held, over any number of steps, in the order of time."""
    known = {found.raw.raw_object_id: found for found in raw_objects_at(conn, key, bucket)}
    links = [
        link
        for organization_id in {found.raw.organization_id for found in known.values()}
        for link in _links_of_raw(conn, organization_id, known)
    ]
    return sorted(links, key=lambda link: (link.segment.key, link.known.raw.raw_object_id))


def _links_of_raw(conn: Conn, organization_id: UUID, known: dict[int, KnownObject]) -> list[Link]:
    rows = conn.execute(
        """
        WITH RECURSIVE made (raw_object_id, segment_id, records) AS (
            SELECT l.input_id, l.segment_id, l.records FROM lineage l
            WHERE l.organization_id = %(organization)s AND l.input_kind = 'raw' AND l.input_id = ANY(%(raw)s)
            UNION
            SELECT m.raw_object_id, l.segment_id, NULL::bigint FROM made m
            JOIN lineage l ON l.organization_id = %(organization)s AND l.input_kind = 'segment'
                AND l.input_id = m.segment_id
        )
        SELECT raw_object_id, segment_id, records FROM made
        """,
        {"organization": organization_id, "raw": list(known)},
    ).fetchall()
    made = _made(conn, organization_id, [segment_id for _, segment_id, _ in rows])
    return [Link(made[segment_id], known[raw_object_id], records) for raw_object_id, segment_id, records in rows]


def raw_of_segment(conn: Conn, segment: int | str) -> list[Link]:
    """Every raw object that a segment stands on, over any number of steps; ``segment`` is its id or its object key.

    RequestRefused when it is neither; nothing is in the list when lrdb has never heard of it.
    """
    return [
        link
        for organization_id, segment_id in _named(conn, segment)
        for link in _links_of_segment(conn, organization_id, segment_id)
    ]


def _named(conn: Conn, segment: int | str) -> list[tuple[UUID, int]]:
    """Organization and id of the segments of an id (in whichever organization) or of an object key."""
    if isinstance(segment, str) and not segment.isdecimal():
        found = SEGMENT_KEY.fullmatch(segment)
        if found is None:
            raise RequestRefused(
                f"{segment!r} is neither a segment's id nor its key db/{{organization id}}/…/tbl_{{segment id}}.parquet"
            )
        return [(UUID(found["organization"]), int(found["segment"]))]
    rows = conn.execute(
        """
        SELECT o.id, %(segment)s::bigint FROM organizations o
        WHERE EXISTS (SELECT FROM lineage l WHERE l.organization_id = o.id AND l.segment_id = %(segment)s)
        """,
        {"segment": int(segment)},
    )
    return list(rows)


def _links_of_segment(conn: Conn, organization_id: UUID, segment_id: int) -> list[Link]:
    inputs = raw_inputs(conn, organization_id, [segment_id]).get(segment_id, set())
    rows = conn.execute(
        sql.SQL("""
        SELECT {raw_object}, r.state, l.records FROM raw_objects r
        LEFT JOIN lineage l ON l.organization_id = %(organization)s AND l.segment_id = %(segment)s
            AND l.input_kind = 'raw' AND l.input_id = r.raw_object_id
        WHERE r.organization_id = %(organization)s AND r.raw_object_id = ANY(%(raw)s) ORDER BY r.raw_object_id
        """).format(raw_object=RAW_OBJECT),
        {"organization": organization_id, "segment": segment_id, "raw": list(inputs)},
    ).fetchall()
    made = _made(conn, organization_id, [segment_id])
    return [Link(made[segment_id], _known(row[:-1]), row[-1]) for row in rows]


def _made(conn: Conn, organization_id: UUID, segment_ids: Sequence[int]) -> dict[int, MadeSegment]:
    """What lineage and index say of segments, by id."""
    rows = conn.execute(
        """
        SELECT DISTINCT ON (l.segment_id) l.organization_id, o.name, s.collector_name, s.instance_num, s.bucket,
               l.signal, l.dateint, l.hour, l.frequency_ms, l.segment_id, l.operation, l.run_id, l.code_version
        FROM lineage l
        JOIN organizations o ON o.id = l.organization_id
        JOIN organization_buckets s ON s.organization_id = l.organization_id AND s.instance_num = l.instance_num
        WHERE l.organization_id = %s AND l.segment_id = ANY(%s) ORDER BY l.segment_id
        """,
        (organization_id, list(segment_ids)),
    ).fetchall()
    made = {}
    for row in rows:
        source, signal = Source(*row[:5]), Signal(row[5])
        dateint, hour, frequency_ms, segment_id, operation, run_id, code_version = row[6:]
        made[segment_id] = MadeSegment(
            source=source,
            signal=signal,
            dateint=dateint,
            hour=hour,
            frequency_ms=frequency_ms,
            segment_id=segment_id,
            operation=operation,
            run_id=run_id,
            code_version=code_version,
            published=bool(segments.known_ids(conn, source, signal, dateint, [segment_id], published_only=True)),
        )
    return made


def _known(row: Sequence[Any]) -> KnownObject:
    """The object and state of a row of RAW_OBJECT and state."""
    return KnownObject(raw_object(row[:-1]), RawState(row[-1]))
