"""Generated metrics: every kind of point, as odd as OTLP allows, with attributes that collide."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hypothesis import strategies as st
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, InstrumentationScope, KeyValue
from opentelemetry.proto.metrics.v1.metrics_pb2 import (
    ExponentialHistogram,
    ExponentialHistogramDataPoint,
    Gauge,
    Histogram,
    HistogramDataPoint,
    Metric,
    NumberDataPoint,
    ResourceMetrics,
    ScopeMetrics,
    Sum,
    Summary,
    SummaryDataPoint,
)
from opentelemetry.proto.resource.v1.resource_pb2 import Resource

from tests.lake.telemetry.otlp import FIRST_DATE_NS, LATEST_NS

if TYPE_CHECKING:
    from hypothesis.strategies import SearchStrategy

_keys = st.sampled_from(["service.name", "service_name", "Service.Name", "k8s.pod.name", "app", "host.name"]) | (
    st.sampled_from(["_hidden", "", "é", "k" * 300, "a.b", "a_b", "A.B", "n\0l", "name"])
)
_values = st.builds(AnyValue, string_value=st.sampled_from(["", "x", "y", "ü"])) | st.builds(
    AnyValue, int_value=st.sampled_from([1, 2])
)
_attributes = st.lists(st.builds(KeyValue, key=_keys, value=st.none() | _values), max_size=6)
_doubles = st.floats() | st.sampled_from([0.0, -0.0, 1.0, 0.1, -2.5, 1e300, 1.7976931348623157e308, 5e-324, 2.3e-308])
_times = st.sampled_from(
    [0, 1, FIRST_DATE_NS - 1, FIRST_DATE_NS, LATEST_NS, LATEST_NS + 1, 2**63 - 1, 2**63, 2**64 - 1]
) | st.integers(LATEST_NS - 3 * 10**10, LATEST_NS)
_counts = st.sampled_from([0, 0, 1, 2, 3, 100, 2**45, 2**53 + 1, 2**64 - 1]) | st.integers(0, 50)
_flags = st.sampled_from([0, 0, 0, 0, 1, 2, 3])
_numbers = st.builds(
    NumberDataPoint,
    attributes=_attributes,
    start_time_unix_nano=_times,
    time_unix_nano=_times,
    flags=_flags,
    as_double=_doubles,
) | st.builds(
    NumberDataPoint,
    attributes=_attributes,
    start_time_unix_nano=_times,
    time_unix_nano=_times,
    flags=_flags,
    as_int=st.none() | st.integers(-(2**63), 2**63 - 1),
)


@st.composite
def _histograms(draw: st.DrawFn) -> HistogramDataPoint:
    bounds = draw(st.lists(_doubles, max_size=5, unique=True))
    if draw(st.booleans()):
        bounds = sorted(bounds)
    sizes = st.just(len(bounds) + 1) if draw(st.integers(0, 9)) else st.integers(0, 6)
    size = draw(sizes)
    return HistogramDataPoint(
        attributes=draw(_attributes),
        start_time_unix_nano=draw(_times),
        time_unix_nano=draw(_times),
        flags=draw(_flags),
        count=draw(_counts),
        sum=draw(st.none() | _doubles),
        min=draw(st.none() | _doubles),
        max=draw(st.none() | _doubles),
        explicit_bounds=bounds,
        bucket_counts=draw(st.lists(_counts, min_size=size, max_size=size)),
    )


_buckets = st.none() | st.builds(
    ExponentialHistogramDataPoint.Buckets,
    offset=st.sampled_from([0, -1, 3, -(2**31), 2**31 - 1]) | st.integers(-40, 40),
    bucket_counts=st.lists(_counts, max_size=6),
)
_exponential_histograms = st.builds(
    ExponentialHistogramDataPoint,
    attributes=_attributes,
    start_time_unix_nano=_times,
    time_unix_nano=_times,
    flags=_flags,
    count=_counts,
    sum=st.none() | _doubles,
    min=st.none() | _doubles,
    max=st.none() | _doubles,
    scale=st.sampled_from([-(2**31), 2**31 - 1, -11]) | st.integers(-4, 20),
    zero_count=_counts,
    positive=_buckets,
    negative=_buckets,
)
_summaries = st.builds(
    SummaryDataPoint,
    attributes=_attributes,
    start_time_unix_nano=_times,
    time_unix_nano=_times,
    flags=_flags,
    count=_counts,
    sum=_doubles,
    quantile_values=st.lists(
        st.builds(
            SummaryDataPoint.ValueAtQuantile,
            quantile=st.sampled_from([0.0, 0.5, 0.9, 0.99, 1.0, -1.0, 2.0]) | st.floats(),
            value=_doubles,
        ),
        max_size=5,
    ),
)
_temporality = st.sampled_from([0, 1, 2, 3, -1])
_texts = st.sampled_from(["", "s", "By", "ü"])
_names = st.sampled_from(["", "a.b", "a_b", "http.server.duration", "ü"])
_named = {"name": _names, "description": _texts, "unit": _texts}


def _data(points: SearchStrategy[object]) -> SearchStrategy[list[object]]:
    return st.lists(points, max_size=4)


METRICS = st.one_of(
    st.builds(Metric, **_named),
    st.builds(Metric, **_named, gauge=st.builds(Gauge, data_points=_data(_numbers))),
    st.builds(
        Metric,
        **_named,
        sum=st.builds(
            Sum, data_points=_data(_numbers), aggregation_temporality=_temporality, is_monotonic=st.booleans()
        ),
    ),
    st.builds(
        Metric,
        **_named,
        histogram=st.builds(Histogram, data_points=_data(_histograms()), aggregation_temporality=_temporality),
    ),
    st.builds(
        Metric,
        **_named,
        exponential_histogram=st.builds(
            ExponentialHistogram, data_points=_data(_exponential_histograms), aggregation_temporality=_temporality
        ),
    ),
    st.builds(Metric, **_named, summary=st.builds(Summary, data_points=_data(_summaries))),
)
_scopes = st.builds(
    ScopeMetrics,
    scope=st.none() | st.builds(InstrumentationScope, name=_texts, version=_texts, attributes=_attributes),
    metrics=st.lists(METRICS, max_size=3),
)
REQUESTS = st.builds(
    ExportMetricsServiceRequest,
    resource_metrics=st.lists(
        st.builds(
            ResourceMetrics,
            resource=st.none() | st.builds(Resource, attributes=_attributes),
            scope_metrics=st.lists(_scopes, max_size=2),
        ),
        max_size=3,
    ),
)
"""Requests of metrics: every kind, keys and names that collide, values and times beyond every bound."""
