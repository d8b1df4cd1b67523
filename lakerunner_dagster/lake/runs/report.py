"""What a run tells about its work: one step per committed transaction, and what could not be done.

What belongs here: the values that a run hands to its caller (for Dagster's metadata, logs, tests). What does not: lrdb's
own books of the same work, the ledger (``lrdb``), which are written in the step's transaction.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from lakerunner_dagster.lake.model import RawObject, RawState, Segment, Source
from lakerunner_dagster.lake.signals import Signal


@dataclass(frozen=True, slots=True)
class SetAside:
    """A raw object of which nothing was published: ``state`` is quarantined or missing."""

    raw: RawObject
    state: RawState
    error_class: str
    error_text: str


@dataclass(frozen=True, slots=True)
class Step:
    """One committed transaction: a box of a drain (``box_id``) or an hour of a rebuild (``hour``).

    ``dateint`` is the partition that the run was started for; an ingested box may leave segments on other days too.
    ``segments`` are those that it published, or found published already. ``objects`` were read to their end.
    ``elsewhere`` counts records read that belong to other hours (rebuilds only): records_read = records_written +
    rejected + elsewhere. ``raw_bytes`` are decompressed, ``bytes_in`` and ``bytes_out`` stored bytes.
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

    @property
    def days(self) -> tuple[int, ...]:
        """The days (dateint, ascending) of the step's segments."""
        return tuple(sorted({segment.dateint for segment in self.segments}))


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
    """What the drain before the rebuild did, the hours that it computed anew, and those that it left as they were."""

    drained: DrainReport
    hours: tuple[Step, ...]
    failures: tuple[Failure, ...]
