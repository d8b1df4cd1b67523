"""Ingest on one core: gzip-compressed raw files → sorted segments and their index rows, beside the plain upb loop.

What belongs here: the measurement of issue "first whole path". Both ways read files of the same kind and write Parquet
with zstd 1; the plain one is what anybody would write first (bench/plain_loop, a dict a row), without an index row, so
the ratio flatters us in nothing but what the loop leaves out to its advantage. CPU seconds of the process, all threads,
user and system. Each is measured in a process of its own, with the memory settings that ``lakerunner dev`` gives its
runs where the environment has none: a run drains many boxes, so the table tells its first from the later ones.
"""

from __future__ import annotations

import gzip
import io
import os
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from multiprocessing import get_context
from statistics import median
from uuid import UUID

import pyarrow as pa
import pyarrow.parquet as pq

from bench.grow import grown_files
from bench.plain_loop import decode_rows
from lakerunner_dagster.lake.model import Source
from lakerunner_dagster.lake.runs.memory import peak_memory_bytes
from lakerunner_dagster.lake.segments.build import build
from lakerunner_dagster.lake.segments.ids import raw_identity
from lakerunner_dagster.lake.segments.split import split_by_hour
from lakerunner_dagster.lake.settings import BoxPolicy, Limits, MiB
from lakerunner_dagster.lake.signals import SIGNALS, Signal
from lakerunner_dagster.lake.telemetry.compression import decompress
from lakerunner_dagster.lake.telemetry.decode import decode
from lakerunner_dagster.lake.telemetry.raw import RawPayload
from lakerunner_dagster.local.dev import MEMORY

LIMITS = Limits()
SOURCE = Source(UUID(int=1), "bench", "edge", 1, "bench")
NOW_MS = int(datetime(2026, 11, 1, tzinfo=UTC).timestamp() * 1000)

BOXES = 6
"""Boxes that a process ingests: one that pays for imports, first-use tables and fresh memory, and the others."""
PLAIN_SHARE = 10
"""The plain loop gets a tenth of a box: it is linear, and slow."""
GOALS = {Signal.LOGS: "100,000, 2.5 to 1", Signal.METRICS: "250,000", Signal.TRACES: "80,000"}
"""Records a second, and times the plain loop, that must be reached by later boxes."""


@dataclass(frozen=True, slots=True)
class Measured:
    """Records a CPU second of each round (a box, a rollup) of a process, in order, and its peak memory, in bytes."""

    speeds: tuple[float, ...]
    peak_bytes: int

    @property
    def later(self) -> float:
        """Records a CPU second of the rounds but the first: their median."""
        return median(self.speeds[1:])


def payload_of(data: bytes, ordinal: int) -> RawPayload:
    """A decompressed raw file as a run hands it on."""
    key = f"otel-raw/{SOURCE.organization_id}/edge/{ordinal}.binpb.gz"
    return RawPayload(ordinal, key, raw_identity("bench", key, "etag"), NOW_MS, data)


def ingest(signal: Signal, files: list[bytes]) -> int:
    """The product's path for one box: decompress, decode, split, build. Returns the records written."""
    payloads = [payload_of(decompress(data, "bench", LIMITS), ordinal) for ordinal, data in enumerate(files)]
    decoded = decode(signal, payloads, SOURCE.organization_id, LIMITS)
    written = 0
    for _dateint, _hour, rows in split_by_hour(decoded.table):
        built = build(
            rows,
            source=SOURCE,
            signal=signal,
            payload_ids=[payload.raw_object_id for payload in payloads],
            inputs=[payload.identity for payload in payloads],
            operation="ingest",
            original_keys=decoded.original_keys,
            ingest_dateint=20261101,
        )
        written += built.output.segment.records
    return written


def plain(signal: Signal, files: list[bytes]) -> int:
    """The obvious path: upb, a dict a row, one table, sorted and written. Returns the records written."""
    rows = []
    for ordinal, data in enumerate(files):
        accepted, _rejected = decode_rows(
            signal, payload_of(gzip.decompress(data), ordinal), SOURCE.organization_id, LIMITS
        )
        rows.extend(accepted)
    names = list(dict.fromkeys(name for row in rows for name in row))
    table = pa.table({name: [row.get(name) for row in rows] for name in names})
    keys = [(key, "ascending") for key in SIGNALS[signal].sort_keys if key in names]
    pq.write_table(table.sort_by(keys), io.BytesIO(), compression="zstd", compression_level=1)
    return len(rows)


def boxes_of(files: Iterator[bytes], box_bytes: int) -> Iterator[list[bytes]]:
    """The files in the order they come, a box at most ``box_bytes`` decompressed (but for a single larger file)."""
    box: list[bytes] = []
    filled = 0
    for data in files:
        size = int.from_bytes(data[-4:], "little")  # gzip's own word for it
        if box and filled + size > box_bytes:
            yield box
            box, filled = [], 0
        box.append(data)
        filled += size


def measured(run: Callable[[Signal, list[bytes]], int], signal: Signal, boxes: list[list[bytes]]) -> Measured:
    """Run the boxes one after another in this process, on one core."""
    pa.set_cpu_count(1)
    pa.set_io_thread_count(1)
    speeds = []
    for box in boxes:
        begun = time.process_time()
        records = run(signal, box)
        speeds.append(records / (time.process_time() - begun))
    return Measured(tuple(speeds), peak_memory_bytes())


def _alone(run: Callable[[Signal, list[bytes]], int], signal: Signal, box_bytes: int, count: int) -> Measured:
    """Measured in a fresh process."""
    files = boxes_of(grown_files(signal), box_bytes)
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
        return process.submit(measured, run, signal, [next(files) for _ in range(count)]).result()


def report() -> None:
    """Measure all three signals and print the table."""
    for name, value in MEMORY.items():
        os.environ.setdefault(name, value)
    box_bytes = BoxPolicy().bytes
    print(
        "Ingest, one core: gz → sorted segment + index row; records a CPU second, on inputs grown from the real files\n"
        f"{BOXES} boxes of {box_bytes // MiB} MiB decompressed; of the later ones, the median. "
        f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}\n"
        f"{' '.join(f'{name}={os.environ[name]}' for name in MEMORY)}\n"
    )
    print("| signal | first box of a process | later boxes | goal | plain loop | ratio | peak memory |")
    print("|---|---|---|---|---|---|---|")
    for signal in Signal:
        ours = _alone(ingest, signal, box_bytes, BOXES)
        loop = _alone(plain, signal, box_bytes // PLAIN_SHARE, 3)
        print(
            f"| {signal} | {ours.speeds[0]:,.0f} | {ours.later:,.0f} | ≥ {GOALS[signal]} | {loop.later:,.0f} | "
            f"{ours.later / loop.later:.1f} | {ours.peak_bytes // MiB:,} MiB (≤ 1,024) |",
            flush=True,
        )


if __name__ == "__main__":
    report()
