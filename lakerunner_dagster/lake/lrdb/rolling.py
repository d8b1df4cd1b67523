"""The transaction that publishes what was computed of slots of a tier, in place of what they had.

What belongs here: all that must become true at once when slots were computed, and what must hold before it may. What
does not: computing them (``segments.rollup``), which slots are dirty and why (``slots``), the rows (``swap``).
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from psycopg import sql

from lakerunner_dagster.lake.errors import ConservationBreach, InputsUnreadable, SwapConflict
from lakerunner_dagster.lake.lrdb import (
    conservation,
    deletions,
    expiry,
    leases,
    lineage,
    outbox,
    segments,
    slots,
    swap,
    unsettled,
)
from lakerunner_dagster.lake.lrdb import ledger as books
from lakerunner_dagster.lake.lrdb.slots import Slot
from lakerunner_dagster.lake.model import (
    Lease,
    LedgerEntry,
    Message,
    Output,
    Segment,
    Source,
    dateint_of,
    hour_of,
)
from lakerunner_dagster.lake.signals import SIGNALS
from lakerunner_dagster.lake.tiers import ROLLED_UP, Tier

if TYPE_CHECKING:
    from datetime import datetime

    from lakerunner_dagster.lake.lrdb.connection import Conn


@dataclass(frozen=True, slots=True)
class Piece:
    """Some slots of an hour of a source's tier that are computed together: [start_ms, end_ms)."""

    source: Source
    tier: Tier
    start_ms: int
    end_ms: int

    @property
    def slots(self) -> list[Slot]:
        """Its slots, in order."""
        return [
            Slot(self.source.organization_id, self.source.instance_num, self.tier.frequency_ms, start_ms)
            for start_ms in self.tier.slots(self.start_ms, self.end_ms)
        ]

    @property
    def dateint(self) -> int:
        """Its UTC day."""
        return dateint_of(self.start_ms)

    @property
    def hour(self) -> int:
        """Its UTC hour."""
        return hour_of(self.start_ms)

    def touches(self, segment: Segment) -> bool:
        """Whether the segment has, or may have, rows in it."""
        return segment.start_ms < self.end_ms and segment.end_ms > self.start_ms


@dataclass(frozen=True, slots=True)
class Published:
    """What became of a piece: ``complete`` when it was computed from all that the finer tier has published in it,
    and before it as far as that matters.
    """

    replaced: swap.Replaced
    complete: bool


def finer_segments(conn: Conn, piece: Piece) -> list[Segment]:
    """The published segments of the finer tier that touch the piece."""
    return _touching(conn, piece, piece.tier.finer_ms)


def finer_ids_before(conn: Conn, piece: Piece, reach_ms: int) -> set[int]:
    """The ids of the published segments of the finer tier that touch the time from ``reach_ms`` to the piece."""
    rows = conn.execute(
        sql.SQL("""
        SELECT segment_id FROM {table}
        WHERE organization_id = %s AND instance_num = %s AND frequency_ms = %s AND published
          AND dateint BETWEEN %s AND %s AND ts_range && int8range(%s, %s)
        """).format(table=sql.Identifier(SIGNALS[ROLLED_UP].segment_table)),
        (
            piece.source.organization_id,
            piece.source.instance_num,
            piece.tier.finer_ms,
            dateint_of(reach_ms),
            piece.dateint,
            reach_ms,
            piece.start_ms,
        ),
    )
    return {segment_id for (segment_id,) in rows}


def standing_segments(conn: Conn, piece: Piece) -> list[Segment]:
    """The published segments of the tier itself that touch the piece."""
    return _touching(conn, piece, piece.tier.frequency_ms)


def _touching(conn: Conn, piece: Piece, frequency_ms: int) -> list[Segment]:
    published = segments.published_segments(
        conn, piece.source, ROLLED_UP, piece.dateint, frequency_ms=frequency_ms, hour=piece.hour
    )
    return [segment for segment in published if piece.touches(segment)]


def publish_rollup(
    conn: Conn,
    piece: Piece,
    read: Sequence[Segment],
    outputs: Sequence[Output],
    *,
    ledger: LedgerEntry,
    messages: Sequence[Message],
    lease: Lease | None,
    written_since: datetime,
    reach_ms: int | None = None,
    seen_before: Collection[int] = (),
    aside: int = 0,
    retry_seconds: float = 0.0,
) -> Published:
    """Make ``outputs`` what readers see of the piece, computed from the finer segments ``read``.

    Where it depends on rows before it, from ``reach_ms`` on, ``seen_before`` are the ids of the finer segments that
    were published there. Where others were published meanwhile, in it or there, or ``aside`` of them could not be read,
    it is published all the same, and its slots are dirty, from ``retry_seconds`` later on. Leases, objects and
    ``written_since`` are as for ``merging.publish_merge``.

    Raises LeaseLost; SwapConflict when what is to be replaced reaches beyond the piece by now; InputsUnreadable when
    readers would see fewer records though some of the finer tier cannot be read; ConservationBreach when they would
    though some of it has expired, or the numbers do not add up: nothing is changed then.
    """
    tier, source = piece.tier, piece.source
    if lease is not None:
        leases.hold(conn, lease, source.organization_id)
    made = [output.segment for output in outputs]
    for segment in made:
        conservation.require_place(segment, source, ROLLED_UP, tier.frequency_ms)
        if segment.start_ms < piece.start_ms or segment.end_ms > piece.end_ms:
            raise SwapConflict(f"segment {segment.key} is not of its slots alone: nothing is published")
    conservation.require_outputs_stand_on_inputs(outputs)
    conservation.require_ledger(ledger, outputs, read=ledger.records_read)

    for frequency_ms in (tier.finer_ms, tier.frequency_ms):  # ascending everywhere, so that nobody waits in a circle
        segments.lock_swaps(conn, source, ROLLED_UP, frequency_ms)
    unsettled.touch(conn, [*read, *made])  # of both tiers at once, ascending as the boxer of compaction takes them
    deletions.require_kept(conn, source.organization_id, [segment.segment_id for segment in made], written_since)
    published = {one.segment_id for one in finer_segments(conn, piece)}
    as_seen = reach_ms is None or finer_ids_before(conn, piece, reach_ms) == set(seen_before)
    complete = not aside and published == {one.segment_id for one in read} and as_seen
    replaced = _replace(conn, piece, outputs, ledger, aside)
    books.add(conn, ledger, made)
    if complete:
        slots.clean(conn, source, tier.frequency_ms, piece.start_ms, piece.end_ms)
    else:
        slots.postpone(conn, piece.slots, retry_seconds)
    _note_rolled_up(conn, piece, read)
    if replaced.changed:
        outbox.add(conn, messages)
    return Published(replaced, complete)


def _replace(conn: Conn, piece: Piece, outputs: Sequence[Output], ledger: LedgerEntry, aside: int) -> swap.Replaced:
    """Swap the rows, note what they stand on, and mark what depends on them."""
    source, made = piece.source, [output.segment for output in outputs]
    hour = segments.lock_published(
        conn, source, ROLLED_UP, piece.dateint, frequency_ms=piece.tier.frequency_ms, hour=piece.hour
    )
    standing = [segment for segment in hour if piece.touches(segment)]
    if beyond := [one.key for one in standing if one.start_ms < piece.start_ms or one.end_ms > piece.end_ms]:
        raise SwapConflict(f"segments {beyond[:10]} reach beyond the slots that were computed: compute theirs too")
    _require_no_loss(conn, piece, standing, made, aside)
    replaced = swap.swap(conn, source, standing, made, ledger)
    written = {*replaced.inserted, *replaced.republished}
    lineage.forget(conn, source.organization_id, sorted(written))
    lineage.add(
        conn,
        [output for output in outputs if output.segment.segment_id in written],
        operation=ledger.operation,
        run_id=ledger.run_id,
        code_version=ledger.code_version,
    )
    if replaced.changed:
        slots.touch(conn, [*standing, *made])
    return replaced


def _note_rolled_up(conn: Conn, piece: Piece, read: Iterable[Segment]) -> None:
    """Those of the finer segments all of which is in the tier are rolled up: they may be merged with their like."""
    rows = conn.execute(
        sql.SQL("""
        UPDATE {table} AS t SET rolledup = true
        WHERE organization_id = %(organization)s AND dateint = %(dateint)s AND instance_num = %(instance)s
          AND frequency_ms = %(finer)s AND segment_id = ANY(%(ids)s) AND published AND NOT rolledup
          AND NOT EXISTS (
              SELECT FROM dirty_slots d
              WHERE d.organization_id = t.organization_id AND d.instance_num = t.instance_num
                AND d.frequency_ms = %(tier)s AND d.slot_ms < upper(t.ts_range)
                AND d.slot_ms + %(slot)s > lower(t.ts_range))
        RETURNING segment_id
        """).format(table=sql.Identifier(SIGNALS[ROLLED_UP].segment_table)),
        {
            "organization": piece.source.organization_id,
            "dateint": piece.dateint,
            "instance": piece.source.instance_num,
            "finer": piece.tier.finer_ms,
            "ids": [segment.segment_id for segment in read],
            "tier": piece.tier.frequency_ms,
            "slot": piece.tier.slot_ms,
        },
    )
    noted = {segment_id for (segment_id,) in rows}
    unsettled.touch(conn, [segment for segment in read if segment.segment_id in noted])


def _require_no_loss(
    conn: Conn, piece: Piece, standing: Iterable[Segment], made: Iterable[Segment], aside: int
) -> None:
    """InputsUnreadable or ConservationBreach where the tier would lose records that the finer one cannot give now, or
    has no more.

    A tier outlives the finer ones: what retention has taken of those must stay in it.
    """
    had, has = (sum(segment.records for segment in side) for side in (standing, made))
    if has >= had:
        return
    less = (
        f"the {piece.tier.label} tier of {piece.source.key}, {piece.dateint} {piece.hour:02d}h, stands for {had} "
        f"records, and the finer segments that are left for {has}"
    )
    if aside:
        raise InputsUnreadable(f"{less}: {aside} of them cannot be read, so it stays as it is")
    if expiry.has_expired(conn, piece.source, ROLLED_UP, piece.tier.finer_ms, piece.dateint):
        raise ConservationBreach(f"{less}: retention has taken some of them, so it stays as it is")
