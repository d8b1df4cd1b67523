"""Ingest boxes that wait though their message was sent long ago: a broker has lost it, or nobody listens.

What belongs here: finding them, and leaving their messages once more. What does not: opening boxes (``boxes``).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from psycopg import sql

from lakerunner_dagster.lake.lrdb import boxes, outbox
from lakerunner_dagster.lake.lrdb.rows import RAW_OBJECT, raw_object
from lakerunner_dagster.lake.model import RawObject, rfc3339
from lakerunner_dagster.lake.signals import Signal
from lakerunner_dagster.lake.stages import ingest_stage

if TYPE_CHECKING:
    from lakerunner_dagster.lake.lrdb.connection import Conn


def overdue(conn: Conn, signal: Signal, seconds: float, limit: int) -> list[int]:
    """The oldest open boxes that no run was asked for in so many seconds; not those whose message has yet to go out."""
    stage = ingest_stage(signal)
    rows = conn.execute(
        """
        SELECT b.box_id FROM boxes b
        WHERE b.stage = %(stage)s AND b.state = 'open'
          AND greatest(b.created_at, b.next_attempt_at, b.dispatched_at) <= now() - %(seconds)s * interval '1 second'
          AND NOT EXISTS (SELECT FROM outbox o WHERE o.topic = %(topic)s AND o.body ->> 'box' = b.box_id::text)
        ORDER BY b.box_id LIMIT %(limit)s
        """,
        {"stage": stage.name, "topic": stage.box_topic, "seconds": seconds, "limit": limit},
    )
    return [box_id for (box_id,) in rows]


def announce_again(conn: Conn, box_ids: Sequence[int], now_ms: int) -> None:
    """Leave the messages of boxes in the outbox, as when they were opened. Who hears of a box twice loses nothing."""
    queued = rfc3339(now_ms)
    for box_id in box_ids:
        members = _members(conn, box_id)
        if members:
            outbox.add(conn, [boxes.ingest_message(box_id, members, queued)])


def _members(conn: Conn, box_id: int) -> list[RawObject]:
    rows = conn.execute(
        sql.SQL("""
        SELECT {raw_object} FROM boxes b
        JOIN raw_objects r ON r.box_id = b.box_id AND r.organization_id = b.organization_id
        WHERE b.box_id = %s AND b.state = 'open' AND r.state = 'boxed' ORDER BY r.raw_object_id
        """).format(raw_object=RAW_OBJECT),
        (box_id,),
    )
    return [raw_object(row) for row in rows]
