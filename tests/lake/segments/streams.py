"""Generated streams of data points, as odd as senders are: restarts, resets, gaps, repetition, points out of order."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator

from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue
from opentelemetry.proto.metrics.v1.metrics_pb2 import (
    AGGREGATION_TEMPORALITY_CUMULATIVE,
    AGGREGATION_TEMPORALITY_DELTA,
    AggregationTemporality,
    Gauge,
    Histogram,
    HistogramDataPoint,
    Metric,
    NumberDataPoint,
    Sum,
)

from tests.lake.segments.rolling import request
from tests.lake.segments.tables import HOUR

DELTA, CUMULATIVE = AGGREGATION_TEMPORALITY_DELTA, AGGREGATION_TEMPORALITY_CUMULATIVE
SECOND_NS = 10**9
HOUR_NS = HOUR * 10**6
BOUNDS = (1.0, 2.5, 5.0, 10.0, 25.0, 50.0, 100.0)


def attributes(series: int) -> list[KeyValue]:
    """What tells series apart."""
    return [KeyValue(key="series", value=AnyValue(string_value=f"s{series}"))]


def summed(
    points: list[NumberDataPoint], name: str = "requests", temporality: AggregationTemporality.ValueType = CUMULATIVE
) -> Metric:
    """A monotonic sum."""
    return Metric(name=name, sum=Sum(data_points=points, aggregation_temporality=temporality, is_monotonic=True))


def distributed(
    points: list[HistogramDataPoint], name: str = "latency", temporality: AggregationTemporality.ValueType = CUMULATIVE
) -> Metric:
    """An explicit histogram."""
    return Metric(name=name, histogram=Histogram(data_points=points, aggregation_temporality=temporality))


def gauge_of(seconds: Iterable[int], values: Iterable[float], name: str = "size") -> Metric:
    """A gauge of these values at these seconds of the hour."""
    points = [
        NumberDataPoint(time_unix_nano=HOUR_NS + int(second) * SECOND_NS, as_double=value)
        for second, value in zip(seconds, values, strict=True)
    ]
    return Metric(name=name, gauge=Gauge(data_points=points))


def counter(series: int, seed: int, hours: int) -> Iterator[Metric]:
    """A cumulative sum whose process restarts (with another start, or none known), whose value falls, and whose points
    are lost, repeated, not numbers, or have no recorded value.
    """
    rng = random.Random(seed)
    time = HOUR_NS + rng.randrange(60) * SECOND_NS
    start, value = time - rng.choice([0, 7, 4000]) * SECOND_NS, float(rng.randrange(50))
    while time < HOUR_NS + hours * 3600 * SECOND_NS:
        point = NumberDataPoint(
            attributes=attributes(series), start_time_unix_nano=start, time_unix_nano=time, as_double=value
        )
        yield summed([point])
        fate = rng.random()
        if fate < 0.05:
            yield summed([point])
        elif fate < 0.08:
            yield summed([NumberDataPoint(attributes=attributes(series), time_unix_nano=time, as_double=float("nan"))])
        elif fate < 0.11:
            yield summed([NumberDataPoint(attributes=attributes(series), time_unix_nano=time, flags=1)])
        elif fate < 0.16:
            start, value = rng.choice([time + SECOND_NS, 0]), 0.0
        elif fate < 0.2:
            value = 0.0
        elif fate < 0.24:
            time += rng.randrange(2000) * SECOND_NS
        value += rng.choice([0.0, 0.1, 1.0, 3.0, 1e9, rng.random()])
        time += rng.choice([3, 10, 15, 47, 60]) * SECOND_NS + rng.randrange(1000)


def histogram(
    series: int, seed: int, hours: int, temporality: AggregationTemporality.ValueType = CUMULATIVE
) -> Iterator[Metric]:
    """An explicit histogram that restarts and loses points; it tells min and max at times, and mostly a sum."""
    rng = random.Random(seed)
    time = HOUR_NS + rng.randrange(60) * SECOND_NS
    start, values = time - 5 * SECOND_NS, list[float]()
    while time < HOUR_NS + hours * 3600 * SECOND_NS:
        values += [rng.lognormvariate(1, 1.5) for _ in range(rng.randrange(5))]
        yield distributed([_histogram_point(series, start, time, values, rng)], temporality=temporality)
        fate = rng.random()
        if temporality == DELTA or fate < 0.06:
            start, values = time, []
        elif fate < 0.1:
            values = []
        elif fate < 0.13:
            time += rng.randrange(2000) * SECOND_NS
        time += rng.choice([5, 10, 30, 60]) * SECOND_NS


def _histogram_point(series: int, start: int, time: int, values: list[float], rng: random.Random) -> HistogramDataPoint:
    edges = [*BOUNDS, float("inf")]
    counts = [0] * len(edges)
    for value in values:
        counts[next(place for place, edge in enumerate(edges) if value <= edge)] += 1
    point = HistogramDataPoint(
        attributes=attributes(series),
        start_time_unix_nano=start,
        time_unix_nano=time,
        count=len(values),
        bucket_counts=counts,
        explicit_bounds=BOUNDS,
    )
    if rng.random() < 0.95:
        point.sum = sum(values)
    if values and rng.random() < 0.6:
        point.min, point.max = min(values), max(values)
    return point


def gauge(series: int, seed: int, hours: int) -> Iterator[Metric]:
    """A gauge of positive and negative values."""
    rng = random.Random(seed)
    for second in range(0, hours * 3600, 40):
        time = HOUR_NS + (second + rng.randrange(40)) * SECOND_NS
        value = NumberDataPoint(attributes=attributes(series), time_unix_nano=time, as_double=rng.gauss(0, 5))
        yield Metric(name="temperature", gauge=Gauge(data_points=[value]))


def shop(seed: int, hours: int = 2, files: int = 7) -> list[bytes]:
    """Export requests of all of these, their points dealt out among files at random."""
    rng = random.Random(seed)
    metrics = [metric for series in range(3) for metric in counter(series, seed + series, hours)]
    metrics += [metric for series in range(2) for metric in histogram(series, seed + series, hours)]
    metrics += [*histogram(5, seed, hours, DELTA), *gauge(0, seed, hours)]
    rng.shuffle(metrics)
    return [request(metrics[part::files]) for part in range(files)]
