"""A code location for the launcher's tests: assets that do one thing each, and say so in files under ``TEST_MARKS``."""

import os
import random
import signal
import sys
import threading
import time
import uuid
from pathlib import Path

import confluent_kafka
import dagster as dg
import duckdb
import numpy as np
import psycopg
import pyarrow as pa
import pyarrow.parquet as pq

VERSION = "first"
MARKS = Path(os.environ["TEST_MARKS"])
PATIENCE_SECONDS = 60.0


class Interrupted(Exception):
    """The test's own patience is over: nobody has ended the asset."""


def mark(name: str, text: str = "") -> None:
    """Say something to the test, whole or not at all."""
    new = MARKS / f".{name}.{os.getpid()}"
    new.write_text(text)
    new.rename(MARKS / name)


def _until_marked(name: str) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not (MARKS / name).exists():
        if time.monotonic() > deadline:
            raise Interrupted(name)
        time.sleep(0.01)


@dg.asset
def simple(context: dg.AssetExecutionContext) -> None:
    """Nothing but a line on stdout and one on stderr."""
    print("said on stdout")
    print("said on stderr", file=sys.stderr)
    mark(f"simple-{context.run_id}", VERSION)


@dg.asset
def failing() -> None:
    """It cannot."""
    raise ValueError("as it should be")


@dg.asset
def waiting(context: dg.AssetExecutionContext) -> None:
    """Begun, then waits for the test."""
    mark(f"begun-{context.run_id}", str(os.getpid()))
    _until_marked(f"end-{context.run_id}")
    mark(f"ended-{context.run_id}", VERSION)


@dg.asset
def lingering(context: dg.AssetExecutionContext) -> None:
    """Leaves a thread behind that the process waits for at its end."""
    threading.Thread(target=_until_marked, args=(f"end-{context.run_id}",)).start()


@dg.asset
def leaving() -> None:
    """Leaves without a word."""
    os._exit(3)


@dg.asset
def leaving_in_silence() -> None:
    """As if all were well."""
    os._exit(0)


@dg.asset
def crashing() -> None:
    """Crashes in native code."""
    os.kill(os.getpid(), signal.SIGSEGV)


@dg.asset
def hungry() -> None:
    """Takes more memory until somebody stops it."""
    taken = []
    for _ in range(200):
        taken.append(bytearray(os.urandom(1024)) * (8 * 1024))
        time.sleep(0.02)


@dg.asset
def chance(context: dg.AssetExecutionContext) -> None:
    """What is left to chance in a process."""
    mark(f"chance-{context.run_id}", f"{random.random()} {np.random.random()} {uuid.uuid4()}")


@dg.asset
def busy(context: dg.AssetExecutionContext) -> None:
    """A little with each library that has threads or connections."""
    path = MARKS / f"busy-{context.run_id}.parquet"
    pq.write_table(pa.table({"n": list(range(10_000)), "m": [str(n) for n in range(10_000)]}), path)
    assert pq.read_table(path, use_threads=True).num_rows == 10_000
    with duckdb.connect() as db:
        (total,) = db.execute("SELECT sum(n) FROM read_parquet(?)", [str(path)]).fetchone() or (None,)
    with psycopg.connect(os.environ["TEST_DATABASE"]) as conn:
        (one,) = conn.execute("SELECT 1").fetchone() or (None,)
    producer = confluent_kafka.Producer({"bootstrap.servers": os.environ["TEST_KAFKA"], "linger.ms": 0})
    producer.produce("launched", str(context.run_id).encode())
    assert producer.flush(30) == 0
    path.unlink()
    mark(f"busy-{context.run_id}", f"{total} {one}")


defs = dg.Definitions(
    assets=[simple, failing, waiting, lingering, leaving, leaving_in_silence, crashing, hungry, chance, busy],
    executor=dg.in_process_executor,
)
