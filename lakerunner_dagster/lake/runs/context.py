"""The lake as a run or a tick holds it: settings and the open handles on lrdb, Kafka and the buckets.

What belongs here: opening and closing them. What does not: what is done with them.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass, field

from lakerunner_dagster.lake.bus import Bus
from lakerunner_dagster.lake.errors import ConfigurationError
from lakerunner_dagster.lake.lrdb import profiles
from lakerunner_dagster.lake.lrdb.connection import Lrdb
from lakerunner_dagster.lake.settings import BoxPolicy, CompactionPolicy, Limits, RollupPolicy, Settings
from lakerunner_dagster.lake.store import Store

CONNECTIONS = 4
"""Most connections of one process to lrdb: its transaction, a heartbeat, a look-up, and one to spare."""


class Stores:
    """The buckets of the storage profiles, each opened once, on first use; safe to share between threads."""

    def __init__(self, lrdb: Lrdb) -> None:
        self._lrdb = lrdb
        self._open: dict[str, Store] = {}
        self._lock = threading.Lock()

    def of(self, bucket: str) -> Store:
        """The store of a bucket; ConfigurationError when no storage profile knows it."""
        with self._lock:
            store = self._open.get(bucket)
            if store is None:
                with self._lrdb.connection() as conn:
                    configuration = profiles.bucket_configuration(conn, bucket)
                store = self._open[bucket] = Store.open(configuration)
            return store


@dataclass(frozen=True, slots=True)
class Lake:
    """Everything that work on the lake needs, opened once for a process and closed by who opened it."""

    settings: Settings
    limits: Limits
    policy: BoxPolicy
    lrdb: Lrdb
    bus: Bus
    stores: Stores
    compaction: CompactionPolicy = field(default_factory=CompactionPolicy.current)
    rollup: RollupPolicy = field(default_factory=RollupPolicy.current)

    def close(self) -> None:
        """Give the connections back."""
        self.lrdb.close()


def lrdb_url(settings: Settings) -> str:
    """URL of lrdb (``postgresql://…``); ConfigurationError where none is set."""
    if settings.database_url is None:
        raise _unset("LAKERUNNER_DATABASE_URL")
    return settings.database_url.get_secret_value()


def open_lake(settings: Settings) -> Lake:
    """The lake of these settings; ConfigurationError where they name no database or no Kafka."""
    bus = open_bus(settings)
    lrdb = Lrdb(lrdb_url(settings), min_size=1, max_size=CONNECTIONS)
    return Lake(
        settings=settings,
        limits=Limits.current(),
        policy=BoxPolicy.current(),
        lrdb=lrdb,
        bus=bus,
        stores=Stores(lrdb),
    )


def open_bus(settings: Settings) -> Bus:
    """The Kafka of these settings, which is not asked yet; ConfigurationError where they name none."""
    if settings.kafka_bootstrap_servers is None:
        raise _unset("LAKERUNNER_KAFKA_BOOTSTRAP_SERVERS")
    return Bus(
        settings.kafka_bootstrap_servers,
        prefix=settings.kafka_topic_prefix,
        options={name: value.get_secret_value() for name, value in settings.kafka_options.items()},
        partitions=settings.kafka_partitions,
        replication=settings.kafka_replication,
        retention_hours=settings.kafka_retention_hours,
    )


def _unset(variable: str) -> ConfigurationError:
    return ConfigurationError(
        f"{variable} is not set: run `lakerunner services up`, which writes it into .env, or name your own server"
    )
