"""A lake with one organization and one local bucket, and what reached its Kafka."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

from lakerunner_dagster.lake.bus import Bus, Received
from lakerunner_dagster.lake.lrdb import profiles
from lakerunner_dagster.lake.lrdb.connection import Lrdb
from lakerunner_dagster.lake.notifications.intake import Intake
from lakerunner_dagster.lake.settings import Settings
from lakerunner_dagster.lake.store import BucketConfiguration, Store
from tests.conftest import TestDatabases
from tests.lake.notifications.samples import BUCKET, ORGANIZATION
from tests.lake.world import World, world_in

WAIT_SECONDS = 20.0


@dataclass(frozen=True)
class Lake:
    lrdb: Lrdb
    bus: Bus
    settings: Settings
    directory: Path
    organization_id: UUID

    @property
    def intake(self) -> Intake:
        return Intake(self.lrdb, self.bus, self.settings)

    @property
    def store(self) -> Store:
        return Store.open(BucketConfiguration(BUCKET, "file", endpoint=str(self.directory)))

    def key(self, name: str = "logs/1.binpb", collector: str = "edge") -> str:
        return f"otel-raw/{self.organization_id}/{collector}/{name}"

    def messages(self, topic: str, count: int) -> list[Received]:
        """What the topic holds, once it is ``count`` messages or more."""
        consumer = self.bus.consumer("test", [topic])
        consumer.assign({})
        received: list[Received] = []
        deadline = time.monotonic() + WAIT_SECONDS
        while len(received) < count and time.monotonic() < deadline:
            received.extend(consumer.poll(1000, 0.2))
        received.extend(consumer.poll(1000, 0.1))
        consumer.close()
        return received

    def bodies(self, topic: str, count: int) -> list[Any]:
        return [json.loads(message.body) for message in self.messages(topic, count)]


@pytest.fixture(scope="session")
def database(postgres: TestDatabases, migrated_template: str) -> Iterator[Lrdb]:
    """One lrdb for all of these tests, which a test finds empty: making one takes longer than most of them."""
    with Lrdb(postgres.create_database(template=migrated_template)) as lrdb:
        yield lrdb


@pytest.fixture
def lake(database: Lrdb, bus: Bus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Lake:
    monkeypatch.chdir(tmp_path)  # where no .env is
    directory = tmp_path / "bucket"
    directory.mkdir()
    with database.transaction() as conn:
        conn.execute("TRUNCATE organizations, bucket_configurations, dead_letters CASCADE")
        profiles.add_organization(conn, "shop", UUID(ORGANIZATION))
        profiles.put_bucket(conn, BucketConfiguration(BUCKET, "file", endpoint=str(directory)))
    return Lake(database, bus, Settings(http_port=0, sources_per_organization=4), directory, UUID(ORGANIZATION))


@pytest.fixture
def world(lrdb_url: str, kafka_bootstrap: str, tmp_path: Path) -> Iterator[World]:
    """A whole lake of the test's own."""
    with world_in(lrdb_url, kafka_bootstrap, tmp_path, f"test-{uuid.uuid4().hex[:12]}.") as world:
        yield world
