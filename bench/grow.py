"""Inputs grown from the real files: the same shapes, many times over, with other times, ids and digits.

What belongs here: making raw payloads to measure with. Copies differ, or dictionaries and compression
would flatter every figure: times move by seconds, ids are drawn anew, digits in log bodies change. All
begin in one hour, as what a box holds does: it never spans more (``BoxPolicy.window_seconds``).
"""

from __future__ import annotations

import gzip
import os
import random
import re
from datetime import UTC, datetime
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

from google.protobuf.message import Message
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from lakerunner_dagster.lake.signals import Signal

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

SECOND_NS = 1_000_000_000
BEGIN_NS = int(datetime(2025, 12, 24, 12, tzinfo=UTC).timestamp()) * SECOND_NS
"""The time of the first record of every original."""

_DIGITS = re.compile(r"\d")


def real_data() -> Path:
    """The folder of real telemetry: ``LAKERUNNER_REAL_DATA``, else ``../shared/data`` from the project's root."""
    default = Path(__file__).resolve().parents[2] / "shared" / "data"
    return Path(os.environ.get("LAKERUNNER_REAL_DATA", default)) / "otlp"


def grown_files(signal: Signal, seed: int = 7) -> Iterator[bytes]:
    """Gzip-compressed export requests, one a file, without end.

    Raises SystemExit where there are no real files to grow them from.
    """
    rng = random.Random(seed)
    originals = [gzip.decompress(path.read_bytes()) for path in sorted((real_data() / signal).glob("*.binpb.gz"))]
    if not originals:
        raise SystemExit(f"no real files in {real_data() / signal}: set LAKERUNNER_REAL_DATA")
    for copy in count():
        for original in originals:
            yield gzip.compress(_GROW[signal](original, copy, rng), 6, mtime=0)


def _grow_logs(original: bytes, copy: int, rng: random.Random) -> bytes:
    request = ExportLogsServiceRequest.FromString(original)
    records = [r for resource in request.resource_logs for scope in resource.scope_logs for r in scope.log_records]
    shift = _shift((r.time_unix_nano or r.observed_time_unix_nano for r in records), copy * SECOND_NS)
    for record in records:
        _move(record, shift, "time_unix_nano", "observed_time_unix_nano")
        if record.trace_id:
            record.trace_id = rng.randbytes(16)
        if record.body.WhichOneof("value") == "string_value":
            record.body.string_value = _DIGITS.sub(lambda _: str(rng.randrange(10)), record.body.string_value)
    return request.SerializeToString()


def _grow_traces(original: bytes, copy: int, rng: random.Random) -> bytes:
    request = ExportTraceServiceRequest.FromString(original)
    spans = [s for resource in request.resource_spans for scope in resource.scope_spans for s in scope.spans]
    shift = _shift((span.start_time_unix_nano for span in spans), copy * SECOND_NS)
    renamed: dict[bytes, bytes] = {b"": b""}
    for span in spans:
        _move(span, shift, "start_time_unix_nano", "end_time_unix_nano")
        for event in span.events:
            _move(event, shift, "time_unix_nano")
        span.trace_id = renamed.setdefault(span.trace_id, rng.randbytes(16))
        span.span_id = renamed.setdefault(span.span_id, rng.randbytes(8))
        span.parent_span_id = renamed.setdefault(span.parent_span_id, rng.randbytes(8))
    return request.SerializeToString()


def _grow_metrics(original: bytes, copy: int, rng: random.Random) -> bytes:
    request = ExportMetricsServiceRequest.FromString(original)
    points = list(_points(request))
    shift = _shift((point.time_unix_nano for point in points), copy * 10 * SECOND_NS)
    for point in points:
        _move(point, shift, "time_unix_nano", "start_time_unix_nano")
        if getattr(point, "as_double", 0.0):
            point.as_double *= rng.uniform(0.9, 1.1)
    return request.SerializeToString()


def _points(request: ExportMetricsServiceRequest) -> Iterator[Any]:
    for resource in request.resource_metrics:
        for scope in resource.scope_metrics:
            for metric in scope.metrics:
                yield from getattr(metric, str(metric.WhichOneof("data"))).data_points


def _shift(times: Iterable[int], later_ns: int) -> int:
    """What is to be added to times (epoch ns, 0 unknown) so that the first is so much later than ``BEGIN_NS``."""
    return BEGIN_NS + later_ns - min(filter(None, times))


def _move(message: Message, shift: int, *fields: str) -> None:
    """Move the times that the message has."""
    for field in fields:
        if time := getattr(message, field):
            setattr(message, field, max(1, time + shift))


_GROW: dict[Signal, Callable[[bytes, int, random.Random], bytes]] = {
    Signal.LOGS: _grow_logs,
    Signal.METRICS: _grow_metrics,
    Signal.TRACES: _grow_traces,
}
