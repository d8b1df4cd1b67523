"""Published segments that cannot be read: their object is gone, or not what it was.

What belongs here: their rows. What does not: reading segments, and mending them (a rebuild of the day replaces them).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any
from uuid import UUID

from psycopg.rows import args_row

from lakerunner_dagster.lake.lrdb.connection import storable
from lakerunner_dagster.lake.model import Segment, Source, segment_key
from lakerunner_dagster.lake.signals import Signal

if TYPE_CHECKING:
    from lakerunner_dagster.lake.lrdb.connection import Conn

LONGEST_RETRY_SECONDS = 86_400.0
"""Longest time after which a segment that cannot be read is looked at again."""


@dataclass(frozen=True, slots=True)
class Fault:
    """A published segment that could not be read, ``attempts`` times; it is looked at again from ``retry_at`` on."""

    organization_id: UUID
    organization_name: str
    collector: str
    instance_num: int
    signal: Signal
    frequency_ms: int
    dateint: int
    hour: int
    segment_id: int
    error_class: str
    error_text: str
    attempts: int
    first_at: datetime
    last_at: datetime
    retry_at: datetime

    @property
    def item_id(self) -> str:
        """What a person names it by."""
        return f"segment:{self.segment_id}"

    @property
    def key(self) -> str:
        """Object key of the segment."""
        return segment_key(
            self.organization_id,
            self.collector,
            dateint=self.dateint,
            signal=self.signal,
            hour=self.hour,
            segment_id=self.segment_id,
        )


def mark(conn: Conn, segment: Segment, error_class: str, error_text: str, retry_seconds: float) -> None:
    """Note that a published segment could not be read; after ``retry_seconds``, doubled each time, it is due again."""
    conn.execute(
        """
        INSERT INTO segment_faults AS f (organization_id, segment_id, instance_num, signal, frequency_ms, dateint, hour,
                                         error_class, error_text, retry_at)
        VALUES (%(organization)s, %(segment)s, %(instance)s, %(signal)s, %(frequency)s, %(dateint)s, %(hour)s,
                %(class)s, %(text)s, now() + least(%(retry)s, %(longest)s) * interval '1 second')
        ON CONFLICT (organization_id, segment_id) DO UPDATE SET
            error_class = excluded.error_class, error_text = excluded.error_text, attempts = f.attempts + 1,
            last_at = now(),
            retry_at = now() + least(%(retry)s * power(2, least(f.attempts, 30)), %(longest)s) * interval '1 second'
        """,
        {
            "organization": segment.organization_id,
            "segment": segment.segment_id,
            "instance": segment.instance_num,
            "signal": str(segment.signal),
            "frequency": segment.frequency_ms,
            "dateint": segment.dateint,
            "hour": segment.hour,
            "class": storable(error_class),
            "text": storable(error_text),
            "retry": retry_seconds,
            "longest": LONGEST_RETRY_SECONDS,
        },
    )


def waiting(conn: Conn, organization_id: UUID, instance_num: int, signal: Signal, dateint: int) -> set[int]:
    """The ids of a day's segments that are not to be read yet."""
    rows = conn.execute(
        """
        SELECT segment_id FROM segment_faults
        WHERE organization_id = %s AND instance_num = %s AND signal = %s AND dateint = %s AND retry_at > now()
        """,
        (organization_id, instance_num, str(signal), dateint),
    )
    return {segment_id for (segment_id,) in rows}


def of_source(conn: Conn, source: Source, error_class: str) -> set[int]:
    """The ids of a source's segments that could not be read for this reason."""
    rows = conn.execute(
        "SELECT segment_id FROM segment_faults WHERE organization_id = %s AND instance_num = %s AND error_class = %s",
        (source.organization_id, source.instance_num, error_class),
    )
    return {segment_id for (segment_id,) in rows}


def forget(conn: Conn, organization_id: UUID, segment_ids: Sequence[int]) -> int:
    """These segments can be read again, or are no longer seen; of how many of them anything was noted."""
    return conn.execute(
        "DELETE FROM segment_faults WHERE organization_id = %s AND segment_id = ANY(%s)",
        (organization_id, list(segment_ids)),
    ).rowcount


def make_day_due(conn: Conn, source: Source, signal: Signal, dateint: int) -> None:
    """Let a day's segments be read again at once."""
    conn.execute(
        """
        UPDATE segment_faults SET retry_at = now()
        WHERE organization_id = %s AND instance_num = %s AND signal = %s AND dateint = %s
        """,
        (source.organization_id, source.instance_num, str(signal), dateint),
    )


def make_due(conn: Conn, organization_id: UUID, segment_id: int) -> None:
    """Let a segment be read again at once."""
    conn.execute(
        "UPDATE segment_faults SET retry_at = now() WHERE organization_id = %s AND segment_id = %s",
        (organization_id, segment_id),
    )


_FAULTS = """
    SELECT f.organization_id, o.name, s.collector_name, f.instance_num, f.signal, f.frequency_ms, f.dateint, f.hour,
           f.segment_id, f.error_class, f.error_text, f.attempts, f.first_at, f.last_at, f.retry_at
    FROM segment_faults f
    JOIN organizations o ON o.id = f.organization_id
    JOIN organization_buckets s ON s.organization_id = f.organization_id AND s.instance_num = f.instance_num
"""


def faults(conn: Conn, organization_id: UUID, limit: int = 1000) -> list[Fault]:
    """An organization's segments that cannot be read, the latest first."""
    with conn.cursor(row_factory=args_row(_fault)) as cursor:
        return cursor.execute(
            f"{_FAULTS} WHERE f.organization_id = %s ORDER BY f.first_at DESC, f.segment_id LIMIT %s",
            (organization_id, limit),
        ).fetchall()


def show(conn: Conn, segment_id: int) -> Fault | None:
    """What is known of a segment that cannot be read. Ids are of 63 bits of a hash: two organizations share none."""
    with conn.cursor(row_factory=args_row(_fault)) as cursor:
        return cursor.execute(f"{_FAULTS} WHERE f.segment_id = %s", (segment_id,)).fetchone()


def _fault(
    organization_id: UUID,
    organization_name: str,
    collector: str,
    instance_num: int,
    signal: str,
    *rest: Any,  # noqa: ANN401  # the other columns, as they are
) -> Fault:
    return Fault(organization_id, organization_name, collector, instance_num, Signal(signal), *rest)
