"""The five kinds of OTLP data points → one set of arrays.

What belongs here: what the fields of each kind of point mean, and what makes a point unusable whatever its time and
attributes. What does not: columns (``metrics``), how distributions become sketches (``distributions``).

Exemplars are not read: segments have no place for them, and they stay in the raw file.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import reduce
from types import MappingProxyType
from typing import Any, TypeAlias, TypeVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from lakerunner_dagster.lake.telemetry.distributions import (
    Distributions,
    Lists,
    Stated,
    explicit,
    exponential,
    summary,
)
from lakerunner_dagster.lake.telemetry.records import Times
from lakerunner_dagster.lake.telemetry.sketch import Floats, Ints, pieces, singles
from lakerunner_dagster.lake.telemetry.sketch_encoding import encoded

Bools: TypeAlias = npt.NDArray[np.bool_]

KINDS = ("gauge", "sum", "histogram", "exponential_histogram", "summary")
"""Kinds of points, by their names in OTLP."""

_NO_RECORDED_VALUE = 1
"""The bit of a point's flags that says that it has no value."""


@dataclass(frozen=True, slots=True)
class Points:
    """Points of any kind; element i of each array is of point i.

    ``metric``: its position among the metrics. ``kind``: position in ``KINDS``. ``times``, ``starts``: epoch ns, 0
    where unknown. ``counts``, ``sums``, ``lows``, ``highs``, ``lasts``: NaN where there is none, or none is known;
    ``lasts`` is the value of a point that has a single one. ``sketch``: position in ``sketches``, encoded ones.
    ``temporality`` as OTLP numbers it, 0 where a kind has none; ``monotonic``: 1 or 0, -1 where a kind has none.
    ``attributes``: lists of encoded KeyValues. The masks say why a point is unusable; its values then mean nothing.
    """

    metric: Ints
    kind: Ints
    times: Times
    starts: Times
    counts: Floats
    sums: Floats
    lows: Floats
    highs: Floats
    lasts: Floats
    sketch: Ints
    sketches: pa.BinaryArray
    temporality: Ints
    monotonic: Ints
    attributes: pa.ChunkedArray
    no_recorded_value: Bools
    no_value: Bools
    bad_buckets: Bools
    not_a_number: Bools


def read_points(metrics: pa.StructArray) -> Points:
    """The points of metrics as ``wire.read_requests`` gives them, kind by kind, each in the order of the metrics."""
    parts = [_points(metrics, number) for number in range(len(KINDS)) if _has_points(metrics, KINDS[number])]
    return _joined(parts or [_points(metrics, 0)])


@dataclass(frozen=True, slots=True)
class _Values:
    """What differs from kind to kind; arrays as in ``Points``."""

    counts: Floats
    sums: Floats
    lows: Floats
    highs: Floats
    lasts: Floats
    sketch: Ints
    sketches: pa.BinaryArray
    no_value: Bools
    bad_buckets: Bools
    not_a_number: Bools


_Set = TypeVar("_Set", Points, _Values)


def _joined(parts: Sequence[_Set]) -> _Set:
    """All points of one or more sets."""
    if len(parts) == 1:
        return parts[0]
    columns: dict[str, Any] = {}
    for field in fields(parts[0]):
        arrays = [getattr(part, field.name) for part in parts]
        columns[field.name] = _concatenated(arrays)
    before = np.cumsum([0, *(len(part.sketches) for part in parts[:-1])])
    columns["sketch"] = np.concatenate([part.sketch + held for part, held in zip(parts, before, strict=True)])
    return type(parts[0])(**columns)


def _concatenated(arrays: Sequence[Any]) -> object:
    """Arrays of one kind as one; chunked ones, which are large, without a copy."""
    match arrays[0]:
        case pa.ChunkedArray():
            return pa.chunked_array([chunk for array in arrays for chunk in array.chunks])
        case pa.Array():
            return pa.concat_arrays(arrays)
        case _:
            return np.concatenate(arrays)


def _has_points(metrics: pa.StructArray, kind: str) -> bool:
    points: int = len(metrics.field(kind).field("data_points").values)
    return points > 0


def _points(metrics: pa.StructArray, number: int) -> Points:
    data = metrics.field(KINDS[number])
    lists = data.field("data_points")
    points = lists.values
    metric = np.repeat(np.arange(len(lists)), np.diff(lists.offsets.to_numpy()))
    values = _joined([_READERS[KINDS[number]](points.slice(begin, end - begin)) for begin, end in _cut(points)])
    return Points(
        metric=metric,
        kind=np.full(len(metric), number),
        times=points.field("time_unix_nano").to_numpy(),
        starts=points.field("start_time_unix_nano").to_numpy(),
        counts=values.counts,
        sums=values.sums,
        lows=values.lows,
        highs=values.highs,
        lasts=values.lasts,
        sketch=values.sketch,
        sketches=values.sketches,
        temporality=_of_metric(data, "aggregation_temporality", 0)[metric],
        monotonic=_of_metric(data, "is_monotonic", -1)[metric],
        attributes=pa.chunked_array([points.field("attributes")]),
        no_recorded_value=(points.field("flags").to_numpy() & _NO_RECORDED_VALUE).astype(np.bool_),
        no_value=values.no_value,
        bad_buckets=values.bad_buckets,
        not_a_number=values.not_a_number,
    )


def _cut(points: pa.StructArray) -> Iterator[tuple[int, int]]:
    """Ranges of points whose buckets or quantiles are worked on at once, at least one."""
    held = np.zeros(len(points) + 1, np.int64)
    for path in (["bucket_counts"], ["positive", "bucket_counts"], ["negative", "bucket_counts"], ["quantile_values"]):
        if points.type.get_field_index(path[0]) >= 0:
            lists = reduce(pa.StructArray.field, path, points)
            held += lists.offsets.to_numpy()
    yield from pieces(held) if len(points) else [(0, 0)]


def _of_metric(data: pa.StructArray, name: str, absent: int) -> Ints:
    """A field of each metric as integers; ``absent`` where this kind of metric has no such field."""
    if data.type.get_field_index(name) < 0:
        return np.full(len(data), absent)
    values: Ints = data.field(name).cast(pa.int32()).fill_null(absent).to_numpy()
    return values


def _numbers(points: pa.StructArray) -> _Values:
    """Gauges and sums: a point is one value. An integer beyond 2^53 is rounded to a double."""
    doubles, integers = points.field("as_double"), points.field("as_int")
    given = _valid(doubles)
    values = np.where(given, _filled(doubles), _filled(integers)) + 0.0  # no negative zero: it has the same place
    finite = np.isfinite(values)
    values = np.where(finite, values, 0.0)
    numbers, sketches = singles(values)
    none = np.zeros(len(values), np.bool_)
    return _Values(
        counts=np.ones(len(values)),
        sums=values,
        lows=values,
        highs=values,
        lasts=values,
        sketch=numbers,
        sketches=encoded(sketches),
        no_value=~given & ~_valid(integers),
        bad_buckets=none,
        not_a_number=~finite,
    )


def _histograms(points: pa.StructArray) -> _Values:
    stated = _stated(points)
    buckets, bounds = _lists(points.field("bucket_counts")), _lists(points.field("explicit_bounds"))
    bad = _misfits(buckets, bounds)
    return _distributed(explicit(buckets.without(bad), bounds.without(bad), stated), points, stated, bad)


def _exponential_histograms(points: pa.StructArray) -> _Values:
    stated = _stated(points)
    scales = points.field("scale").to_numpy().astype(np.int64)
    distributions = exponential(
        scales, _filled(points.field("zero_count")), _side(points, "positive"), _side(points, "negative"), stated
    )
    return _distributed(distributions, points, stated)


def _summaries(points: pa.StructArray) -> _Values:
    stated = _stated(points)
    quantiles = points.field("quantile_values")
    offsets, held = quantiles.offsets.to_numpy().astype(np.int64), quantiles.flatten()
    fractions = Lists(offsets - offsets[0], held.field("quantile").to_numpy())
    return _distributed(summary(fractions, held.field("value").to_numpy(), stated), points, stated)


_READERS: Mapping[str, Callable[[pa.StructArray], _Values]] = MappingProxyType(
    {
        "gauge": _numbers,
        "sum": _numbers,
        "histogram": _histograms,
        "exponential_histogram": _exponential_histograms,
        "summary": _summaries,
    }
)


def _distributed(
    distributions: Distributions, points: pa.StructArray, stated: Stated, bad_buckets: Bools | None = None
) -> _Values:
    none = np.zeros(len(points), np.bool_)
    sums = points.field("sum")
    return _Values(
        counts=stated.counts,
        sums=stated.sums,
        lows=distributions.lows + 0.0,
        highs=distributions.highs + 0.0,
        lasts=np.full(len(points), np.nan),
        sketch=np.arange(len(points)),
        sketches=encoded(distributions.sketches),
        no_value=none,
        bad_buckets=none if bad_buckets is None else bad_buckets,
        not_a_number=_valid(sums) & ~np.isfinite(_filled(sums)),
    )


def _stated(points: pa.StructArray) -> Stated:
    """What distributions say of themselves. The sum of no value is 0; any other that is absent is unknown."""
    counts = _filled(points.field("count"))
    sums = np.where(counts > 0, points.field("sum").fill_null(np.nan).to_numpy(), _filled(points.field("sum")))
    return Stated(
        counts=counts,
        sums=np.where(np.isfinite(sums), sums, np.nan) + 0.0,
        lows=_extreme(points, "min"),
        highs=_extreme(points, "max"),
    )


def _extreme(points: pa.StructArray, name: str) -> Floats:
    """An optional field that summaries do not have."""
    if points.type.get_field_index(name) < 0:
        return np.full(len(points), np.nan)
    values: Floats = points.field(name).fill_null(np.nan).to_numpy()
    return values


def _side(points: pa.StructArray, name: str) -> tuple[Ints, Lists]:
    """The offset and buckets of one side of exponential histograms; an absent side is empty."""
    side = points.field(name)
    return side.field("offset").fill_null(0).to_numpy().astype(np.int64), _lists(side.field("bucket_counts"))


def _misfits(buckets: Lists, bounds: Lists) -> Bools:
    """Which histograms have bounds that are not one less than their buckets (or none of both), or do not ascend."""
    bucket_counts, bound_counts = np.diff(buckets.offsets), np.diff(bounds.offsets)
    bad: Bools = bound_counts != np.maximum(bucket_counts - 1, 0)
    owners = bounds.owners()
    bad[owners[~np.isfinite(bounds.values)]] = True
    with np.errstate(invalid="ignore"):
        falls = ~(bounds.values[1:] > bounds.values[:-1]) & (owners[1:] == owners[:-1])
    bad[owners[1:][falls]] = True
    return bad


def _lists(array: pa.ListArray) -> Lists:
    offsets = array.offsets.to_numpy().astype(np.int64)
    return Lists(offsets - offsets[0], array.flatten().to_numpy().astype(np.float64))


def _valid(array: pa.Array) -> Bools:
    valid: Bools = array.is_valid().to_numpy(zero_copy_only=False)
    return valid


def _filled(array: pa.Array) -> Floats:
    """Numbers as doubles, 0 where NULL."""
    values: Floats = array.fill_null(0).to_numpy().astype(np.float64)
    return values
