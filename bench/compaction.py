"""Compaction on one core: sorted segments of logs → larger ones and their index rows, beside DuckDB's sort of them.

What belongs here: the measurement. Both ways read the same files and write Parquet with zstd 3, in the order of a
segment and on one thread; DuckDB is given as much memory as our process may take, a directory to spill to, and no index
row to make. CPU seconds of the process, user and system; each way in a process of its own, with the memory settings
that ``lakerunner dev`` gives its runs.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from itertools import islice
from multiprocessing import get_context
from pathlib import Path

import duckdb
import pyarrow as pa

from bench.grow_segments import grown_segments
from bench.ingest import SOURCE
from lakerunner_dagster.lake.runs.memory import peak_memory_bytes
from lakerunner_dagster.lake.segments.merge import MergeInput, merge
from lakerunner_dagster.lake.settings import CompactionPolicy, MiB
from lakerunner_dagster.local.dev import MEMORY

MEMORY_BYTES = 1536 * MiB
"""What a process may take at most, and DuckDB's limit."""

ORDER = "resource_service_name, chq_fingerprint, chq_timestamp, chq_tsns, chq_id"


@dataclass(frozen=True, slots=True)
class Case:
    """So many files of so many rows, and the goals: rows a CPU second, and times DuckDB's way (0: none is asked)."""

    files: int
    rows: int
    goal: int
    ratio: float


CASES = (Case(20, 500_000, 200_000, 1.8), Case(100, 10_000, 100_000, 0.0))


@dataclass(frozen=True, slots=True)
class Measured:
    """What one way took: CPU seconds and peak memory in bytes of its process, and how many files it wrote."""

    seconds: float
    peak_bytes: int
    outputs: int


def ours(inputs: Sequence[MergeInput], directory: Path) -> int:
    """The product's merge; the number of segments."""
    target_bytes = CompactionPolicy().target_bytes
    return sum(
        1 for _ in merge(inputs, source=SOURCE, target_bytes=target_bytes, operation="compact", directory=directory)
    )


def duckdb_sort(inputs: Sequence[MergeInput], directory: Path) -> int:
    """DuckDB's ORDER BY over all rows; one file."""
    paths = [str(one.path) for one in inputs]
    with duckdb.connect() as connection:
        connection.execute(f"SET memory_limit = '{MEMORY_BYTES // MiB}MiB'")
        connection.execute("SET threads = 1")
        connection.execute("SET enable_progress_bar = false")
        connection.execute(f"SET temp_directory = '{directory / 'spill'}'")
        connection.execute(
            f"COPY (SELECT * FROM read_parquet({paths!r}, union_by_name = true) ORDER BY {ORDER})"
            f" TO '{directory / 'sorted.parquet'}' (FORMAT parquet, COMPRESSION zstd, COMPRESSION_LEVEL 3)"
        )
    return 1


def measured(way: Callable[[Sequence[MergeInput], Path], int], inputs: Sequence[MergeInput]) -> Measured:
    """Do it in this process, on one thread."""
    pa.set_cpu_count(1)
    pa.set_io_thread_count(1)
    with tempfile.TemporaryDirectory(prefix="bench-merge-") as directory:
        begun = time.process_time()
        outputs = way(inputs, Path(directory))
        return Measured(time.process_time() - begun, peak_memory_bytes(), outputs)


def grown(case: Case, directory: Path) -> list[MergeInput]:
    """The files of a case."""
    inputs = []
    for built in islice(grown_segments(case.rows), case.files):
        segment = built.output.segment
        path = directory / f"{segment.segment_id}.parquet"
        path.write_bytes(built.data)
        inputs.append(MergeInput(segment, path))
    return inputs


def _alone(way: Callable[..., int], inputs: Sequence[MergeInput]) -> Measured:
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
        return process.submit(measured, way, inputs).result()


def report(scale: int) -> None:
    """Measure every case and print the table; ``scale`` divides the rows."""
    for name, value in MEMORY.items():
        os.environ.setdefault(name, value)
    print(
        f"Compaction, one core: sorted log segments → larger ones; rows a CPU second. {os.cpu_count()} cores, load "
        f"{os.getloadavg()[0]:.1f}; DuckDB {duckdb.__version__} with {MEMORY_BYTES // MiB} MiB and one thread\n\n"
        "| files of rows | MiB | rows/s | goal | peak memory | DuckDB rows/s | its peak | ratio | goal |\n"
        "|---|---|---|---|---|---|---|---|---|"
    )
    for case in CASES:
        with tempfile.TemporaryDirectory(prefix="bench-segments-") as directory:
            inputs = grown(Case(case.files, case.rows // scale, case.goal, case.ratio), Path(directory))
            rows = sum(one.segment.record_count for one in inputs)
            size = sum(one.segment.file_size for one in inputs)
            own, other = _alone(ours, inputs), _alone(duckdb_sort, inputs)
        print(
            f"| {case.files} of {case.rows // scale:,} | {size // MiB:,} | {rows / own.seconds:,.0f} | "
            f"≥ {case.goal:,} | {own.peak_bytes // MiB:,} MiB (≤ {MEMORY_BYTES // MiB:,}) | "
            f"{rows / other.seconds:,.0f} | {other.peak_bytes // MiB:,} MiB | {other.seconds / own.seconds:.2f} | "
            f"{f'≥ {case.ratio}' if case.ratio else ''} |",
            flush=True,
        )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--scale", type=int, default=1, help="divide the rows by so much")
    report(parser.parse_args().scale)
