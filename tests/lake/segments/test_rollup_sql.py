"""Rollups are what DuckDB makes of the finest tier's files: of real exports, and of generated ones that are odder."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import duckdb
import pytest

from bench.grow import real_data
from lakerunner_dagster.lake.segments.merge import MergeInput
from lakerunner_dagster.lake.segments.split import split_by_hour
from lakerunner_dagster.lake.settings import Limits
from lakerunner_dagster.lake.signals import Signal
from lakerunner_dagster.lake.telemetry.decode import decode
from tests.lake.segments.merging import built, stored
from tests.lake.segments.rolling import TIERS, ingested, tier
from tests.lake.segments.streams import shop
from tests.lake.segments.tables import ORGANIZATION
from tests.lake.segments.test_real_files import payloads

ROLLED_UP = """
    WITH rows AS (
        SELECT *, coalesce(metric_temporality = 'cumulative' AND
                           (chq_metric_type = 'histogram' OR metric_is_monotonic), false) AS latest
        FROM read_parquet({paths!r}, union_by_name = true)
    ), totals AS (
        SELECT metric_name, chq_tid, chq_metric_type, metric_is_monotonic, chq_start_tsns, chq_timestamp,
               arg_max_null(chq_rollup_sum, chq_last_tsns) AS total, arg_max(chq_rollup_count, chq_last_tsns) AS seen,
               sum(chq_rollup_count) AS told, min(chq_tsns) AS first, max(chq_last_tsns) AS last_tsns,
               sum(chq_points) AS points
        FROM rows WHERE latest GROUP BY ALL
    ), steps AS (
        SELECT *, lag(total) OVER w AS total_before, lag(seen) OVER w AS seen_before,
               CASE WHEN lag(seen) OVER w IS NULL THEN chq_start_tsns IS NOT NULL AND chq_start_tsns < first
                    WHEN chq_metric_type = 'histogram' THEN seen < lag(seen) OVER w
                    ELSE total < lag(total) OVER w END AS whole
        FROM totals WINDOW w AS (
            PARTITION BY metric_name, chq_tid, chq_metric_type, metric_is_monotonic, chq_start_tsns
            ORDER BY chq_timestamp)
    ), increments AS (
        SELECT *, seen_before IS NULL AND NOT whole AS unknown,
               CASE WHEN whole THEN total WHEN seen_before IS NULL THEN 0 ELSE total - total_before END AS more,
               CASE WHEN chq_metric_type <> 'histogram' THEN told WHEN whole THEN seen
                    WHEN seen_before IS NULL THEN 0 ELSE seen - seen_before END AS count
        FROM steps
    ), added AS (
        SELECT metric_name, chq_tid, chq_metric_type, metric_is_monotonic, 'delta' AS temporality, chq_timestamp,
               count, more, points, first, last_tsns, chq_metric_type = 'histogram' AS inexact,
               CASE WHEN NOT unknown THEN more END AS low, CASE WHEN NOT unknown THEN more END AS high
        FROM increments
        UNION ALL
        SELECT metric_name, chq_tid, chq_metric_type, metric_is_monotonic, metric_temporality, chq_timestamp,
               chq_rollup_count, chq_rollup_sum, chq_points, chq_tsns, chq_last_tsns, false,
               chq_rollup_min, chq_rollup_max
        FROM rows WHERE NOT latest
    )
    SELECT metric_name, chq_tid, chq_metric_type, metric_is_monotonic, temporality,
           chq_timestamp // {frequency_ms} * {frequency_ms} AS bucket,
           sum(count), CASE WHEN count(*) = count(more) THEN sum(more) END, sum(points)::BIGINT, min(first),
           max(last_tsns), CASE WHEN NOT bool_or(inexact) THEN min(low) END,
           CASE WHEN NOT bool_or(inexact) THEN max(high) END
    FROM added GROUP BY 1, 2, 3, 4, 5, 6 ORDER BY 1, 2, 3, 4, 5, 6
"""
"""What rolling up means, in SQL; the extremes of histograms that are cumulative are left out."""

FOUND = """
    SELECT metric_name, chq_tid, chq_metric_type, metric_is_monotonic, metric_temporality, chq_timestamp,
           chq_rollup_count, chq_rollup_sum, chq_points, chq_tsns, chq_last_tsns, chq_rollup_min, chq_rollup_max
    FROM read_parquet({paths!r}, union_by_name = true) ORDER BY 1, 2, 3, 4, 5, 6
"""


def fetched(query: str, inputs: list[MergeInput], **other: Any) -> list[tuple[Any, ...]]:
    with duckdb.connect() as connection:
        return connection.execute(query.format(paths=[str(one.path) for one in inputs], **other)).fetchall()


def close(value: Any, wanted: Any) -> bool:
    """Equal, but for what DuckDB's sums of doubles round away."""
    if isinstance(wanted, float) and isinstance(value, float):
        return math.isclose(value, wanted, rel_tol=1e-6, abs_tol=1e-5)
    return bool(value == wanted)


def check_tiers(finest: list[MergeInput], directory: Path) -> int:
    """Hold every coarser tier against DuckDB's; how many rows there were."""
    finer, checked = finest, 0
    for frequency_ms in TIERS[1:]:
        finer = tier(finer, directory, frequency_ms)
        found = fetched(FOUND, finer)
        wanted = fetched(ROLLED_UP, finest, frequency_ms=frequency_ms)
        assert [row[:6] for row in found] == [row[:6] for row in wanted]
        for row, expected in zip(found, wanted, strict=True):
            exact = 11 if expected[2] == "histogram" and expected[11] is None else 13
            assert all(map(close, row[:exact], expected[:exact])), (row, expected)
        checked += len(found)
    return checked


@pytest.mark.parametrize("seed", [21, 22])
def test_odd_streams_roll_up_as_sql_has_it(seed: int, tmp_path: Path) -> None:
    assert check_tiers(ingested(shop(seed), tmp_path), tmp_path) > 0


@pytest.mark.skipif(not real_data().is_dir(), reason=f"no real telemetry in {real_data()}")
def test_real_telemetry_rolls_up_as_sql_has_it(tmp_path: Path) -> None:
    segments = []
    for number, payload in enumerate(payloads(Signal.METRICS)):
        decoded = decode(Signal.METRICS, [payload], ORGANIZATION, Limits())
        segments += [
            built(Signal.METRICS, rows, str(number), decoded.original_keys)
            for _, _, rows in split_by_hour(decoded.table)
        ]
    assert check_tiers(stored(segments, tmp_path), tmp_path) > 0
