"""The hours that compaction still has to look at, and what is published in them.

What belongs here: the rows of unsettled hours, from the publication that makes one to the look that finds it settled.
What does not: what is to be merged (``planning.compaction``), merging (``merging``).

Whoever looks at an hour holds its row meanwhile, and whoever publishes into it must have that row too: so a segment is
seen by the look, or its hour is unsettled after it. No look can miss one and forget its hour.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING, Any

from psycopg import sql

from lakerunner_dagster.lake.lrdb import boxes, faults
from lakerunner_dagster.lake.model import ClaimedBox, Segment, Source
from lakerunner_dagster.lake.planning.compaction import Candidate, SegmentGroup
from lakerunner_dagster.lake.signals import SIGNALS, Signal
from lakerunner_dagster.lake.stages import compaction_stage

if TYPE_CHECKING:
    from uuid import UUID

    from lakerunner_dagster.lake.lrdb.connection import Conn


@dataclass(frozen=True, slots=True)
class PublishedSegment:
    """A published segment as compaction tells of it. Times are ms, ``[start_ms, end_ms)``.

    One that is ``aside`` could not be read (``faults``): it is in no plan until it is tried again.
    """

    candidate: Candidate
    aside: bool
    record_count: int
    start_ms: int
    end_ms: int


_KEY = sql.SQL("(organization_id, instance_num, signal, frequency_ms, dateint, hour) = (%s, %s, %s, %s, %s, %s)")

_GROUP = sql.SQL("organization_id, instance_num, signal, frequency_ms, dateint, hour")


def touch(conn: Conn, segments: Iterable[Segment]) -> None:
    """Segments are published, in this transaction: their hours are unsettled."""
    groups = sorted({group_of(segment) for segment in segments})
    with conn.cursor() as cursor:
        # The update changes nothing, but waits for whoever looks at the hour now: it cannot be settled unseen.
        cursor.executemany(
            sql.SQL("""
            INSERT INTO unsettled_hours AS h ({group}) VALUES (%s, %s, %s, %s, %s, %s)
            ON CONFLICT ({group}) DO UPDATE SET look_at = h.look_at
            """).format(group=_GROUP),
            [_key(group) for group in groups],
        )


def group_of(segment: Segment) -> SegmentGroup:
    """The hour that a segment is of, with what it may be merged with."""
    return SegmentGroup(
        segment.organization_id,
        segment.instance_num,
        segment.signal,
        segment.frequency_ms,
        segment.dateint,
        segment.hour,
    )


def wake(conn: Conn, organization_id: UUID, dateint: int, signal: Signal, segment_ids: Sequence[int]) -> int:
    """The hours of those of a day's segments that are published are unsettled; how many were not known to be."""
    tiered = bool(SIGNALS[signal].frequency_ms)
    rows = conn.execute(
        sql.SQL("""
        INSERT INTO unsettled_hours AS h ({group})
        SELECT DISTINCT organization_id, instance_num, %(signal)s, {frequency}, dateint,
               (lower(ts_range) / 3600000 %% 24)::smallint
        FROM {table}
        WHERE organization_id = %(organization)s AND dateint = %(dateint)s AND segment_id = ANY(%(segments)s)
          AND published
        ORDER BY 2, 4, 6
        ON CONFLICT ({group}) DO UPDATE SET look_at = h.look_at
        RETURNING xmax = 0
        """).format(
            group=_GROUP,
            table=sql.Identifier(SIGNALS[signal].segment_table),
            frequency=sql.SQL("frequency_ms" if tiered else "0"),
        ),
        {"organization": organization_id, "signal": str(signal), "dateint": dateint, "segments": list(segment_ids)},
    )
    return sum(is_new for (is_new,) in rows)


def due(conn: Conn, signal: Signal, limit: int, *, at_once: bool = False) -> list[SegmentGroup]:
    """Hours in no box that are to be looked at (all of them, ``at_once``), longest due first, held for this look."""
    rows = conn.execute(
        sql.SQL("""
        SELECT {group} FROM unsettled_hours
        WHERE signal = %s AND box_id IS NULL AND (look_at <= now() OR %s)
        ORDER BY look_at LIMIT %s FOR UPDATE SKIP LOCKED
        """).format(group=_GROUP),
        (str(signal), at_once, limit),
    )
    return [_group(row) for row in rows]


def of_day(conn: Conn, source: Source, signal: Signal, dateint: int) -> list[SegmentGroup]:
    """Every hour and tier of a source's day that has a published segment, settled or not, in order."""
    tiered = bool(SIGNALS[signal].frequency_ms)
    rows = conn.execute(
        sql.SQL("""
        SELECT DISTINCT organization_id, instance_num, %(signal)s, {frequency}, dateint,
               (lower(ts_range) / 3600000 %% 24)::int
        FROM {table}
        WHERE organization_id = %(organization)s AND dateint = %(dateint)s AND instance_num = %(instance)s AND published
        """).format(
            table=sql.Identifier(SIGNALS[signal].segment_table),
            frequency=sql.SQL("frequency_ms" if tiered else "0"),
        ),
        {
            "organization": source.organization_id,
            "signal": str(signal),
            "dateint": dateint,
            "instance": source.instance_num,
        },
    )
    return sorted(_group(row) for row in rows)


def of_signal(conn: Conn, organization_id: UUID, signal: Signal) -> list[SegmentGroup]:
    """Every unsettled hour of an organization's signal, in order."""
    rows = conn.execute(
        sql.SQL("SELECT {group} FROM unsettled_hours WHERE organization_id = %s AND signal = %s").format(group=_GROUP),
        (organization_id, str(signal)),
    )
    return sorted(_group(row) for row in rows)


def hold(conn: Conn, group: SegmentGroup) -> bool:
    """Look at an hour: nobody publishes into it until the transaction ends. False when it is settled."""
    query = sql.SQL("SELECT FROM unsettled_hours WHERE {key} FOR UPDATE").format(key=_KEY)
    return bool(conn.execute(query, _key(group)).rowcount)


def published(conn: Conn, groups: Sequence[SegmentGroup]) -> list[PublishedSegment]:
    """What is published in hours; a query for each source and day."""
    found: list[PublishedSegment] = []
    for (organization_id, instance_num, signal, dateint), hours in groupby(sorted(groups), key=_day_of):
        wanted = set(hours)
        aside = faults.waiting(conn, organization_id, instance_num, signal, dateint)
        rows = conn.execute(
            _PUBLISHED[signal],
            {
                "organization": organization_id,
                "instance": instance_num,
                "dateint": dateint,
                "hours": sorted({group.hour for group in wanted}),
            },
        )
        for segment_id, frequency_ms, hour, rolledup, size, records, created_ms, count, start_ms, end_ms in rows:
            group = SegmentGroup(organization_id, instance_num, signal, frequency_ms, dateint, hour)
            if group in wanted:
                candidate = Candidate(segment_id, group, rolledup, size, records, created_ms)
                found.append(PublishedSegment(candidate, segment_id in aside, count, start_ms, end_ms))
    return found


def _published_query(signal: Signal) -> sql.Composed:
    tiered = bool(SIGNALS[signal].frequency_ms)
    return sql.SQL("""
        SELECT segment_id, {frequency}, (lower(ts_range) / 3600000 %% 24)::int, {rolledup}, file_size, records,
               (extract(epoch FROM created_at) * 1000)::bigint, record_count, lower(ts_range), upper(ts_range)
        FROM {table}
        WHERE organization_id = %(organization)s AND dateint = %(dateint)s AND instance_num = %(instance)s AND published
          AND lower(ts_range) / 3600000 %% 24 = ANY(%(hours)s)
        ORDER BY segment_id
    """).format(
        table=sql.Identifier(SIGNALS[signal].segment_table),
        frequency=sql.SQL("frequency_ms" if tiered else "0"),
        rolledup=sql.SQL("rolledup" if tiered else "false"),
    )


_PUBLISHED = {signal: _published_query(signal) for signal in Signal}


def open_box(conn: Conn, group: SegmentGroup, *, members: int, size: int, reason: str) -> int:
    """A box for an hour that is held; its id. ``members`` and ``size`` (bytes) are of the segments to be merged."""
    box_id = boxes.insert(
        conn,
        compaction_stage(group.signal),
        boxes.NewBox(
            organization_id=group.organization_id,
            instance_num=group.instance_num,
            dateint=group.dateint,
            grouping_key=grouping_key(group),
            members=members,
            bytes=size,
            reason=reason,
            frequency_ms=group.frequency_ms,
        ),
    )
    conn.execute(sql.SQL("UPDATE unsettled_hours SET box_id = %s WHERE {key}").format(key=_KEY), (box_id, *_key(group)))
    return box_id


def grouping_key(group: SegmentGroup) -> str:
    """What a box of an hour is called within its day: ``12h`` or ``12h/10000``, with the frequency in ms."""
    return f"{group.hour:02d}h/{group.frequency_ms}" if group.frequency_ms else f"{group.hour:02d}h"


def group_of_box(box: ClaimedBox) -> SegmentGroup:
    """The hour that a box of compaction is for."""
    hour, _, frequency_ms = box.grouping_key.partition("h")
    return SegmentGroup(
        box.source.organization_id,
        box.source.instance_num,
        box.signal,
        int(frequency_ms.removeprefix("/") or 0),
        box.dateint,
        int(hour),
    )


def postpone(conn: Conn, groups: Iterable[SegmentGroup], seconds: float) -> None:
    """The hours, which are held, are looked at again after so many seconds, and are in no box."""
    with conn.cursor() as cursor:
        cursor.executemany(
            sql.SQL("""
            UPDATE unsettled_hours SET look_at = now() + %s * interval '1 second', box_id = NULL WHERE {key}
            """).format(key=_KEY),
            [(seconds, *_key(group)) for group in groups],
        )


def settle(conn: Conn, groups: Iterable[SegmentGroup]) -> None:
    """The hours, which are held, need no look until something new is published in them."""
    with conn.cursor() as cursor:
        query = sql.SQL("DELETE FROM unsettled_hours WHERE {key}").format(key=_KEY)
        cursor.executemany(query, [_key(group) for group in groups])


def _key(group: SegmentGroup) -> tuple[object, ...]:
    return (
        group.organization_id,
        group.instance_num,
        str(group.signal),
        group.frequency_ms,
        group.dateint,
        group.hour,
    )


def _group(row: Sequence[Any]) -> SegmentGroup:
    organization_id, instance_num, signal, frequency_ms, dateint, hour = row
    return SegmentGroup(organization_id, instance_num, Signal(signal), frequency_ms, dateint, hour)


def _day_of(group: SegmentGroup) -> tuple[UUID, int, Signal, int]:
    return group.organization_id, group.instance_num, group.signal, group.dateint
