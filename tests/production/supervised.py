"""A production's processes under a supervisor that starts again whatever ends, as docs/operations.md has it.

What belongs here: the processes, keeping them up, and asking their databases. What does not: what a test does to them.
"""

from __future__ import annotations

import socket
import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Self

import psutil
import psycopg
import yaml  # type: ignore[import-untyped]
from psycopg.rows import scalar_row
from pydantic import SecretStr

from lakerunner_dagster.lake.bus import TOPICS
from lakerunner_dagster.lake.settings import Settings
from lakerunner_dagster.lake.store import Store
from lakerunner_dagster.local.dev import DAGSTER_YAML, free_port, local_bucket, prepare_lrdb
from lakerunner_dagster.local.kafka import KafkaServer
from lakerunner_dagster.local.postgres import PostgresServer
from lakerunner_dagster.local.processes import Child, Children

ROOT = Path(__file__).parents[2]
LOCATION = "lakerunner"

HASTE = {
    "LAKERUNNER_BOX_AGE_SECONDS": "1",
    "LAKERUNNER_LISTEN_SECONDS": "4",
    "DAGSTER_GRPC_MAX_WORKERS": "24",
    "LAKERUNNER_SENSOR_INTERVAL_SECONDS": "1",
    "LAKERUNNER_LEASE_SECONDS": "10",
    "LAKERUNNER_RETRY_BACKOFF_SECONDS": "1",
    "LAKERUNNER_COMPACTION_FANOUT": "4",
    "LAKERUNNER_COMPACTION_GATHER_SECONDS": "1",
    "LAKERUNNER_ROLLUP_GATHER_1M_SECONDS": "1",
    "LAKERUNNER_MONITOR_PORT": "0",
}
"""Small waits everywhere, so that every stage is in mid-flight all the time and the dead are soon replaced."""


@dataclass(frozen=True, slots=True)
class _Service:
    """A command, how often it has been started, and its process."""

    command: Sequence[str]
    starts: int
    child: Child


class Production:
    """PostgreSQL, Kafka, a code server, a daemon and an adapter in ``directory``; ``keep_up`` replaces the ended."""

    def __init__(self, directory: Path, dagster: Mapping[str, Any] = MappingProxyType({})) -> None:
        """Nothing is started yet; ``dagster`` is what ``dagster.yaml`` says otherwise than the project's own."""
        self._dagster = dagster
        self._directory = directory
        self.home = directory / "home"
        self.bucket = directory / "bucket"
        self.postgres = PostgresServer(directory / "postgres")
        self._kafka = KafkaServer([Settings().kafka_topic_prefix + topic for topic in TOPICS], directory / "kafka.log")
        self._port = free_port(0)
        self._stack = ExitStack()
        self._services: dict[str, _Service] = {}
        for each in (self.home, self.bucket):
            each.mkdir()

    def start(self) -> None:
        """Start all of them, on a new lake."""
        self.postgres.start()
        self._stack.callback(self.postgres.stop)
        self._kafka.start()
        self._stack.callback(self._kafka.stop)
        self.lrdb_url = self.postgres.create_database("lrdb")
        self.dagster_url = self.postgres.create_database("dagster")
        prepare_lrdb(Settings(database_url=SecretStr(self.lrdb_url)), self.bucket)
        self.store = Store.open(local_bucket(self.bucket))
        self._configure_dagster()
        self.children = Children(self._directory / "logs", self.environment())
        self._stack.callback(self.children.stop)
        module = ["-m", "lakerunner_dagster.definitions", "--location-name", LOCATION]
        self.run("code server", "dagster", "api", "grpc", *module, "-h", "127.0.0.1", "-p", str(self._port))
        self.run("daemon", "dagster._daemon", "run", "-w", str(self.home / "workspace.yaml"))
        self.run("adapter", "lakerunner_dagster.cli", "notify", "directory", "local")

    def environment(self) -> Mapping[str, str]:
        """The variables that each of them reads."""
        return {
            **HASTE,
            "PYTHONPATH": str(ROOT),
            "DAGSTER_HOME": str(self.home),
            "LAKERUNNER_HOME": str(self.home),
            "LAKERUNNER_DATABASE_URL": self.lrdb_url,
            "LAKERUNNER_DAGSTER_DATABASE_URL": self.dagster_url.replace("postgresql:", "postgresql+psycopg2:"),
            "LAKERUNNER_KAFKA_BOOTSTRAP_SERVERS": self._kafka.bootstrap_servers,
            "LAKERUNNER_KAFKA_PARTITIONS": "1",
            "LAKERUNNER_KAFKA_REPLICATION": "1",
        }

    def _configure_dagster(self) -> None:
        """The project's dagster.yaml, with monitoring and launcher in haste too, and a workspace of the code server."""
        configuration = yaml.safe_load(DAGSTER_YAML.read_text())
        configuration["run_launcher"]["config"]["free_seconds"] = 5
        configuration["run_monitoring"] |= {"start_timeout_seconds": 20, "poll_interval_seconds": 2}
        (self.home / "dagster.yaml").write_text(yaml.safe_dump(configuration | self._dagster))
        server = {"host": "127.0.0.1", "port": self._port, "location_name": LOCATION}
        (self.home / "workspace.yaml").write_text(yaml.safe_dump({"load_from": [{"grpc_server": server}]}))

    def run(self, name: str, *module: str, starts: int = 1) -> None:
        """Start a Python module with its arguments as a service."""
        command = [sys.executable, "-m", *module]
        self._services[name] = _Service(module, starts, self.children.start(f"{name}-{starts}", command))

    def keep_up(self) -> None:
        """Start again what has ended."""
        if self.postgres.process_id is None:
            self.postgres.stop()
            self.postgres.start()
        for name, service in self._services.items():
            if service.child.process.poll() is not None:
                self.run(name, *service.command, starts=service.starts + 1)

    def pid(self, name: str) -> int:
        """Process id of a service as it is now."""
        return self._services[name].child.process.pid

    def ended(self) -> str | None:
        """What has ended by itself says, where nobody keeps it up; None while everything runs."""
        ended = self.children.ended()
        return None if ended is None else f"{ended.name}: {ended.tail()}"

    def code_server_answers(self) -> bool:
        """Whether it takes connections by now."""
        try:
            socket.create_connection(("127.0.0.1", self._port), timeout=5).close()
        except OSError:
            return False
        return True

    def processes(self) -> list[psutil.Process]:
        """Every process of Dagster's and ours that has this home, runs and zygotes among them."""
        return [one for one in psutil.process_iter() if _environment(one).get("DAGSTER_HOME") == str(self.home)]

    def stop(self) -> None:
        """End all of them, the last started first; twice does no harm."""
        self._stack.close()


class Observer:
    """Questions to a database that is down now and then, and has no tables at first: it has no answer then."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._conn: psycopg.Connection[Any] | None = None

    def column(self, statement: str) -> list[Any]:
        """The one column of the rows that are there; none where nobody answers."""
        try:
            if self._conn is None:
                self._conn = psycopg.connect(self._url, autocommit=True, row_factory=scalar_row)
            return self._conn.execute(statement.encode()).fetchall()
        except (psycopg.OperationalError, psycopg.errors.UndefinedTable):
            self.close()
            return []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        if self._conn is not None:
            self._conn.close()
            self._conn = None


def _environment(process: psutil.Process) -> Mapping[str, str]:
    try:
        return process.environ()
    except psutil.Error:
        return {}
