"""Small export requests of whole hours, for tests that count records and not what is in them."""

from __future__ import annotations

import gzip
from collections import Counter

from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue
from opentelemetry.proto.logs.v1.logs_pb2 import LogRecord, ResourceLogs, ScopeLogs, SeverityNumber
from opentelemetry.proto.metrics.v1.metrics_pb2 import (
    AggregationTemporality,
    Gauge,
    Metric,
    NumberDataPoint,
    ResourceMetrics,
    ScopeMetrics,
    Sum,
)
from opentelemetry.proto.resource.v1.resource_pb2 import Resource

MINUTE_MS = 60_000
NS = 1_000_000


def resource(service: str) -> Resource:
    """A resource of that service name."""
    return Resource(attributes=[KeyValue(key="service.name", value=AnyValue(string_value=service))])


def logs(name: str, times_ms: list[int]) -> bytes:
    """A gzip-compressed request with a log record ``{name} {i}`` for each time."""
    records = [
        LogRecord(
            time_unix_nano=time_ms * NS,
            body=AnyValue(string_value=f"{name} {number}"),
            severity_number=SeverityNumber.SEVERITY_NUMBER_INFO,
        )
        for number, time_ms in enumerate(times_ms)
    ]
    request = ExportLogsServiceRequest(
        resource_logs=[ResourceLogs(resource=resource("shop"), scope_logs=[ScopeLogs(log_records=records)])]
    )
    return gzip.compress(request.SerializeToString(), mtime=0)


def expected(**records: int) -> Counter[str]:
    """The messages of ``logs`` requests, by their names and numbers of records."""
    return Counter(f"{name} {number}" for name, count in records.items() for number in range(count))


def gauges(name: str, times_ms: list[int]) -> bytes:
    """A gzip-compressed request with one gauge point for each time."""
    points = [NumberDataPoint(time_unix_nano=time_ms * NS, as_double=float(n)) for n, time_ms in enumerate(times_ms)]
    metric = Metric(name=name, gauge=Gauge(data_points=points))
    request = ExportMetricsServiceRequest(
        resource_metrics=[ResourceMetrics(resource=resource("shop"), scope_metrics=[ScopeMetrics(metrics=[metric])])]
    )
    return gzip.compress(request.SerializeToString(), mtime=0)


def counter(name: str, values: list[tuple[int, float]], start_ms: int) -> bytes:
    """A gzip-compressed request with a cumulative monotonic sum that started at ``start_ms``: (time, value) a point."""
    points = [
        NumberDataPoint(start_time_unix_nano=start_ms * NS, time_unix_nano=time_ms * NS, as_double=value)
        for time_ms, value in values
    ]
    total = Sum(
        data_points=points,
        is_monotonic=True,
        aggregation_temporality=AggregationTemporality.AGGREGATION_TEMPORALITY_CUMULATIVE,
    )
    metric = Metric(name=name, sum=total)
    request = ExportMetricsServiceRequest(
        resource_metrics=[ResourceMetrics(resource=resource("shop"), scope_metrics=[ScopeMetrics(metrics=[metric])])]
    )
    return gzip.compress(request.SerializeToString(), mtime=0)


def minutes(start_ms: int, count: int) -> list[int]:
    """So many times from ``start_ms`` on, a minute apart."""
    return [start_ms + number * MINUTE_MS for number in range(count)]
