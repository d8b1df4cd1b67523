"""The hostile raw objects and notifications, each with the end that it must come to."""

from __future__ import annotations

import gzip
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from random import Random
from uuid import UUID

import zstandard
from google.protobuf.message import Message
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue
from opentelemetry.proto.logs.v1.logs_pb2 import LogRecord, ResourceLogs, ScopeLogs
from opentelemetry.proto.metrics.v1.metrics_pb2 import (
    AggregationTemporality,
    DataPointFlags,
    Gauge,
    Histogram,
    HistogramDataPoint,
    Metric,
    NumberDataPoint,
    ResourceMetrics,
    ScopeMetrics,
)
from opentelemetry.proto.trace.v1.trace_pb2 import ResourceSpans, ScopeSpans, Span

from lakerunner_dagster.lake.model import HOUR_MS
from lakerunner_dagster.lake.signals import Signal
from tests.lake.requests import NS, resource
from tests.lake.telemetry.otlp import delimited
from tests.lake.world import COLLECTOR, NOON_MS, ORGANIZATION

MIB = 1024 * 1024

LIMITS = {"LAKERUNNER_LIMIT_OBJECT_BYTES": 6 * MIB, "LAKERUNNER_LIMIT_DECOMPRESSED_BYTES": 8 * MIB}
"""Lower than by default, so that what passes them need not be large."""

NOBODY = UUID("deadbeef-0000-4000-8000-000000000000")
"""An organization that nobody has registered."""

NOON_NS = NOON_MS * NS
TOO_EARLY_NS = NOON_NS - 1000 * 24 * HOUR_MS * NS
TOO_LATE_NS = NOON_NS + 2 * HOUR_MS * NS
LATEST_NS = 2**64 - 1


@dataclass(frozen=True)
class Raw:
    """A raw object: as it is stored, and what must become of it.

    ``accepted`` and ``rejected`` count its records; ``reason`` says why nothing of it is taken, and ``told`` are words
    that a person finds in the error beside the object's key. ``data`` is None where nothing is stored.
    """

    signal: Signal
    name: str
    data: bytes | None
    accepted: int = 0
    rejected: Mapping[str, int] = field(default_factory=dict)
    reason: str | None = None
    told: str = ""

    @property
    def key(self) -> str:
        return f"otel-raw/{ORGANIZATION}/{COLLECTOR}/{self.signal}/{self.name}"


@dataclass(frozen=True)
class Dead:
    """A notification that leads nowhere: it must end as a dead letter for this reason."""

    key: str
    reason: str
    told: str
    data: bytes | None = None


def record(text: str, time_ns: int = NOON_NS, **more: object) -> LogRecord:
    return LogRecord(time_unix_nano=time_ns, body=AnyValue(string_value=text), **more)  # type: ignore[arg-type]


def attributes(count: int) -> list[KeyValue]:
    return [KeyValue(key=f"key.{number}", value=AnyValue(int_value=number)) for number in range(count)]


def noise(size: int, seed: int = 1) -> bytes:
    """Bytes that no compression makes smaller."""
    return Random(seed).randbytes(size)


def text(size: int) -> str:
    """Text that compresses so little that its object is no bomb."""
    return noise(size // 2).hex()


def log_request(*records: LogRecord) -> ExportLogsServiceRequest:
    return ExportLogsServiceRequest(
        resource_logs=[ResourceLogs(resource=resource("shop"), scope_logs=[ScopeLogs(log_records=records)])]
    )


def metric_request(*metrics: Metric) -> ExportMetricsServiceRequest:
    return ExportMetricsServiceRequest(
        resource_metrics=[ResourceMetrics(resource=resource("shop"), scope_metrics=[ScopeMetrics(metrics=metrics)])]
    )


def gauge(name: str, points: Iterable[NumberDataPoint]) -> Metric:
    return Metric(name=name, gauge=Gauge(data_points=points))


def point(value: float, time_ns: int = NOON_NS, flags: int = 0) -> NumberDataPoint:
    return NumberDataPoint(time_unix_nano=time_ns, as_double=value, flags=flags)


def trace_request(*spans: Span) -> ExportTraceServiceRequest:
    return ExportTraceServiceRequest(
        resource_spans=[ResourceSpans(resource=resource("shop"), scope_spans=[ScopeSpans(spans=spans)])]
    )


def span(name: str, time_ns: int = NOON_NS, **more: object) -> Span:
    return Span(
        trace_id=bytes(range(16)),
        span_id=bytes(range(8)),
        name=name,
        start_time_unix_nano=time_ns,
        end_time_unix_nano=min(time_ns + NS, LATEST_NS),
        **more,  # type: ignore[arg-type]
    )


def stored(request: Message) -> bytes:
    return gzip.compress(request.SerializeToString(), mtime=0)


def nested(depth: int) -> bytes:
    """A request of one log record whose body is an array in an array, so many times."""
    value = delimited(1, b"deep")
    for _ in range(depth):
        value = delimited(5, delimited(1, value))
    return delimited(1, delimited(2, delimited(2, delimited(5, value))))


GOOD_LOGS = log_request(*(record(f"good {number}", NOON_NS - number * 60 * 10**9) for number in range(200)))
GOOD_METRICS = metric_request(gauge("queue.length", [point(float(number)) for number in range(50)]))
GOOD_TRACES = trace_request(*(span(f"good {number}") for number in range(50)))
GOOD = {Signal.LOGS: (GOOD_LOGS, 200), Signal.METRICS: (GOOD_METRICS, 50), Signal.TRACES: (GOOD_TRACES, 50)}

ODD_NAMES = (
    "with space and  two.gz",
    "a+b.gz",
    "100%.gz",
    "%2e%2e%2f%41.gz",
    "\u00fcn\u00efc\u00f6d\u00e9/\u65e5\u672c/\U0001f98a.gz",
    "quotes\"'`.gz",
    "..dots..gz",
    "[red]markup[/] and [/nothing].gz",
    "'; DROP TABLE raw_objects; --.gz",
    "${HOME}/$(reboot)/*?.gz",
    "back\\slash.gz",
    "right-to-left-\u202egz.exe",
    "-rf.gz",
)
"""Object names that are no fault of their objects."""


def _broken(signal: Signal) -> list[Raw]:
    """Files that are corrupt in ways that any signal's may be."""
    request, _ = GOOD[signal]
    whole = stored(request)
    raw = request.SerializeToString()
    return [
        Raw(signal, "truncated.gz", whole[: len(whole) // 2], reason="truncated_gzip", told="end in the middle"),
        Raw(signal, "flipped.gz", whole[:40] + noise(20) + whole[60:], reason="corrupt_gzip", told="gzip"),
        Raw(signal, "truncated.binpb", raw[:-3], reason="corrupt_protobuf", told="Request"),
        Raw(signal, "truncated-inside.gz", gzip.compress(raw[:-3]), reason="corrupt_protobuf", told="Request"),
        Raw(signal, "random.binpb", noise(5000), reason="corrupt_protobuf", told="Request"),
        Raw(
            signal, "bad-utf-8.gz", gzip.compress(raw.replace(b"shop", b"\xff\xfe\xfd\xfc")), reason="corrupt_protobuf"
        ),
        Raw(signal, "empty.binpb", b"", reason="empty_object", told="0 bytes"),
        Raw(signal, "gone.gz", None, reason="object_missing", told="not there"),
        Raw(signal, "no-records.gz", gzip.compress(b"")),
    ]


def _bombs() -> list[Raw]:
    zeros = bytes(32 * MIB)
    thick = noise(64 * 1024) + bytes(9 * MIB)  # within the ratio, beyond the size
    return [
        Raw(Signal.LOGS, "bomb.gz", gzip.compress(zeros), reason="decompression_bomb", told="RATIO"),
        Raw(Signal.LOGS, "bomb.zst", zstandard.compress(zeros), reason="decompression_bomb", told="RATIO"),
        Raw(Signal.LOGS, "thick.gz", gzip.compress(thick), reason="decompression_bomb", told="DECOMPRESSED_BYTES"),
        Raw(Signal.LOGS, "members.gz", gzip.compress(b"") * 70_000, reason="decompression_bomb", told="members"),
        Raw(Signal.LOGS, "large.binpb", noise(7 * MIB), reason="object_too_large", told="OBJECT_BYTES"),
    ]


def _logs() -> list[Raw]:
    huge = KeyValue(key="huge", value=AnyValue(string_value=text(5 * MIB)))
    times = [0, 1, TOO_EARLY_NS, NOON_NS, TOO_LATE_NS, 2**63, LATEST_NS]
    return [
        Raw(Signal.LOGS, "good-1.gz", stored(GOOD_LOGS), accepted=200),
        *(Raw(Signal.LOGS, name, stored(log_request(record(name))), accepted=1) for name in ODD_NAMES),
        Raw(
            Signal.LOGS,
            "10000-attributes.gz",
            stored(log_request(record("before"), record("many", attributes=attributes(10_000)), record("after"))),
            accepted=2,
            rejected={"too_many_attributes": 1},
        ),
        Raw(
            Signal.LOGS,
            "5-mb-attribute.gz",
            stored(log_request(record("before"), record("huge", attributes=[huge]), record("after"))),
            accepted=2,
            rejected={"value_too_large": 1},
        ),
        Raw(
            Signal.LOGS,
            "2-mb-body.gz",
            stored(log_request(record(text(2 * MIB)), record("after"))),
            accepted=1,
            rejected={"value_too_large": 1},
        ),
        Raw(
            Signal.LOGS,
            "times.gz",
            stored(log_request(*(record("time", time_ns) for time_ns in times))),
            accepted=2,  # a record without a time has its object's
            rejected={"time_before_first_date": 2, "time_ahead": 3},
        ),
        Raw(
            Signal.LOGS,
            "nested.binpb",
            nested(400),
            reason="corrupt_protobuf",
        ),
        Raw(
            Signal.LOGS,
            "odd-keys-and-values.gz",
            stored(
                log_request(
                    record("\0 \x1b[31m \u202e"),
                    record("odd", attributes=[KeyValue(key="\0\x1b[2J'\"", value=AnyValue(double_value=math.nan))]),
                )
            ),
            accepted=2,
        ),
        Raw(Signal.LOGS, "good-2.binpb", GOOD_LOGS.SerializeToString(), accepted=200),
    ]


def _metrics() -> list[Raw]:
    unrecorded = DataPointFlags.DATA_POINT_FLAGS_NO_RECORDED_VALUE_MASK
    odd = [point(math.nan), point(math.inf), point(-math.inf), point(1.0), point(0.0, flags=unrecorded)]
    times = [point(1.0, time_ns) for time_ns in (0, 1, TOO_EARLY_NS, NOON_NS, TOO_LATE_NS, LATEST_NS)]
    delta = AggregationTemporality.AGGREGATION_TEMPORALITY_DELTA
    buckets = [
        HistogramDataPoint(time_unix_nano=NOON_NS, count=3, sum=math.nan, bucket_counts=[3], explicit_bounds=[]),
        HistogramDataPoint(time_unix_nano=NOON_NS, count=3, sum=6, bucket_counts=[1, 2], explicit_bounds=[1, 2, 3]),
        HistogramDataPoint(time_unix_nano=NOON_NS, count=3, sum=6, bucket_counts=[1, 2], explicit_bounds=[1.5]),
    ]
    return [
        Raw(Signal.METRICS, "good-1.gz", stored(GOOD_METRICS), accepted=50),
        Raw(
            Signal.METRICS,
            "no-numbers.gz",
            stored(metric_request(gauge("odd", odd))),
            accepted=1,
            rejected={"not_a_number": 3, "no_recorded_value": 1},
        ),
        Raw(
            Signal.METRICS,
            "times.gz",
            stored(metric_request(gauge("times", times))),
            accepted=2,
            rejected={"time_before_first_date": 2, "time_ahead": 2},
        ),
        Raw(
            Signal.METRICS,
            "buckets.gz",
            stored(
                metric_request(
                    Metric(name="h", histogram=Histogram(data_points=buckets, aggregation_temporality=delta))
                )
            ),
            accepted=1,
            rejected={"not_a_number": 1, "bad_buckets": 1},
        ),
        Raw(
            Signal.METRICS,
            "nameless.gz",
            stored(metric_request(gauge("", [point(1.0)]), gauge("named", [point(1.0)]))),
            accepted=1,
            rejected={"no_name": 1},
        ),
        Raw(Signal.METRICS, "good-2.gz", stored(GOOD_METRICS), accepted=50),
    ]


def _traces() -> list[Raw]:
    spans = [span("time", time_ns) for time_ns in (0, 1, TOO_EARLY_NS, NOON_NS, TOO_LATE_NS, LATEST_NS)]
    return [
        Raw(Signal.TRACES, "good-1.gz", stored(GOOD_TRACES), accepted=50),
        Raw(
            Signal.TRACES,
            "10000-attributes.gz",
            stored(trace_request(span("many", attributes=attributes(10_000)), span("after"))),
            accepted=1,
            rejected={"too_many_attributes": 1},
        ),
        Raw(
            Signal.TRACES,
            "times.gz",
            stored(trace_request(*spans)),
            accepted=1,
            rejected={"no_time": 1, "time_before_first_date": 2, "time_ahead": 2},
        ),
        Raw(
            Signal.TRACES, "no-ids.gz", stored(trace_request(Span(name="x", start_time_unix_nano=NOON_NS))), accepted=1
        ),
        Raw(Signal.TRACES, "good-2.gz", stored(GOOD_TRACES), accepted=50),
    ]


RAW = [
    *_logs(),
    *_bombs(),
    *_metrics(),
    *_traces(),
    *(raw for signal in Signal for raw in _broken(signal)),
]
"""Every raw object, good and bad; each signal's make one box."""

OWN = f"otel-raw/{ORGANIZATION}/{COLLECTOR}"

DEAD = [
    Dead(
        f"otel-raw/{NOBODY}/edge/logs/stranger.gz",
        "unknown_organization",
        str(NOBODY),
        stored(log_request(record("from a stranger"))),
    ),
    Dead(f"{OWN}/logs/../../../../../etc/passwd", "bad_key", "path element"),
    Dead(f"{OWN}/logs//double.gz", "bad_key", "path element"),
    Dead(f"{OWN}/logs/\x1b[31mred\x07.gz", "bad_key", "control character"),
    Dead(f"{OWN}/logs/nul\0.gz", "bad_key", "control character"),
    Dead(f"{OWN}/logs/{'x' * 1025}", "bad_key", "bytes"),
    Dead(f"otel-raw/{ORGANIZATION}/{'c' * 65}/logs/x.gz", "bad_collector_name", "collector"),
    Dead(f"otel-raw/{ORGANIZATION}/a...b/logs/x.gz", "bad_collector_name", "collector"),
    Dead(f"otel-raw/{ORGANIZATION}/edge/profiles/x.gz", "no_signal", "signal"),
    Dead("somewhere/else.gz", "no_route", "prefix mapping"),
]
"""Keys of which no object can be ingested: each ends as a dead letter."""
