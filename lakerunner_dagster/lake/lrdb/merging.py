"""The transaction that lets merged segments take the place of their inputs.

What belongs here: all that must become true at once when segments were merged, and what must hold before it may. What
does not: which segments are merged (``planning.compaction``), merging them (``segments.merge``), the rows (``swap``).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from lakerunner_dagster.lake.errors import SwapConflict
from lakerunner_dagster.lake.lrdb import conservation, deletions, leases, lineage, outbox, segments, swap
from lakerunner_dagster.lake.lrdb import ledger as books
from lakerunner_dagster.lake.model import Lease, LedgerEntry, Message, Output, Segment, Source

if TYPE_CHECKING:
    from datetime import datetime

    from lakerunner_dagster.lake.lrdb.connection import Conn


def publish_merge(
    conn: Conn,
    source: Source,
    inputs: Sequence[Segment],
    outputs: Sequence[Output],
    *,
    ledger: LedgerEntry,
    messages: Sequence[Message],
    lease: Lease | None,
    written_since: datetime,
) -> swap.Replaced:
    """Make ``outputs`` what readers see in place of ``inputs``, segments of one hour and tier as they were when read.

    ``lease`` is the box's where there is one. The objects are in the store, put there after ``written_since`` (lrdb's
    clock). Raises LeaseLost; SwapConflict when an input is not published any more, or says otherwise than it did;
    ConservationBreach when the outputs do not hold what the inputs held: nothing is changed then.
    """
    if lease is not None:
        leases.hold(conn, lease, source.organization_id)
    first = inputs[0]
    for segment in (*inputs, *(output.segment for output in outputs)):
        conservation.require_place(segment, source, first.signal, first.frequency_ms)
        if (segment.dateint, segment.hour, segment.rolledup) != (first.dateint, first.hour, first.rolledup):
            raise SwapConflict(f"segments {first.key} and {segment.key} are of different hours: nothing is published")
    conservation.require_outputs_stand_on_inputs(outputs)
    conservation.require_merge_conserved(inputs, outputs)
    conservation.require_ledger(ledger, outputs, read=sum(segment.records for segment in inputs))

    segments.lock_swaps(conn, source, first.signal, first.frequency_ms)
    written = [output.segment.segment_id for output in outputs]
    deletions.require_kept(conn, source.organization_id, written, written_since)
    locked = _locked(conn, source, inputs)
    replaced = swap.swap(conn, source, locked, [output.segment for output in outputs], ledger)
    lineage.forget(conn, source.organization_id, written)
    lineage.add(
        conn,
        outputs,
        operation=ledger.operation,
        run_id=ledger.run_id,
        code_version=ledger.code_version,
    )
    books.add(conn, ledger, [output.segment for output in outputs])
    outbox.add(conn, messages)
    return replaced


def _locked(conn: Conn, source: Source, inputs: Sequence[Segment]) -> list[Segment]:
    """The inputs, locked; SwapConflict unless all of them are published and say what was read."""
    first = inputs[0]
    wanted = {segment.segment_id: segment for segment in inputs}
    found = segments.lock_published(
        conn,
        source,
        first.signal,
        first.dateint,
        frequency_ms=first.frequency_ms,
        hour=first.hour,
        segment_ids=sorted(wanted),
    )
    changed = wanted.keys() ^ {segment.segment_id for segment in found if wanted[segment.segment_id] == segment}
    if changed:
        raise SwapConflict(
            f"segments {sorted(changed)[:10]} of {source.key} {first.dateint} {first.hour:02d}h are not published any "
            "more as they were read: another has replaced them, so plan again"
        )
    return found
