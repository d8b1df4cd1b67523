"""A whole lake for a test, small and driven by hand: real lrdb, Kafka and bucket, no sensor and no Dagster."""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import md5
from pathlib import Path
from typing import Any
from uuid import UUID

import duckdb
import pytest
from pydantic import SecretStr

from lakerunner_dagster.lake.bus import Bus
from lakerunner_dagster.lake.errors import StoreDenied
from lakerunner_dagster.lake.lrdb import check, profiles
from lakerunner_dagster.lake.lrdb.check import Breach
from lakerunner_dagster.lake.lrdb.connection import Lrdb
from lakerunner_dagster.lake.model import HOUR_MS, RawState, Source, day_start_ms
from lakerunner_dagster.lake.notifications.events import ObjectEvent
from lakerunner_dagster.lake.notifications.intake import AcceptReport, Intake
from lakerunner_dagster.lake.runs.context import Lake, Stores
from lakerunner_dagster.lake.runs.drain import drain
from lakerunner_dagster.lake.runs.report import Step
from lakerunner_dagster.lake.settings import BoxPolicy, CompactionPolicy, Limits, RollupPolicy, Settings
from lakerunner_dagster.lake.signals import SIGNALS, Signal
from lakerunner_dagster.lake.stages import Stage, compaction_stage, ingest_stage, rollup_stage
from lakerunner_dagster.lake.store import BucketConfiguration, Store, StoredObject
from lakerunner_dagster.lake.ticks.boxer import BoxerReport, BoxerTick
from lakerunner_dagster.lake.ticks.dispatcher import Dispatch, DispatcherTick

BUCKET = "lake"
ORGANIZATION = UUID("6b0dbc7c-2a6b-4a0e-9f5f-0d9b6c0f7a11")
COLLECTOR = "edge"
DAY = 20260203
NOON_MS = day_start_ms(DAY) + 12 * HOUR_MS
"""When every raw object was stored, unless a test says otherwise: days and hours do not depend on when a test runs."""

PATIENCE_SECONDS = 30.0

AT_ONCE = CompactionPolicy(settle_seconds=0.0, gather_seconds=0.0)
"""Compaction waits for nothing: every hour of these days is cold."""


ROLLED_UP_AT_ONCE = RollupPolicy(
    gather_1m_seconds=0.0, gather_5m_seconds=0.0, gather_20m_seconds=0.0, gather_1h_seconds=0.0
)
"""Dirty slots are computed by the next run."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where a world stands: what another process needs to enter it."""

    url: str
    bootstrap: str
    bucket: Path
    prefix: str

    def open(self, **settings: Any) -> Lake:
        """The lake of this place; boxes close at once, and given-back boxes may be claimed at once."""
        lrdb = Lrdb(self.url, min_size=0, max_size=6)
        return Lake(
            settings=Settings(
                database_url=SecretStr(self.url),
                kafka_bootstrap_servers=self.bootstrap,
                kafka_topic_prefix=self.prefix,
                **{"retry_backoff_seconds": 0.0, **settings},
            ),
            limits=Limits(),
            policy=BoxPolicy(age_seconds=0.0),
            lrdb=lrdb,
            bus=Bus(self.bootstrap, prefix=self.prefix, partitions=4, replication=1),
            stores=Stores(lrdb),
            compaction=AT_ONCE,
            rollup=ROLLED_UP_AT_ONCE,
        )


def soon() -> float:
    """A tick's deadline: it ends when Kafka has no more."""
    return time.monotonic() + PATIENCE_SECONDS


def now_ms() -> int:
    """The time, in epoch ms."""
    return time.time_ns() // 1_000_000


class World:
    """A lake of one organization with one collector, and what its outside does to it."""

    def __init__(self, place: Place, lake: Lake) -> None:
        self.place = place
        self.lake = lake
        self.intake = Intake(lake.lrdb, lake.bus, lake.settings)
        self._boxers: dict[str, BoxerTick] = {}
        self._dispatchers: dict[str, DispatcherTick] = {}

    @classmethod
    def create(cls, place: Place, **settings: Any) -> World:
        """A world in an empty lrdb."""
        lake = place.open(**settings)
        place.bucket.mkdir(exist_ok=True)
        with lake.lrdb.transaction() as conn:
            profiles.add_organization(conn, "acme", ORGANIZATION)
            profiles.put_bucket(conn, BucketConfiguration(BUCKET, "file", endpoint=str(place.bucket)))
            profiles.register_source(conn, ORGANIZATION, COLLECTOR, BUCKET, limit=10)
        return cls(place, lake)

    @property
    def source(self) -> Source:
        with self.lake.lrdb.connection() as conn:
            source = profiles.source_of(conn, ORGANIZATION, COLLECTOR)
        assert source is not None
        return source

    def put(
        self,
        signal: Signal,
        name: str,
        data: bytes,
        *,
        organization: UUID = ORGANIZATION,
        collector: str = COLLECTOR,
    ) -> str:
        """Write a raw object, and tell nobody; its key."""
        key = f"otel-raw/{organization}/{collector}/{signal}/{name}"
        path = self.place.bucket / key
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        os.utime(path, (NOON_MS / 1000, NOON_MS / 1000))
        return key

    def event(self, key: str, *, etag: str | None = None, event_time_ms: int = NOON_MS) -> ObjectEvent:
        """The event of an object as it stands there; of none, one that says nothing of it."""
        path = self.place.bucket / key
        data = path.read_bytes() if path.exists() else b""
        return ObjectEvent(
            bucket=BUCKET,
            key=key,
            size=len(data),
            etag=md5(data, usedforsecurity=False).hexdigest() if etag is None else etag,
            event_time_ms=event_time_ms,
        )

    def notify(self, *keys: str, event_time_ms: int = NOON_MS) -> AcceptReport:
        """Tell of objects through the real intake, as an adapter does."""
        return self.intake.accept([self.event(key, event_time_ms=event_time_ms) for key in keys], "test")

    def send(self, signal: Signal, name: str, data: bytes, event_time_ms: int = NOON_MS) -> str:
        """Write a raw object and tell of it; its key."""
        key = self.put(signal, name, data)
        self.notify(key, event_time_ms=event_time_ms)
        return key

    def box(self, signal: Signal) -> BoxerReport:
        """A tick of the ingest boxer, again until Kafka has nothing more."""
        return self.box_stage(ingest_stage(signal))

    def box_stage(self, stage: Stage) -> BoxerReport:
        """A tick of a stage's boxer."""
        tick = self._boxers.setdefault(stage.name, BoxerTick(self.lake, stage))
        return tick.run(now_ms(), soon())

    def dispatch(self, signal: Signal) -> list[Dispatch]:
        """A tick of the ingest dispatcher, with room for all."""
        stage = ingest_stage(signal)
        tick = self._dispatchers.setdefault(stage.name, DispatcherTick(self.lake, stage))
        return tick.run(set, 100, now_ms(), soon())

    def drain(self, signal: Signal, run_id: str = "run") -> list[Step]:
        """Ingest every partition of the signal that has open boxes, dispatched or not."""
        return self.drain_stage(ingest_stage(signal), run_id)

    def drain_stage(self, stage: Stage, run_id: str = "run") -> list[Step]:
        """Drain every partition that has open boxes of the stage, dispatched or not."""
        steps: list[Step] = []
        for source, dateint in self.partitions(stage):
            drain(self.lake, stage, source, dateint, run_id=run_id, on_step=steps.append)
        return steps

    def ingest(self, signal: Signal) -> list[Step]:
        """From what was notified to what is published."""
        self.box(signal)
        return self.drain(signal)

    def compact(self, signal: Signal) -> list[Step]:
        """From what is published to what compaction makes of it."""
        stage = compaction_stage(signal)
        self.box_stage(stage)
        return self.drain_stage(stage, "compaction")

    def roll_up(self) -> list[Step]:
        """From what is published of any tier to what the coarser ones make of it, until no slot is dirty."""
        steps: list[Step] = []
        while self.query("SELECT FROM dirty_slots WHERE dirty_at <= now() LIMIT 1"):
            self.box_stage(rollup_stage())
            done = self.drain_stage(rollup_stage(), "rollup")
            assert done, "slots are dirty, and no run has anything to do"
            steps += done
        return steps

    def partitions(self, stage: Stage) -> list[tuple[Source, int]]:
        """The partitions with boxes of the stage that are not done."""
        rows = self.query(
            "SELECT DISTINCT dateint FROM boxes WHERE stage = %s AND state IN ('open', 'claimed') ORDER BY dateint",
            stage.name,
        )
        return [(self.source, dateint) for (dateint,) in rows]

    def query(self, statement: str, *parameters: Any) -> list[tuple[Any, ...]]:
        """Rows of lrdb."""
        with self.lake.lrdb.connection() as conn:
            return conn.execute(statement.encode(), parameters).fetchall()

    def expire_leases(self) -> None:
        """Let the time pass after which the boxes of runs that are gone may be claimed again."""
        with self.lake.lrdb.transaction() as conn:
            conn.execute("UPDATE boxes SET lease_until = now() - interval '1 second' WHERE state = 'claimed'")

    def objects(self) -> dict[str, RawState]:
        """The state of each raw object, by the last element of its key."""
        rows = self.query("SELECT key, state FROM raw_objects ORDER BY raw_object_id")
        return {key.rpartition("/")[2]: RawState(state) for key, state in rows}

    def published(self, signal: Signal, frequency_ms: int | None = None) -> list[tuple[int, int, int]]:
        """(dateint, segment_id, records) of the published segments (of the ingest tier, where none is named)."""
        table, tier = SIGNALS[signal].segment_table, SIGNALS[signal].frequency_ms
        condition = f"frequency_ms = {frequency_ms or tier}" if tier else "true"
        rows = self.query(
            f"SELECT dateint, segment_id, records FROM {table} WHERE published AND {condition} ORDER BY 1, 2"
        )
        return [(dateint, segment_id, records) for dateint, segment_id, records in rows]

    def records(self, signal: Signal) -> int:
        """Records that the published segments stand for, by lrdb."""
        return sum(records for *_, records in self.published(signal))

    def select(self, signal: Signal, what: str, frequency_ms: int | None = None) -> list[tuple[Any, ...]]:
        """``SELECT what`` of the rows of all published segments (of a tier), by DuckDB from their files."""
        ids = {segment_id for _, segment_id, _ in self.published(signal, frequency_ms)}
        files = [str(path) for path in self.segment_files() if int(path.stem.removeprefix("tbl_")) in ids]
        assert len(files) == len(ids), "a published segment has no object, or two"
        if not files:
            return []
        return duckdb.execute(f"SELECT {what} FROM read_parquet({files!r}, union_by_name = true)").fetchall()

    def messages(self) -> Counter[str]:
        """Each log message that readers see, and how often."""
        return Counter(message for (message,) in self.select(Signal.LOGS, "log_message"))

    def segment_files(self) -> list[Path]:
        """Every segment object in the bucket, published or not."""
        return sorted(self.place.bucket.glob("db/**/tbl_*.parquet"))

    def breaches(self) -> list[Breach]:
        """What lrdb's own attack on its invariants finds."""
        with self.lake.lrdb.snapshot() as conn:
            return check.breaches(conn)

    def close(self) -> None:
        self.lake.close()


@contextmanager
def denying(*keys: str) -> Iterator[None]:
    """A store that lists everything, and refuses to give these objects."""
    read = Store.read

    def refusing(store: Store, key: str, max_bytes: int) -> tuple[bytes, StoredObject]:
        if key in keys:
            raise StoreDenied(f"{key}: InvalidObjectState")
        return read(store, key, max_bytes)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(Store, "read", refusing)
        yield


@contextmanager
def world_in(url: str, bootstrap: str, directory: Path, prefix: str, **settings: Any) -> Iterator[World]:
    """A new world, closed at the end."""
    world = World.create(Place(url, bootstrap, directory / "bucket", prefix), **settings)
    try:
        yield world
    finally:
        world.close()
