"""The dirty slots of rollup tiers: those that lack something of what the finer tier has published.

What belongs here: the rows of dirty slots, from the publication that makes one to the rollup that has computed it from
all there is. What does not: which slots a time touches (``tiers``), the swap of their segments (``rolling``).

Whoever changes what is published of a tier holds that tier's swap lock (``segments.lock_swaps``) and marks the slots of
the next one in the same transaction. A rollup holds the lock too when it compares what it has read, and looked back
at, with what is published: so it has seen a change, or its slot stays dirty. None can come between.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, NamedTuple
from uuid import UUID

from psycopg import sql

from lakerunner_dagster.lake.lrdb import boxes
from lakerunner_dagster.lake.lrdb.unsettled import grouping_key
from lakerunner_dagster.lake.model import HOUR_MS, Segment, Source, dateint_of, day_start_ms, hour_of
from lakerunner_dagster.lake.planning.compaction import SegmentGroup
from lakerunner_dagster.lake.settings import MOST_LOOK_BACK_HOURS
from lakerunner_dagster.lake.signals import SIGNALS
from lakerunner_dagster.lake.stages import rollup_stage
from lakerunner_dagster.lake.tiers import ROLLED_UP, TIERS, Tier, tier_above

if TYPE_CHECKING:
    from lakerunner_dagster.lake.lrdb.connection import Conn


class Slot(NamedTuple):
    """A slot of a source's tier, which begins at ``start_ms``."""

    organization_id: UUID
    instance_num: int
    frequency_ms: int
    start_ms: int

    @property
    def group(self) -> SegmentGroup:
        """The hour of the tier that it is a piece of."""
        return SegmentGroup(
            self.organization_id,
            self.instance_num,
            ROLLED_UP,
            self.frequency_ms,
            dateint_of(self.start_ms),
            hour_of(self.start_ms),
        )


_KEY = sql.SQL("(organization_id, instance_num, frequency_ms, slot_ms) = (%s, %s, %s, %s)")


def touch(conn: Conn, segments: Iterable[Segment]) -> None:
    """What is published of these segments changes in this transaction: the slots that depend on it are dirty."""
    touched: set[Slot] = set()
    for segment in segments:
        tier = tier_above(segment.frequency_ms)
        if tier is not None:
            touched |= {
                Slot(segment.organization_id, segment.instance_num, tier.frequency_ms, start_ms)
                for start_ms in (*tier.slots(segment.start_ms, segment.end_ms), *_reaching(conn, segment, tier))
            }
    mark(conn, touched)


def _reaching(conn: Conn, segment: Segment, tier: Tier) -> set[int]:
    """The later slots of which a segment depends on finer rows from the time of this one: rows of cumulative series."""
    rows = conn.execute(
        sql.SQL("""
        SELECT lower(ts_range), upper(ts_range) FROM {table}
        WHERE organization_id = %s AND instance_num = %s AND frequency_ms = %s AND published AND reach_ms < %s
          AND dateint BETWEEN %s AND %s AND lower(ts_range) >= %s
        """).format(table=sql.Identifier(SIGNALS[ROLLED_UP].segment_table)),
        (
            segment.organization_id,
            segment.instance_num,
            tier.frequency_ms,
            segment.end_ms,
            segment.dateint,
            dateint_of(segment.end_ms + MOST_LOOK_BACK_HOURS * HOUR_MS),
            segment.start_ms,
        ),
    )
    return {slot for start_ms, end_ms in rows for slot in tier.slots(start_ms, end_ms)}


def mark(conn: Conn, slots: Iterable[Slot]) -> int:
    """These slots are dirty (those that were stay so since they are); how many were not."""
    columns = list(zip(*sorted(slots), strict=True)) or [(), (), (), ()]
    return conn.execute(
        """
        INSERT INTO dirty_slots (organization_id, instance_num, frequency_ms, slot_ms)
        SELECT * FROM unnest(%s::uuid[], %s::smallint[], %s::int[], %s::bigint[]) ON CONFLICT DO NOTHING
        """,
        [list(column) for column in columns],
    ).rowcount


def wake(conn: Conn, organization_id: UUID, dateint: int, segment_ids: Sequence[int]) -> int:
    """The slots of those of a day's segments that are published and not rolled up are dirty; how many were not known.

    What another system publishes is heard of so, and what a restored lrdb has forgotten.
    """
    rows = conn.execute(
        sql.SQL("""
        SELECT instance_num, frequency_ms, lower(ts_range), upper(ts_range) FROM {table}
        WHERE organization_id = %s AND dateint = %s AND segment_id = ANY(%s) AND published AND NOT rolledup
        """).format(table=sql.Identifier(SIGNALS[ROLLED_UP].segment_table)),
        (organization_id, dateint, list(segment_ids)),
    ).fetchall()
    slots = {
        Slot(organization_id, instance_num, tier.frequency_ms, start)
        for instance_num, frequency_ms, start_ms, end_ms in rows
        if (tier := tier_above(frequency_ms)) is not None
        for start in tier.slots(start_ms, end_ms)
    }
    return mark(conn, slots)


def due(conn: Conn, frequency_ms: int, gather_seconds: float, limit: int) -> list[Slot]:
    """Slots of a tier in no box, dirty for so long, longest first; held until the transaction ends."""
    rows = conn.execute(
        """
        SELECT organization_id, instance_num, frequency_ms, slot_ms FROM dirty_slots
        WHERE frequency_ms = %s AND box_id IS NULL AND dirty_at <= now() - %s * interval '1 second'
        ORDER BY dirty_at, slot_ms LIMIT %s FOR UPDATE SKIP LOCKED
        """,
        (frequency_ms, gather_seconds, limit),
    )
    return [Slot(*row) for row in rows]


def open_box(conn: Conn, group: SegmentGroup, slots: Sequence[Slot]) -> int:
    """A box for dirty slots of one hour, which are held; its id."""
    box_id = boxes.insert(
        conn,
        rollup_stage(),
        boxes.NewBox(
            organization_id=group.organization_id,
            instance_num=group.instance_num,
            dateint=group.dateint,
            grouping_key=grouping_key(group),
            members=len(slots),
            bytes=0,
            reason="dirty",
            frequency_ms=group.frequency_ms,
        ),
    )
    with conn.cursor() as cursor:
        cursor.executemany(
            sql.SQL("UPDATE dirty_slots SET box_id = %s WHERE {key}").format(key=_KEY),
            [(box_id, *slot) for slot in slots],
        )
    return box_id


def of_box(conn: Conn, organization_id: UUID, box_id: int) -> list[Slot]:
    """The slots of a box that are dirty still, in the order of time."""
    rows = conn.execute(
        """
        SELECT organization_id, instance_num, frequency_ms, slot_ms FROM dirty_slots
        WHERE organization_id = %s AND box_id = %s ORDER BY slot_ms
        """,
        (organization_id, box_id),
    )
    return [Slot(*row) for row in rows]


def of_group(group: SegmentGroup) -> list[Slot]:
    """All slots of an hour of a tier, dirty or not."""
    start_ms = group.end_ms - HOUR_MS
    return [
        Slot(group.organization_id, group.instance_num, group.frequency_ms, slot_ms)
        for slot_ms in TIERS[group.frequency_ms].slots(start_ms, group.end_ms)
    ]


def clean(conn: Conn, source: Source, frequency_ms: int, start_ms: int, end_ms: int) -> None:
    """The slots of a tier that begin in [start_ms, end_ms) lack nothing."""
    conn.execute(
        """
        DELETE FROM dirty_slots
        WHERE organization_id = %s AND instance_num = %s AND frequency_ms = %s AND slot_ms >= %s AND slot_ms < %s
        """,
        (source.organization_id, source.instance_num, frequency_ms, start_ms, end_ms),
    )


def postpone(conn: Conn, slots: Iterable[Slot], seconds: float = 0.0) -> None:
    """These slots are dirty from now on (or from ``seconds`` later), and in no box."""
    with conn.cursor() as cursor:
        cursor.executemany(
            """
            INSERT INTO dirty_slots AS d (dirty_at, organization_id, instance_num, frequency_ms, slot_ms)
            VALUES (now() + %s * interval '1 second', %s, %s, %s, %s)
            ON CONFLICT (organization_id, instance_num, frequency_ms, slot_ms)
                DO UPDATE SET dirty_at = excluded.dirty_at, box_id = NULL
            """,
            [(seconds, *slot) for slot in sorted(slots)],
        )


def dirty_in_day(conn: Conn, source: Source, tier: Tier, dateint: int) -> int:
    """How many slots of a tier's day are dirty."""
    start_ms = day_start_ms(dateint)
    row = conn.execute(
        """
        SELECT count(*) FROM dirty_slots
        WHERE organization_id = %s AND instance_num = %s AND frequency_ms = %s AND slot_ms >= %s AND slot_ms < %s
        """,
        (source.organization_id, source.instance_num, tier.frequency_ms, start_ms, start_ms + 24 * HOUR_MS),
    ).fetchone()
    return row[0] if row else 0


def of_day(conn: Conn, source: Source, tier: Tier, dateint: int) -> list[SegmentGroup]:
    """The hours of a tier's day that have something, in it or in the finer tier, in order."""
    rows = conn.execute(
        sql.SQL("""
        SELECT DISTINCT (lower(ts_range) / 3600000 %% 24)::int FROM {table}
        WHERE organization_id = %s AND dateint = %s AND instance_num = %s AND frequency_ms = ANY(%s) AND published
        ORDER BY 1
        """).format(table=sql.Identifier(SIGNALS[ROLLED_UP].segment_table)),
        (source.organization_id, dateint, source.instance_num, [tier.finer_ms, tier.frequency_ms]),
    )
    return [
        SegmentGroup(source.organization_id, source.instance_num, ROLLED_UP, tier.frequency_ms, dateint, hour)
        for (hour,) in rows
    ]
