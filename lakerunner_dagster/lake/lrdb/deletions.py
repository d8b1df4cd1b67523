"""Objects on their way out of the store, so that none is deleted that readers see, or are about to.

What belongs here: which objects may be deleted, said before it is done and confirmed after. What does not: deleting
(``maintenance.deleting``), unpublishing (``swap``, ``expiry``).

A segment's id is a function of its inputs: a box that is tried again, a rebuild or a compaction may write an object
again while it is being deleted. So a deletion is **intended** in a transaction that excludes every swap, then done,
then **confirmed**; and whoever publishes (:func:`require_kept`) steps back where an object may have been deleted since
it began to write. Deleters of one source take turns, so that none comes late for an object that was written again.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from itertools import groupby
from typing import TYPE_CHECKING
from uuid import UUID

from psycopg import sql

from lakerunner_dagster.lake.errors import SwapConflict
from lakerunner_dagster.lake.lrdb import expiry, faults, segments
from lakerunner_dagster.lake.model import Source, segment_key
from lakerunner_dagster.lake.signals import SIGNALS, Signal

if TYPE_CHECKING:
    from lakerunner_dagster.lake.lrdb.connection import Conn, Lrdb


class Reason(StrEnum):
    """Why an object may go: it was replaced or has expired long enough ago, or no row ever knew it."""

    SUPERSEDED = "superseded"
    ORPHAN = "orphan"


@dataclass(frozen=True, slots=True)
class Deletion:
    """A segment's object that may go. ``frequency_ms`` is 0 where an orphan's key does not tell its tier."""

    segment_id: int
    signal: Signal
    frequency_ms: int
    dateint: int
    key: str
    reason: Reason


@contextmanager
def turn(lrdb: Lrdb, source: Source) -> Iterator[Conn | None]:
    """The right to delete objects of a source, until the block ends; None while another has it.

    It is bound to the connection, not to a time: a deleter that was stopped keeps it, and one that has lost its
    connection finds out by asking it anything before it deletes (LakeDatabaseUnavailable).
    """
    name = f"lrdb deleter {source.organization_id} {source.instance_num}"
    with lrdb.connection() as conn:
        row = conn.execute("SELECT pg_try_advisory_lock(hashtextextended(%s, 0))", (name,)).fetchone()
        if row is None or not row[0]:
            yield None
            return
        try:
            yield conn
        finally:
            conn.execute("SELECT pg_advisory_unlock(hashtextextended(%s, 0))", (name,))


def superseded_days(conn: Conn, source: Source, signal: Signal, *, grace_seconds: float) -> list[int]:
    """The days (YYYYMMDD) of segments that were unpublished so long ago and whose objects are not known to be gone."""
    rows = conn.execute(
        """
        SELECT DISTINCT dateint FROM supersessions
        WHERE organization_id = %s AND instance_num = %s AND signal = %s AND deleted_at IS NULL
          AND superseded_at <= clock_timestamp() - %s * interval '1 second'
        ORDER BY dateint
        """,
        (source.organization_id, source.instance_num, str(signal), grace_seconds),
    )
    return [dateint for (dateint,) in rows]


def superseded(
    conn: Conn, source: Source, signal: Signal, dateint: int, *, grace_seconds: float, limit: int, after: int = 0
) -> list[Deletion]:
    """A day's segments that were unpublished at least ``grace_seconds`` ago, by id from above ``after``.

    Without those of which a deletion is intended already.
    """
    spec = SIGNALS[signal]
    rows = conn.execute(
        sql.SQL("""
        SELECT t.segment_id, {tier}, lower(t.ts_range) / 3600000 %% 24 FROM {table} t
        JOIN supersessions s ON s.organization_id = t.organization_id AND s.segment_id = t.segment_id
            AND s.instance_num = t.instance_num AND s.signal = %(signal)s AND s.dateint = t.dateint
            AND s.deleted_at IS NULL
        LEFT JOIN deletions d ON d.organization_id = t.organization_id AND d.segment_id = t.segment_id
            AND d.confirmed_at IS NULL
        WHERE t.organization_id = %(organization)s AND t.dateint = %(dateint)s AND t.instance_num = %(instance)s
          AND NOT t.published AND s.superseded_at <= clock_timestamp() - %(grace)s * interval '1 second'
          AND d.segment_id IS NULL AND t.segment_id > %(after)s
        ORDER BY t.segment_id LIMIT %(limit)s
        """).format(
            table=sql.Identifier(spec.segment_table), tier=sql.SQL("t.frequency_ms" if spec.frequency_ms else "0")
        ),
        {
            "organization": source.organization_id,
            "dateint": dateint,
            "instance": source.instance_num,
            "signal": str(signal),
            "grace": grace_seconds,
            "after": after,
            "limit": limit,
        },
    )
    return [
        Deletion(
            segment_id=segment_id,
            signal=signal,
            frequency_ms=frequency_ms,
            dateint=dateint,
            key=segment_key(
                source.organization_id,
                source.collector,
                dateint=dateint,
                signal=signal,
                hour=hour,
                segment_id=segment_id,
            ),
            reason=Reason.SUPERSEDED,
        )
        for segment_id, frequency_ms, hour in rows
    ]


def intend(conn: Conn, source: Source, candidates: Sequence[Deletion], grace_seconds: float) -> list[Deletion]:
    """Say that these objects are about to be deleted; those of them that may be. Commit before deleting any.

    Until the transaction ends nothing is swapped where they are. A superseded segment must still be unpublished, and
    have been for ``grace_seconds``; of an orphan there is no row.
    """
    for signal, frequency_ms in sorted({place for candidate in candidates for place in _places(candidate)}):
        segments.lock_swaps(conn, source, signal, frequency_ms)
    intended = [
        candidate
        for group in _by_day(candidates)
        for candidate in group
        if candidate.segment_id in _deletable(conn, source, group, grace_seconds)
    ]
    with conn.cursor() as cursor:
        cursor.executemany(
            """
            INSERT INTO deletions (organization_id, segment_id, instance_num, signal, frequency_ms, dateint, bucket,
                                   key, reason, intended_at)
            VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s, clock_timestamp())
            ON CONFLICT (organization_id, segment_id) DO UPDATE SET
                instance_num = excluded.instance_num, signal = excluded.signal, frequency_ms = excluded.frequency_ms,
                dateint = excluded.dateint, bucket = excluded.bucket, key = excluded.key, reason = excluded.reason,
                intended_at = excluded.intended_at, confirmed_at = NULL
            """,
            [
                (
                    source.organization_id,
                    deletion.segment_id,
                    source.instance_num,
                    str(deletion.signal),
                    deletion.frequency_ms,
                    deletion.dateint,
                    source.bucket,
                    deletion.key,
                    str(deletion.reason),
                )
                for deletion in intended
            ],
        )
    return intended


def _places(candidate: Deletion) -> list[tuple[Signal, int]]:
    """Where the object's segment might be published meanwhile."""
    tiers = SIGNALS[candidate.signal].tiers_ms if candidate.reason is Reason.ORPHAN else (candidate.frequency_ms,)
    return [(candidate.signal, frequency_ms) for frequency_ms in tiers]


def _by_day(candidates: Sequence[Deletion]) -> list[list[Deletion]]:
    def place(candidate: Deletion) -> tuple[Reason, Signal, int]:
        return candidate.reason, candidate.signal, candidate.dateint

    return [list(group) for _, group in groupby(sorted(candidates, key=place), place)]


def _deletable(conn: Conn, source: Source, group: Sequence[Deletion], grace_seconds: float) -> set[int]:
    """The ids of a group of one reason, signal and day that may be deleted as things are."""
    ids = [candidate.segment_id for candidate in group]
    first = group[0]
    if first.reason is Reason.ORPHAN:
        return set(ids) - segments.known_ids(conn, source, first.signal, first.dateint, ids)
    rows = conn.execute(
        sql.SQL("""
        SELECT t.segment_id FROM {table} t
        JOIN supersessions s ON s.organization_id = t.organization_id AND s.segment_id = t.segment_id
        WHERE t.organization_id = %s AND t.instance_num = %s AND t.dateint = %s AND t.segment_id = ANY(%s)
          AND NOT t.published AND s.superseded_at <= clock_timestamp() - %s * interval '1 second'
        """).format(table=sql.Identifier(SIGNALS[first.signal].segment_table)),
        (source.organization_id, source.instance_num, first.dateint, ids, grace_seconds),
    )
    return {segment_id for (segment_id,) in rows}


def unconfirmed(conn: Conn, source: Source, limit: int, after: int = 0) -> list[Deletion]:
    """Deletions that were intended and not confirmed, by id from above ``after``: a killed deleter's, or failed ones.

    Nobody can have published any of these segments since, so that they may be deleted at once.
    """
    rows = conn.execute(
        """
        SELECT segment_id, signal, frequency_ms, dateint, key, reason FROM deletions
        WHERE organization_id = %s AND instance_num = %s AND confirmed_at IS NULL AND segment_id > %s
        ORDER BY segment_id LIMIT %s
        """,
        (source.organization_id, source.instance_num, after, limit),
    )
    return [
        Deletion(segment_id, Signal(signal), frequency_ms, dateint, key, Reason(reason))
        for segment_id, signal, frequency_ms, dateint, key, reason in rows
    ]


def confirm(conn: Conn, source: Source, deleted: Sequence[Deletion]) -> None:
    """These objects are gone: their rows go too. What they were made of stays in lineage."""
    ids = [deletion.segment_id for deletion in deleted]
    conn.execute(
        """
        UPDATE deletions SET confirmed_at = clock_timestamp()
        WHERE organization_id = %s AND segment_id = ANY(%s) AND confirmed_at IS NULL
        """,
        (source.organization_id, ids),
    )
    for group in _by_day(deleted):
        segments.delete_unpublished(
            conn, source, group[0].signal, group[0].dateint, [deletion.segment_id for deletion in group]
        )
    # What has expired was replaced by nothing: that it was meant to go must be known for as long as its lineage.
    conn.execute(
        "DELETE FROM supersessions WHERE organization_id = %s AND segment_id = ANY(%s) AND operation <> %s",
        (source.organization_id, ids, expiry.OPERATION),
    )
    conn.execute(
        """
        UPDATE supersessions SET deleted_at = clock_timestamp()
        WHERE organization_id = %s AND segment_id = ANY(%s) AND deleted_at IS NULL
        """,
        (source.organization_id, ids),
    )
    faults.forget(conn, source.organization_id, ids)


def require_kept(conn: Conn, organization_id: UUID, segment_ids: Sequence[int], written_since: datetime) -> None:
    """SwapConflict where an object that was written after ``written_since`` (``Lrdb.clock``) may have been deleted.

    To be asked by whoever publishes, after ``segments.lock_swaps``. A deletion that was confirmed before is none of
    ours: what was written since is there.
    """
    rows = conn.execute(
        """
        SELECT key FROM deletions
        WHERE organization_id = %s AND segment_id = ANY(%s) AND (confirmed_at IS NULL OR confirmed_at >= %s)
        ORDER BY key
        """,
        (organization_id, list(segment_ids), written_since),
    )
    doomed = [key for (key,) in rows]
    if doomed:
        raise SwapConflict(
            f"{len(doomed)} objects that this work has written may have been deleted meanwhile, as what was there "
            f"before ({doomed[0]}): nothing is published, do the work again (`lakerunner maintain superseded` ends "
            "deletions that are under way)"
        )


def purge(conn: Conn, days: float) -> int:
    """Forget deletions that were confirmed so long ago that no work can have begun before; how many."""
    return conn.execute(
        "DELETE FROM deletions WHERE confirmed_at < clock_timestamp() - %s * interval '1 day'", (days,)
    ).rowcount
