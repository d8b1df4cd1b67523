"""How published segments take the place of others: the rows of a swap, whatever it is for.

What belongs here: inserting, publishing again and superseding rows so that each id has one row that says what is seen.
What does not: which segments may replace which, and what else must become true at once (``publish``, ``merging``).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from psycopg.errors import UniqueViolation

from lakerunner_dagster.lake.errors import SwapConflict
from lakerunner_dagster.lake.lrdb import faults, segments
from lakerunner_dagster.lake.model import LedgerEntry, Segment, Source

if TYPE_CHECKING:
    from lakerunner_dagster.lake.lrdb.connection import Conn


@dataclass(frozen=True, slots=True)
class Replaced:
    """What became of the segments of a swap, by id.

    ``kept`` were published and say the same. ``republished`` had a row that was unpublished or said otherwise.
    """

    kept: tuple[int, ...]
    inserted: tuple[int, ...]
    republished: tuple[int, ...]
    superseded: tuple[int, ...]

    @property
    def changed(self) -> bool:
        """Whether readers see anything else than before."""
        return bool(self.inserted or self.republished or self.superseded)


def swap(
    conn: Conn, source: Source, published: Sequence[Segment], wanted: Sequence[Segment], ledger: LedgerEntry
) -> Replaced:
    """Make ``wanted`` what readers see in place of ``published``, all of it of one source, signal, tier and day.

    The published segments are locked (``segments.lock_published``), and the objects of the wanted ones are there
    (``deletions.require_kept``). SwapConflict where the row of a wanted one has vanished.
    """
    seen = {segment.segment_id: segment for segment in published}
    wanted_ids = [segment.segment_id for segment in wanted]
    kept = {segment.segment_id for segment in wanted if _says_the_same(segment, seen.get(segment.segment_id))}
    known = segments.known_ids(conn, source, ledger.signal, ledger.dateint, wanted_ids) - kept
    gone = [segment for segment in published if segment.segment_id not in set(wanted_ids)]
    supersede(conn, gone, wanted_ids, operation=ledger.operation, run_id=ledger.run_id)
    insert(conn, [segment for segment in wanted if segment.segment_id not in known | kept])
    _republish(conn, [segment for segment in wanted if segment.segment_id in known])
    faults.forget(conn, source.organization_id, wanted_ids)  # their objects have just been written, or were found whole
    return Replaced(
        kept=tuple(sorted(kept)),
        inserted=tuple(sorted(set(wanted_ids) - known - kept)),
        republished=tuple(sorted(known)),
        superseded=tuple(sorted(segment.segment_id for segment in gone)),
    )


def _says_the_same(wanted: Segment, published: Segment | None) -> bool:
    """Whether a published row describes the segment, leaving aside what later stages note on it."""
    return published is not None and published == replace(
        wanted, ingest_dateint=published.ingest_dateint, compacted=published.compacted, rolledup=published.rolledup
    )


def supersede(conn: Conn, gone: Sequence[Segment], replaced_by: Sequence[int], *, operation: str, run_id: str) -> None:
    """Unpublish segments, and say when and what readers see instead (nothing, where none is named)."""
    segments.unpublish(conn, gone)
    for organization_id in {segment.organization_id for segment in gone}:
        faults.forget(conn, organization_id, [segment.segment_id for segment in gone])
    with conn.cursor() as cursor:
        cursor.executemany(
            """
            INSERT INTO supersessions (organization_id, instance_num, signal, frequency_ms, dateint, segment_id,
                                       operation, run_id, replaced_by)
            VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s)
            """,
            [
                (
                    segment.organization_id,
                    segment.instance_num,
                    str(segment.signal),
                    segment.frequency_ms,
                    segment.dateint,
                    segment.segment_id,
                    operation,
                    run_id,
                    list(replaced_by),
                )
                for segment in gone
            ],
        )


def _forget_superseded(conn: Conn, published: Sequence[Segment]) -> None:
    for organization_id in {segment.organization_id for segment in published}:
        conn.execute(
            "DELETE FROM supersessions WHERE organization_id = %s AND segment_id = ANY(%s)",
            (organization_id, [segment.segment_id for segment in published]),
        )


def _republish(conn: Conn, again: Sequence[Segment]) -> None:
    """Segments that were superseded, or whose object has been written anew: their rows say what is there now.

    None of them is about to be deleted, or was while its object was written (``deletions.require_kept``).
    """
    _forget_superseded(conn, again)
    for segment in again:
        if segments.rewrite(conn, segment) == 0:
            raise SwapConflict(f"segment {segment.key} lost its row while it was published again: do the work again")


def insert(conn: Conn, new: Sequence[Segment]) -> None:
    """Publish segments that have no row; SwapConflict where one has."""
    _forget_superseded(conn, new)  # that one has expired before is remembered without a row
    try:
        segments.insert(conn, new)
    except UniqueViolation as error:
        raise SwapConflict(
            f"a segment of {[segment.key for segment in new][:10]} has a row already, so this work was done before or "
            f"another's ids are the same ({error.diag.message_detail}): nothing is published"
        ) from error
