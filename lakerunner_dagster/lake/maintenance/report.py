"""What a turn of maintenance is asked for, and what it tells: how much of what, with examples, and what failed.

What belongs here: the values that jobs take and give. What does not: the jobs, and how a report is shown.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Protocol

from lakerunner_dagster.lake.errors import LakeError

logger = logging.getLogger(__name__)

SHOWN = 200
"""Items of one outcome that a report names; it counts all of them."""

FAILED = "failed"
"""The outcome of what could not be done, and is tried again by the next turn."""


class PartitionKeys(Protocol):
    """The source partitions that Dagster shows."""

    def keys(self) -> list[str]:
        """Their keys, ``{organization name}/{collector}``."""

    def remove(self, key: str) -> None:
        """Show this one no longer."""


@dataclass(frozen=True, slots=True)
class Order:
    """One turn of a job: ``dry_run`` changes nothing, and tells what it would do; ``now_ms`` is the time."""

    dry_run: bool
    now_ms: int
    partitions: PartitionKeys | None = None


@dataclass(frozen=True, slots=True)
class Item:
    """One thing and what became, or would become, of it."""

    outcome: str
    subject: str
    note: str = ""


@dataclass(frozen=True, slots=True)
class Report:
    """What a turn did, or with ``dry_run`` would do: how often each outcome, and the first items of each."""

    job: str
    dry_run: bool
    counts: Mapping[str, int]
    items: tuple[Item, ...]

    @property
    def failed(self) -> int:
        """How many things could not be done."""
        return self.counts.get(FAILED, 0)


@dataclass(slots=True)
class Findings:
    """A report as it is gathered."""

    job: str
    order: Order
    counts: Counter[str] = field(default_factory=Counter)
    items: list[Item] = field(default_factory=list)

    def add(self, outcome: str, subject: str, note: str = "") -> None:
        """Count a thing, and name it unless so many were named already."""
        self.counts[outcome] += 1
        if self.counts[outcome] <= SHOWN:
            self.items.append(Item(outcome, subject, note))

    def count(self, outcome: str, number: int) -> None:
        """Count things that need not be named."""
        if number:
            self.counts[outcome] += number

    def fail(self, subject: str, error: LakeError) -> None:
        """A thing that could not be done."""
        logger.warning("%s: %s: %s", self.job, subject, error)
        self.add(FAILED, subject, f"{type(error).__name__}: {error}")

    @contextmanager
    def guarded(self, subject: str) -> Iterator[None]:
        """What ails one source or bucket is told, and the others have their turn."""
        try:
            yield
        except LakeError as error:
            self.fail(subject, error)

    def report(self) -> Report:
        """What was gathered."""
        return Report(self.job, self.order.dry_run, dict(self.counts), tuple(self.items))
