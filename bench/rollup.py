"""Rollups on one core: segments of the 10 s tier → the 60 s tier and its index rows, beside DuckDB's GROUP BY of them.

What belongs here: the measurement. Both ways read the same files and write Parquet with zstd 1, sorted, on one thread,
with six percentiles and what the next tier needs for its own: ours a sketch, DuckDB's a map of the same bins and their
counts. DuckDB's percentiles of single values are exact; histograms it takes from lists of bins and counts that stand in
files beside ours, since it cannot read sketches. CPU seconds of the process, user and system; each way in a process of
its own, with the memory settings that ``lakerunner dev`` gives its runs.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from bench.grow_metrics import HOUR_MS, metric_segment
from bench.ingest import SOURCE, Measured
from lakerunner_dagster.lake.runs.memory import peak_memory_bytes
from lakerunner_dagster.lake.segments.rollup import ROLLUP_MEMORY, MergeInput, roll_up
from lakerunner_dagster.lake.settings import CompactionPolicy, MiB
from lakerunner_dagster.lake.telemetry.sketch import GAMMA, LOWEST, QUANTILES
from lakerunner_dagster.lake.telemetry.sketch_encoding import decoded
from lakerunner_dagster.local.dev import MEMORY

FREQUENCY_MS = 60_000
BUCKETS = 360
"""Of 10 s, in an hour."""

ROLLUPS = 4
"""Rollups of a process: one that pays for imports, first uses and fresh memory, and the others. A run makes many."""

MEMORY_BYTES = 1024 * MiB
"""What a process may take at most."""

TEXTS = (
    *("chq_customer_id", "chq_telemetry_type", "chq_metric_name", "chq_point_type", "chq_unit", "chq_scope_name"),
    *("resource_service_name", "resource_k8s_pod_name", "resource_k8s_namespace_name", "resource_k8s_cluster_name"),
    *("attr_http_method", "attr_http_route", "attr_http_status_code", "chq_overflow"),
)
KEYS = f"metric_name, chq_tid, chq_timestamp // {FREQUENCY_MS} * {FREQUENCY_MS} AS bucket"
SAME = "chq_metric_type, metric_temporality, metric_is_monotonic"
AGGREGATES = ", ".join(
    [
        *(f"min({name}) AS {name}" for name in TEXTS),
        *(f"sum(chq_rollup_{name}) AS {name}" for name in ("count", "sum")),
        *(f"{name}(chq_rollup_{name}) AS {name}" for name in ("min", "max")),
        "sum(chq_rollup_sum) / sum(chq_rollup_count) AS avg",
        "min(chq_tsns) AS first, max(chq_last_tsns) AS last_at, arg_max(chq_last, chq_last_tsns) AS last",
        "sum(chq_points) AS points",
    ]
)
VALUES = f"""
    SELECT {KEYS}, {SAME}, {AGGREGATES}, quantile_cont(chq_rollup_sum, {list(QUANTILES)}) AS percentiles,
           histogram(floor(ln(chq_rollup_sum) / ln({GAMMA!r}))::INTEGER) AS sketch
    FROM read_parquet({{segments!r}}) GROUP BY ALL ORDER BY 1, 2, 3
"""
HISTOGRAMS = f"""
    WITH bins AS (
        SELECT {KEYS}, unnest(bins) AS bin, unnest(counts) AS count FROM read_parquet({{bins!r}})
    ), merged AS (
        SELECT metric_name, chq_tid, bucket, bin, sum(count) AS count FROM bins GROUP BY ALL
    ), ranked AS (
        SELECT *, sum(count) OVER (PARTITION BY metric_name, chq_tid, bucket ORDER BY bin) AS upto,
               sum(count) OVER (PARTITION BY metric_name, chq_tid, bucket) AS total FROM merged
    ), sketches AS (
        SELECT metric_name, chq_tid, bucket, list(bin ORDER BY bin) AS bins, list(count ORDER BY bin) AS counts,
               {", ".join(f"1.01 * {GAMMA!r} ** min(bin) FILTER (upto > floor({q} * (total - 1)))" for q in QUANTILES)}
        FROM ranked GROUP BY ALL
    )
    SELECT * FROM (SELECT {KEYS}, {SAME}, {AGGREGATES} FROM read_parquet({{segments!r}}) GROUP BY ALL)
    JOIN sketches USING (metric_name, chq_tid, bucket) ORDER BY 1, 2, 3
"""


@dataclass(frozen=True, slots=True)
class Case:
    """``series`` of a kind with a point every 10 s for an hour, in so many files; the goals: points a CPU second, and
    times DuckDB's way, if it is asked.
    """

    name: str
    kind: str
    series: int
    files: int
    goal: int
    query: str | None


CASES = (
    Case("single values", "gauge", 5_556, 4, 1_000_000, VALUES),
    Case("histograms of 10 bins", "histogram", 2_778, 4, 500_000, HISTOGRAMS),
    Case("an hour of 10 M points", "gauge", 27_778, 20, 1_000_000, None),
)
RATIO = 5


def ours(inputs: Sequence[MergeInput], _: Case, directory: Path, *, memory_bytes: int) -> None:
    """The product's rollup of the hour, with so much for the rows and pages held."""
    target_bytes = CompactionPolicy().target_bytes
    for _segment in roll_up(
        inputs,
        source=SOURCE,
        frequency_ms=FREQUENCY_MS,
        start_ms=HOUR_MS,
        end_ms=HOUR_MS + 3_600_000,
        preceding=None,
        preceding_ids=(),
        horizon_ms=0,
        reach_ms=None,
        target_bytes=target_bytes,
        operation="rollup",
        directory=directory,
        memory_bytes=memory_bytes,
    ):
        pass


def duckdb_group_by(inputs: Sequence[MergeInput], case: Case, directory: Path) -> None:
    """DuckDB's GROUP BY of the same rows."""
    paths = [str(one.path) for one in inputs]
    query = str(case.query).format(segments=paths, bins=[f"{path}.bins" for path in paths])
    with duckdb.connect() as connection:
        connection.execute("SET threads = 1")
        connection.execute("SET enable_progress_bar = false")
        connection.execute(f"SET temp_directory = '{directory / 'spill'}'")
        connection.execute(
            f"COPY ({query}) TO '{directory / 'rolled.parquet'}'"
            " (FORMAT parquet, COMPRESSION zstd, COMPRESSION_LEVEL 1)"
        )


def measured(
    way: Callable[[Sequence[MergeInput], Case, Path], None], inputs: Sequence[MergeInput], case: Case
) -> Measured:
    """Do it in this process, on one thread, several times."""
    pa.set_cpu_count(1)
    pa.set_io_thread_count(1)
    points = sum(one.segment.records for one in inputs)
    speeds = []
    for _ in range(ROLLUPS):
        with tempfile.TemporaryDirectory(prefix="bench-rollup-") as directory:
            begun = time.process_time()
            way(inputs, case, Path(directory))
            speeds.append(points / (time.process_time() - begun))
    return Measured(tuple(speeds), peak_memory_bytes())


def grown(case: Case, directory: Path) -> list[MergeInput]:
    """The files of a case, each with a part of the hour; of histograms, their bins in files beside them."""
    inputs = []
    for ordinal in range(case.files):
        built = metric_segment(case.kind, case.series, BUCKETS // case.files, ordinal)
        path = directory / f"{ordinal}.parquet"
        path.write_bytes(built.data)
        if case.query is HISTOGRAMS:
            _write_bins(path)
        inputs.append(MergeInput(built.output.segment, path))
    return inputs


def _write_bins(path: Path) -> None:
    """The sketches of a segment as lists that DuckDB can read."""
    rows = pq.read_table(path, columns=["metric_name", "chq_tid", "chq_timestamp", "chq_sketch"])
    sketches = decoded(rows.column("chq_sketch").combine_chunks())
    offsets = sketches.offsets.astype(np.int32)
    lists = {"bins": sketches.slots - 1 + LOWEST, "counts": sketches.counts}
    for name, values in lists.items():
        rows = rows.append_column(name, pa.ListArray.from_arrays(offsets, values.astype(np.int32)))
    pq.write_table(rows.drop_columns(["chq_sketch"]), f"{path}.bins", compression="zstd", compression_level=1)


def _alone(way: Callable[..., None], inputs: Sequence[MergeInput], case: Case) -> Measured:
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
        return process.submit(measured, way, inputs, case).result()


def report(scale: int, memory_bytes: int) -> None:
    """Measure every case and print the table. ``scale`` divides the series; ``memory_bytes``: see ``ours``."""
    for name, value in MEMORY.items():
        os.environ.setdefault(name, value)
    print(
        f"Rollups, one core: 10 s tier → 60 s tier; points a CPU second. {os.cpu_count()} cores, load "
        f"{os.getloadavg()[0]:.1f}; DuckDB {duckdb.__version__} with one thread\n\n"
        "| input | points | files | first of a process | later | goal | peak memory | DuckDB, later | its peak | ratio "
        "| goal |\n|---|---|---|---|---|---|---|---|---|---|---|"
    )
    for case in CASES:
        with tempfile.TemporaryDirectory(prefix="bench-segments-") as directory:
            small = Case(case.name, case.kind, case.series // scale, case.files, case.goal, case.query)
            inputs = grown(small, Path(directory))
            points = sum(one.segment.records for one in inputs)
            own = _alone(partial(ours, memory_bytes=memory_bytes), inputs, small)
            other = _alone(duckdb_group_by, inputs, small) if case.query else None
        beside = (
            f"{other.later:,.0f} | {other.peak_bytes // MiB:,} MiB | {own.later / other.later:.1f} | ≥ {RATIO}"
            if other
            else "| | |"
        )
        print(
            f"| {case.name} | {points:,} | {case.files} | {own.speeds[0]:,.0f} | {own.later:,.0f} | ≥ {case.goal:,} | "
            f"{own.peak_bytes // MiB:,} MiB (≤ {MEMORY_BYTES // MiB:,}) | {beside} |",
            flush=True,
        )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--scale", type=int, default=1, help="divide the series by so much")
    parser.add_argument("--memory", type=int, default=ROLLUP_MEMORY // MiB, help="MiB for the rows and pages held")
    options = parser.parse_args()
    report(options.scale, options.memory * MiB)
