"""Segments of the 10 s tier of metrics, millions of rows in seconds: what rollups read.

What belongs here: making segments to measure with: series with the columns of a real one, each with a row in every
bucket of its segment, of single values or of explicit histograms.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from types import MappingProxyType
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from bench.ingest import SOURCE
from lakerunner_dagster.lake.segments.build import Built, build
from lakerunner_dagster.lake.segments.columns import FILE, POINTS
from lakerunner_dagster.lake.signals import INGEST_FREQUENCY_MS, Signal
from lakerunner_dagster.lake.telemetry.distributions import Lists, Stated, explicit
from lakerunner_dagster.lake.telemetry.records import NS_PER_MS
from lakerunner_dagster.lake.telemetry.sketch import singles
from lakerunner_dagster.lake.telemetry.sketch_encoding import encoded

if TYPE_CHECKING:
    from collections.abc import Mapping

HOUR_MS = int(datetime(2026, 11, 1, 12, tzinfo=UTC).timestamp() * 1000)
"""The hour that all rows are of."""

BOUNDS = np.array([5.0, 10.0, 25.0, 50.0, 75.0, 100.0, 250.0, 500.0, 1000.0])
"""Of the histograms: ten buckets."""

VALUES_PER_HISTOGRAM = 12
"""So few that the sketch of a point has about ten bins."""

_SERIES_PER_NAME = 100
_SERIES_PER_POD = 20


def metric_segment(kind: str, series: int, buckets: int, ordinal: int, seed: int = 3) -> Built:
    """A segment of so many series of a kind (of ``KINDS``), with so many buckets of 10 s each, the ``ordinal``-th run
    of them in the hour.
    """
    rng = np.random.default_rng(seed + ordinal)
    of = np.repeat(np.arange(series), buckets)
    bucket = ordinal * buckets + np.tile(np.arange(buckets), series)
    times = HOUR_MS + bucket * INGEST_FREQUENCY_MS
    tsns = times * NS_PER_MS + rng.integers(0, INGEST_FREQUENCY_MS * NS_PER_MS, len(of))
    table = pa.table(
        {
            **_texts(of, kind),
            "chq_tid": _tids(series)[of],
            "chq_timestamp": times,
            "chq_tsns": tsns,
            "chq_last_tsns": tsns,
            **KINDS[kind](len(of), rng),
            POINTS: np.ones(len(of), np.int64),
            FILE: np.zeros(len(of), np.int32),
        }
    )
    return build(
        table,
        source=SOURCE,
        signal=Signal.METRICS,
        payload_ids=[ordinal],
        inputs=[str(ordinal)],
        operation="ingest",
        original_keys={},
        ingest_dateint=20261101,
    )


def _tids(series: int) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    return np.random.default_rng(1).integers(-(2**63), 2**63 - 1, series)


def _texts(of: np.ndarray[tuple[int], np.dtype[np.int64]], kind: str) -> dict[str, pa.Array]:
    """The columns that say what a series is."""

    def coded(codes: np.ndarray[tuple[int], np.dtype[np.int64]], text: str) -> pa.DictionaryArray:
        texts = [text.format(number) for number in range(int(codes.max()) + 1)]
        return pa.DictionaryArray.from_arrays(pa.array(codes.astype(np.int32)), pa.array(texts))

    nothing = np.zeros(len(of), np.int64)
    return {
        "chq_customer_id": coded(nothing, str(SOURCE.organization_id)),
        "chq_telemetry_type": coded(nothing, "metrics"),
        "metric_name": coded(of // _SERIES_PER_NAME, kind + "_{}"),
        "chq_metric_name": coded(of // _SERIES_PER_NAME, kind + ".{}"),
        "chq_metric_type": coded(nothing, kind),
        "chq_point_type": coded(nothing, kind),
        "chq_unit": coded(of // _SERIES_PER_NAME % 3, "unit {}"),
        "chq_scope_name": coded(of % 7, "scope {}"),
        "metric_temporality": coded(nothing, "delta") if kind == "histogram" else pa.nulls(len(of), pa.string()),
        "resource_service_name": coded(of % 12, "service-{}"),
        "resource_k8s_pod_name": coded(of // _SERIES_PER_POD, "pod-{}"),
        "resource_k8s_namespace_name": coded(of % 4, "namespace-{}"),
        "resource_k8s_cluster_name": coded(nothing, "cluster"),
        "attr_http_method": coded(of % 3, "METHOD{}"),
        "attr_http_route": coded(of % 31, "/route/{}"),
        "attr_http_status_code": coded(of % 5, "20{}"),
        "chq_overflow": coded(of // _SERIES_PER_POD, '{{"resource":{{"host.id":"{}"}}}}'),
    }


def _single_values(rows: int, rng: np.random.Generator) -> dict[str, pa.Array]:
    values = np.round(rng.lognormal(3, 1, rows), 3)
    numbers, sketches = singles(values)
    return {
        "chq_rollup_count": pa.array(np.ones(rows)),
        **{f"chq_rollup_{name}": pa.array(values) for name in ("sum", "min", "max")},
        "chq_rollup_sum_low": pa.array(np.zeros(rows)),
        "chq_last": pa.array(values),
        "chq_sketch": pa.DictionaryArray.from_arrays(pa.array(numbers.astype(np.int32)), encoded(sketches)),
        "metric_is_monotonic": pa.nulls(rows, pa.bool_()),
        "chq_start_tsns": pa.nulls(rows, pa.int64()),
    }


def _histograms(rows: int, rng: np.random.Generator) -> dict[str, pa.Array]:
    values = rng.lognormal(4, 1.2, (rows, VALUES_PER_HISTOGRAM))
    owners = np.repeat(np.arange(rows), VALUES_PER_HISTOGRAM)
    width = len(BOUNDS) + 1
    places = np.searchsorted(BOUNDS, values.ravel())
    counts = np.bincount(owners * width + places, minlength=rows * width).astype(np.float64)
    stated = Stated(
        np.full(rows, float(VALUES_PER_HISTOGRAM)), values.sum(axis=1), values.min(axis=1), values.max(axis=1)
    )
    lists = Lists(np.arange(rows + 1) * width, counts)
    bounds = Lists(np.arange(rows + 1) * len(BOUNDS), np.tile(BOUNDS, rows))
    found = explicit(lists, bounds, stated)
    return {
        "chq_rollup_count": pa.array(stated.counts),
        "chq_rollup_sum": pa.array(stated.sums),
        "chq_rollup_sum_low": pa.array(np.zeros(rows)),
        "chq_rollup_min": pa.array(found.lows),
        "chq_rollup_max": pa.array(found.highs),
        "chq_last": pa.nulls(rows, pa.float64()),
        "chq_sketch": encoded(found.sketches),
        "metric_is_monotonic": pa.nulls(rows, pa.bool_()),
        "chq_start_tsns": pa.nulls(rows, pa.int64()),
    }


KINDS: Mapping[str, Callable[[int, np.random.Generator], dict[str, pa.Array]]] = MappingProxyType(
    {"gauge": _single_values, "histogram": _histograms}
)
"""What rows hold: one value each, or a histogram."""
