"""A stream is the same whether its sender tells increments or totals: its rollups must not tell which it was."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from opentelemetry.proto.metrics.v1.metrics_pb2 import HistogramDataPoint, Metric, NumberDataPoint

from lakerunner_dagster.lake.telemetry.metric_rows import PERCENTILES
from lakerunner_dagster.lake.telemetry.sketch import ALPHA, QUANTILES
from tests.lake.segments.rolling import TIERS, ingested, request, rows_of, tier
from tests.lake.segments.streams import BOUNDS, CUMULATIVE, DELTA, HOUR_NS, SECOND_NS, distributed, gauge_of, summed
from tests.lake.telemetry.test_sketch import DISTRIBUTIONS, exact

Stream = list[tuple[int, list[int]]]
"""Of each point, the second, and the values that came since the one before."""

STREAMS = st.lists(st.tuples(st.integers(10, 900), st.lists(st.integers(0, 120), max_size=4)), min_size=1, max_size=14)
"""Seconds from point to point, and values."""

ALIKE = ("chq_timestamp", "chq_rollup_count", "chq_rollup_sum", "chq_rollup_sum_low", "chq_points")
ALIKE_OF_SUMS = (*ALIKE, "chq_rollup_min", "chq_rollup_max", "chq_last", "chq_rollup_avg", "chq_sketch", *PERCENTILES)


def timed(gaps: Stream) -> Stream:
    seconds = np.cumsum([gap for gap, _ in gaps]).tolist()
    return [(second, values) for second, (_, values) in zip(seconds, gaps, strict=True)]


def sums(stream: Stream, temporality: Any) -> list[Metric]:
    """The stream as a monotonic sum, a point a request's metric."""
    before, total, metrics = 0, 0, []
    for second, values in stream:
        total += sum(values)
        start, value = (before, sum(values)) if temporality == DELTA else (0, total)
        point = NumberDataPoint(
            start_time_unix_nano=HOUR_NS + start * SECOND_NS,
            time_unix_nano=HOUR_NS + second * SECOND_NS,
            as_int=value,
        )
        metrics.append(summed([point], temporality=temporality))
        before = second
    return metrics


def histograms(stream: Stream, temporality: Any) -> list[Metric]:
    """The stream as an explicit histogram."""
    before, seen, metrics = 0, list[int](), []
    for second, values in stream:
        seen += values
        start, told = (before, values) if temporality == DELTA else (0, seen)
        counts = np.bincount(np.searchsorted(BOUNDS, told), minlength=len(BOUNDS) + 1) if told else [0] * 8
        point = HistogramDataPoint(
            start_time_unix_nano=HOUR_NS + start * SECOND_NS,
            time_unix_nano=HOUR_NS + second * SECOND_NS,
            count=len(told),
            sum=float(sum(told)),
            bucket_counts=list(counts),
            explicit_bounds=BOUNDS,
        )
        metrics.append(distributed([point], temporality=temporality))
        before = second
    return metrics


def tiers_of(metrics: list[Metric], files: int, seed: int, directory: Path) -> list[list[dict[str, Any]]]:
    """The rows of each coarser tier, the metrics dealt out among files at random."""
    order = random.Random(seed).sample(metrics, len(metrics))
    parts = [part for number in range(files) if (part := order[number::files])]
    finer, tiers = ingested([request(part) for part in parts], directory), []
    for frequency_ms in TIERS[1:]:
        finer = tier(finer, directory, frequency_ms)
        tiers.append(sorted(rows_of(finer), key=lambda row: int(row["chq_timestamp"])))
    return tiers


@settings(deadline=None, max_examples=15)
@given(gaps=STREAMS, files=st.integers(1, 5), seed=st.integers(0, 999))
@pytest.mark.parametrize(("encode", "alike"), [(sums, ALIKE_OF_SUMS), (histograms, ALIKE)])
def test_increments_and_totals_of_one_stream_roll_up_to_equal_rows(  # noqa: PLR0917
    tmp_path_factory: pytest.TempPathFactory, encode: Any, alike: tuple[str, ...], gaps: Stream, files: int, seed: int
) -> None:
    stream = timed(gaps)
    told = [
        tiers_of(encode(stream, temporality), files, seed, tmp_path_factory.mktemp("tiers"))
        for temporality in (DELTA, CUMULATIVE)
    ]
    for delta, cumulative in zip(*told, strict=True):
        assert [[row[name] for name in alike] for row in cumulative] == [[row[name] for name in alike] for row in delta]
        assert sum(row["chq_rollup_sum"] for row in delta) == sum(sum(values) for _, values in stream)


@pytest.mark.parametrize("name", DISTRIBUTIONS)
def test_percentiles_of_every_tier_are_within_alpha_of_the_exact_ones_and_within_the_extremes(
    name: str, tmp_path: Path
) -> None:
    values = DISTRIBUTIONS[name](np.random.default_rng(7))[:3000]
    seconds = np.random.default_rng(8).integers(0, 3600, len(values))
    finer = ingested([request([gauge_of(seconds[part::3], values[part::3])]) for part in range(3)], tmp_path)
    for frequency_ms in TIERS[1:]:
        finer = tier(finer, tmp_path, frequency_ms)
        for row in rows_of(finer):
            begin = (row["chq_timestamp"] * 10**6 - HOUR_NS) // SECOND_NS
            own = values[(seconds >= begin) & (seconds < begin + frequency_ms // 1000)]
            assert (row["chq_rollup_min"], row["chq_rollup_max"]) == (own.min(), own.max())
            for fraction, column in zip(QUANTILES, PERCENTILES, strict=True):
                truth = exact(own, fraction)
                assert abs(row[column] - truth) <= ALPHA * abs(truth) * (1 + 1e-9)
                assert own.min() <= row[column] <= own.max()
