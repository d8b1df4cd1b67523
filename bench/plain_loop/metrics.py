"""The plain loop over data points, and over the rows of a series and bucket.

What belongs here: their columns. What does not: anything of the product's decoder and merge, whose oracle this is.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterator
from fractions import Fraction
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.metrics.v1.metrics_pb2 import (
    ExponentialHistogramDataPoint,
    HistogramDataPoint,
    Metric,
    NumberDataPoint,
    SummaryDataPoint,
)

from bench.plain_loop import sketches
from bench.plain_loop.otlp import (
    BIGINT,
    LONGEST_COLUMN_KEY,
    NS_PER_MS,
    Attribute,
    Owner,
    column_name,
    lay_out,
    read_owner,
    refusal,
)

if TYPE_CHECKING:
    from uuid import UUID

    from opentelemetry.proto.common.v1.common_pb2 import InstrumentationScope

    from lakerunner_dagster.lake.settings import Limits
    from lakerunner_dagster.lake.telemetry.raw import RawPayload

RESOURCE_COLUMNS = [
    "resource_app",
    "resource_container_image_name",
    "resource_container_image_tag",
    "resource_k8s_cluster_name",
    "resource_k8s_daemonset_name",
    "resource_k8s_deployment_name",
    "resource_k8s_namespace_name",
    "resource_k8s_pod_ip",
    "resource_k8s_pod_name",
    "resource_k8s_statefulset_name",
    "resource_service_name",
    "resource_service_version",
]
"""The columns of a resource; they never overflow."""

TYPES = {
    "gauge": "gauge",
    "sum": "count",
    "histogram": "histogram",
    "exponential_histogram": "histogram",
    "summary": "histogram",
}
Point = NumberDataPoint | sketches.Distribution

PERCENTS = (25, 50, 75, 90, 95, 99)


def point_rows(payload: RawPayload, organization_id: UUID, limits: Limits) -> tuple[list[dict[str, Any]], Counter[str]]:
    """A dict for each accepted data point, without average and percentiles, and the refused ones by reason."""
    rows: list[dict[str, Any]] = []
    groups: list[dict[str, list[Attribute]]] = []
    rejected: Counter[str] = Counter()
    latest = (payload.event_time_ms + limits.ahead_ms) * NS_PER_MS
    for resource, scope, scope_message, metric, point in _points(payload, limits):
        kind = str(metric.WhichOneof("data"))
        own = read_owner(point.attributes, limits)
        time = point.time_unix_nano or point.start_time_unix_nano or payload.event_time_ms * NS_PER_MS
        reason = _unusable(metric, point) or refusal(time, latest, (resource, scope, own), limits)
        if reason is not None:
            rejected[reason] += 1
            continue
        data = getattr(metric, kind)
        temporality = {1: "delta", 2: "cumulative"}.get(getattr(data, "aggregation_temporality", 0))
        name = column_name("", metric.name)[1:]
        start = point.start_time_unix_nano
        rows.append(
            {
                "chq_customer_id": str(organization_id),
                "chq_telemetry_type": "metrics",
                "metric_name": name,
                "chq_metric_name": metric.name,
                "chq_description": metric.description or None,
                "chq_unit": metric.unit or None,
                "chq_metric_type": TYPES[kind],
                "chq_point_type": kind,
                "chq_scope_name": scope_message.name or None,
                "chq_scope_url": scope_message.version or None,
                "chq_tid": _series_id(name, TYPES[kind], resource, own),
                "chq_timestamp": time // NS_PER_MS // 10_000 * 10_000,
                "chq_tsns": time,
                **_values(point),
                "metric_temporality": temporality,
                "metric_is_monotonic": data.is_monotonic if kind == "sum" else None,
                "chq_last_tsns": time,
                "chq_start_tsns": start if temporality == "cumulative" and start and start in BIGINT else None,
                "chq_points": 1,
            }
        )
        groups.append({"resource": resource.attributes, "scope": scope.attributes, "attr": own.attributes})
    eligible = {"resource": RESOURCE_COLUMNS, "scope": []}
    lay_out(rows, groups, limits.columns, pinned=RESOURCE_COLUMNS, eligible=eligible)
    return rows, rejected


def _points(payload: RawPayload, limits: Limits) -> Iterator[tuple[Owner, Owner, InstrumentationScope, Metric, Point]]:
    for resource_metrics in ExportMetricsServiceRequest.FromString(payload.payload).resource_metrics:
        resource = read_owner(resource_metrics.resource.attributes, limits)
        for scope_metrics in resource_metrics.scope_metrics:
            scope = read_owner(scope_metrics.scope.attributes, limits)
            for metric in scope_metrics.metrics:
                kind = metric.WhichOneof("data")
                for point in getattr(metric, kind).data_points if kind else []:
                    yield resource, scope, scope_metrics.scope, metric, point


def _unusable(metric: Metric, point: Point) -> str | None:
    """Why a point is refused for what it is."""
    if not metric.name:
        return "no_name"
    if point.flags & 1:
        return "no_recorded_value"
    if isinstance(point, NumberDataPoint):
        if point.WhichOneof("value") is None:
            return "no_value"
        return None if math.isfinite(_number(point)) else "not_a_number"
    if isinstance(point, HistogramDataPoint) and _bad_buckets(list(point.bucket_counts), list(point.explicit_bounds)):
        return "bad_buckets"
    return None if math.isfinite(point.sum) else "not_a_number"


def _bad_buckets(counts: list[int], edges: list[float]) -> bool:
    fits = len(counts) == len(edges) + 1 or (not counts and not edges)
    rises = all(low < high for low, high in pairwise(edges))
    return not (fits and rises and all(map(math.isfinite, edges)))


def _number(point: NumberDataPoint) -> float:
    return (point.as_double if point.WhichOneof("value") == "as_double" else float(point.as_int)) + 0.0


def _values(point: Point) -> dict[str, Any]:
    """The columns of a point's values."""
    if isinstance(point, NumberDataPoint):
        value = _number(point)
        sketch: sketches.Sketch = {}
        sketches.count_into(sketch, value, 1)
        return _value_columns(1.0, value, sketch, (value, value), value)
    if isinstance(point, SummaryDataPoint) or point.HasField("sum"):
        total: float | None = point.sum + 0.0
    else:
        total = None if point.count else 0.0
    if isinstance(point, HistogramDataPoint):
        ranges = sketches.explicit_ranges(point)
    elif isinstance(point, ExponentialHistogramDataPoint):
        ranges = sketches.exponential_ranges(point)
    else:
        ranges = sketches.summary_ranges(point)
    sketch, low, high = sketches.place(ranges, point, total)
    return _value_columns(float(point.count), total, sketch, (low, high), None)


def _value_columns(
    count: float,
    total: float | None,
    sketch: sketches.Sketch,
    extremes: tuple[float | None, float | None],
    last: float | None,
) -> dict[str, Any]:
    return {
        "chq_rollup_count": count,
        "chq_rollup_sum": total,
        "chq_rollup_sum_low": None if total is None else 0.0,
        "chq_rollup_min": extremes[0],
        "chq_rollup_max": extremes[1],
        "chq_last": last,
        "chq_sketch": sketches.encode(sketch),
    }


def _series_id(name: str, metric_type: str, resource: Owner, own: Owner) -> int:
    """chq_tid of a point."""
    pairs = {"metric_name": name, "chq_metric_type": metric_type}
    for group, owner in (("resource", resource), ("attr", own)):
        for key, text in sorted(owner.attributes, key=lambda pair: pair[0]):
            column = column_name(group, key)
            barred = key.startswith("_") or "\0" in key or len(key.encode()) > LONGEST_COLUMN_KEY
            if not barred and (group == "attr" or column in RESOURCE_COLUMNS):
                pairs.setdefault(column, text)
    return series_id(pairs)


def series_id(pairs: dict[str, str]) -> int:
    """FNV-1a 64 of the pairs that have a value, as a signed integer."""
    state = 0xCBF29CE484222325
    for byte in "".join(f"{key}={pairs[key]}|" for key in sorted(pairs) if pairs[key]).encode():
        state = (state ^ byte) * 0x100000001B3 % 2**64
    return state - 2**64 if state >= 2**63 else state


def merged_rows(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One row for each series and bucket, with average and percentiles. A row must have a key for every column."""
    together: dict[tuple[Any, ...], list[dict[str, Any]]] = defaultdict(list)
    for row in rows:
        names = ("metric_name", "chq_tid", "chq_timestamp", "chq_metric_type", "metric_temporality")
        start = row["chq_start_tsns"] if _is_latest(row) else None
        together[*(row[name] for name in names), row["metric_is_monotonic"], start].append(row)
    return [_completed(_merged(group)) for group in together.values()]


def _is_latest(row: dict[str, Any]) -> bool:
    since_start = row["chq_metric_type"] == "histogram" or row["metric_is_monotonic"] is True
    return row["metric_temporality"] == "cumulative" and since_start


def _precedence(row: dict[str, Any]) -> tuple[Any, ...]:
    doubles = [
        row[f"chq_{name}"] for name in ("rollup_count", "rollup_sum", "rollup_sum_low", "rollup_min", "rollup_max")
    ]
    known = [-math.inf if value is None else value for value in (row["chq_last"], row["chq_start_tsns"], *doubles)]
    return (row["chq_last_tsns"], *known, row["chq_sketch"])


def _merged(rows: list[dict[str, Any]]) -> dict[str, Any]:
    if len(rows) == 1:
        return dict(rows[0])
    winner = max(rows, key=_precedence)
    row = {name: min((one[name] for one in rows if one[name] is not None), default=None) for name in rows[0]}
    counts = math.fsum(one["chq_rollup_count"] for one in rows)
    taken = ["chq_last", "chq_last_tsns", "chq_start_tsns"]
    if _is_latest(winner):
        taken += ["chq_rollup_sum", "chq_rollup_sum_low", "chq_rollup_min", "chq_rollup_max", "chq_sketch"]
        if winner["chq_metric_type"] == "histogram":
            counts = winner["chq_rollup_count"]
    else:
        row["chq_rollup_sum"], row["chq_rollup_sum_low"] = _sum(rows)
        row["chq_rollup_max"] = max(
            (one["chq_rollup_max"] for one in rows if one["chq_rollup_max"] is not None), default=None
        )
        row["chq_sketch"] = sketches.encode(sketches.merged([sketches.decode(one["chq_sketch"]) for one in rows]))
    return {
        **row,
        **{name: winner[name] for name in taken},
        "chq_rollup_count": counts,
        "chq_points": sum(one["chq_points"] for one in rows),
    }


def _sum(rows: list[dict[str, Any]]) -> tuple[float | None, float | None]:
    """The exact sum rounded, and the rest."""
    if any(row["chq_rollup_sum"] is None for row in rows):
        return None, None
    exact = sum((Fraction(row["chq_rollup_sum"]) + Fraction(row["chq_rollup_sum_low"]) for row in rows), Fraction())
    try:
        rounded = float(exact)
    except OverflowError:
        return None, None
    return rounded, float(exact - Fraction(rounded))


def _completed(row: dict[str, Any]) -> dict[str, Any]:
    """The row with its average and percentiles."""
    count, total = row["chq_rollup_count"], row["chq_rollup_sum"]
    if _is_latest(row) and row["chq_metric_type"] != "histogram":
        count = 1.0
    average = total / count if total is not None and row["chq_rollup_count"] > 0 else None
    sketch = sketches.decode(row["chq_sketch"])
    percentiles = {}
    for percent in PERCENTS:
        value = sketches.quantile(sketch, percent / 100)
        if value is not None:
            low, high = row["chq_rollup_min"], row["chq_rollup_max"]
            value = value if low is None else max(value, low)
            value = value if high is None else min(value, high)
        percentiles[f"chq_rollup_p{percent}"] = value
    return {**row, "chq_rollup_avg": average, **percentiles}
