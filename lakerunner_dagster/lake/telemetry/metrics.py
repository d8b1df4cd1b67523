"""Data points of metrics → the columns of a metric segment, one row a point (spec/segments.md, Metrics).

What belongs here: which points are accepted, and what the columns of a row are. What does not: the kinds of points
(``points``), series ids (``series``), merging the rows of a series and bucket (``metric_rows``), what all signals do
alike (``records``, ``attributes``).

Three columns are ours: ``chq_points``; ``chq_point_type``, the kind of point in OTLP's words, as ``chq_metric_type``
calls three of the five ``histogram``; and ``chq_metric_name``, the name as it came, as ``metric_name`` is normalised
like an attribute's key: Lakerunner's queries and series ids have it so. Averages and percentiles are left to
``metric_rows``. What a point's resource says besides the keys of a series, and what its scope says, overflows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from lakerunner_dagster.lake.segments.columns import FILE, OVERFLOW, POINTS
from lakerunner_dagster.lake.signals import INGEST_FREQUENCY_MS, Signal
from lakerunner_dagster.lake.telemetry.attributes import (
    AttributeGroup,
    Attributes,
    normalised,
    pivot,
    read_distinct_attributes,
)
from lakerunner_dagster.lake.telemetry.metric_rows import CUMULATIVE, HISTOGRAM
from lakerunner_dagster.lake.telemetry.parents import Parents, read_parents
from lakerunner_dagster.lake.telemetry.points import KINDS, Points, read_points
from lakerunner_dagster.lake.telemetry.records import (
    NS_PER_MS,
    Records,
    Rejections,
    Rows,
    Times,
    as_bigint,
    chosen,
    constant,
    flattened,
    null_if_empty,
    own_times,
)
from lakerunner_dagster.lake.telemetry.series import RESOURCE_KEYS, Ids, named_series, series_ids
from lakerunner_dagster.lake.telemetry.sketch import Floats, Ints
from lakerunner_dagster.lake.telemetry.wire import Place, read_requests

if TYPE_CHECKING:
    from uuid import UUID

    from lakerunner_dagster.lake.settings import Limits
    from lakerunner_dagster.lake.telemetry.attributes import AttributeColumns
    from lakerunner_dagster.lake.telemetry.raw import RawPayload

METRIC_TYPES = ("gauge", "count", HISTOGRAM, HISTOGRAM, HISTOGRAM)
"""``chq_metric_type`` of each of ``points.KINDS`` (contract)."""

TEMPORALITIES = (None, "delta", CUMULATIVE)
"""``metric_temporality`` of each number that OTLP has for it; others are as unspecified."""

RESOURCE_COLUMNS = frozenset(f"resource_{key}" for key in RESOURCE_KEYS)
"""Attribute columns of resources that a metric segment may have: those that name a series."""
_NO_COLUMNS = frozenset({""})  # no column is called so


@dataclass(frozen=True, slots=True)
class _Batch:
    """The points of some payloads, accepted or not, and what they inherit.

    ``file``, ``resource`` and ``scope``: the payload of each point, and its positions in ``parents``. ``times``: epoch
    ns, of whatever source. ``own``: the attributes of points, those of point i at parent ``own_of[i]``.
    """

    metrics: Records
    points: Points
    parents: Parents
    own: Attributes
    own_of: Ints
    file: Ints
    resource: Ints
    scope: Ints
    times: Times


def decode_metrics(payloads: Sequence[RawPayload], organization_id: UUID, limits: Limits) -> Rows:
    """One row a data point, kind by kind.

    A point's time is time_unix_nano, else start_time_unix_nano, else its object's own.
    """
    batch = _read(payloads, limits)
    rejections = _rejections(batch, payloads, limits)
    accepted = rejections.accepted
    rows = np.arange(len(batch.file)) if accepted is None else accepted
    attributes = _attribute_columns(batch, rows, limits)
    table = pa.table(
        {
            "chq_customer_id": constant(str(organization_id), len(rows)),
            "chq_telemetry_type": constant(Signal.METRICS.value, len(rows)),
            **_metric_columns(batch, rows),
            "chq_tid": _series_ids(batch)[rows],
            **_time_columns(batch, rows),
            **_value_columns(batch.points, rows),
            POINTS: np.ones(len(rows), np.int64),
            **attributes.columns,
            OVERFLOW: attributes.overflow,
            FILE: pa.array(batch.file[rows], pa.int32()),
        }
    )
    return Rows(
        table=table,
        records_read=tuple(np.bincount(batch.file, minlength=len(payloads)).tolist()),
        rejected=rejections.per_file(batch.file, len(payloads)),
        original_keys=attributes.original_keys,
    )


def _read(payloads: Sequence[RawPayload], limits: Limits) -> _Batch:
    requests = read_requests(Signal.METRICS, [payload.payload for payload in payloads])
    metrics = flattened(requests, "resource_metrics", "scope_metrics", "metrics")
    points = read_points(metrics.records)
    own, own_of = read_distinct_attributes(points.attributes, limits, Place.POINT)
    file = metrics.file[points.metric]
    starts_or_own = np.where(points.starts > 0, points.starts, own_times(payloads)[file])
    return _Batch(
        metrics=metrics,
        points=points,
        parents=read_parents(metrics, limits),
        own=own,
        own_of=own_of,
        file=file,
        resource=metrics.resource[points.metric],
        scope=metrics.scope[points.metric],
        times=np.where(points.times > 0, points.times, starts_or_own),
    )


def _rejections(batch: _Batch, payloads: Sequence[RawPayload], limits: Limits) -> Rejections:
    """The points refused: for what they are, for their time, for their attributes."""
    points, own, resources, scopes = batch.points, batch.own, batch.parents.resources, batch.parents.scopes
    nameless = pc.equal(batch.metrics.records.field("name"), "").to_numpy(zero_copy_only=False)
    rejections = Rejections(len(batch.file))
    rejections.add("no_name", nameless[points.metric])
    rejections.add("no_recorded_value", points.no_recorded_value)
    rejections.add("no_value", points.no_value)
    rejections.add("bad_buckets", points.bad_buckets)
    rejections.add("not_a_number", points.not_a_number)
    rejections.add_times_outside(batch.times, batch.file, payloads, limits)
    too_many = resources.too_many[batch.resource] | scopes.too_many[batch.scope]
    too_large = resources.too_large[batch.resource] | scopes.too_large[batch.scope]
    rejections.add("too_many_attributes", own.too_many[batch.own_of] | too_many)
    rejections.add("value_too_large", own.too_large[batch.own_of] | too_large)
    return rejections


def _series_ids(batch: _Batch) -> Ids:
    """The series id of each point."""
    kinds, points = len(KINDS), batch.points
    names = _normalised_names(batch.metrics)
    wanted, place = np.unique(points.metric * kinds + points.kind, return_inverse=True)
    types = pa.array(METRIC_TYPES).take(pa.array(wanted % kinds))
    named = named_series(types, names.take(pa.array(wanted // kinds))).dictionary_encode()  # each file has them anew
    return series_ids(
        batch.own,
        batch.own_of,
        named=named.dictionary,
        name_of=named.indices.to_numpy()[place],
        resources=batch.parents.resources,
        resource_of=batch.resource,
    )


def _normalised_names(metrics: Records) -> pa.StringArray:
    names = metrics.records.field("name").dictionary_encode()
    return pa.array([normalised(name) for name in names.dictionary.to_pylist()], pa.string()).take(names.indices)


def _metric_columns(batch: _Batch, rows: Ints) -> dict[str, pa.Array]:
    """What is of the metric and its scope."""
    metric, kind, scope = batch.points.metric[rows], batch.points.kind[rows], batch.scope[rows]
    records = batch.metrics.records
    temporality = batch.points.temporality[rows]
    temporality = np.where((temporality > 0) & (temporality < len(TEMPORALITIES)), temporality, 0)
    monotonic = batch.points.monotonic[rows]
    return {
        "metric_name": chosen(metric, _normalised_names(batch.metrics)),
        "chq_metric_name": chosen(metric, records.field("name")),
        "chq_description": chosen(metric, null_if_empty(records.field("description"))),
        "chq_unit": chosen(metric, null_if_empty(records.field("unit"))),
        "chq_metric_type": chosen(kind, pa.array(METRIC_TYPES)),
        "chq_point_type": chosen(kind, pa.array(KINDS)),
        "chq_scope_name": chosen(scope, batch.parents.scope_names),
        "chq_scope_url": chosen(scope, batch.parents.scope_versions),
        "metric_temporality": chosen(temporality, pa.array(TEMPORALITIES)),
        "metric_is_monotonic": pa.array(monotonic > 0, mask=monotonic < 0),
    }


def _time_columns(batch: _Batch, rows: Ints) -> dict[str, pa.Array]:
    """Times of accepted points, which all fit a BIGINT; the start is that of a cumulative series."""
    times, starts = batch.times[rows], batch.points.starts[rows]
    tsns = as_bigint(times)
    bucket = np.uint64(INGEST_FREQUENCY_MS)
    cumulative = batch.points.temporality[rows] == TEMPORALITIES.index(CUMULATIVE)
    return {
        "chq_timestamp": as_bigint(times // np.uint64(NS_PER_MS) // bucket * bucket),
        "chq_tsns": tsns,
        "chq_last_tsns": tsns,
        "chq_start_tsns": as_bigint(starts, known=cumulative & (starts > 0)),
    }


def _value_columns(points: Points, rows: Ints) -> dict[str, pa.Array]:
    """What the points say of their values; NULL where there is none, or none is known."""
    sums = points.sums[rows]
    return {
        "chq_rollup_count": _doubles(points.counts[rows]),
        "chq_rollup_sum": _doubles(sums),
        "chq_rollup_sum_low": _doubles(sums * 0.0),
        "chq_rollup_min": _doubles(points.lows[rows]),
        "chq_rollup_max": _doubles(points.highs[rows]),
        "chq_last": _doubles(points.lasts[rows]),
        "chq_sketch": pa.DictionaryArray.from_arrays(points.sketch[rows].astype(np.int32), points.sketches),
    }


def _doubles(values: Floats) -> pa.DoubleArray:
    return pa.array(values, mask=np.isnan(values))


def _attribute_columns(batch: _Batch, rows: Ints, limits: Limits) -> AttributeColumns:
    """Columns for the resource keys of a series and for all attributes of points; the rest overflows."""
    return pivot(
        [
            AttributeGroup("resource", batch.parents.resources, batch.resource[rows], eligible=RESOURCE_COLUMNS),
            AttributeGroup("scope", batch.parents.scopes, batch.scope[rows], eligible=_NO_COLUMNS),
            AttributeGroup("attr", batch.own, batch.own_of[rows]),
        ],
        limit=limits.columns,
        pinned=RESOURCE_COLUMNS,
    )
