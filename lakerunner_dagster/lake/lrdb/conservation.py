"""What must hold of a step's numbers before it may be published: nothing lost, made up, or in a wrong place.

What belongs here: the arithmetic. What does not: what lrdb says of the inputs (``publish``).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence

from lakerunner_dagster.lake.errors import ConservationBreach, SwapConflict
from lakerunner_dagster.lake.model import InputKind, LedgerEntry, ObjectOutcome, Output, Segment, Source
from lakerunner_dagster.lake.signals import SIGNALS, Signal


def require_place(segment: Segment, source: Source, signal: Signal, frequency_ms: int) -> None:
    """The segment is of the source, signal and tier that is worked on."""
    expected = (source.organization_id, source.instance_num, source.collector, signal, frequency_ms)
    found = (
        segment.organization_id,
        segment.instance_num,
        segment.collector,
        segment.signal,
        segment.frequency_ms,
    )
    if found != expected:
        raise SwapConflict(f"segment {segment.key} is of {found}, but the work is of {expected}: nothing is published")


def require_outputs_stand_on_inputs(outputs: Iterable[Output]) -> None:
    """Each segment has the records that its inputs gave it, and as many rows where rows are not merged."""
    for output in outputs:
        segment = output.segment
        given = sum(contribution.records for contribution in output.inputs)
        merges = bool(SIGNALS[segment.signal].frequency_ms)
        if segment.records != given or (not merges and segment.record_count != given):
            raise ConservationBreach(
                f"segment {segment.key} has {segment.record_count} rows for {segment.records} records, but {given} "
                "come from its inputs: nothing is published"
            )


def require_inputs_conserved(outputs: Iterable[Output], outcomes: Iterable[ObjectOutcome]) -> None:
    """What was read of each raw object is in the segments, or rejected with a reason."""
    written: Counter[int] = Counter()
    for output in outputs:
        for contribution in output.inputs:
            written[contribution.input_id] += contribution.records
    for outcome in outcomes:
        rejected = sum(outcome.rejected.values())
        found = written.pop(outcome.raw_object_id, 0)
        if outcome.records_read != found + rejected:
            raise ConservationBreach(
                f"raw object {outcome.raw_object_id}: {outcome.records_read} records read, but {found} written and "
                f"{rejected} rejected: nothing is published"
            )
    if written:
        raise ConservationBreach(
            f"segments hold records of raw objects {sorted(written)[:10]}, not in the box: nothing is published"
        )


def require_merge_conserved(inputs: Sequence[Segment], outputs: Sequence[Output]) -> None:
    """The outputs hold every record of every input once, over the same time, and no count that was not there.

    Σ chq_rollup_count falls only where rows of cumulative histograms, which repeat what came before, became one.
    """
    given: Counter[int] = Counter()
    for output in outputs:
        if output.input_kind is not InputKind.SEGMENT:
            raise ConservationBreach(f"segment {output.segment.key} was not made of segments: nothing is published")
        for contribution in output.inputs:
            given[contribution.input_id] += contribution.records
    held = Counter({segment.segment_id: segment.records for segment in inputs})
    if given != held:
        unequal = sorted(id_ for id_ in given | held if given[id_] != held[id_])
        raise ConservationBreach(
            f"{held.total()} records were in {len(inputs)} segments, {given.total()} are in the {len(outputs)} that "
            f"are to replace them; segments {unequal[:10]} do not add up: nothing is published"
        )
    made = [output.segment for output in outputs]
    if _span(inputs) != _span(made):
        raise ConservationBreach(
            f"segments of [{_span(inputs)}) ms are to be replaced by others of [{_span(made)}) ms: nothing is published"
        )
    counted, written = (math.fsum(segment.rollup_count for segment in side) for side in (inputs, made))
    if written > counted:
        raise ConservationBreach(f"Σ chq_rollup_count was {counted} and would be {written}: nothing is published")


def _span(segments: Sequence[Segment]) -> tuple[int, int]:
    return min(segment.start_ms for segment in segments), max(segment.end_ms for segment in segments)


def require_ledger(ledger: LedgerEntry, outputs: Iterable[Output], read: int) -> None:
    """The books say what was read and written."""
    written = sum(output.segment.records for output in outputs)
    rejected = sum(ledger.rejected.values())
    if (ledger.records_read, ledger.records_written) != (read, written) or read != written + rejected:
        raise ConservationBreach(
            f"run {ledger.run_id} books {ledger.records_read} read, {ledger.records_written} written and {rejected} "
            f"rejected, but {read} were read and {written} written: nothing is published"
        )
