"""The transactions that change what readers see: a box's segments are added, an hour's are replaced.

What belongs here: all that must become true at once, and what must hold before it may. What does not: how any of it is
stored (``segments``, ``lineage``, ``ledger``, ``outbox``), how rows take the place of others (``swap``), what is
computed and put into the store before (``runs``).
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import replace
from datetime import datetime
from typing import TYPE_CHECKING

from lakerunner_dagster.lake.errors import ConservationBreach, SwapConflict
from lakerunner_dagster.lake.lrdb import boxes, conservation, deletions, expiry, lineage, outbox, segments, slots, swap
from lakerunner_dagster.lake.lrdb import ledger as books
from lakerunner_dagster.lake.lrdb.connection import storable
from lakerunner_dagster.lake.lrdb.leases import hold
from lakerunner_dagster.lake.lrdb.standing import Hour
from lakerunner_dagster.lake.model import (
    ClaimedBox,
    LedgerEntry,
    Message,
    ObjectOutcome,
    Output,
    RawState,
    Segment,
    Source,
)
from lakerunner_dagster.lake.signals import SIGNALS, Signal

if TYPE_CHECKING:
    from lakerunner_dagster.lake.lrdb.connection import Conn

RATIO_MEMORY = 0.8
"""Weight of what a source's compression ratio was against what a box has just shown."""

RATIO_BOUNDS = (0.1, 1000.0)

ENDS = (RawState.INGESTED, RawState.QUARANTINED, RawState.MISSING)


def publish_ingest(
    conn: Conn,
    box: ClaimedBox,
    outputs: Sequence[Output],
    outcomes: Sequence[ObjectOutcome],
    *,
    ledger: LedgerEntry,
    code_version: str,
    written_since: datetime,
    messages: Sequence[Message],
) -> None:
    """End a box: its segments are published, its raw objects ended, and everything about it is written.

    The segments' objects were put into the store after ``written_since`` (``Lrdb.clock``), and the day leaves exist
    (``partitions``). LeaseLost when the box is another run's by now, ConservationBreach when the numbers do not add up,
    SwapConflict when the box has other members than those with an outcome, a segment is there already, or its object
    may have been deleted since: nothing is changed then.
    """
    source = box.source
    hold(conn, box.lease, source.organization_id)
    _require_members(conn, box, outcomes)
    for output in outputs:
        conservation.require_place(output.segment, source, box.signal, SIGNALS[box.signal].frequency_ms)
    conservation.require_outputs_stand_on_inputs(outputs)
    conservation.require_inputs_conserved(outputs, outcomes)
    conservation.require_ledger(ledger, outputs, read=sum(outcome.records_read for outcome in outcomes))
    segments.lock_swaps(conn, source, box.signal, SIGNALS[box.signal].frequency_ms)
    deletions.require_kept(conn, source.organization_id, _ids(outputs), written_since)
    swap.insert(conn, [output.segment for output in outputs])
    slots.touch(conn, [output.segment for output in outputs])
    _end_objects(conn, box, outcomes)
    lineage.add(conn, outputs, operation=ledger.operation, run_id=ledger.run_id, code_version=code_version)
    books.add(conn, ledger, [output.segment for output in outputs])
    outbox.add(conn, messages)
    _learn_ratio(conn, box)
    boxes.finish(
        conn,
        box.lease,
        source.organization_id,
        ingested=sum(outcome.state is RawState.INGESTED for outcome in outcomes),
        segments=len(outputs),
        records=sum(output.segment.records for output in outputs),
    )


def _ids(outputs: Iterable[Output]) -> list[int]:
    return [output.segment.segment_id for output in outputs]


def _require_members(conn: Conn, box: ClaimedBox, outcomes: Sequence[ObjectOutcome]) -> None:
    """Every member is boxed in this box and has one outcome, which is an end; nothing else has one."""
    rows = conn.execute(
        "SELECT raw_object_id, state FROM raw_objects WHERE organization_id = %s AND box_id = %s"
        " ORDER BY raw_object_id FOR UPDATE",
        (box.source.organization_id, box.lease.box_id),
    ).fetchall()
    members = Counter({raw_object_id: 1 for raw_object_id, state in rows if state == RawState.BOXED})
    told = Counter(outcome.raw_object_id for outcome in outcomes if outcome.state in ENDS)
    if len(members) != len(rows) or members != told or told.total() != len(outcomes):
        raise SwapConflict(
            f"box {box.lease.box_id}: {len(rows)} members, {len(members)} of them boxed, but {len(outcomes)} outcomes; "
            f"raw objects {sorted((members - told) + (told - members))[:10]} have none or too many: work on it again"
        )


def _end_objects(conn: Conn, box: ClaimedBox, outcomes: Sequence[ObjectOutcome]) -> None:
    conn.execute(
        """
        UPDATE raw_objects r SET
            state = o.state, ended_at = now(), raw_bytes = o.raw_bytes, records_read = o.records_read,
            records_rejected = o.records_rejected, rejected = o.rejected::jsonb, error_class = o.error_class,
            error_text = o.error_text
        FROM unnest(%s::bigint[], %s::text[], %s::bigint[], %s::bigint[], %s::bigint[], %s::text[], %s::text[],
                    %s::text[])
            AS o (raw_object_id, state, raw_bytes, records_read, records_rejected, rejected, error_class, error_text)
        WHERE r.organization_id = %s AND r.raw_object_id = o.raw_object_id
        """,
        (
            [outcome.raw_object_id for outcome in outcomes],
            [str(outcome.state) for outcome in outcomes],
            [outcome.raw_bytes for outcome in outcomes],
            [outcome.records_read for outcome in outcomes],
            [sum(outcome.rejected.values()) for outcome in outcomes],
            [json.dumps(dict(outcome.rejected)) for outcome in outcomes],
            [outcome.error_class for outcome in outcomes],
            [None if outcome.error_text is None else storable(outcome.error_text) for outcome in outcomes],
            box.source.organization_id,
        ),
    )


def _learn_ratio(conn: Conn, box: ClaimedBox) -> None:
    """Move the source's ratio of decompressed to stored bytes towards that of the objects just ingested."""
    low, high = RATIO_BOUNDS
    conn.execute(
        """
        INSERT INTO compression_ratios AS c (organization_id, instance_num, signal, ratio)
        SELECT %(organization)s, %(instance)s, %(signal)s,
               least(greatest(sum(raw_bytes)::float / sum(size), %(low)s), %(high)s)
        FROM raw_objects
        WHERE organization_id = %(organization)s AND box_id = %(box)s AND state = 'ingested'
          AND raw_bytes > 0 AND size > 0
        HAVING count(*) > 0
        ON CONFLICT (organization_id, instance_num, signal) DO UPDATE SET
            ratio = c.ratio * %(memory)s + excluded.ratio * (1 - %(memory)s), updated_at = now()
        """,
        {
            "organization": box.source.organization_id,
            "instance": box.source.instance_num,
            "signal": str(box.signal),
            "box": box.lease.box_id,
            "low": low,
            "high": high,
            "memory": RATIO_MEMORY,
        },
    )


def replace_hour(
    conn: Conn,
    source: Source,
    signal: Signal,
    *,
    dateint: int,
    hour: int,
    frequency_ms: int,
    read_inputs: Collection[int],
    outputs: Sequence[Output],
    ledger: LedgerEntry,
    code_version: str,
    run_id: str,
    written_since: datetime,
    messages: Sequence[Message],
) -> swap.Replaced:
    """Make ``outputs`` what readers see of an hour, in place of all that they see now.

    ``read_inputs`` are the raw objects that were read to their end: nothing that stands on another is taken away, so
    that an object which is gone, or which came in meanwhile, costs no record (SwapConflict). Only ingested objects may
    be in outputs: others come through their box. ``ledger.records_read`` counts the hour's accepted records.
    Outputs that are there already stay, without a message. Objects, ``written_since`` and leaves as for
    :func:`publish_ingest`.
    """
    for output in outputs:
        conservation.require_place(output.segment, source, signal, frequency_ms)
        if (output.segment.dateint, output.segment.hour) != (dateint, hour):
            raise SwapConflict(f"segment {output.segment.key} is not of {dateint} {hour:02d}h: nothing is published")
    conservation.require_outputs_stand_on_inputs(outputs)
    conservation.require_ledger(ledger, outputs, read=ledger.records_read)
    segments.lock_swaps(conn, source, signal, frequency_ms)
    deletions.require_kept(conn, source.organization_id, _ids(outputs), written_since)
    _require_ingested(conn, source, read_inputs, outputs)
    published = segments.lock_published(conn, source, signal, dateint, frequency_ms=frequency_ms, hour=hour)
    _require_read(conn, source, published, read_inputs)
    replaced = swap.swap(conn, source, published, _carried_forward(outputs, published), ledger)
    expiry.returned(conn, source, Hour(dateint, hour), ledger, read_inputs=read_inputs, replaced_by=_ids(outputs))
    written = {*replaced.inserted, *replaced.republished}
    lineage.forget(conn, source.organization_id, sorted(written))
    lineage.add(
        conn,
        [output for output in outputs if output.segment.segment_id in written],
        operation=ledger.operation,
        run_id=run_id,
        code_version=code_version,
    )
    books.add(conn, ledger, [output.segment for output in outputs])
    if replaced.changed:
        slots.touch(conn, [*published, *(output.segment for output in outputs)])
        outbox.add(conn, messages)
    return replaced


def _require_ingested(conn: Conn, source: Source, read_inputs: Collection[int], outputs: Iterable[Output]) -> None:
    """What the outputs stand on was read, and is ingested: so its present segments are published and will be seen.

    Nothing is locked for it: ingested is an end.
    """
    inputs = {contribution.input_id for output in outputs for contribution in output.inputs}
    if not inputs <= set(read_inputs):
        raise ConservationBreach(
            f"segments hold records of raw objects {sorted(inputs - set(read_inputs))[:10]}, which were not read"
        )
    rows = conn.execute(
        """
        SELECT raw_object_id FROM raw_objects
        WHERE organization_id = %s AND instance_num = %s AND raw_object_id = ANY(%s) AND state = 'ingested'
        """,
        (source.organization_id, source.instance_num, sorted(inputs)),
    )
    waiting = inputs - {raw_object_id for (raw_object_id,) in rows}
    if waiting:
        raise SwapConflict(
            f"raw objects {sorted(waiting)[:10]} are not ingested: they come through their box, leave them out"
        )


def _require_read(conn: Conn, source: Source, published: Sequence[Segment], read_inputs: Collection[int]) -> None:
    """All that the published segments stand on was read."""
    stand_on = lineage.raw_inputs(conn, source.organization_id, [segment.segment_id for segment in published])
    for segment in published:
        inputs = stand_on.get(segment.segment_id, set())
        if not inputs or not inputs <= set(read_inputs):
            raise SwapConflict(
                f"segment {segment.key} stands on raw objects {sorted(inputs - set(read_inputs))[:10] or 'unknown'}, "
                "which were not read: they came in meanwhile, or cannot be read any more. The hour stays as it is"
            )


def _carried_forward(outputs: Iterable[Output], published: Iterable[Segment]) -> list[Segment]:
    """The outputs' segments, ingested on the earliest day of those that they take the place of."""
    days = [segment.ingest_dateint for segment in published]
    return [replace(output.segment, ingest_dateint=min([*days, output.segment.ingest_dateint])) for output in outputs]


def recount(conn: Conn, source: Source, outcomes: Sequence[ObjectOutcome]) -> None:
    """What a rebuild has read of ingested objects and rejected, where its decoder counts otherwise than the first."""
    conn.execute(
        """
        UPDATE raw_objects r SET
            raw_bytes = o.raw_bytes, records_read = o.records_read, records_rejected = o.records_rejected,
            rejected = o.rejected::jsonb
        FROM unnest(%s::bigint[], %s::bigint[], %s::bigint[], %s::bigint[], %s::text[])
            AS o (raw_object_id, raw_bytes, records_read, records_rejected, rejected)
        WHERE r.organization_id = %s AND r.raw_object_id = o.raw_object_id AND r.state = 'ingested'
          AND (r.records_read, r.rejected) IS DISTINCT FROM (o.records_read, o.rejected::jsonb)
        """,
        (
            [outcome.raw_object_id for outcome in outcomes],
            [outcome.raw_bytes for outcome in outcomes],
            [outcome.records_read for outcome in outcomes],
            [sum(outcome.rejected.values()) for outcome in outcomes],
            [json.dumps(dict(outcome.rejected)) for outcome in outcomes],
            source.organization_id,
        ),
    )
