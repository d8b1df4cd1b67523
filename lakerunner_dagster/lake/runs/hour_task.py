"""One hour of segments that a run computes anew from segments: what compaction and rollup have in common.

What belongs here: whose hour it is and under which lease, and how a swap of it is told and booked. What does not: what
is computed (``compaction``, ``rollup``), the swaps themselves (``lrdb``).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from lakerunner_dagster.lake.model import Lease, LedgerEntry, Output, Segment, Source
from lakerunner_dagster.lake.planning.compaction import SegmentGroup
from lakerunner_dagster.lake.runs.context import Lake
from lakerunner_dagster.lake.runs.memory import peak_memory_bytes
from lakerunner_dagster.lake.runs.report import Step


@dataclass(frozen=True, slots=True)
class HourTask:
    """An hour of a group, by which run, under which lease; ``check`` raises when the lease is lost."""

    lake: Lake
    source: Source
    group: SegmentGroup
    run_id: str
    lease: Lease | None
    check: Callable[[], None]

    def step(self, outputs: Sequence[Output], *, superseded: int, read: int, bytes_in: int, seconds: float) -> Step:
        """What a swap is told as: ``read`` records of ``bytes_in`` stored bytes have become ``outputs``."""
        return Step(
            source=self.source,
            signal=self.group.signal,
            dateint=self.group.dateint,
            run_id=self.run_id,
            box_id=None if self.lease is None else self.lease.box_id,
            hour=self.group.hour,
            segments=tuple(output.segment for output in outputs),
            superseded=superseded,
            objects=0,
            set_aside=(),
            records_read=read,
            records_written=sum(output.segment.records for output in outputs),
            rejected={},
            elsewhere=0,
            raw_bytes=0,
            bytes_in=bytes_in,
            bytes_out=sum(output.segment.file_size for output in outputs),
            seconds=seconds,
            peak_memory_bytes=peak_memory_bytes(),
        )

    def ledger(self, step: Step, operation: str, code_version: str, rollup_count_read: float) -> LedgerEntry:
        """The step's line in the books. Its box has many: none of them is the box's."""
        return replace(
            step.ledger_entry(operation, rollup_count_read),
            code_version=code_version,
            frequency_ms=self.group.frequency_ms,
            box_id=None,
        )


def records_of(segments: Sequence[Segment]) -> int:
    """Raw records that segments stand for."""
    return sum(segment.records for segment in segments)


def bytes_of(segments: Sequence[Segment]) -> int:
    """Their stored bytes."""
    return sum(segment.file_size for segment in segments)
