"""What retention takes out of readers' sight: whole days of a tier, as if superseded by nothing.

What belongs here: which days have expired, unpublishing them, and what is noted of it. What does not: the rules
(``profiles``), deleting (``deletions``), the leaves (``partitions``).
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from datetime import UTC, date, datetime, timedelta
from typing import TYPE_CHECKING, NamedTuple
from uuid import UUID

from psycopg import sql

from lakerunner_dagster.lake.lrdb import lineage, partitions, profiles, segments, swap
from lakerunner_dagster.lake.model import LedgerEntry, Segment, Source
from lakerunner_dagster.lake.signals import SIGNALS, Signal

if TYPE_CHECKING:
    from lakerunner_dagster.lake.lrdb.connection import Conn
    from lakerunner_dagster.lake.lrdb.standing import Hour

OPERATION = "retention"
"""What supersessions call it. These notes stay when the objects are gone: they tell what has expired from what is lost.
"""


NEVER = 0
"""First day that is kept where nothing expires."""


def first_kept_day(days: int, now_ms: int) -> int:
    """The earliest day (YYYYMMDD) of which any moment is at most ``days`` days ago; NEVER where ``days`` is 0.

    A day goes as a whole: once its last moment is older.
    """
    if days == 0:
        return NEVER
    today = datetime.fromtimestamp(now_ms / 1000, UTC).date()
    first = today - timedelta(days=days) if days < (today - date.min).days else date.min
    return int(first.strftime("%Y%m%d"))


def first_kept(conn: Conn, organization_id: UUID, signal: Signal, frequency_ms: int, now_ms: int) -> int:
    """The same for a tier of an organization's signal, by its rule."""
    return first_kept_day(profiles.retention_days(conn, organization_id, signal, frequency_ms), now_ms)


class TierDay(NamedTuple):
    """A day of one tier of a source (``frequency_ms`` 0 for logs and traces), and its published segments."""

    instance_num: int
    frequency_ms: int
    dateint: int
    segments: int


def published_days(conn: Conn, organization_id: UUID, signal: Signal, before: int) -> list[TierDay]:
    """The days before ``before`` (YYYYMMDD) of which readers see anything, by source, tier and day."""
    spec = SIGNALS[signal]
    query = sql.SQL("""
        SELECT instance_num, {tier}, dateint, count(*) FROM {table}
        WHERE organization_id = %s AND dateint = ANY(%s) AND published GROUP BY 1, 2, 3
        """).format(
        table=sql.Identifier(spec.segment_table), tier=sql.SQL("frequency_ms" if spec.frequency_ms else "0")
    )
    days = [dateint for dateint in partitions.days(conn, signal, organization_id) if dateint < before]
    return sorted(
        TierDay(*row) for batch in partitions.batches(days) for row in conn.execute(query, (organization_id, batch))
    )


def expire(
    conn: Conn, source: Source, signal: Signal, *, frequency_ms: int, dateint: int, run_id: str
) -> list[Segment]:
    """Take a day of a tier out of readers' sight; its segments. They are deleted as superseded ones are."""
    segments.lock_swaps(conn, source, signal, frequency_ms)
    gone = segments.published_segments(conn, source, signal, dateint, frequency_ms=frequency_ms)
    swap.supersede(conn, gone, [], operation=OPERATION, run_id=run_id)
    return gone


def returned(
    conn: Conn,
    source: Source,
    hour: Hour,
    ledger: LedgerEntry,
    *,
    read_inputs: Collection[int],
    replaced_by: Sequence[int],
) -> None:
    """What had expired of an hour of the ledger's tier, and stands on nothing but what was read, is seen again.

    Its notes say then what readers see instead: what is lost of it from now on is lost, and has not expired.
    """
    rows = conn.execute(
        """
        SELECT DISTINCT s.segment_id FROM lineage l
        JOIN supersessions s ON s.organization_id = l.organization_id AND s.segment_id = l.segment_id
        WHERE l.organization_id = %s AND l.instance_num = %s AND l.signal = %s AND l.dateint = %s
          AND l.frequency_ms = %s AND l.hour = %s AND s.operation = %s
        """,
        (
            source.organization_id,
            source.instance_num,
            str(ledger.signal),
            hour.dateint,
            ledger.frequency_ms,
            hour.hour,
            OPERATION,
        ),
    )
    stand_on = lineage.raw_inputs(conn, source.organization_id, [segment_id for (segment_id,) in rows])
    conn.execute(
        """
        UPDATE supersessions SET operation = %s, run_id = %s, replaced_by = %s
        WHERE organization_id = %s AND segment_id = ANY(%s)
        """,
        (
            ledger.operation,
            ledger.run_id,
            list(replaced_by),
            source.organization_id,
            [segment_id for segment_id, inputs in stand_on.items() if inputs <= set(read_inputs)],
        ),
    )


def has_expired(conn: Conn, source: Source, signal: Signal, frequency_ms: int, dateint: int) -> bool:
    """Whether retention has taken anything of a day of a tier."""
    return last_expired(conn, source, signal, frequency_ms, since=dateint, before=dateint + 1) is not None


def last_expired(
    conn: Conn, source: Source, signal: Signal, frequency_ms: int, *, since: int, before: int
) -> int | None:
    """The last of the days from ``since`` to before ``before`` of which retention has taken anything in a tier."""
    row = conn.execute(
        """
        SELECT max(dateint) FROM supersessions
        WHERE organization_id = %s AND instance_num = %s AND signal = %s AND frequency_ms = %s
          AND dateint >= %s AND dateint < %s AND operation = %s
        """,
        (source.organization_id, source.instance_num, str(signal), frequency_ms, since, before, OPERATION),
    ).fetchone()
    return row[0] if row else None
