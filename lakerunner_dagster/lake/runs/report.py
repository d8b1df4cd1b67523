"""What a run tells about its work: one step per committed transaction, and what could not be done.

What belongs here: the values that a run hands to its caller (Dagster's metadata, logs, tests), and to lrdb's books.
What does not: counting (``attempt``, ``rebuild``).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from lakerunner_dagster.lake.model import LedgerEntry, ObjectOutcome, RawObject, RawState, Segment, Source
from lakerunner_dagster.lake.signals import SIGNALS, Signal


@dataclass(frozen=True, slots=True)
class SetAside:
    """A raw object of which nothing was published: ``state`` is quarantined or missing."""

    raw: RawObject
    state: RawState
    error_class: str
    error_text: str

    @property
    def outcome(self) -> ObjectOutcome:
        """The same, as lrdb takes it."""
        return ObjectOutcome(
            raw_object_id=self.raw.raw_object_id,
            state=self.state,
            error_class=self.error_class,
            error_text=self.error_text,
        )


@dataclass(frozen=True, slots=True)
class Step:
    """One committed transaction: a box of a drain (``box_id``) or an hour of a rebuild (``hour``).

    ``dateint`` is the partition that the run was started for; an ingested box may leave segments on other days too.
    ``segments`` are those that it published, or found published already. ``objects`` were read to their end.
    ``elsewhere`` counts records read that belong to other hours (rebuilds only): records_read = records_written +
    rejected + elsewhere. ``raw_bytes`` are decompressed, ``bytes_in`` and ``bytes_out`` stored bytes. ``origins`` (of
    rollups): key of a segment, and of a segment of the ingest tier that it stands on.
    """

    source: Source
    signal: Signal
    dateint: int
    run_id: str
    box_id: int | None
    hour: int | None
    segments: tuple[Segment, ...]
    superseded: int
    objects: int
    set_aside: tuple[SetAside, ...]
    records_read: int
    records_written: int
    rejected: Mapping[str, int]
    elsewhere: int
    raw_bytes: int
    bytes_in: int
    bytes_out: int
    seconds: float
    peak_memory_bytes: int
    origins: tuple[tuple[str, str], ...] = ()

    @property
    def days(self) -> tuple[int, ...]:
        """The days (dateint, ascending) of the step's segments."""
        return tuple(sorted({segment.dateint for segment in self.segments}))

    def ledger_entry(self, operation: str, rollup_count_read: float) -> LedgerEntry:
        """What lrdb's books say of the step; records that belong to other hours are booked there."""
        return LedgerEntry(
            run_id=self.run_id,
            operation=operation,
            code_version=SIGNALS[self.signal].code_version,
            organization_id=self.source.organization_id,
            instance_num=self.source.instance_num,
            signal=self.signal,
            dateint=self.dateint,
            frequency_ms=SIGNALS[self.signal].frequency_ms,
            box_id=self.box_id,
            records_read=self.records_read - self.elsewhere,
            records_written=self.records_written,
            rejected=self.rejected,
            bytes_in=self.bytes_in,
            bytes_out=self.bytes_out,
            seconds=self.seconds,
            peak_memory_bytes=self.peak_memory_bytes,
            rollup_count_read=rollup_count_read,
        )


OnStep = Callable[[Step], None]
"""Called after each commit, in the run's own thread."""


@dataclass(frozen=True, slots=True)
class Failure:
    """A step that was not done: the box or hour, and why. What it would have changed is as it was."""

    what: str
    error_class: str
    error_text: str


@dataclass(frozen=True, slots=True)
class DrainReport:
    """Every box that the run finished, in order, and those that it gave back."""

    steps: tuple[Step, ...]
    failures: tuple[Failure, ...]


@dataclass(frozen=True, slots=True)
class RebuildReport:
    """The boxes that were drained before the rebuild, and the hours that it computed anew."""

    boxes: tuple[Step, ...]
    hours: tuple[Step, ...]
