"""Ingest on one core: gzip-compressed raw files → sorted segments and their index rows, beside the plain upb loop.

What belongs here: the measurement of issue "first whole path". Both ways read the same files and write Parquet with
zstd 1; the plain one is what anybody would write first (bench/plain_loop, a dict a row), without an index row, so the
ratio flatters us in nothing but what the loop leaves out to its advantage. CPU seconds of the process, all threads.
"""

from __future__ import annotations

import gzip
import io
import resource
import subprocess
import sys
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from uuid import UUID

import pyarrow as pa
import pyarrow.parquet as pq

from bench.grow import grown_files
from bench.plain_loop import decode_rows
from lakerunner_dagster.lake.model import Source
from lakerunner_dagster.lake.segments.build import build
from lakerunner_dagster.lake.segments.ids import raw_identity
from lakerunner_dagster.lake.segments.split import split_by_hour
from lakerunner_dagster.lake.settings import BoxPolicy, Limits
from lakerunner_dagster.lake.signals import SIGNALS, Signal
from lakerunner_dagster.lake.telemetry.compression import decompress
from lakerunner_dagster.lake.telemetry.decode import decode
from lakerunner_dagster.lake.telemetry.raw import RawPayload

LIMITS = Limits()
SOURCE = Source(UUID(int=1), "bench", "edge", 1, "bench")
NOW_MS = int(datetime(2026, 11, 1, tzinfo=UTC).timestamp() * 1000)

RECORDS = {Signal.LOGS: 200_000, Signal.METRICS: 400_000, Signal.TRACES: 80_000}
"""Records to measure the product with; a box's worth at a time."""
PLAIN_SHARE = 10
"""The plain loop gets a tenth of them: it is linear, and slow."""
GOALS = {Signal.LOGS: (100_000, 2.5), Signal.METRICS: (250_000, 0.0), Signal.TRACES: (80_000, 0.0)}
"""Records a second, and times the plain loop, that must be reached; 0 where no ratio is asked."""


@dataclass(frozen=True, slots=True)
class Speed:
    """Records and the CPU seconds they took."""

    records: int
    seconds: float

    @property
    def per_second(self) -> float:
        """Records a CPU second."""
        return self.records / self.seconds


def _payload(data: bytes, ordinal: int) -> RawPayload:
    key = f"otel-raw/{SOURCE.organization_id}/edge/{ordinal}.binpb.gz"
    return RawPayload(ordinal, key, raw_identity("bench", key, "etag"), NOW_MS, data)


def ingest(signal: Signal, files: list[bytes]) -> int:
    """The product's path for one box: decompress, decode, split, build. Returns the records written."""
    payloads = [_payload(decompress(data, "bench", LIMITS), ordinal) for ordinal, data in enumerate(files)]
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
            signal, _payload(gzip.decompress(data), ordinal), SOURCE.organization_id, LIMITS
        )
        rows.extend(accepted)
    names = list(dict.fromkeys(name for row in rows for name in row))
    table = pa.table({name: [row.get(name) for row in rows] for name in names})
    keys = [(key, "ascending") for key in SIGNALS[signal].sort_keys if key in names]
    pq.write_table(table.sort_by(keys), io.BytesIO(), compression="zstd", compression_level=1)
    return len(rows)


def boxes_of(files: list[bytes], box_bytes: int) -> list[list[bytes]]:
    """The files in the order they come, a box at most ``box_bytes`` decompressed (but for a single larger file)."""
    boxes: list[list[bytes]] = [[]]
    filled = 0
    for data in files:
        size = int.from_bytes(data[-4:], "little")  # gzip's own word for it
        if boxes[-1] and filled + size > box_bytes:
            boxes.append([])
            filled = 0
        boxes[-1].append(data)
        filled += size
    return boxes


def _measured(signal: Signal, boxes: list[list[bytes]], path: str) -> Speed:
    run = {"ingest": ingest, "plain": plain}[path]
    run(signal, boxes[0])  # a run drains many boxes: imports, first-use tables and fresh memory are paid with its first
    begun = time.process_time()
    records = sum(run(signal, box) for box in boxes)
    return Speed(records, time.process_time() - begun)


def peak_memory_mib(signal: Signal) -> int:
    """Peak resident memory of a fresh process that ingests one full box, in MiB."""
    done = subprocess.run(
        [sys.executable, "-m", "bench.ingest", "one-box", signal], check=True, capture_output=True, text=True
    )
    return int(done.stdout)


def report() -> None:
    """Measure all three signals and print the table."""
    pa.set_cpu_count(1)
    pa.set_io_thread_count(1)
    policy = BoxPolicy()
    print("Ingest, one core: gz → sorted segment + index row; CPU seconds, inputs grown from the real files\n")
    print("| signal | records/s | goal | plain loop/s | ratio | goal | peak memory of a 64 MB box |")
    print("|---|---|---|---|---|---|---|")
    for signal in Signal:
        files = grown_files(signal, RECORDS[signal])
        few = grown_files(signal, RECORDS[signal] // PLAIN_SHARE)
        ours = _measured(signal, boxes_of(files, policy.bytes), "ingest")
        loop = _measured(signal, boxes_of(few, policy.bytes), "plain")
        speed_goal, ratio_goal = GOALS[signal]
        print(
            f"| {signal} | {ours.per_second:,.0f} | ≥ {speed_goal:,} | {loop.per_second:,.0f} | "
            f"{ours.per_second / loop.per_second:.1f} | {f'≥ {ratio_goal}' if ratio_goal else 'none'} | "
            f"{peak_memory_mib(signal):,} MiB (≤ 1,024) |",
            flush=True,
        )


def _one_box(signal: Signal) -> None:
    pa.set_cpu_count(1)
    files: list[bytes] = []
    records = 4_000
    while len(boxes_of(files, BoxPolicy().bytes)) < 2:
        records *= 2
        files = grown_files(signal, records)
    # Growing the inputs took memory of its own: a box is measured in a process that only reads them.
    reader = subprocess.Popen([sys.executable, "-m", "bench.ingest", "measure", signal], stdin=subprocess.PIPE)
    box = boxes_of(files, BoxPolicy().bytes)[0]
    reader.communicate(b"".join(len(data).to_bytes(8, "little") + data for data in box))
    sys.exit(reader.returncode)


def _measure(signal: Signal) -> None:
    files = []
    while size := sys.stdin.buffer.read(8):
        files.append(sys.stdin.buffer.read(int.from_bytes(size, "little")))
    ingest(signal, files)
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["one-box", name]:
            _one_box(Signal(name))
        case ["measure", name]:
            _measure(Signal(name))
        case _:
            report()
