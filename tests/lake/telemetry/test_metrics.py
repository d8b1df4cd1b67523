"""Data points become the rows that the plain loop says: on real files, conformance streams and generated requests."""

from __future__ import annotations

import gzip
import math
from collections import Counter
from pathlib import Path
from random import Random
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, InstrumentationScope, KeyValue
from opentelemetry.proto.metrics.v1.metrics_pb2 import (
    AGGREGATION_TEMPORALITY_CUMULATIVE,
    AGGREGATION_TEMPORALITY_DELTA,
    Metric,
    ResourceMetrics,
    ScopeMetrics,
)

from bench.plain_loop import decode_rows
from bench.plain_loop.metrics import merged_rows
from lakerunner_dagster.lake.segments.columns import FIXED_COLUMNS
from lakerunner_dagster.lake.segments.shared import spread
from lakerunner_dagster.lake.settings import Limits
from lakerunner_dagster.lake.signals import Signal
from lakerunner_dagster.lake.telemetry.decode import decode
from lakerunner_dagster.lake.telemetry.metric_rows import DERIVED, merge_rows
from lakerunner_dagster.lake.telemetry.points import KINDS
from lakerunner_dagster.lake.telemetry.raw import RawPayload
from tests.lake.telemetry.metric_requests import REQUESTS
from tests.lake.telemetry.otlp import EVENT_TIME_MS, LATEST_NS, ORGANIZATION, payload, tangled

TIGHT = Limits.model_construct(attributes=3, value_bytes=30, columns=4)
BEFORE_2025 = Limits.model_construct(first_date=Limits.model_fields["first_date"].default.replace(year=2024))
POINTS = {
    "metrics_221198848": {"sum": 13_627, "gauge": 3_000, "histogram": 6},
    "metrics_377055286": {"sum": 11_981, "gauge": 3_029, "histogram": 8},
    "metrics_427904409": {"sum": 13_438, "gauge": 3_000},
    "otel-metrics": {"sum": 580, "gauge": 52, "histogram": 63},
}
STREAMS = {
    "metrics_exponential_histogram": {"exponential_histogram": 2},
    "metrics_gauge": {"gauge": 3},
    "metrics_histogram": {"histogram": 3},
    "metrics_mixed": {"gauge": 1, "sum": 1, "histogram": 1},
    "metrics_sum": {"sum": 4},
    "metrics_summary": {"summary": 2},
}

fuzz = settings(
    max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large]
)


def without_nulls(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{column: value for column, value in row.items() if value is not None} for row in rows]


def whole(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows with a key for every column that any of them has."""
    names = dict.fromkeys(name for row in rows for name in row)
    return [{name: row.get(name) for name in names} for row in rows]


def kind_of(row: dict[str, Any]) -> int:
    return KINDS.index(row["chq_point_type"])


def in_some_order(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    names = ("chq_tid", "chq_timestamp", "metric_name", "metric_temporality", "metric_is_monotonic", "chq_start_tsns")
    return sorted(rows, key=lambda row: [str(row.get(name)) for name in names])


def assert_decoded_and_merged_as_by_the_plain_loop(raw: RawPayload, limits: Limits) -> None:
    decoded = decode(Signal.METRICS, [raw], ORGANIZATION, limits)
    rows, rejected = decode_rows(Signal.METRICS, raw, ORGANIZATION, limits)
    assert not decoded.failures
    assert decoded.rejected == (rejected,)
    assert decoded.records_read == (len(rows) + rejected.total(),)
    table = decoded.table.drop_columns(["_file"])
    table.validate(full=True)
    assert without_nulls(spread(table).to_pylist()) == without_nulls(sorted(rows, key=kind_of))

    merged = spread(merge_rows(table))
    merged.validate(full=True)
    expected = merged_rows(whole(rows))
    assert in_some_order(without_nulls(merged.to_pylist())) == in_some_order(without_nulls(expected))


@pytest.mark.parametrize(("name", "points"), POINTS.items())
def test_a_real_file_decodes_and_merges_cell_by_cell_as_the_plain_loop_says(
    real_data: Path, limits: Limits, name: str, points: dict[str, int]
) -> None:
    raw = payload(gzip.decompress((real_data / "metrics" / f"{name}.binpb.gz").read_bytes()))
    assert_decoded_and_merged_as_by_the_plain_loop(raw, limits)
    table = decode(Signal.METRICS, [raw], ORGANIZATION, limits).table
    assert Counter(table.column("chq_point_type").to_pylist()) == points
    assert sum(merge_rows(table.drop_columns(["_file"])).column("chq_points").to_pylist()) == sum(points.values())


@pytest.mark.parametrize(("name", "points"), STREAMS.items())
def test_a_conformance_stream_decodes_as_the_plain_loop_says_and_as_its_json_says(
    real_data: Path, name: str, points: dict[str, int]
) -> None:
    raw = payload((real_data / "conformance" / f"{name}.pb").read_bytes())
    assert_decoded_and_merged_as_by_the_plain_loop(raw, BEFORE_2025)
    table = decode(Signal.METRICS, [raw], ORGANIZATION, BEFORE_2025).table
    assert Counter(table.column("chq_point_type").to_pylist()) == points


@pytest.mark.parametrize("bounds", [Limits.model_construct(), TIGHT], ids=["default", "tight"])
@fuzz
@given(request=REQUESTS)
def test_whatever_a_request_holds_it_decodes_and_merges_as_the_plain_loop_says(
    bounds: Limits, request: ExportMetricsServiceRequest
) -> None:
    assert_decoded_and_merged_as_by_the_plain_loop(payload(request.SerializeToString()), bounds)


@fuzz
@given(request=REQUESTS, seed=st.integers(0, 2**32))
def test_messages_in_pieces_mean_what_upb_says(request: ExportMetricsServiceRequest, seed: int) -> None:
    raw = payload(tangled(request, Random(seed)))
    assert_decoded_and_merged_as_by_the_plain_loop(raw, Limits.model_construct())


def request_of(
    *metrics: Metric, resource: dict[str, str] | None = None, scope: InstrumentationScope | None = None
) -> bytes:
    group = ResourceMetrics(scope_metrics=[ScopeMetrics(scope=scope, metrics=metrics)])
    for key, text in (resource or {}).items():
        group.resource.attributes.append(KeyValue(key=key, value=AnyValue(string_value=text)))
    return ExportMetricsServiceRequest(resource_metrics=[group]).SerializeToString()


def gauge(name: str = "m", value: float = 1.0, time_ns: int = LATEST_NS, **attributes: str) -> Metric:
    metric = Metric(name=name)
    point = metric.gauge.data_points.add(time_unix_nano=time_ns, as_double=value)
    for key, text in attributes.items():
        point.attributes.append(KeyValue(key=key, value=AnyValue(string_value=text)))
    return metric


def rows_of(data: bytes) -> list[dict[str, Any]]:
    table = decode(Signal.METRICS, [payload(data)], ORGANIZATION, Limits()).table
    rows: list[dict[str, Any]] = spread(table).to_pylist()
    return rows


def refusals_of(data: bytes) -> dict[str, int]:
    return dict(decode(Signal.METRICS, [payload(data)], ORGANIZATION, Limits()).rejected[0])


def test_a_point_without_a_time_takes_its_start_and_without_that_its_object_s_time() -> None:
    metric = Metric(name="m")
    metric.gauge.data_points.add(as_int=1, time_unix_nano=LATEST_NS, start_time_unix_nano=LATEST_NS - 5)
    metric.gauge.data_points.add(as_int=2, start_time_unix_nano=LATEST_NS - 5)
    metric.gauge.data_points.add(as_int=3)
    times = [row["chq_tsns"] for row in rows_of(request_of(metric))]
    assert times == [LATEST_NS, LATEST_NS - 5, EVENT_TIME_MS * 1_000_000]


def test_a_timestamp_is_the_start_of_its_ten_seconds_in_integers() -> None:
    [row] = rows_of(request_of(gauge(time_ns=1_766_000_019_999_999_999)))
    assert row["chq_timestamp"] == 1_766_000_010_000
    assert row["chq_tsns"] == 1_766_000_019_999_999_999


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_value_that_is_no_number_is_refused_with_the_reason(value: float) -> None:
    histogram, summary, exponential = Metric(name="h"), Metric(name="s"), Metric(name="e")
    histogram.histogram.data_points.add(time_unix_nano=LATEST_NS, count=1, sum=value)
    summary.summary.data_points.add(time_unix_nano=LATEST_NS, count=1, sum=value)
    exponential.exponential_histogram.data_points.add(time_unix_nano=LATEST_NS, count=1, sum=value)
    data = request_of(gauge(value=value), histogram, summary, exponential, gauge(value=1.5))
    assert refusals_of(data) == {"not_a_number": 4}
    assert [row["chq_rollup_sum"] for row in rows_of(data)] == [1.5]


def test_points_without_value_name_or_fitting_buckets_are_refused_each_with_its_reason() -> None:
    flagged, valueless, bad = Metric(name="f"), Metric(name="v"), Metric(name="b")
    flagged.gauge.data_points.add(time_unix_nano=LATEST_NS, flags=1)
    flagged.summary.data_points.add(time_unix_nano=LATEST_NS, flags=1)
    valueless.sum.data_points.add(time_unix_nano=LATEST_NS)
    point = bad.histogram.data_points
    point.add(time_unix_nano=LATEST_NS, count=3, bucket_counts=[1, 2], explicit_bounds=[1, 2])
    point.add(time_unix_nano=LATEST_NS, count=3, bucket_counts=[1, 2, 0], explicit_bounds=[2, 1])
    point.add(time_unix_nano=LATEST_NS, count=3, bucket_counts=[1, 2, 0], explicit_bounds=[1, math.nan])
    point.add(time_unix_nano=LATEST_NS, count=3, explicit_bounds=[1])
    point.add(time_unix_nano=LATEST_NS, count=3, bucket_counts=[3])
    data = request_of(flagged, valueless, bad, gauge(name=""))
    assert refusals_of(data) == {"no_recorded_value": 1, "no_value": 1, "bad_buckets": 4, "no_name": 1}
    assert [row["chq_rollup_count"] for row in rows_of(data)] == [3.0]


def test_names_are_normalised_for_queries_and_kept_as_they_came() -> None:
    [row] = rows_of(request_of(gauge("HTTP.Server.Düration")))
    assert (row["metric_name"], row["chq_metric_name"]) == ("http_server_d__ration", "HTTP.Server.Düration")


def test_only_the_keys_of_a_series_become_columns_of_its_resource_and_nothing_else_is_lost() -> None:
    scope = InstrumentationScope(name="lib", version="2", attributes=[KeyValue(key="k", value=AnyValue(int_value=1))])
    resource = {"service.name": "shop", "host.name": "h1", "k8s.pod.ip": "10.0.0.1"}
    [row] = rows_of(request_of(gauge(color="red"), resource=resource, scope=scope))
    attributes = {name: row[name] for name in row if name.startswith(("resource_", "scope_", "attr_"))}
    assert attributes == {"resource_service_name": "shop", "resource_k8s_pod_ip": "10.0.0.1", "attr_color": "red"}
    assert (row["chq_scope_name"], row["chq_scope_url"]) == ("lib", "2")
    assert row["chq_overflow"] == '{"resource":{"host.name":"h1"},"scope":{"k":"1"}}'


def test_a_series_keeps_its_id_whatever_is_decoded_along_with_it() -> None:
    alone = request_of(gauge(color="red", size="1"), resource={"service.name": "shop"})
    crowd = request_of(gauge(Color="blue", _x="y", size="2"), resource={"service_name": "other"})
    [row] = rows_of(alone)
    tight = Limits.model_construct(columns=1)
    together = decode(Signal.METRICS, [payload(crowd, 2), payload(alone)], ORGANIZATION, tight).table
    assert together.column("chq_tid").to_pylist()[1] == row["chq_tid"]


def test_a_cumulative_point_keeps_its_start_and_others_have_none() -> None:
    cumulative, delta = Metric(name="c"), Metric(name="d")
    for metric, temporality in (
        (cumulative, AGGREGATION_TEMPORALITY_CUMULATIVE),
        (delta, AGGREGATION_TEMPORALITY_DELTA),
    ):
        metric.sum.aggregation_temporality = temporality
        metric.sum.is_monotonic = True
        metric.sum.data_points.add(time_unix_nano=LATEST_NS, start_time_unix_nano=LATEST_NS - 9, as_int=4)
    rows = rows_of(request_of(cumulative, delta))
    assert [row["chq_start_tsns"] for row in rows] == [LATEST_NS - 9, None]
    assert [row["metric_temporality"] for row in rows] == ["cumulative", "delta"]


def test_the_columns_of_a_merged_row_are_those_of_a_segment() -> None:
    table = decode(Signal.METRICS, [payload(request_of(gauge(color="red")))], ORGANIZATION, Limits()).table
    assert not set(table.column_names) & set(DERIVED)
    merged = spread(merge_rows(table.drop_columns(["_file"])))
    assert {*FIXED_COLUMNS[Signal.METRICS].names, "attr_color", "chq_overflow"} == set(merged.column_names)


@pytest.mark.parametrize("kind", ["histogram", "exponential_histogram", "summary"])
def test_more_buckets_than_are_worked_on_at_once_are_read_as_the_plain_loop_reads_them(kind: str) -> None:
    rng, metric = Random(3), Metric(name="m")
    for _ in range(230):
        counts = [0] * 600
        for _ in range(4):
            counts[rng.randrange(600)] = rng.randrange(9)
        stated = {"time_unix_nano": LATEST_NS - rng.randrange(10**12), "count": sum(counts), "sum": 5.0}
        if kind == "histogram":
            bounds = [float(bound) for bound in range(599)]
            metric.histogram.data_points.add(bucket_counts=counts, explicit_bounds=bounds, **stated)
        elif kind == "exponential_histogram":
            point = metric.exponential_histogram.data_points.add(scale=4, **stated)
            point.positive.bucket_counts.extend(counts)
            point.negative.bucket_counts.extend(counts[:9])
        else:
            summary = metric.summary.data_points.add(**stated)
            for place in range(300):
                summary.quantile_values.add(quantile=place / 300, value=rng.random())
    assert_decoded_and_merged_as_by_the_plain_loop(payload(request_of(metric)), Limits())


def test_no_payload_no_rows() -> None:
    decoded = decode(Signal.METRICS, [], ORGANIZATION, Limits())
    assert decoded.table.num_rows == 0
    assert merge_rows(decoded.table.drop_columns(["_file"])).num_rows == 0
