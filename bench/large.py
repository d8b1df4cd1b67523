"""A large export request on one core: CPU and peak memory, decoded in pieces as runs do it, and whole.

What belongs here: growing an object of one resource and scope, the shape that must be cut deepest, and measuring both
ways, each in a process of its own. What does not: small objects (``ingest``).

Run it with ``python -m bench.large [MiB]``, decompressed; what it grows goes through ``TMPDIR``. Records repeat every
64 MiB, so that the whole has few different texts: what it is shown to need is less than it would.
"""

from __future__ import annotations

import gzip
import os
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

import pyarrow as pa
import zstandard
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.logs.v1.logs_pb2 import ResourceLogs, ScopeLogs
from rich.console import Console
from rich.table import Table

from bench.grow import grown_files
from bench.ingest import LIMITS, NOW_MS, SOURCE
from lakerunner_dagster.lake.model import RawObject
from lakerunner_dagster.lake.runs import contents
from lakerunner_dagster.lake.runs.contents import LargeObject, content_of
from lakerunner_dagster.lake.runs.memory import peak_memory_bytes
from lakerunner_dagster.lake.runs.scratch import scratch_files
from lakerunner_dagster.lake.runs.transform import Recipe, build_segment, decoded_chunk, decoded_pieces
from lakerunner_dagster.lake.settings import MiB
from lakerunner_dagster.lake.signals import Signal
from lakerunner_dagster.local.dev import MEMORY

LARGE_MIB = 500
WHOLE_BYTES = 2**40


@dataclass(frozen=True, slots=True)
class Measured:
    """Records, CPU seconds of the process, and its peak memory in bytes."""

    records: int
    seconds: float
    peak_bytes: int


def grown_request(path: Path, size: int) -> int:
    """Write a request of about so many bytes, zstd-compressed; how many it has."""
    scope = _scope(contents.CHUNK_BYTES)
    records = scope.SerializeToString()
    times = max(1, size // len(records))
    inherited = ResourceLogs(resource=_first().resource).SerializeToString()
    inner = _header(2, times * len(records))
    head = _header(1, len(inherited) + len(inner) + times * len(records)) + inherited + inner
    with path.open("wb") as file, zstandard.ZstdCompressor(level=1).stream_writer(file) as stored:
        stored.write(head)
        for _ in range(times):
            stored.write(records)
    return len(head) + times * len(records)


def _first() -> ResourceLogs:
    return ExportLogsServiceRequest.FromString(gzip.decompress(next(grown_files(Signal.LOGS)))).resource_logs[0]


def _scope(size: int) -> ScopeLogs:
    """Records of about so many bytes, whatever resource and scope they had."""
    scope, filled = ScopeLogs(), 0
    for data in grown_files(Signal.LOGS):
        if filled >= size:
            break
        request = gzip.decompress(data)
        filled += len(request)
        for resource_logs in ExportLogsServiceRequest.FromString(request).resource_logs:
            for scope_logs in resource_logs.scope_logs:
                scope.log_records.extend(scope_logs.log_records)
    return scope


def _header(number: int, size: int) -> bytes:
    encoded = bytearray([number << 3 | 2])
    while size >= 0x80:
        encoded.append(size & 0x7F | 0x80)
        size >>= 7
    encoded.append(size)
    return bytes(encoded)


def in_pieces(path: Path) -> int:
    """The product's path for one object of a file; the records of its segments."""
    raw = RawObject(1, SOURCE.organization_id, 1, "edge", Signal.LOGS, "bench", "large", "etag", 0, NOW_MS)
    recipe = Recipe(SOURCE, Signal.LOGS, "ingest", ingest_dateint=20261101)
    written = 0
    with scratch_files() as new_file:
        content = content_of(raw, path, LIMITS, new_file)
        if isinstance(content, LargeObject):
            chunks = decoded_pieces(content, SOURCE.organization_id, LIMITS)
        else:
            chunks = iter([decoded_chunk(Signal.LOGS, [content], SOURCE.organization_id, LIMITS)])
        for chunk in chunks:
            for rows in chunk.hours:
                written += build_segment(rows, chunk, recipe, 0).output.segment.records
    return written


def whole(path: Path) -> int:
    """The same with nothing that is too large."""
    contents.CHUNK_BYTES = WHOLE_BYTES
    return in_pieces(path)


def _measured(way: Callable[[Path], int], path: Path) -> Measured:
    pa.set_cpu_count(1)
    pa.set_io_thread_count(1)
    begun = time.process_time()
    records = way(path)
    return Measured(records, time.process_time() - begun, peak_memory_bytes())


def main() -> None:
    """Measure, and print a table."""
    for name, value in MEMORY.items():
        os.environ.setdefault(name, value)
    size = int(sys.argv[1]) * MiB if len(sys.argv) > 1 else LARGE_MIB * MiB
    table = Table("way", "MiB decompressed", "records", "records a CPU second", "peak memory MiB", "goal")
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "large"
        grown = grown_request(path, size)
        for way, goal in ((in_pieces, "≤ 1,024"), (whole, "")):
            with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
                found = process.submit(_measured, way, path).result()
            table.add_row(
                way.__name__.replace("_", " "),
                f"{grown / MiB:,.0f}",
                f"{found.records:,}",
                f"{found.records / found.seconds:,.0f}",
                f"{found.peak_bytes / MiB:,.0f}",
                goal,
            )
    Console().print(table)


if __name__ == "__main__":
    main()
