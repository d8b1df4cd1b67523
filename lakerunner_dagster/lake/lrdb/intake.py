"""Raw objects on their way in: notified, pending, known by their true etag, or sent round again.

What belongs here: a raw object's row up to its box, and back to pending. What does not: boxes (``boxes``), how an
object ends (``publish``), what a person looks at (``quarantine``).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from enum import StrEnum
from typing import TYPE_CHECKING, Any, NamedTuple
from uuid import UUID

from psycopg import sql
from psycopg.errors import UniqueViolation

from lakerunner_dagster.lake.bodies import number_field, text_field, uuid_field
from lakerunner_dagster.lake.errors import InputError
from lakerunner_dagster.lake.lrdb.known import ObjectName
from lakerunner_dagster.lake.lrdb.leases import hold
from lakerunner_dagster.lake.model import Lease, RawObject, Source, dateint_of
from lakerunner_dagster.lake.planning.boxer import Pending
from lakerunner_dagster.lake.segments.ids import raw_identity
from lakerunner_dagster.lake.signals import Signal
from lakerunner_dagster.lake.store import StoredObject, check_key, normalize_etag

if TYPE_CHECKING:
    from lakerunner_dagster.lake.lrdb.connection import Conn

DEFAULT_RATIO = 8.0
"""Decompressed by stored bytes of a source of which nothing was ingested yet."""

LATEST_MS = 253_402_300_799_999
"""The last ms of the year 9999: later event times are none."""

BUCKET_LENGTH = 255
ETAG_BYTES = 256


@dataclass(frozen=True, slots=True)
class Notification:
    """That an object was created: an object notification (spec/messages.md) of a signal's topic.

    ``size`` is in stored bytes, ``event_time_ms`` the store's time of the object, ``queued`` RFC 3339. ``etag``,
    ``collector`` and ``adapter`` (who told of it; key ``a`` of the body) are empty where another system's message is.
    """

    signal: Signal
    organization_id: UUID
    instance_num: int
    bucket: str
    key: str
    size: int
    queued: str
    event_time_ms: int
    etag: str = ""
    collector: str = ""
    adapter: str = ""

    @classmethod
    def from_body(cls, signal: Signal, body: object) -> Notification:
        """A message's JSON body, checked; InputError (``bad_notification``, ``bad_key``) saying what is wrong."""
        if not isinstance(body, Mapping):
            raise InputError("bad_notification", f"a notification is a JSON object, not {ascii(body)[:200]}")
        key = text_field(body, "k")
        check_key(key)
        queued = text_field(body, "t")
        return cls(
            signal=signal,
            organization_id=uuid_field(body, "o"),
            instance_num=number_field(body, "i", 32_767),
            bucket=text_field(body, "b", BUCKET_LENGTH),
            key=key,
            size=number_field(body, "s", 2**62),
            queued=queued,
            event_time_ms=number_field(body, "et", LATEST_MS) if "et" in body else _epoch_ms(queued),
            etag=normalize_etag(text_field(body, "e", ETAG_BYTES, default="")),
            collector=text_field(body, "c", default=""),
            adapter=text_field(body, "a", default=""),
        )

    def body(self) -> dict[str, Any]:
        """The message's JSON body."""
        return {
            "o": str(self.organization_id),
            "i": self.instance_num,
            "b": self.bucket,
            "k": self.key,
            "s": self.size,
            "t": self.queued,
            "e": self.etag,
            "c": self.collector,
            "et": self.event_time_ms,
            "a": self.adapter,
        }


def _epoch_ms(queued: str) -> int:
    """The time of an RFC 3339 text: what stands for the event time in messages of systems that send none."""
    try:
        milliseconds = int(datetime.fromisoformat(queued).timestamp() * 1000)
    except (ValueError, OverflowError) as error:
        raise InputError("bad_notification", f"'t' must be an RFC 3339 time, not {ascii(queued)[:200]}") from error
    return number_field({"t": milliseconds}, "t", LATEST_MS)


@dataclass(frozen=True, slots=True)
class Observed:
    """New raw objects of a source and day: how many, and their stored bytes."""

    objects: int
    bytes: int


@dataclass(frozen=True, slots=True)
class Upserted:
    """What became of notifications: new rows, missing objects that are looked for again, and those known already.

    ``unknown`` name no source of lrdb, or another collector than the source has: dead letters. ``observed`` counts the
    new ones by (source, dateint of their event time).
    """

    new: int
    reopened: int
    duplicates: int
    unknown: tuple[Notification, ...]
    observed: Mapping[tuple[Source, int], Observed]


def upsert_raw_objects(conn: Conn, notifications: Sequence[Notification]) -> Upserted:
    """Every notified object has a row afterwards; a known (bucket, key, etag) stays as it is, unless it was missing.

    That it is notified again says that a missing one may be there now: it becomes pending again.
    """
    known = _sources(conn, notifications)
    rows = [(known.get((n.organization_id, n.instance_num)), n) for n in notifications]
    unknown = tuple(n for source, n in rows if source is None or n.collector not in ("", source.collector))
    refused = set(unknown)
    taken = [(source, n) for source, n in rows if source is not None and n not in refused]
    inserted = _insert(conn, taken)
    # What has just been inserted was not missing: only the others need be looked up, in a table that grows.
    new = {name for *_, name in inserted}
    others: defaultdict[UUID, list[ObjectName]] = defaultdict(list)
    for source, n in taken:
        name = ObjectName(n.bucket, n.key, n.etag)
        if name not in new:
            others[source.organization_id].append(name)
    reopened = sum(_reopen(conn, organization_id, names) for organization_id, names in others.items())
    observed: dict[tuple[Source, int], Observed] = {}
    for organization_id, instance_num, dateint, size, _ in inserted:
        place = (known[organization_id, instance_num], dateint)
        before = observed.get(place, Observed(0, 0))
        observed[place] = Observed(before.objects + 1, before.bytes + size)
    return Upserted(
        new=len(inserted),
        reopened=reopened,
        duplicates=len(taken) - len(inserted) - reopened,
        unknown=unknown,
        observed=observed,
    )


def _sources(conn: Conn, notifications: Sequence[Notification]) -> dict[tuple[UUID, int], Source]:
    """The sources that notifications name, by organization and instance."""
    named = sorted({(n.organization_id, n.instance_num) for n in notifications})
    rows = conn.execute(
        """
        SELECT s.organization_id, o.name, s.collector_name, s.instance_num, s.bucket
        FROM unnest(%s::uuid[], %s::int[]) AS n (organization_id, instance_num)
        JOIN organization_buckets s ON s.organization_id = n.organization_id AND s.instance_num = n.instance_num
        JOIN organizations o ON o.id = s.organization_id
        """,
        ([organization_id for organization_id, _ in named], [instance_num for _, instance_num in named]),
    )
    return {(source.organization_id, source.instance_num): source for source in (Source(*row) for row in rows)}


def _insert(conn: Conn, taken: Sequence[tuple[Source, Notification]]) -> list[tuple[UUID, int, int, int, ObjectName]]:
    """Insert those that are new; (organization, instance, event day, size, name) of each."""
    # In one order everywhere, so that two that insert the same objects wait for each other and never in a circle.
    ordered = sorted(taken, key=lambda row: (row[1].bucket, row[1].key, row[1].etag))
    columns = list(
        zip(
            *(
                (
                    n.organization_id,
                    n.instance_num,
                    source.collector,
                    str(n.signal),
                    n.bucket,
                    n.key,
                    n.etag,
                    raw_identity(n.bucket, n.key, n.etag),
                    n.size,
                    n.event_time_ms,
                    dateint_of(n.event_time_ms),
                    n.adapter,
                )
                for source, n in ordered
            ),
            strict=True,
        )
    )
    if not columns:
        return []
    rows = conn.execute(
        """
        INSERT INTO raw_objects (organization_id, instance_num, collector, signal, bucket, key, etag, identity, size,
                                 event_time_ms, event_dateint, adapter)
        SELECT * FROM unnest(%s::uuid[], %s::smallint[], %s::text[], %s::text[], %s::text[], %s::text[], %s::text[],
                             %s::text[], %s::bigint[], %s::bigint[], %s::int[], %s::text[])
        ON CONFLICT (bucket, key, etag) DO NOTHING
        RETURNING organization_id, instance_num, event_dateint, size, bucket, key, etag
        """,
        [list(column) for column in columns],
    )
    return [(*row[:4], ObjectName(*row[4:])) for row in rows]


_PENDING_AGAIN = sql.SQL(
    "state = 'pending', pending_since = now(), box_id = NULL, ended_at = NULL, raw_bytes = 0, records_read = 0,"
    " records_rejected = 0, rejected = '{}', error_class = NULL, error_text = NULL"
)
"""What a raw object's row is like when it waits again."""


def _reopen(conn: Conn, organization_id: UUID, names: Sequence[ObjectName]) -> int:
    """Look again for those of the notified objects that were missing; how many there are."""
    return conn.execute(
        sql.SQL("""
        UPDATE raw_objects r SET {pending_again}
        FROM unnest(%s::text[], %s::text[], %s::text[]) AS n (bucket, key, etag)
        WHERE r.organization_id = %s AND r.bucket = n.bucket AND r.key = n.key AND r.etag = n.etag
          AND r.state = 'missing'
        """).format(pending_again=_PENDING_AGAIN),
        (
            [bucket for bucket, _, _ in names],
            [key for _, key, _ in names],
            [etag for *_, etag in names],
            organization_id,
        ),
    ).rowcount


def requeue(conn: Conn, organization_id: UUID, raw_object_ids: Sequence[int]) -> int:
    """Quarantined and missing objects become pending again, as if just notified; how many there were of these."""
    return conn.execute(
        sql.SQL("""
        UPDATE raw_objects SET {pending_again}
        WHERE organization_id = %s AND raw_object_id = ANY(%s) AND state IN ('quarantined', 'missing')
        """).format(pending_again=_PENDING_AGAIN),
        (organization_id, list(raw_object_ids)),
    ).rowcount


class IngestGroup(NamedTuple):
    """What the members of an ingest box have in common: a source, a day, and a window of event time in it."""

    organization_id: UUID
    instance_num: int
    dateint: int
    window_start_ms: int


def pending(conn: Conn, signal: Signal, limit: int, window_seconds: int) -> list[Pending]:
    """Objects that wait for a box, oldest first and organizations in turn, at most ``limit``; groups are IngestGroups.

    Until the transaction ends, another one's call for this signal waits: a boxer plans alone.
    """
    conn.execute("SELECT pg_advisory_xact_lock(hashtextextended(%s, 0))", (f"lrdb boxer {signal}",))
    rows = conn.execute(
        """
        SELECT r.raw_object_id, r.organization_id, r.instance_num, r.event_dateint, r.event_time_ms,
               ceil(r.size * coalesce(c.ratio, %(default)s))::bigint,
               (extract(epoch FROM r.pending_since) * 1000)::bigint
        FROM organizations o
        CROSS JOIN LATERAL (
            SELECT *, row_number() OVER (ORDER BY raw_object_id) AS turn FROM (
                SELECT * FROM raw_objects
                WHERE signal = %(signal)s AND organization_id = o.id AND state = 'pending'
                ORDER BY raw_object_id LIMIT %(limit)s
            ) AS oldest
        ) AS r
        LEFT JOIN compression_ratios c
            ON c.organization_id = r.organization_id AND c.instance_num = r.instance_num AND c.signal = r.signal
        ORDER BY r.turn, r.raw_object_id LIMIT %(limit)s
        """,
        {"signal": str(signal), "limit": limit, "default": DEFAULT_RATIO},
    )
    window_ms = window_seconds * 1000
    return [
        Pending(
            item_id=raw_object_id,
            group=IngestGroup(organization_id, instance_num, dateint, event_time_ms // window_ms * window_ms),
            bytes=estimate,
            waiting_since_ms=since,
        )
        for raw_object_id, organization_id, instance_num, dateint, event_time_ms, estimate, since in rows
    ]


class Resolution(StrEnum):
    """What the store's etag says of a raw object as it was notified.

    ``same``: it is the one. ``named``: it had no etag, and has this one now. ``absorbed``: it had none, and is known
    under this one already, so its row is gone. ``overwritten``: its content is no more; what is there waits by itself.
    """

    SAME = "same"
    NAMED = "named"
    ABSORBED = "absorbed"
    OVERWRITTEN = "overwritten"


def resolve_etag(conn: Conn, lease: Lease, raw: RawObject, stored: StoredObject) -> tuple[Resolution, RawObject]:
    """Hold a box's member against what the store has; it comes back as it is known now.

    An overwritten one must end as missing (error class ``overwritten``), in the publishing transaction. LeaseLost.
    """
    if stored.etag == raw.etag:
        return Resolution.SAME, raw
    hold(conn, lease, raw.organization_id)
    if raw.etag:
        add_version(conn, raw, stored)
        return Resolution.OVERWRITTEN, raw
    named = replace(raw, etag=stored.etag, size=stored.size)
    try:
        with conn.transaction():
            _name(conn, named)
    except UniqueViolation:
        _absorb(conn, lease, named)
        return Resolution.ABSORBED, named
    return Resolution.NAMED, named


def add_version(conn: Conn, raw: RawObject, stored: StoredObject) -> None:
    """What stands now under a raw object's key is an object of its own: it waits, unless known and not missing."""
    version = Notification(
        signal=raw.signal,
        organization_id=raw.organization_id,
        instance_num=raw.instance_num,
        bucket=raw.bucket,
        key=raw.key,
        size=stored.size,
        queued="",
        event_time_ms=stored.last_modified_ms,
        etag=stored.etag,
        adapter="run",
    )
    upsert_raw_objects(conn, [version])


def _name(conn: Conn, named: RawObject) -> None:
    conn.execute(
        """
        UPDATE raw_objects SET etag = %s, identity = %s, size = %s
        WHERE raw_object_id = %s AND organization_id = %s AND etag = ''
        """,
        (
            named.etag,
            raw_identity(named.bucket, named.key, named.etag),
            named.size,
            named.raw_object_id,
            named.organization_id,
        ),
    )


def _absorb(conn: Conn, lease: Lease, named: RawObject) -> None:
    gone = conn.execute(
        "DELETE FROM raw_objects WHERE raw_object_id = %s AND organization_id = %s AND box_id = %s AND etag = ''",
        (named.raw_object_id, named.organization_id, lease.box_id),
    ).rowcount
    conn.execute(
        "UPDATE boxes SET members = members - %s WHERE box_id = %s AND organization_id = %s",
        (gone, lease.box_id, named.organization_id),
    )
    conn.execute(
        sql.SQL("""
        UPDATE raw_objects SET {pending_again}
        WHERE organization_id = %s AND bucket = %s AND key = %s AND etag = %s AND state = 'missing'
        """).format(pending_again=_PENDING_AGAIN),
        (named.organization_id, named.bucket, named.key, named.etag),
    )
