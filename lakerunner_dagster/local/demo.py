"""Generated telemetry of a small shop, so that a first look at the lake shows something alive.

What belongs here: plausible OTLP export requests, a pure function of a seed and a time, and the file names
under which a collector would store them. What does not: reading them back; the lake treats them as anyone's.
"""

from __future__ import annotations

import gzip
import random
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING
from uuid import UUID

from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, InstrumentationScope, KeyValue
from opentelemetry.proto.metrics.v1 import metrics_pb2 as otlp_metrics
from opentelemetry.proto.resource.v1.resource_pb2 import Resource
from opentelemetry.proto.trace.v1 import trace_pb2 as otlp_trace

from lakerunner_dagster.lake.signals import Signal

if TYPE_CHECKING:
    from collections.abc import Mapping

MS_NS = 1_000_000
DELTA = otlp_metrics.AGGREGATION_TEMPORALITY_DELTA
CUMULATIVE = otlp_metrics.AGGREGATION_TEMPORALITY_CUMULATIVE
FAILED_SHARE = 0.03
LATENCY_BOUNDS_MS = (5.0, 10.0, 25.0, 50.0, 100.0, 250.0, 500.0, 1000.0)


@dataclass(frozen=True, slots=True)
class DemoOrganization:
    """An organization of the demo; the id is fixed so that a second start goes on with the same one."""

    organization_id: UUID
    name: str
    collectors: tuple[str, ...]


ORGANIZATIONS = (
    DemoOrganization(UUID("11111111-1111-4111-8111-111111111111"), "acme", ("edge",)),
    DemoOrganization(UUID("22222222-2222-4222-8222-222222222222"), "globex", ("edge",)),
)


@dataclass(frozen=True, slots=True)
class DemoFile:
    """One raw object to be: key, gzip-compressed bytes, and how many records are in it."""

    key: str
    data: bytes
    signal: Signal
    records: int


@dataclass(frozen=True, slots=True)
class _Endpoint:
    service: str
    method: str
    route: str
    typical_ms: float
    calls: tuple[str, ...] = ()


_ENDPOINTS = (
    _Endpoint("frontend", "GET", "/", 35.0, ("catalog",)),
    _Endpoint("frontend", "GET", "/product/{id}", 48.0, ("catalog",)),
    _Endpoint("frontend", "POST", "/cart", 62.0, ("cart",)),
    _Endpoint("frontend", "POST", "/checkout", 180.0, ("cart", "payment")),
)
_SERVICES = ("frontend", "catalog", "cart", "payment")


def _attributes(values: Mapping[str, str | int]) -> list[KeyValue]:
    return [
        KeyValue(key=key, value=AnyValue(int_value=value) if isinstance(value, int) else AnyValue(string_value=value))
        for key, value in values.items()
    ]


def _resource(service: str) -> Resource:
    return Resource(
        attributes=_attributes(
            {
                "service.name": service,
                "service.version": "1.4.2",
                "k8s.cluster.name": "demo",
                "k8s.namespace.name": "shop",
                "k8s.pod.name": f"{service}-7d9f8b5c6-x2x7k",
                "host.name": "node-1",
            }
        )
    )


@dataclass(frozen=True, slots=True)
class _Request:
    """One user's request through the shop, told alike by its spans, its log lines and the metrics."""

    endpoint: _Endpoint
    start_ns: int
    duration_ms: float
    failed: bool
    trace_id: bytes
    span_id: bytes
    user: int


@dataclass(slots=True)
class DemoTraffic:
    """The traffic of one organization's collector: call ``files`` with growing times.

    ``seed`` fixes what is drawn; counters and their start time live here, so a new instance is, to the
    lake, a restarted process whose counters begin at zero.
    """

    organization: DemoOrganization
    collector: str
    seed: int
    requests_per_file: int = 60
    _counted: dict[str, int] = field(default_factory=dict)
    _started_ns: int = 0
    _files: int = 0

    def files(self, from_ms: int, to_ms: int) -> list[DemoFile]:
        """The three files (logs, metrics, traces) that tell of ``[from_ms, to_ms)``, event times in epoch ms."""
        # Not for secrets: the demo wants the same picture for the same seed.
        rng = random.Random(f"{self.seed}/{self.organization.name}/{self.collector}/{from_ms}")  # noqa: S311
        self._started_ns = self._started_ns or from_ms * MS_NS
        requests = sorted(
            (self._request(rng, from_ms, to_ms) for _ in range(self.requests_per_file)), key=lambda r: r.start_ns
        )
        logs = _logs(rng, requests)
        metrics = self._metrics(rng, requests, to_ms)
        traces = _traces(rng, requests)
        self._files += 1
        return [
            self._file(Signal.LOGS, from_ms, logs, _log_records(logs)),
            self._file(Signal.METRICS, from_ms, metrics, _points(metrics)),
            self._file(Signal.TRACES, from_ms, traces, _spans(traces)),
        ]

    def _file(
        self,
        signal: Signal,
        from_ms: int,
        request: ExportLogsServiceRequest | ExportMetricsServiceRequest | ExportTraceServiceRequest,
        records: int,
    ) -> DemoFile:
        at = datetime.fromtimestamp(from_ms / 1000, UTC)
        organization_id = self.organization.organization_id
        return DemoFile(
            key=f"otel-raw/{organization_id}/{self.collector}/{signal}/{at:%Y/%m/%d/%H}/{signal}_{from_ms}.binpb.gz",
            data=gzip.compress(request.SerializeToString(), mtime=0),
            signal=signal,
            records=records,
        )

    def _request(self, rng: random.Random, from_ms: int, to_ms: int) -> _Request:
        endpoint = rng.choices(_ENDPOINTS, weights=(50, 30, 15, 5))[0]
        return _Request(
            endpoint=endpoint,
            start_ns=from_ms * MS_NS + rng.randrange((to_ms - from_ms) * MS_NS),
            duration_ms=endpoint.typical_ms * rng.lognormvariate(0, 0.5),
            failed=rng.random() < FAILED_SHARE,
            trace_id=rng.randbytes(16),
            span_id=rng.randbytes(8),
            user=rng.randrange(10_000),
        )

    def _metrics(self, rng: random.Random, requests: list[_Request], to_ms: int) -> ExportMetricsServiceRequest:
        out = ExportMetricsServiceRequest()
        for service in _SERVICES:
            scope = out.resource_metrics.add(resource=_resource(service)).scope_metrics.add(
                scope=InstrumentationScope(name="shop.metrics", version="0.9.0")
            )
            memory = scope.metrics.add(name="process.memory.usage", unit="By", description="Resident memory")
            memory.gauge.data_points.add(time_unix_nano=to_ms * MS_NS - 1, as_int=200_000_000 + rng.randrange(10**8))
            queue = scope.metrics.add(name="worker.queue.length", unit="{item}")
            queue.sum.aggregation_temporality = CUMULATIVE
            queue.sum.data_points.add(
                time_unix_nano=to_ms * MS_NS - 1, start_time_unix_nano=self._started_ns, as_int=rng.randrange(40)
            )
            served = [r for r in requests if service == r.endpoint.service or service in r.endpoint.calls]
            self._request_metrics(scope, service, served, to_ms)
        return out

    def _request_metrics(
        self, scope: otlp_metrics.ScopeMetrics, service: str, served: list[_Request], to_ms: int
    ) -> None:
        requests = scope.metrics.add(name="http.server.requests", unit="{request}")
        requests.sum.aggregation_temporality = CUMULATIVE
        requests.sum.is_monotonic = True
        latency = scope.metrics.add(name="http.server.duration", unit="ms")
        latency.histogram.aggregation_temporality = DELTA
        sizes = scope.metrics.add(name="http.server.response.size", unit="By")
        sizes.exponential_histogram.aggregation_temporality = DELTA
        at_ns = to_ms * MS_NS - 1
        for route in sorted({r.endpoint.route for r in served}):
            here = [r for r in served if r.endpoint.route == route]
            labels = _attributes({"http.route": route, "http.method": here[0].endpoint.method})
            series = f"{service} {route}"
            self._counted[series] = self._counted.get(series, 0) + len(here)
            requests.sum.data_points.add(
                time_unix_nano=at_ns,
                start_time_unix_nano=self._started_ns,
                as_int=self._counted[series],
                attributes=labels,
            )
            durations = [r.duration_ms for r in here]
            counts = [0] * (len(LATENCY_BOUNDS_MS) + 1)
            for duration in durations:
                counts[sum(duration > bound for bound in LATENCY_BOUNDS_MS)] += 1
            latency.histogram.data_points.add(
                time_unix_nano=at_ns,
                count=len(durations),
                sum=sum(durations),
                min=min(durations),
                max=max(durations),
                bucket_counts=counts,
                explicit_bounds=LATENCY_BOUNDS_MS,
                attributes=labels,
            )
            point = sizes.exponential_histogram.data_points.add(
                time_unix_nano=at_ns, count=len(here), sum=2048.0 * len(here), scale=0, attributes=labels
            )
            # Scale 0: bucket 10 holds (1 KiB, 2 KiB].
            point.positive.offset = 10
            point.positive.bucket_counts.append(len(here))


def _logs(rng: random.Random, requests: list[_Request]) -> ExportLogsServiceRequest:
    out = ExportLogsServiceRequest()
    for service in _SERVICES:
        scope = out.resource_logs.add(resource=_resource(service)).scope_logs.add(
            scope=InstrumentationScope(name="shop.log", version="1.0.0")
        )
        for request in requests:
            if service != request.endpoint.service and service not in request.endpoint.calls:
                continue
            level, number = ("ERROR", 17) if request.failed else ("INFO", 9)
            outcome = "failed: upstream timeout" if request.failed else "done"
            scope.log_records.add(
                time_unix_nano=request.start_ns + int(request.duration_ms * MS_NS),
                observed_time_unix_nano=request.start_ns + int(request.duration_ms * MS_NS) + MS_NS,
                severity_text=level,
                severity_number=number,
                body=AnyValue(
                    string_value=f"{request.endpoint.method} {request.endpoint.route} for user {request.user} "
                    f"{outcome} in {request.duration_ms:.1f} ms"
                ),
                attributes=_attributes(
                    {"http.route": request.endpoint.route, "user.id": request.user, "thread": rng.randrange(8)}
                ),
                trace_id=request.trace_id,
                span_id=request.span_id,
            )
    return out


def _traces(rng: random.Random, requests: list[_Request]) -> ExportTraceServiceRequest:
    out = ExportTraceServiceRequest()
    scopes = {
        service: out.resource_spans.add(resource=_resource(service)).scope_spans.add(
            scope=InstrumentationScope(name="shop.trace", version="1.0.0")
        )
        for service in _SERVICES
    }
    for request in requests:
        endpoint = request.endpoint
        end_ns = request.start_ns + int(request.duration_ms * MS_NS)
        status = otlp_trace.Status(
            code=otlp_trace.Status.STATUS_CODE_ERROR if request.failed else otlp_trace.Status.STATUS_CODE_UNSET
        )
        scopes[endpoint.service].spans.add(
            trace_id=request.trace_id,
            span_id=request.span_id,
            name=f"{endpoint.method} {endpoint.route}",
            kind=otlp_trace.Span.SPAN_KIND_SERVER,
            start_time_unix_nano=request.start_ns,
            end_time_unix_nano=end_ns,
            status=status,
            attributes=_attributes(
                {
                    "http.request.method": endpoint.method,
                    "http.route": endpoint.route,
                    "http.response.status_code": 504 if request.failed else 200,
                }
            ),
        )
        step = (end_ns - request.start_ns) // (len(endpoint.calls) + 1)
        for number, callee in enumerate(endpoint.calls):
            scopes[callee].spans.add(
                trace_id=request.trace_id,
                span_id=rng.randbytes(8),
                parent_span_id=request.span_id,
                name=f"{callee}.Handle",
                kind=otlp_trace.Span.SPAN_KIND_SERVER,
                start_time_unix_nano=request.start_ns + number * step,
                end_time_unix_nano=request.start_ns + (number + 1) * step,
                attributes=_attributes({"rpc.system": "grpc", "rpc.service": callee}),
            )
    return out


def _log_records(request: ExportLogsServiceRequest) -> int:
    return sum(len(scope.log_records) for resource in request.resource_logs for scope in resource.scope_logs)


def _spans(request: ExportTraceServiceRequest) -> int:
    return sum(len(scope.spans) for resource in request.resource_spans for scope in resource.scope_spans)


def _points(request: ExportMetricsServiceRequest) -> int:
    return sum(
        len(getattr(metric, str(metric.WhichOneof("data"))).data_points)
        for resource in request.resource_metrics
        for scope in resource.scope_metrics
        for metric in scope.metrics
    )
