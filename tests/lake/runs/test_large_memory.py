"""What would break if a run's memory grew with the size of an object: the machine, at the first large one."""

from __future__ import annotations

import gzip
import random
import tempfile
from multiprocessing import get_context
from pathlib import Path

from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue
from opentelemetry.proto.logs.v1.logs_pb2 import LogRecord

from lakerunner_dagster.lake.lrdb import profiles
from lakerunner_dagster.lake.runs import contents
from lakerunner_dagster.lake.runs.drain import drain
from lakerunner_dagster.lake.runs.rebuild import rebuild
from lakerunner_dagster.lake.settings import MiB
from lakerunner_dagster.lake.signals import Signal
from lakerunner_dagster.lake.stages import ingest_stage
from tests.lake.requests import NS, resource
from tests.lake.telemetry.otlp import delimited, header
from tests.lake.world import COLLECTOR, DAY, NOON_MS, ORGANIZATION, Place, World

RAW_BYTES = 320 * MiB
BLOCK_RECORDS = 2000
PIECE_BYTES = 4 * MiB
PATIENCE_SECONDS = 300


def records(count: int) -> bytes:
    """So many different log records, as fields of their scope."""
    rng = random.Random(1)
    words = [rng.randbytes(rng.randrange(2, 6)).hex() for _ in range(2000)]

    def text() -> str:
        return " ".join(rng.choices(words, k=60))

    return b"".join(
        delimited(
            2,
            LogRecord(
                time_unix_nano=(NOON_MS - 1 - number) * NS,
                body=AnyValue(string_value=rng.choice(words)),
                attributes=[KeyValue(key=f"key.{n}", value=AnyValue(string_value=text())) for n in range(6)],
            ).SerializeToString(),
        )
        for number in range(count)
    )


def put_large(world: World) -> int:
    """Tell of an object of about ``RAW_BYTES`` in one resource and scope; how many records it has."""
    block = records(BLOCK_RECORDS)
    times = RAW_BYTES // len(block)
    inherited = delimited(1, resource("shop").SerializeToString())
    scope = header(2, times * len(block))
    outer = header(1, len(inherited) + len(scope) + times * len(block))
    head = gzip.compress(outer + inherited + scope, mtime=0)
    # A member is decompressed as if it came for the first time, and compressed only once.
    world.send(Signal.LOGS, "large", head + gzip.compress(block, 1, mtime=0) * times)
    return times * BLOCK_RECORDS


def _ingest_and_rebuild(place: Place) -> None:
    tempfile.tempdir = str(place.bucket.parent)
    contents.CHUNK_BYTES = PIECE_BYTES
    lake = place.open(lease_seconds=PATIENCE_SECONDS)
    with lake.lrdb.connection() as conn:
        source = profiles.source_of(conn, ORGANIZATION, COLLECTOR)
    assert source is not None
    drain(lake, ingest_stage(Signal.LOGS), source, DAY, run_id="run", on_step=lambda _step: None)
    rebuild(lake, Signal.LOGS, source, DAY, run_id="run", on_step=lambda _step: None)
    lake.close()


def test_ingest_and_rebuild_never_hold_as_much_as_the_object_has(world: World, tmp_path: Path) -> None:
    count = put_large(world)
    world.box(Signal.LOGS)
    child = get_context("spawn").Process(target=_ingest_and_rebuild, args=(world.place,))
    child.start()
    child.join(PATIENCE_SECONDS)
    assert child.exitcode == 0
    assert world.select(Signal.LOGS, "count(*), count(DISTINCT chq_id)") == [(count, count)]
    told = world.query("SELECT operation, records_read, peak_memory_bytes FROM ledger ORDER BY operation")
    assert [(operation, read) for operation, read, _ in told] == [("ingest", count), ("rebuild", count)]
    assert all(peak < RAW_BYTES for *_, peak in told), told
    assert list(tmp_path.glob("lakerunner-run-*")) == []
    assert world.breaches() == []
