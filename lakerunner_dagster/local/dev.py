"""``lakerunner dev``: the whole platform on one machine, from the services to the table of what arrives.

What belongs here: which processes there are, in which order, and when a first run counts as whole. What does not: how
they work, and how the table looks (``commands.dev``).
"""

from __future__ import annotations

import os
import shutil
import socket
import sys
import time
import urllib.error
import urllib.request
from collections import deque
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import TYPE_CHECKING

import lakerunner_dagster
from lakerunner_dagster.lake.lrdb import lineage, profiles, standing, status
from lakerunner_dagster.lake.lrdb.connection import Lrdb
from lakerunner_dagster.lake.lrdb.migrate import migrate
from lakerunner_dagster.lake.model import RawState
from lakerunner_dagster.lake.runs.context import lrdb_url
from lakerunner_dagster.lake.settings import Settings
from lakerunner_dagster.lake.store import BucketConfiguration, Store
from lakerunner_dagster.local.code_server import CodeServer
from lakerunner_dagster.local.demo import ORGANIZATIONS, DemoFile, DemoTraffic
from lakerunner_dagster.local.errors import ServiceFailed
from lakerunner_dagster.local.processes import Children
from lakerunner_dagster.local.services import LocalServices

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from lakerunner_dagster.lake.lrdb.connection import Conn
    from lakerunner_dagster.lake.lrdb.status import SourceStatus

DEMO_BUCKET = "local"

STARTS_WITHIN_SECONDS = 120.0
POLL_SECONDS = 0.2

DAGSTER_YAML = Path(lakerunner_dagster.__file__).parents[1] / "dagster.yaml"
"""The project's own configuration of Dagster."""

MEMORY = {
    # What a run frees it keeps for its next box, in huge pages: else page faults are a third of its time.
    "MALLOC_MMAP_THRESHOLD_": "4294967296",
    "MALLOC_TRIM_THRESHOLD_": "17179869184",
    "MALLOC_TOP_PAD_": "67108864",
    "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1",
    "ARROW_DEFAULT_MEMORY_POOL": "system",
}
"""How runs on Linux get their memory fastest (docs/configuration.md, For speed)."""

DEV_DEFAULTS = {
    "LAKERUNNER_BOX_AGE_SECONDS": "3",
    # Ticks that listen nearly all the time hand a file on at once; each holds a thread of the code server meanwhile.
    # Dagster's daemon looks every 5 s whether a tick has ended: this is a little less than three looks.
    "LAKERUNNER_LISTEN_SECONDS": "14",
    "DAGSTER_CODE_SERVER_MAX_WORKERS": "24",
    "DAGSTER_GRPC_MAX_WORKERS": "24",
    **MEMORY,
}
"""What the processes of ``dev`` get where the environment says nothing else."""


@dataclass(frozen=True, slots=True)
class LocalLake:
    """A running lake that nothing schedules: where its parts are, and what can be asked of them."""

    bucket_directory: Path
    http_url: str
    services: LocalServices
    children: Children
    lrdb: Lrdb
    store: Store

    def failure(self) -> str | None:
        """Which part has ended by itself, and what it said last; None while everything runs."""
        ended = self.children.ended()
        if ended is not None:
            return f"{ended.name} has ended (exit code {ended.process.returncode}), see {ended.log}:\n{ended.tail()}"
        return self.services.failure()

    def wait_for(self, what: str, url: str) -> None:
        """Return once ``url`` answers; ServiceFailed, with what has ended, where it does not in time."""
        deadline = time.monotonic() + STARTS_WITHIN_SECONDS
        while not _answers(url):
            failure = self.failure()
            if failure or time.monotonic() > deadline:
                raise ServiceFailed(failure or f"{what} did not answer at {url} within {STARTS_WITHIN_SECONDS:g} s")
            time.sleep(POLL_SECONDS)

    def wait_for_adapters(self) -> None:
        """Return once notifications are taken."""
        self.wait_for("the HTTP adapter", f"{self.http_url}/healthz")


@dataclass(frozen=True, slots=True)
class Platform(LocalLake):
    """A lake and the Dagster that runs it."""

    ui_url: str
    code_server: CodeServer

    def status(self) -> list[SourceStatus]:
        """The state of every source."""
        with self.lrdb.snapshot() as conn:
            return status.status(conn)

    def unfinished(self, files: Sequence[DemoFile]) -> list[str]:
        """What is not queryable yet of these files, a sentence each: empty when every record is in a segment."""
        with self.lrdb.snapshot() as conn:
            return [sentence for file in files if (sentence := _unfinished(conn, file))]


@contextmanager
def local_lake(settings: Settings, on_progress: Callable[[str], None]) -> Iterator[LocalLake]:
    """Services, lrdb and adapters, started in the order in which they need each other, and stopped with the block.

    The adapters may still be starting. A port that is taken (or 0) gives way to a free one. Raises AlreadyRunning or
    ServiceFailed, all stopped again.
    """
    with ExitStack() as stack:
        on_progress("starting PostgreSQL and Kafka")
        services = LocalServices(settings)
        running = services.start()
        stack.callback(services.stop)
        os.environ.update(running.env)
        for name, value in DEV_DEFAULTS.items():
            os.environ.setdefault(name, value)
        settings = Settings()
        on_progress("migrating lrdb")
        prepare_lrdb(settings, running.bucket)
        lrdb = stack.enter_context(Lrdb(lrdb_url(settings), max_size=2))
        http_port = free_port(settings.http_port)
        children = Children(settings.home.absolute() / "logs", {"LAKERUNNER_HTTP_PORT": str(http_port)})
        stack.callback(children.stop)
        on_progress("starting the adapters")
        notify = [sys.executable, "-m", "lakerunner_dagster.cli", "notify"]
        children.start("notify-directory", [*notify, "directory", DEMO_BUCKET])
        children.start("notify-http", [*notify, "http"])
        yield LocalLake(
            bucket_directory=running.bucket,
            http_url=f"http://127.0.0.1:{http_port}",
            services=services,
            children=children,
            lrdb=lrdb,
            store=Store.open(local_bucket(running.bucket)),
        )


@contextmanager
def platform(
    settings: Settings, ui_port: int, on_progress: Callable[[str], None], dagster_yaml: Path = DAGSTER_YAML
) -> Iterator[Platform]:
    """Everything: ``local_lake``, which says what is raised, and Dagster, all of it ready."""
    with local_lake(settings, on_progress) as lake:
        ui_port = free_port(ui_port)
        on_progress("starting Dagster")
        _start_dagster(lake.children, ui_port, _dagster_home(settings, dagster_yaml))
        ui_url = f"http://127.0.0.1:{ui_port}"
        started = Platform(
            bucket_directory=lake.bucket_directory,
            http_url=lake.http_url,
            services=lake.services,
            children=lake.children,
            lrdb=lake.lrdb,
            store=lake.store,
            ui_url=ui_url,
            code_server=CodeServer(ui_url),
        )
        started.wait_for_adapters()
        started.wait_for("Dagster's UI", f"{ui_url}/server_info")
        started.code_server.require_loaded()
        yield started


def _unfinished(conn: Conn, file: DemoFile) -> str | None:
    found = lineage.raw_objects_at(conn, file.key, DEMO_BUCKET)
    states = [known.state for known in found]
    records = sum(standing.published_records(conn, known.raw) for known in found)
    if states == [RawState.INGESTED] and records == file.records:
        return None
    state = ", ".join(states) or "not notified"
    return f"{file.key}: {state}; {records} of {file.records} records in published segments"


def prepare_lrdb(settings: Settings, bucket: Path) -> None:
    """Migrate lrdb, and register the local bucket and the demo's organizations in it; twice does no harm."""
    url = lrdb_url(settings)
    migrate(url)
    with Lrdb(url, max_size=1) as lrdb, lrdb.transaction() as conn:
        profiles.put_bucket(conn, local_bucket(bucket))
        known = {organization.organization_id for organization in profiles.organizations(conn)}
        for organization in ORGANIZATIONS:
            if organization.organization_id not in known:
                profiles.add_organization(conn, organization.name, organization.organization_id)


def local_bucket(directory: Path) -> BucketConfiguration:
    """The bucket of the embedded services."""
    return BucketConfiguration(DEMO_BUCKET, "file", endpoint=str(directory))


def _dagster_home(settings: Settings, dagster_yaml: Path) -> Path:
    """Where Dagster keeps what stands in no database (the output of runs), with its configuration in it."""
    home = settings.home.absolute() / "dagster"
    home.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(dagster_yaml, home / "dagster.yaml")
    return home


def _start_dagster(children: Children, ui_port: int, home: Path) -> None:
    dagster = [sys.executable, "-m", "dagster", "dev", "-m", "lakerunner_dagster.definitions"]
    children.start("dagster", [*dagster, "-h", "127.0.0.1", "-p", str(ui_port)], DAGSTER_HOME=str(home))


class DemoFeed:
    """Demo traffic of every demo organization, from one call to the next."""

    def __init__(self, store: Store, now_ms: int) -> None:
        self._store = store
        self._in_turn = deque(
            (DemoTraffic(organization, collector, seed=now_ms), now_ms)
            for organization in ORGANIZATIONS
            for collector in organization.collectors
        )

    @property
    def sources(self) -> int:
        """How many sources there are to feed."""
        return len(self._in_turn)

    def feed(self, to_ms: int) -> list[DemoFile]:
        """Store every source's files that tell of the time since its last ones, up to ``to_ms`` (epoch ms)."""
        return [file for _ in range(self.sources) for file in self.feed_next(to_ms)]

    def feed_next(self, to_ms: int) -> list[DemoFile]:
        """As ``feed``, for the one source whose turn it is."""
        traffic, fed_to_ms = self._in_turn.popleft()
        files = traffic.files(fed_to_ms, to_ms)
        for file in files:
            self._store.put(file.key, file.data)
        self._in_turn.append((traffic, to_ms))
        return files


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5) as response:  # noqa: S310  # a loopback address of ours
            return bool(response.status == HTTPStatus.OK)
    except (urllib.error.URLError, OSError):
        return False


def free_port(wanted: int) -> int:
    """``wanted`` where it is free on loopback, else a free one."""
    for port in (wanted, 0):
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return int(probe.getsockname()[1])
    raise ServiceFailed("no free port on 127.0.0.1: stop something that listens there")
