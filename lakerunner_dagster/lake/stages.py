"""The stages of the lake: which work is done on which signal, where it is heard of, and which asset it makes.

What belongs here: the declaration of each stage. What does not: what a stage does with its boxes (``ticks``, ``runs``),
facts about a signal (``signals``).
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from types import MappingProxyType
from typing import TYPE_CHECKING

from lakerunner_dagster.lake.signals import COMPACTION_CODE_VERSION, SIGNALS, Signal, SignalSpec

if TYPE_CHECKING:
    from collections.abc import Mapping


class Operation(StrEnum):
    """What a stage does; the value is its word in topics, stages of boxes and jobs."""

    INGEST = "ingest"
    COMPACT = "compact"


@dataclass(frozen=True, slots=True)
class Stage:
    """One kind of work on one signal: heard of on ``input_topic``, boxed, given to runs that make ``asset``.

    ``upstream`` is the asset that it works on. ``group`` is where Dagster shows its asset. Somebody waits for what is
    ``urgent``: its ticks listen, and its runs go before others.
    """

    signal: Signal
    operation: Operation
    asset: str
    upstream: str
    group: str
    input_topic: str
    code_version: str
    urgent: bool

    @property
    def name(self) -> str:
        """The stage in lrdb and in the names of consumer groups: ``logs.ingest``."""
        return f"{self.signal}.{self.operation}"

    @property
    def job(self) -> str:
        """Name of the job that its dispatcher starts."""
        return f"{self.operation}_{self.signal}"

    @property
    def identifier(self) -> str:
        """The stage in the names of Dagster's sensors: ``logs_ingest``."""
        return f"{self.signal}_{self.operation}"

    @property
    def box_topic(self) -> str:
        """Topic (without prefix) of its boxes."""
        return f"segments.{self.signal}.{self.operation}"

    @property
    def spec(self) -> SignalSpec:
        """What its signal is like."""
        return SIGNALS[self.signal]


def _ingest(spec: SignalSpec) -> Stage:
    return Stage(
        signal=spec.signal,
        operation=Operation.INGEST,
        asset=spec.segment_asset,
        upstream=spec.raw_asset,
        group="segments",
        input_topic=spec.notification_topic,
        code_version=spec.code_version,
        urgent=True,
    )


def _compaction(spec: SignalSpec) -> Stage:
    return Stage(
        signal=spec.signal,
        operation=Operation.COMPACT,
        asset=spec.compacted_asset,
        upstream=spec.segment_asset,
        group="compacted",
        input_topic=spec.compaction_topic,
        code_version=COMPACTION_CODE_VERSION,
        urgent=False,
    )


STAGES: Mapping[str, Stage] = MappingProxyType(
    {stage.name: stage for make in (_ingest, _compaction) for stage in map(make, SIGNALS.values())}
)
"""Every stage, by name."""


def ingest_stage(signal: Signal) -> Stage:
    """The stage that makes segments of raw objects."""
    return STAGES[f"{signal}.{Operation.INGEST}"]


def compaction_stage(signal: Signal) -> Stage:
    """The stage that merges small segments."""
    return STAGES[f"{signal}.{Operation.COMPACT}"]
