"""What differs between logs, metrics and traces, declared once; code elsewhere reads it, and asks no signal its name.

What belongs here: facts about a signal (tables, topics, sort order, versions). What does not: code that handles one.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from types import MappingProxyType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

INGEST_FREQUENCY_MS = 10_000
"""Bucket width of the finest metric tier, in ms (spec/segments.md, Metrics)."""


class Signal(StrEnum):
    """An OpenTelemetry signal; the value is its path element in object keys and its word in topics."""

    LOGS = "logs"
    METRICS = "metrics"
    TRACES = "traces"


@dataclass(frozen=True, slots=True)
class SignalSpec:
    """The declaration of one signal.

    ``record`` is what one raw record is called, for people. ``sort_keys`` orders the rows of a segment.
    ``frequency_ms`` is the width of an ingested bucket, 0 where the signal has none; ``tiers_ms`` are those of its
    tiers, the finest first. ``code_version`` of the decode-and-write path: raise it when the same raw bytes would give
    other rows; it enters segment ids and shows stale days in Dagster.
    """

    signal: Signal
    record: str
    segment_table: str
    segment_asset: str
    compacted_asset: str
    raw_asset: str
    sort_keys: tuple[str, ...]
    sort_version: int | None
    frequency_ms: int
    tiers_ms: tuple[int, ...]
    code_version: str

    @property
    def notification_topic(self) -> str:
        """Topic (without prefix) of object-created notifications."""
        return f"objstore.ingest.{self.signal}"

    @property
    def compaction_topic(self) -> str:
        """Topic (without prefix) on which new segments are announced to the compaction boxer."""
        return f"boxer.{self.signal}.compact"


SIGNALS: Mapping[Signal, SignalSpec] = MappingProxyType(
    {
        Signal.LOGS: SignalSpec(
            signal=Signal.LOGS,
            record="log record",
            segment_table="log_seg",
            segment_asset="log_segments",
            compacted_asset="compacted_log_segments",
            raw_asset="raw_logs",
            sort_keys=("resource_service_name", "chq_fingerprint", "chq_timestamp"),
            sort_version=2,
            frequency_ms=0,
            tiers_ms=(0,),
            code_version="1",
        ),
        Signal.METRICS: SignalSpec(
            signal=Signal.METRICS,
            record="data point",
            segment_table="metric_seg",
            segment_asset="metric_segments",
            compacted_asset="compacted_metric_segments",
            raw_asset="raw_metrics",
            sort_keys=("metric_name", "chq_tid", "chq_timestamp"),
            sort_version=3,
            frequency_ms=INGEST_FREQUENCY_MS,
            tiers_ms=(INGEST_FREQUENCY_MS, 60_000, 300_000, 1_200_000, 3_600_000),
            code_version="1",
        ),
        Signal.TRACES: SignalSpec(
            signal=Signal.TRACES,
            record="span",
            segment_table="trace_seg",
            segment_asset="trace_segments",
            compacted_asset="compacted_trace_segments",
            raw_asset="raw_traces",
            sort_keys=("span_trace_id", "chq_tsns"),
            sort_version=None,
            frequency_ms=0,
            tiers_ms=(0,),
            code_version="1",
        ),
    }
)

COMPACTION_CODE_VERSION = "1"
"""Of the way in which sorted segments merge: raise it when the same segments would merge to other rows or bytes."""

ROLLUP_CODE_VERSION = "1"
"""Of the way in which rows of metrics roll up: raise it when the same segments would give other rows or bytes."""

ROLLUP_TOPIC = "boxer.metrics.rollup"
"""Topic (without prefix) on which new metric segments are announced to the rollup boxer."""

DEADLETTER_TOPIC = "deadletter"
"""Topic (without prefix) of what no stage could take."""
