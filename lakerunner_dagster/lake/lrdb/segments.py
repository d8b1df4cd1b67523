"""The segment index: rows of log_seg, metric_seg and trace_seg, written and read as ``model.Segment``.

What belongs here: how a segment is a row. What does not: when one may be published or superseded (``publish``), which
raw objects made it (``lineage``), the leaves that rows go into (``partitions``).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple
from uuid import UUID

from psycopg import sql
from psycopg.rows import dict_row
from psycopg.types.json import Jsonb
from psycopg.types.range import Int8Range

from lakerunner_dagster.lake.lrdb import unsettled
from lakerunner_dagster.lake.model import CreatedBy, Segment, Source
from lakerunner_dagster.lake.signals import SIGNALS, Signal

if TYPE_CHECKING:
    from lakerunner_dagster.lake.lrdb.connection import Conn


class RowOfDay(NamedTuple):
    """A segment's UTC hour and tier (0 for logs and traces), and whether readers see it."""

    hour: int
    frequency_ms: int
    published: bool


_KEY = ("organization_id", "dateint", "frequency_ms", "segment_id", "instance_num")


def insert(conn: Conn, segments: Sequence[Segment]) -> None:
    """Publish segments; a row that is there already is an error (psycopg's UniqueViolation), never passed over."""
    unsettled.touch(conn, segments)
    for segment in segments:
        row = _row(segment) | {"published": True}
        conn.execute(
            sql.SQL("INSERT INTO {table} ({columns}) VALUES ({values})").format(
                table=_table(segment.signal),
                columns=sql.SQL(", ").join(map(sql.Identifier, row)),
                values=sql.SQL(", ").join(map(sql.Placeholder, row)),
            ),
            row,
        )


def rewrite(conn: Conn, segment: Segment) -> int:
    """Make the row of a segment say what its object is now, and publish it; 1, or 0 where there is no such row."""
    unsettled.touch(conn, [segment])
    row = _row(segment) | {"published": True}
    key = [name for name in _KEY if name in row]
    return conn.execute(
        sql.SQL("UPDATE {table} SET {changes} WHERE {key}").format(
            table=_table(segment.signal),
            changes=sql.SQL(", ").join(_equation(name) for name in row if name not in key),
            key=sql.SQL(" AND ").join(map(_equation, key)),
        ),
        row,
    ).rowcount


def unpublish(conn: Conn, segments: Iterable[Segment]) -> None:
    """Take segments out of what readers see; their rows stay."""
    days: defaultdict[tuple[Signal, UUID, int, int, int], list[int]] = defaultdict(list)
    for segment in segments:
        day = (
            segment.signal,
            segment.organization_id,
            segment.dateint,
            segment.instance_num,
            segment.frequency_ms,
        )
        days[day].append(segment.segment_id)
    for (signal, organization_id, dateint, instance_num, frequency_ms), segment_ids in days.items():
        conn.execute(
            sql.SQL("""
            UPDATE {table} SET published = false
            WHERE organization_id = %(organization)s AND dateint = %(dateint)s AND instance_num = %(instance)s
              AND {tier} AND segment_id = ANY(%(ids)s)
            """).format(table=_table(signal), tier=_tier(signal)),
            {
                "organization": organization_id,
                "dateint": dateint,
                "instance": instance_num,
                "frequency": frequency_ms,
                "ids": segment_ids,
            },
        )


def delete_unpublished(conn: Conn, source: Source, signal: Signal, dateint: int, segment_ids: Sequence[int]) -> None:
    """Take the rows of segments away whose objects are gone; one that is published stays."""
    conn.execute(
        sql.SQL(
            "DELETE FROM {table} WHERE organization_id = %s AND dateint = %s AND instance_num = %s"
            " AND segment_id = ANY(%s) AND NOT published"
        ).format(table=_table(signal)),
        (source.organization_id, dateint, source.instance_num, list(segment_ids)),
    )


def published_segments(
    conn: Conn,
    source: Source,
    signal: Signal,
    dateint: int,
    *,
    frequency_ms: int,
    hour: int | None = None,
    segment_ids: Sequence[int] | None = None,
) -> list[Segment]:
    """What readers see of a source, day (and UTC hour) and tier (0 for logs and traces), in the order of time.

    Of these ids alone, where any are given.
    """
    return _published(
        conn, source, signal, dateint, frequency_ms=frequency_ms, hour=hour, segment_ids=segment_ids, lock=False
    )


def lock_swaps(conn: Conn, source: Source, signal: Signal, frequency_ms: int) -> None:
    """Until the transaction ends, no other one swaps segments of this source, signal and tier.

    Locked rows alone would not do: of two swaps that wait for each other's, the second would not see the first's new
    rows. One lock, whatever the hours: a swap takes milliseconds, and two that share objects cannot wait in a circle.
    """
    place = (source.organization_id, source.instance_num, signal, frequency_ms)
    conn.execute("SELECT pg_advisory_xact_lock(hashtextextended(%s, 0))", ("lrdb swap " + " ".join(map(str, place)),))


def lock_published(
    conn: Conn,
    source: Source,
    signal: Signal,
    dateint: int,
    *,
    frequency_ms: int,
    hour: int,
    segment_ids: Sequence[int] | None = None,
) -> list[Segment]:
    """The published segments of an hour (those of these ids), locked until the transaction ends.

    To be called after :func:`lock_swaps`.
    """
    return _published(
        conn, source, signal, dateint, frequency_ms=frequency_ms, hour=hour, segment_ids=segment_ids, lock=True
    )


def known_ids(
    conn: Conn,
    source: Source,
    signal: Signal,
    dateint: int,
    segment_ids: Sequence[int],
    *,
    published_only: bool = False,
) -> set[int]:
    """Those ids of a source and day that have a row: any, or a published one."""
    rows = conn.execute(
        sql.SQL(
            "SELECT segment_id FROM {table} WHERE organization_id = %s AND dateint = %s AND instance_num = %s"
            " AND segment_id = ANY(%s) AND (published OR NOT %s)"
        ).format(table=_table(signal)),
        (source.organization_id, dateint, source.instance_num, list(segment_ids), published_only),
    )
    return {segment_id for (segment_id,) in rows}


def rows_of_day(conn: Conn, source: Source, signal: Signal, dateint: int) -> dict[int, RowOfDay]:
    """Where each segment of a day has its place, published or not, by id; without all else that its row says."""
    rows = conn.execute(
        sql.SQL(
            "SELECT segment_id, lower(ts_range) / 3600000 %% 24, {tier}, published FROM {table}"
            " WHERE organization_id = %s AND dateint = %s AND instance_num = %s"
        ).format(table=_table(signal), tier=sql.SQL("frequency_ms" if SIGNALS[signal].frequency_ms else "0")),
        (source.organization_id, dateint, source.instance_num),
    )
    return {segment_id: RowOfDay(*place) for segment_id, *place in rows}


def _published(
    conn: Conn,
    source: Source,
    signal: Signal,
    dateint: int,
    *,
    frequency_ms: int,
    hour: int | None,
    segment_ids: Sequence[int] | None,
    lock: bool,
) -> list[Segment]:
    query = sql.SQL(
        """
        SELECT * FROM {table}
        WHERE organization_id = %(organization)s AND dateint = %(dateint)s AND instance_num = %(instance)s AND published
          AND {tier} AND (%(hour)s::int IS NULL OR lower(ts_range) / 3600000 %% 24 = %(hour)s)
          AND (%(ids)s::bigint[] IS NULL OR segment_id = ANY(%(ids)s))
        ORDER BY lower(ts_range), segment_id {lock}
        """
    ).format(
        table=_table(signal),
        tier=_tier(signal),
        lock=sql.SQL("FOR UPDATE" if lock else ""),
    )
    parameters = {
        "organization": source.organization_id,
        "instance": source.instance_num,
        "dateint": dateint,
        "frequency": frequency_ms,
        "hour": hour,
        "ids": None if segment_ids is None else list(segment_ids),
    }
    with conn.cursor(row_factory=dict_row) as cursor:
        return [_segment(source, signal, row) for row in cursor.execute(query, parameters)]


def _table(signal: Signal) -> sql.Identifier:
    return sql.Identifier(SIGNALS[signal].segment_table)


def _tier(signal: Signal) -> sql.SQL:
    """Condition for the rows of the tier ``frequency``, where the signal has tiers."""
    return sql.SQL("frequency_ms = %(frequency)s" if SIGNALS[signal].frequency_ms else "true")


def _equation(name: str) -> sql.Composed:
    return sql.SQL("{} = {}").format(sql.Identifier(name), sql.Placeholder(name))


def _row(segment: Segment) -> dict[str, Any]:
    """The columns of a segment but ``published``, by name."""
    common: dict[str, Any] = {
        "organization_id": segment.organization_id,
        "dateint": segment.dateint,
        "segment_id": segment.segment_id,
        "instance_num": segment.instance_num,
        "ts_range": Int8Range(segment.start_ms, segment.end_ms),
        "record_count": segment.record_count,
        "file_size": segment.file_size,
        "ingest_dateint": segment.ingest_dateint,
        "compacted": segment.compacted,
        "created_by": int(segment.created_by),
        "fingerprints": _bigints(segment.fingerprints),
        "label_name_map": Jsonb(dict(segment.label_name_map)),
        "records": segment.records,
    }
    return common | _OWN_COLUMNS[segment.signal](segment)


def _bigints(values: Iterable[int]) -> str:
    """A ``bigint[]`` as PostgreSQL reads it: psycopg looks at each element, which takes eight times as long."""
    return f"{{{','.join(map(str, values))}}}"


def _log_columns(segment: Segment) -> dict[str, Any]:
    return {
        "sort_version": segment.sort_version,
        "stream_ids": None if segment.stream_ids is None else list(segment.stream_ids),
        "stream_id_field": segment.stream_id_field,
    }


def _metric_columns(segment: Segment) -> dict[str, Any]:
    return {
        "frequency_ms": segment.frequency_ms,
        "rolledup": segment.rolledup,
        "sort_version": segment.sort_version,
        "metric_names": list(segment.metric_names),
        "metric_types": list(segment.metric_types),
        "rollup_count": segment.rollup_count,
        "reach_ms": segment.reach_ms,
    }


def _trace_columns(_: Segment) -> dict[str, Any]:
    return {}


_OWN_COLUMNS = {Signal.LOGS: _log_columns, Signal.METRICS: _metric_columns, Signal.TRACES: _trace_columns}
"""By signal: the columns that only its table has."""


def _segment(source: Source, signal: Signal, row: dict[str, Any]) -> Segment:
    """The segment of a row; columns that its table has not are what a segment of the signal has by default."""
    stream_ids = row.get("stream_ids")
    return Segment(
        organization_id=source.organization_id,
        instance_num=source.instance_num,
        collector=source.collector,
        signal=signal,
        dateint=row["dateint"],
        frequency_ms=row.get("frequency_ms", 0),
        segment_id=row["segment_id"],
        start_ms=row["ts_range"].lower,
        end_ms=row["ts_range"].upper,
        record_count=row["record_count"],
        file_size=row["file_size"],
        ingest_dateint=row["ingest_dateint"],
        created_by=CreatedBy(row["created_by"]),
        records=row["records"],
        rollup_count=row.get("rollup_count", 0.0),
        compacted=row["compacted"],
        rolledup=row.get("rolledup", False),
        fingerprints=tuple(row["fingerprints"]),
        label_name_map=row["label_name_map"] or {},
        stream_ids=None if stream_ids is None else tuple(stream_ids),
        stream_id_field=row.get("stream_id_field"),
        metric_names=tuple(row.get("metric_names") or ()),
        metric_types=tuple(row.get("metric_types") or ()),
        reach_ms=row.get("reach_ms"),
    )
