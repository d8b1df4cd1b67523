"""Boxes: units of work that are opened, dispatched, claimed under a lease, given back, failed and opened again.

What belongs here: a box's row and its members' states up to the publishing transaction. What does not: which objects
make a box (``planning.boxer``), the end of a box that is done (``publish``).

A box waits when it is open and its next attempt is due, or claimed and its lease has expired. It is dispatched again
only min(2^dispatches, 300) s after the last time, unless a run has claimed it since, or recalled it: so a run that
never starts is replaced soon, and one that cannot start is not asked for without end. Attempts count at the claim: a
killed run has had its turn.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from uuid import UUID, uuid4

from psycopg import sql

from lakerunner_dagster.lake.errors import SwapConflict
from lakerunner_dagster.lake.lrdb import outbox
from lakerunner_dagster.lake.lrdb.connection import storable
from lakerunner_dagster.lake.lrdb.intake import IngestGroup, Notification
from lakerunner_dagster.lake.lrdb.leases import lease_lost
from lakerunner_dagster.lake.lrdb.rows import RAW_OBJECT, raw_object
from lakerunner_dagster.lake.model import ClaimedBox, Lease, Message, RawObject, Source, rfc3339
from lakerunner_dagster.lake.planning.boxer import PlannedBox
from lakerunner_dagster.lake.signals import Signal
from lakerunner_dagster.lake.stages import Stage, ingest_stage

if TYPE_CHECKING:
    from lakerunner_dagster.lake.lrdb.connection import Conn
    from lakerunner_dagster.lake.settings import Settings

MESSAGE_BYTES = 900_000
"""A box's message stays below this (spec/messages.md)."""

ENVELOPE_BYTES = 200
"""More than what a box's message has around its notifications."""

LONGEST_DISPATCH_SECONDS = 300
"""Longest wait between two dispatches of a box that no run has claimed."""

DOUBLINGS = 9
"""So many double the wait beyond the longest; dispatches go on counting, and 2 to their power would be no number."""


@dataclass(frozen=True, slots=True)
class NewBox:
    """A box to be: of which partition and group in it, of how many members and bytes, and why it was closed.

    ``frequency_ms`` is the tier that it is for, 0 where its stage has none.
    """

    organization_id: UUID
    instance_num: int
    dateint: int
    grouping_key: str
    members: int
    bytes: int
    reason: str
    frequency_ms: int = 0


def insert(conn: Conn, stage: Stage, box: NewBox) -> int:
    """Open a box; its id."""
    row = conn.execute(
        """
        INSERT INTO boxes (organization_id, instance_num, stage, signal, dateint, frequency_ms, grouping_key, members,
                           bytes, reason)
        VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s, %s) RETURNING box_id
        """,
        (
            box.organization_id,
            box.instance_num,
            stage.name,
            str(stage.signal),
            box.dateint,
            box.frequency_ms,
            box.grouping_key,
            box.members,
            box.bytes,
            box.reason,
        ),
    ).fetchone()
    assert row is not None  # noqa: S101  # RETURNING of one inserted row
    return int(row[0])


def open_boxes(conn: Conn, signal: Signal, planned: PlannedBox, now_ms: int) -> list[int]:
    """Close a planned ingest box: its objects are boxed and its message is in the outbox; the ids of the boxes.

    It is one box, or more where one message could not hold the notifications. SwapConflict unless every object is
    pending: plan in the same transaction (``intake.pending``).
    """
    group = planned.group
    if not isinstance(group, IngestGroup):
        raise TypeError(f"an ingest box is planned of an IngestGroup, not {group!r}")
    members = _lock_pending(conn, signal, group.organization_id, planned.item_ids)
    if len(members) != len(planned.item_ids):
        raise SwapConflict(
            f"only {len(members)} of {len(planned.item_ids)} {signal} objects planned for a box are pending: plan again"
        )
    queued = rfc3339(now_ms)
    stored = sum(member.size for member in members) or 1
    opened = []
    for part in _by_message_size(members, queued):
        size = planned.bytes * sum(member.size for member in part) // stored
        opened.append(_open_box(conn, signal, group, part, size=size, reason=planned.reason, queued=queued))
    return opened


def _lock_pending(conn: Conn, signal: Signal, organization_id: UUID, raw_object_ids: Sequence[int]) -> list[RawObject]:
    rows = conn.execute(
        sql.SQL("""
        SELECT {raw_object} FROM raw_objects r
        WHERE r.organization_id = %s AND r.signal = %s AND r.raw_object_id = ANY(%s) AND r.state = 'pending'
        ORDER BY r.raw_object_id FOR UPDATE
        """).format(raw_object=RAW_OBJECT),
        (organization_id, str(signal), list(raw_object_ids)),
    )
    return [raw_object(row) for row in rows]


def _notification(member: RawObject, queued: str) -> dict[str, Any]:
    return Notification(
        signal=member.signal,
        organization_id=member.organization_id,
        instance_num=member.instance_num,
        bucket=member.bucket,
        key=member.key,
        size=member.size,
        queued=queued,
        event_time_ms=member.event_time_ms,
        etag=member.etag,
        collector=member.collector,
    ).body()


def _by_message_size(members: Iterable[RawObject], queued: str) -> Iterator[list[RawObject]]:
    """The members in order, in as few lists as their notifications fit into messages."""
    part: list[RawObject] = []
    size = ENVELOPE_BYTES
    for member in members:
        length = len(json.dumps(_notification(member, queued))) + 1
        if part and size + length > MESSAGE_BYTES:
            yield part
            part, size = [], ENVELOPE_BYTES
        part.append(member)
        size += length
    if part:
        yield part


def _open_box(
    conn: Conn, signal: Signal, group: IngestGroup, members: Sequence[RawObject], *, size: int, reason: str, queued: str
) -> int:
    stage = ingest_stage(signal)
    box_id = insert(
        conn,
        stage,
        NewBox(
            organization_id=group.organization_id,
            instance_num=group.instance_num,
            dateint=group.dateint,
            grouping_key=rfc3339(group.window_start_ms),
            members=len(members),
            bytes=size,
            reason=reason,
        ),
    )
    conn.execute(
        "UPDATE raw_objects SET state = 'boxed', box_id = %s WHERE organization_id = %s AND raw_object_id = ANY(%s)",
        (box_id, group.organization_id, [member.raw_object_id for member in members]),
    )
    outbox.add(conn, [ingest_message(box_id, members, queued)])
    return box_id


def ingest_message(box_id: int, members: Sequence[RawObject], queued: str) -> Message:
    """What is told of an ingest box (spec/messages.md); its members share organization, collector and signal."""
    first = members[0]
    body = {"v": 1, "m": [_notification(member, queued) for member in members], "q": queued, "box": box_id}
    return Message(ingest_stage(first.signal).box_topic, f"{first.organization_id}/{first.collector}", body)


def unknown_boxes(conn: Conn, box_ids: Iterable[int]) -> set[int]:
    """Those ids that no box has: of another system's boxes, or of a lrdb that was restored since."""
    asked = set(box_ids)
    return asked - {
        box_id for (box_id,) in conn.execute("SELECT box_id FROM boxes WHERE box_id = ANY(%s)", (list(asked),))
    }


@dataclass(frozen=True, slots=True)
class WaitingPartition:
    """A source and day with boxes that wait for a run, oldest box first, and the tiers (ms) that these are for.

    ``attempts`` and ``dispatches`` are those of each box so far: with the ids they make a run's key, which differs
    whenever another run is called for and is the same for whoever looks at the same state.
    """

    source: Source
    dateint: int
    box_ids: tuple[int, ...]
    attempts: tuple[int, ...]
    dispatches: tuple[int, ...]
    frequencies_ms: tuple[int, ...]


_DUE = sql.SQL(
    "b.state IN ('open', 'claimed')"
    " AND (b.state = 'open' AND b.next_attempt_at <= now() OR b.state = 'claimed' AND b.lease_until < now())"
)
"""Whether a box ``b`` waits for a run."""

_IN_PARTITION = sql.SQL(
    "b.stage = %(stage)s AND b.organization_id = %(organization)s AND b.instance_num = %(instance)s"
    " AND b.dateint = %(dateint)s AND (%(frequency)s::int IS NULL OR b.frequency_ms = %(frequency)s)"
)
"""Whether a box ``b`` is of a partition (of one tier, where it is named): with the parameters of ``_partition``."""


def _partition(stage: str, source: Source, dateint: int, frequency_ms: int | None) -> dict[str, object]:
    return {
        "stage": stage,
        "organization": source.organization_id,
        "instance": source.instance_num,
        "dateint": dateint,
        "frequency": frequency_ms,
    }


def waiting_partitions(conn: Conn, stage: str) -> list[WaitingPartition]:
    """Every partition with boxes of this stage that wait and are not on their way to a run, longest wait first.

    A day that has yet to come is no partition: its boxes, of records whose clock is ahead, wait for midnight (UTC).
    """
    rows = conn.execute(
        sql.SQL("""
        SELECT s.organization_id, o.name, s.collector_name, s.instance_num, s.bucket, b.dateint,
               array_agg(b.box_id ORDER BY b.box_id), array_agg(b.attempts ORDER BY b.box_id),
               array_agg(b.dispatches ORDER BY b.box_id), array_agg(DISTINCT b.frequency_ms)
        FROM organizations o
        JOIN organization_buckets s ON s.organization_id = o.id
        JOIN boxes b ON b.organization_id = s.organization_id AND b.instance_num = s.instance_num
        WHERE b.stage = %(stage)s AND {due} AND b.dateint <= to_char(now() AT TIME ZONE 'UTC', 'YYYYMMDD')::int
          AND (b.dispatched_at IS NULL OR b.claimed_at >= b.dispatched_at
               OR b.dispatched_at
                  + least(power(2, least(b.dispatches, %(doublings)s)), %(longest)s) * interval '1 second' <= now())
        GROUP BY s.organization_id, o.name, s.collector_name, s.instance_num, s.bucket, b.dateint
        ORDER BY min(b.box_id)
        """).format(due=_DUE),
        {"stage": stage, "doublings": DOUBLINGS, "longest": LONGEST_DISPATCH_SECONDS},
    )
    return [WaitingPartition(Source(*row[:5]), row[5], *map(tuple, row[6:])) for row in rows]


def mark_dispatched(conn: Conn, box_ids: Sequence[int]) -> None:
    """A run is asked for these boxes: they do not call for another one for a while."""
    conn.execute(
        "UPDATE boxes SET dispatches = dispatches + 1, dispatched_at = now() WHERE box_id = ANY(%s)", (list(box_ids),)
    )


def recall(conn: Conn, stage: str, source: Source, dateint: int, *, frequency_ms: int | None = None) -> None:
    """Boxes of a partition (of one tier, where it is named) that wait still call for another run, and that at once.

    Their dispatches go on counting: a run's key must not come again.
    """
    conn.execute(
        sql.SQL("""
        UPDATE boxes SET dispatched_at = NULL
        WHERE box_id IN (
            SELECT b.box_id FROM boxes b WHERE {of_partition} AND {due} FOR UPDATE SKIP LOCKED
        )
        """).format(of_partition=_IN_PARTITION, due=_DUE),
        _partition(stage, source, dateint, frequency_ms),
    )


def claim(
    conn: Conn,
    stage: str,
    source: Source,
    dateint: int,
    *,
    run_id: str,
    settings: Settings,
    frequency_ms: int | None = None,
) -> ClaimedBox | None:
    """The oldest box (of one tier, where it is named) that waits in this partition, leased to the run; None if none.

    Runs that claim at once get different boxes. A box that has had all its attempts is failed instead, and says so.
    """
    _fail_exhausted(conn, stage, source, dateint, settings.box_attempts)
    row = conn.execute(
        sql.SQL("""
        UPDATE boxes SET
            state = 'claimed', run_id = %(run)s, attempts = attempts + 1, attempts_allowed = %(allowed)s,
            claimed_at = clock_timestamp(), lease_token = %(token)s, lease_seconds = %(seconds)s,
            lease_until = clock_timestamp() + %(seconds)s * interval '1 second'
        WHERE box_id = (
            SELECT b.box_id FROM boxes b WHERE {of_partition} AND {due}
            ORDER BY b.box_id LIMIT 1 FOR UPDATE SKIP LOCKED
        )
        RETURNING box_id, lease_token, attempts, signal, grouping_key
        """).format(of_partition=_IN_PARTITION, due=_DUE),
        _partition(stage, source, dateint, frequency_ms)
        | {
            "allowed": settings.box_attempts,
            "run": run_id,
            "token": uuid4(),
            "seconds": settings.lease_seconds,
        },
    ).fetchone()
    if row is None:
        return None
    box_id, token, attempt, signal, grouping_key = row
    return ClaimedBox(
        lease=Lease(box_id=box_id, token=token, run_id=run_id, attempt=attempt),
        stage=stage,
        source=source,
        signal=Signal(signal),
        dateint=dateint,
        grouping_key=grouping_key,
        members=_members(conn, source.organization_id, box_id),
    )


def _members(conn: Conn, organization_id: UUID, box_id: int) -> tuple[RawObject, ...]:
    rows = conn.execute(
        sql.SQL("""
        SELECT {raw_object} FROM raw_objects r
        WHERE r.organization_id = %s AND r.box_id = %s AND r.state = 'boxed' ORDER BY r.raw_object_id
        """).format(raw_object=RAW_OBJECT),
        (organization_id, box_id),
    )
    return tuple(raw_object(row) for row in rows)


def _fail_exhausted(conn: Conn, stage: str, source: Source, dateint: int, box_attempts: int) -> None:
    """Fail the partition's waiting boxes that have had all their attempts: those of runs that were killed."""
    conn.execute(
        sql.SQL("""
        UPDATE boxes SET
            state = 'failed', ended_at = now(), lease_token = NULL, lease_until = NULL,
            error_class = coalesce(error_class, 'LeaseExpired'),
            error_text = format(
                'claimed %%s times, the most allowed; the last, run %%s, let its lease run out: it was killed, or cut '
                'off from lrdb. %%s', attempts, run_id, 'Last error told: ' || error_text
            )
        WHERE box_id IN (
            SELECT b.box_id FROM boxes b
            WHERE b.stage = %(stage)s AND b.organization_id = %(organization)s AND b.instance_num = %(instance)s
              AND b.dateint = %(dateint)s AND b.attempts >= %(attempts)s AND {due}
            FOR UPDATE SKIP LOCKED
        )
        """).format(due=_DUE),
        {
            "stage": stage,
            "organization": source.organization_id,
            "instance": source.instance_num,
            "dateint": dateint,
            "attempts": box_attempts,
        },
    )


def heartbeat(conn: Conn, lease: Lease) -> None:
    """Let the lease live on from now, for as long as it was claimed for. LeaseLost."""
    renewed = conn.execute(
        """
        UPDATE boxes SET lease_until = clock_timestamp() + lease_seconds * interval '1 second'
        WHERE box_id = %s AND lease_token = %s
        """,
        (lease.box_id, lease.token),
    )
    if renewed.rowcount == 0:
        raise lease_lost(lease)


def release(conn: Conn, lease: Lease, error_class: str, error_text: str, backoff_seconds: float) -> None:
    """Give a box back that could not be done: it waits for its next attempt, or is failed after its last. LeaseLost."""
    released = conn.execute(
        """
        UPDATE boxes SET
            state = CASE WHEN attempts < attempts_allowed THEN 'open' ELSE 'failed' END,
            ended_at = CASE WHEN attempts < attempts_allowed THEN NULL ELSE now() END,
            next_attempt_at = now() + %(backoff)s * interval '1 second',
            lease_token = NULL, lease_until = NULL, error_class = %(class)s,
            error_text = format('attempt %%s of %%s: %%s', attempts, attempts_allowed, %(text)s::text)
        WHERE box_id = %(box)s AND lease_token = %(token)s
        """,
        {
            "backoff": backoff_seconds,
            "class": storable(error_class),
            "text": storable(error_text),
            "box": lease.box_id,
            "token": lease.token,
        },
    )
    if released.rowcount == 0:
        raise lease_lost(lease)


def finish(conn: Conn, lease: Lease, organization_id: UUID, *, segments: int, records: int, ingested: int = 0) -> None:
    """End a box that is done, and add what it has made to the totals of its source and stage, once. LeaseLost.

    To be called last in a transaction: until it ends, others that end a box of the source and stage wait.
    """
    ended = conn.execute(
        """
        WITH done AS (
            UPDATE boxes SET
                state = 'done', ended_at = now(), lease_token = NULL, lease_until = NULL, ingested = %(ingested)s,
                segments = %(segments)s, records = %(records)s
            WHERE box_id = %(box)s AND organization_id = %(organization)s AND lease_token = %(token)s
            RETURNING organization_id, instance_num, stage, ingested, segments, records
        )
        INSERT INTO box_totals AS t (organization_id, instance_num, stage, ingested, segments, records)
        SELECT * FROM done
        ON CONFLICT (organization_id, instance_num, stage) DO UPDATE SET
            ingested = t.ingested + excluded.ingested, segments = t.segments + excluded.segments,
            records = t.records + excluded.records
        """,
        {
            "ingested": ingested,
            "segments": segments,
            "records": records,
            "box": lease.box_id,
            "organization": organization_id,
            "token": lease.token,
        },
    )
    if ended.rowcount == 0:
        raise lease_lost(lease)


def reopen_failed(conn: Conn, stage: str, source: Source, dateint: int, *, frequency_ms: int | None = None) -> int:
    """Failed boxes of a partition (of one tier, where it is named) wait again, with all their attempts; how many.

    Their dispatches go on counting: a run's key must not come again.
    """
    return conn.execute(
        sql.SQL("""
        UPDATE boxes b SET
            state = 'open', attempts = 0, next_attempt_at = now(), dispatched_at = NULL, ended_at = NULL,
            error_class = NULL, error_text = NULL
        WHERE {of_partition} AND b.state = 'failed'
        """).format(of_partition=_IN_PARTITION),
        _partition(stage, source, dateint, frequency_ms),
    ).rowcount
