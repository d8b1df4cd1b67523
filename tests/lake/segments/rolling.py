"""Segments to be rolled up, from OTLP through decoder and ingest, and slots computed as a run computes them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any
from zlib import crc32

import pyarrow as pa
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.metrics.v1.metrics_pb2 import Metric, ResourceMetrics, ScopeMetrics

from lakerunner_dagster.lake.model import HOUR_MS
from lakerunner_dagster.lake.segments.build import Built
from lakerunner_dagster.lake.segments.merge import MergedSegment, MergeInput
from lakerunner_dagster.lake.segments.preceding import Sought
from lakerunner_dagster.lake.segments.rollup import roll_up
from lakerunner_dagster.lake.segments.split import split_by_hour
from lakerunner_dagster.lake.settings import Limits
from lakerunner_dagster.lake.signals import SIGNALS, Signal
from lakerunner_dagster.lake.telemetry.decode import decode
from lakerunner_dagster.lake.telemetry.raw import RawPayload
from tests.lake.segments.merging import TARGET, built, merged, read, stored
from tests.lake.segments.tables import HOUR, ORGANIZATION, SOURCE

TIERS = SIGNALS[Signal.METRICS].tiers_ms
MINUTE = 60_000
SLOT_MS = {MINUTE: 10 * MINUTE}
"""Slots shorter than the hour."""


def request(metrics: Iterable[Metric]) -> bytes:
    """An export request of one resource and scope."""
    scope = ScopeMetrics(metrics=list(metrics))
    return ExportMetricsServiceRequest(resource_metrics=[ResourceMetrics(scope_metrics=[scope])]).SerializeToString()


def ingested(files: Sequence[bytes], directory: Path) -> list[MergeInput]:
    """The segments of some raw files, one for each file and hour."""
    segments: list[Built] = []
    for number, data in enumerate(files):
        raw = RawPayload(number + 1, f"otel-raw/{number}", f"{number:024x}", HOUR + 24 * HOUR_MS, data)
        decoded = decode(Signal.METRICS, [raw], ORGANIZATION, Limits())
        hours = split_by_hour(decoded.table) if decoded.table.num_rows else []
        segments += [
            built(Signal.METRICS, rows, f"{number}-{crc32(data)}", decoded.original_keys) for _, _, rows in hours
        ]
    return stored(segments, directory)


def rolled(
    inputs: Sequence[MergeInput], directory: Path, frequency_ms: int, start_ms: int, end_ms: int, **other: Any
) -> list[MergedSegment]:
    """What comes of rolling them up."""
    options: dict[str, Any] = {
        "source": SOURCE,
        "frequency_ms": frequency_ms,
        "start_ms": start_ms,
        "end_ms": end_ms,
        "preceding": None,
        "preceding_ids": (),
        "horizon_ms": 0,
        "reach_ms": None,
        "target_bytes": TARGET,
        "operation": "rollup",
        "directory": directory,
    } | other
    return list(roll_up(inputs, **options))


def slots(inputs: Sequence[MergeInput], slot_ms: int) -> list[tuple[int, int]]:
    """The slots that have any of the segments."""
    firsts = {
        start
        for one in inputs
        for start in range(one.segment.start_ms // slot_ms * slot_ms, one.segment.end_ms, slot_ms)
    }
    return [(start, start + slot_ms) for start in sorted(firsts)]


def overlapping(inputs: Sequence[MergeInput], start_ms: int, end_ms: int) -> list[MergeInput]:
    """The segments that have rows in the range, or seem to."""
    return [one for one in inputs if one.segment.start_ms < end_ms and one.segment.end_ms > start_ms]


def before(inputs: Sequence[MergeInput], start_ms: int, end_ms: int, horizon_ms: int = 0) -> Sought:
    """What precedes a slot, looked for hour by hour."""
    sought = Sought.of(overlapping(inputs, start_ms, end_ms), start_ms, end_ms)
    hour = start_ms // HOUR_MS * HOUR_MS
    first = min(one.segment.start_ms for one in inputs)
    while sought.unresolved and hour + HOUR_MS > max(first, sought.since_ms, horizon_ms):
        window = [one for one in overlapping(inputs, hour, hour + HOUR_MS) if one.segment.start_ms < start_ms]
        sought.look_into(window)
        hour -= HOUR_MS
    return sought


def tier(
    inputs: Sequence[MergeInput], directory: Path, frequency_ms: int, *, slot_ms: int = 0, **other: Any
) -> list[MergeInput]:
    """The next tier of all segments of one, slot by slot, each with what precedes it."""
    outputs: list[MergeInput] = []
    for start_ms, end_ms in slots(inputs, slot_ms or SLOT_MS.get(frequency_ms, HOUR_MS)):
        sought = before(inputs, start_ms, end_ms)
        found = {"preceding": sought.found(), "preceding_ids": sought.segment_ids}
        given = overlapping(inputs, start_ms, end_ms)
        made = rolled(given, directory, frequency_ms, start_ms, end_ms, **found, **other)
        outputs += [MergeInput(one.output.segment, one.path) for one in made]
    return outputs


def compacted(inputs: Sequence[MergeInput], directory: Path) -> list[MergeInput]:
    """The segments of each hour as one."""
    hours = sorted({one.segment.start_ms // HOUR_MS for one in inputs})
    by_hour = [[one for one in inputs if one.segment.start_ms // HOUR_MS == hour] for hour in hours]
    return [
        MergeInput(one.output.segment, one.path)
        for hour in by_hour
        for one in (merged(hour, directory) if len(hour) > 1 else [])
    ] + [hour[0] for hour in by_hour if len(hour) == 1]


def rows_of(inputs: Sequence[MergeInput]) -> list[dict[str, Any]]:
    """The rows of all segments, all with the same columns."""
    tables = [read(one.path) for one in inputs]
    rows: list[dict[str, Any]] = pa.concat_tables(tables, promote_options="default").to_pylist() if tables else []
    return rows
