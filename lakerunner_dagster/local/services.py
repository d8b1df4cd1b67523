"""The embedded services as one: PostgreSQL, Kafka and the bucket, under the home directory of the settings.

What belongs here: starting and stopping them together, telling others how to reach them, and the background process
that holds them. What does not: the single services, schemas, and what organizations there are.

What a user has configured is used and not started. The lock is the kernel's, PostgreSQL and Kafka end with the process
that holds it, and ``.env`` is written anew at each start: a killed holder leaves nothing that the next start minds.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from lakerunner_dagster.lake.bus import TOPICS
from lakerunner_dagster.lake.errors import LakeError
from lakerunner_dagster.lake.settings import Settings
from lakerunner_dagster.local.env_file import EnvBlock
from lakerunner_dagster.local.errors import AlreadyRunning, ServiceFailed
from lakerunner_dagster.local.kafka import KafkaServer
from lakerunner_dagster.local.lock import ProcessLock
from lakerunner_dagster.local.postgres import PostgresServer

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

ENV_FILE = Path(".env")
"""Where `dagster dev`, the command line and ``Settings`` look for settings."""

EMBEDDED_PARTITIONS = 1
"""Partitions of a topic in the embedded Kafka, unless configured."""

WATCH_SECONDS = 0.5
STOP_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class RunningServices:
    """How to reach the services: ``env`` holds the settings of other processes, ``bucket`` is the local bucket."""

    env: Mapping[str, str]
    bucket: Path


@dataclass(frozen=True, slots=True)
class ServicesStatus:
    """The process that holds the services, None when they are down, and how to reach them."""

    process_id: int | None
    env: Mapping[str, str]


class LocalServices:
    """The services of one home directory, held by this process.

    Start them from a thread that lives as long as they should (see ``PostgresServer``). ``durable`` is off for
    throw-away data.
    """

    def __init__(self, settings: Settings, env_file: Path = ENV_FILE, *, durable: bool = True) -> None:
        self._settings = settings
        self._home = settings.home.absolute()
        self._block = EnvBlock(env_file)
        self._durable = durable
        self._stack = ExitStack()
        self._postgres: PostgresServer | None = None
        self._kafka: KafkaServer | None = None

    def start(self) -> RunningServices:
        """Start what is not configured, on the data that are there, and write ``.env``.

        Raises AlreadyRunning, naming the process that holds the services, or ServiceFailed; nothing is left running.
        """
        with ExitStack() as stack:
            lock = home_lock(self._home)
            lock.acquire()
            stack.callback(lock.release)
            stale = self._block.read()
            self._refuse_to_hide_others(stale)
            bucket = self._home / "bucket"
            bucket.mkdir(parents=True, exist_ok=True)
            env = {
                "LAKERUNNER_HOME": str(self._home),
                **self._start_postgres(stack, stale),
                **self._start_kafka(stack, stale),
            }
            self._block.write(env)
            stack.callback(self._block.remove)
            self._stack = stack.pop_all()
        return RunningServices(env, bucket)

    def stop(self) -> None:
        """Take ``.env``'s block away and stop the services, the last started first; then another may start them."""
        self._stack.close()

    def failure(self) -> str | None:
        """What has ended by itself, and where its log is; None while everything runs."""
        if self._postgres is not None and self._postgres.process_id is None:
            return f"the embedded PostgreSQL has ended: see {self._postgres.log}"
        if self._kafka is not None and self._kafka.process_id is None:
            return f"the embedded Kafka has ended: see {self._kafka.log}"
        return None

    def _configured(self, field: str, stale: Mapping[str, str]) -> bool:
        """Whether the user has set this: a value that stands in a block that we left behind is ours, not the user's."""
        if field not in self._settings.model_fields_set:
            return False
        value = getattr(self._settings, field)
        text = value.get_secret_value() if hasattr(value, "get_secret_value") else str(value)
        return stale.get(f"LAKERUNNER_{field.upper()}") != text

    def _start_postgres(self, stack: ExitStack, stale: Mapping[str, str]) -> dict[str, str]:
        wanted = [name for name in ("database_url", "dagster_database_url") if not self._configured(name, stale)]
        if not wanted:
            return {}
        server = PostgresServer(self._home / "postgres", durable=self._durable)
        server.start()
        stack.callback(server.stop)
        self._postgres = server
        urls = {
            "database_url": server.create_database("lrdb"),
            # Dagster's storage runs on psycopg 2: with psycopg 3 its notifications fail.
            "dagster_database_url": server.create_database("dagster").replace("postgresql:", "postgresql+psycopg2:", 1),
        }
        return {f"LAKERUNNER_{name.upper()}": urls[name] for name in wanted}

    def _start_kafka(self, stack: ExitStack, stale: Mapping[str, str]) -> dict[str, str]:
        if self._configured("kafka_bootstrap_servers", stale):
            return {}
        settings = self._settings
        chosen = self._configured("kafka_partitions", stale)
        partitions = settings.kafka_partitions if chosen else EMBEDDED_PARTITIONS
        topics = [settings.kafka_topic_prefix + topic for topic in TOPICS]
        server = KafkaServer(topics, self._home / "kafka.log", partitions=partitions)
        server.start()
        stack.callback(server.stop)
        self._kafka = server
        return {
            "LAKERUNNER_KAFKA_BOOTSTRAP_SERVERS": server.bootstrap_servers,
            "LAKERUNNER_KAFKA_PARTITIONS": str(partitions),
            "LAKERUNNER_KAFKA_REPLICATION": "1",
        }

    def _refuse_to_hide_others(self, stale: Mapping[str, str]) -> None:
        other = Path(stale.get("LAKERUNNER_HOME", self._home))
        if other != self._home and home_lock(other).holder() is not None:
            raise AlreadyRunning(
                f"this directory's .env tells of running services under {other}: stop those first, or start these "
                "from another directory"
            )


def home_lock(home: Path) -> ProcessLock:
    """The lock of whoever holds the services of ``home``."""
    return ProcessLock(home.absolute() / "services.lock", "the set of embedded services")


def run(settings: Settings, on_ready: Callable[[RunningServices], None], env_file: Path = ENV_FILE) -> None:
    """Hold the services in this process until SIGINT, SIGTERM or SIGHUP; ``on_ready`` is called when they are up.

    Raises as ``LocalServices.start`` does, and ServiceFailed when one of them ends by itself.
    """
    stopping = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda _number, _frame: stopping.set())
    services = LocalServices(settings, env_file)
    running = services.start()
    try:
        on_ready(running)
        while not stopping.wait(WATCH_SECONDS):
            failure = services.failure()
            if failure is not None:
                raise ServiceFailed(failure)
    finally:
        services.stop()


def up(home: Path, env_file: Path = ENV_FILE) -> RunningServices:
    """Start the services in a process of their own that outlives this one, until ``down``.

    That process reads its settings as this one does. Raises AlreadyRunning or ServiceFailed.
    """
    home = home.absolute()
    holder = home_lock(home).holder()
    if holder is not None:
        raise AlreadyRunning(f"the embedded services already run under {home} (process {holder})")
    home.mkdir(parents=True, exist_ok=True)
    log = home / "services.log"
    with log.open("wb") as errors:
        announced = subprocess.run(  # noqa: S603  # our own module
            [sys.executable, "-m", __name__, str(env_file.absolute())],
            env={**os.environ, "LAKERUNNER_HOME": str(home)},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=errors,
            check=False,
            start_new_session=True,
        ).stdout
    if not announced:
        raise ServiceFailed(f"the services did not start: {log.read_text(errors='replace').strip()[-1000:]}")
    return RunningServices(json.loads(announced), home / "bucket")


def down(home: Path, env_file: Path = ENV_FILE) -> bool:
    """Stop the services of ``home``, whoever holds them; False when nobody does. Raises ServiceFailed."""
    lock = home_lock(home)
    holder = lock.holder()
    if holder is None:
        block = EnvBlock(env_file)
        if block.read().get("LAKERUNNER_HOME") == str(home.absolute()):
            block.remove()  # its writer was killed
        return False
    try:
        os.kill(holder, signal.SIGTERM)
    except PermissionError as error:
        raise ServiceFailed(
            f"process {holder}, which holds the services, belongs to another user: stop it as that user"
        ) from error
    deadline = time.monotonic() + STOP_SECONDS
    while lock.holder() == holder:
        if time.monotonic() >= deadline:
            raise ServiceFailed(f"process {holder}, which holds the services, does not end within {STOP_SECONDS:g} s")
        time.sleep(0.05)
    return True


def status(home: Path, env_file: Path = ENV_FILE) -> ServicesStatus:
    """Who holds the services of ``home``, and what ``.env`` tells of them."""
    holder = home_lock(home).holder()
    return ServicesStatus(holder, EnvBlock(env_file).read() if holder is not None else {})


def _announce(running: RunningServices) -> None:
    # One line to whoever started us, and the end of our standard output tells that it is whole.
    os.write(sys.stdout.fileno(), json.dumps(dict(running.env)).encode())
    with Path(os.devnull).open("wb") as nowhere:
        os.dup2(nowhere.fileno(), sys.stdout.fileno())


def main() -> None:
    """Hold the services in a process of nobody's; the argument is the path of the ``.env`` to write."""
    if os.fork():
        os._exit(0)
    try:
        run(Settings(), _announce, Path(sys.argv[1]))
    except LakeError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
