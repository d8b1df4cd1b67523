"""The stages of the lake: which work is done on which signal, where it is heard of, and which asset it makes.

What belongs here: the declaration of each stage. What does not: what a stage does with its boxes (``ticks``, ``runs``),
facts about a signal (``signals``).
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from types import MappingProxyType
from typing import TYPE_CHECKING

from lakerunner_dagster.lake.signals import (
    COMPACTION_CODE_VERSION,
    ROLLUP_CODE_VERSION,
    ROLLUP_TOPIC,
    SIGNALS,
    Signal,
    SignalSpec,
)
from lakerunner_dagster.lake.tiers import ROLLED_UP, TIERS

if TYPE_CHECKING:
    from collections.abc import Mapping


class Operation(StrEnum):
    """What a stage does; the value is its word in topics, stages of boxes and jobs."""

    INGEST = "ingest"
    COMPACT = "compact"
    ROLLUP = "rollup"


@dataclass(frozen=True, slots=True)
class StageAsset:
    """What a stage makes of the assets ``upstream``.

    ``frequency_ms`` is that of the one tier which the asset holds; None where it holds all that the stage makes.
    """

    name: str
    upstream: tuple[str, ...]
    frequency_ms: int | None = None


@dataclass(frozen=True, slots=True)
class Stage:
    """One kind of work on one signal: heard of on ``input_topic``, boxed, given to runs that make ``assets``.

    ``assets`` stand in the order in which they are made. ``group`` is where Dagster shows them. Runs of a higher
    ``priority`` go first. Somebody waits for what is ``urgent``: its ticks listen, and its runs are kept a place.
    """

    signal: Signal
    operation: Operation
    assets: tuple[StageAsset, ...]
    group: str
    input_topic: str
    code_version: str
    priority: int
    urgent: bool = False

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
        assets=(StageAsset(spec.segment_asset, (spec.raw_asset,)),),
        group="segments",
        input_topic=spec.notification_topic,
        code_version=spec.code_version,
        priority=10,
        urgent=True,
    )


def _compaction(spec: SignalSpec) -> Stage:
    return Stage(
        signal=spec.signal,
        operation=Operation.COMPACT,
        assets=(StageAsset(spec.compacted_asset, (spec.segment_asset, *_tier_assets(spec))),),
        group="compacted",
        input_topic=spec.compaction_topic,
        code_version=COMPACTION_CODE_VERSION,
        priority=5,
    )


def _tier_assets(spec: SignalSpec) -> list[str]:
    return [tier.asset for tier in TIERS.values()] if spec.signal is ROLLED_UP else []


def _rollup() -> Stage:
    finer = {spec.frequency_ms: spec.segment_asset for spec in SIGNALS.values() if spec.signal is ROLLED_UP}
    finer |= {tier.frequency_ms: tier.asset for tier in TIERS.values()}
    return Stage(
        signal=ROLLED_UP,
        operation=Operation.ROLLUP,
        assets=tuple(StageAsset(tier.asset, (finer[tier.finer_ms],), tier.frequency_ms) for tier in TIERS.values()),
        group="rollups",
        input_topic=ROLLUP_TOPIC,
        code_version=ROLLUP_CODE_VERSION,
        priority=7,
    )


STAGES: Mapping[str, Stage] = MappingProxyType(
    {stage.name: stage for stage in (*map(_ingest, SIGNALS.values()), _rollup(), *map(_compaction, SIGNALS.values()))}
)
"""Every stage, by name."""


def ingest_stage(signal: Signal) -> Stage:
    """The stage that makes segments of raw objects."""
    return STAGES[f"{signal}.{Operation.INGEST}"]


def compaction_stage(signal: Signal) -> Stage:
    """The stage that merges small segments."""
    return STAGES[f"{signal}.{Operation.COMPACT}"]


def rollup_stage() -> Stage:
    """The stage that computes each tier from the next finer one."""
    return STAGES[f"{ROLLED_UP}.{Operation.ROLLUP}"]


def asset_of(signal: Signal, frequency_ms: int) -> str:
    """Name of the asset whose partition makes the segments of a signal and frequency anew, compacted or not."""
    tier = TIERS.get(frequency_ms) if signal is ROLLED_UP else None
    return tier.asset if tier else SIGNALS[signal].segment_asset
