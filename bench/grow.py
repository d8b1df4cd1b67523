"""Inputs grown from the real files: the same shapes, many times over, with other times, ids and digits.

What belongs here: making raw payloads to measure with. Copies differ, or dictionaries and compression
would flatter every figure: times move by seconds, ids are drawn anew, digits in log bodies change.
"""

from __future__ import annotations

import gzip
import os
import random
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from lakerunner_dagster.lake.signals import Signal

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

SECOND_NS = 1_000_000_000
_DIGITS = re.compile(r"\d")


def real_data() -> Path:
    """The folder of real telemetry: ``LAKERUNNER_REAL_DATA``, else ``../shared/data`` from the project's root."""
    default = Path(__file__).resolve().parents[2] / "shared" / "data"
    return Path(os.environ.get("LAKERUNNER_REAL_DATA", default)) / "otlp"


def grown_files(signal: Signal, records: int, seed: int = 7) -> list[bytes]:
    """Gzip-compressed export requests with at least ``records`` records in all, one request a file."""
    rng = random.Random(seed)
    originals = [gzip.decompress(path.read_bytes()) for path in sorted((real_data() / signal).glob("*.binpb.gz"))]
    if not originals:
        raise FileNotFoundError(f"no real {signal} under {real_data()}: say by LAKERUNNER_REAL_DATA where they are")
    out: list[bytes] = []
    grown = 0
    copy = 0
    while grown < records:
        for original in originals:
            data, count = _GROW[signal](original, copy, rng)
            out.append(gzip.compress(data, 6, mtime=0))
            grown += count
        copy += 1
    return out


def _grow_logs(original: bytes, copy: int, rng: random.Random) -> tuple[bytes, int]:
    request = ExportLogsServiceRequest.FromString(original)
    records = [r for resource in request.resource_logs for scope in resource.scope_logs for r in scope.log_records]
    for record in records:
        if record.time_unix_nano:
            record.time_unix_nano += copy * SECOND_NS
        record.observed_time_unix_nano += copy * SECOND_NS
        if record.trace_id:
            record.trace_id = rng.randbytes(16)
        if record.body.WhichOneof("value") == "string_value":
            record.body.string_value = _DIGITS.sub(lambda _: str(rng.randrange(10)), record.body.string_value)
    return request.SerializeToString(), len(records)


def _grow_traces(original: bytes, copy: int, rng: random.Random) -> tuple[bytes, int]:
    request = ExportTraceServiceRequest.FromString(original)
    spans = [s for resource in request.resource_spans for scope in resource.scope_spans for s in scope.spans]
    renamed: dict[bytes, bytes] = {b"": b""}
    for span in spans:
        span.start_time_unix_nano += copy * SECOND_NS
        span.end_time_unix_nano += copy * SECOND_NS
        span.trace_id = renamed.setdefault(span.trace_id, rng.randbytes(16))
        span.span_id = renamed.setdefault(span.span_id, rng.randbytes(8))
        span.parent_span_id = renamed.setdefault(span.parent_span_id, rng.randbytes(8))
    return request.SerializeToString(), len(spans)


def _grow_metrics(original: bytes, copy: int, rng: random.Random) -> tuple[bytes, int]:
    request = ExportMetricsServiceRequest.FromString(original)
    count = 0
    for point in _points(request):
        point.time_unix_nano += copy * 10 * SECOND_NS
        if point.start_time_unix_nano:
            point.start_time_unix_nano += copy * 10 * SECOND_NS
        if getattr(point, "as_double", 0.0):
            point.as_double *= rng.uniform(0.9, 1.1)
        count += 1
    return request.SerializeToString(), count


def _points(request: ExportMetricsServiceRequest) -> Iterator[Any]:
    for resource in request.resource_metrics:
        for scope in resource.scope_metrics:
            for metric in scope.metrics:
                yield from getattr(metric, str(metric.WhichOneof("data"))).data_points


_GROW: dict[Signal, Callable[[bytes, int, random.Random], tuple[bytes, int]]] = {
    Signal.LOGS: _grow_logs,
    Signal.METRICS: _grow_metrics,
    Signal.TRACES: _grow_traces,
}
