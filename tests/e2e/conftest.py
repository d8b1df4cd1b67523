"""A deployment for this package: a directory like the project's root, embedded services, adapters, `dagster dev`."""

from __future__ import annotations

import os
import socket
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest

from lakerunner_dagster.lake.lrdb import lineage, profiles, standing
from lakerunner_dagster.lake.lrdb.connection import Lrdb
from lakerunner_dagster.lake.model import dateint_of
from lakerunner_dagster.lake.runs.context import lrdb_url
from lakerunner_dagster.lake.settings import Settings
from lakerunner_dagster.lake.store import BucketConfiguration
from lakerunner_dagster.local.dev import free_port, prepare_lrdb
from lakerunner_dagster.local.processes import Children
from lakerunner_dagster.local.services import LocalServices
from lakerunner_dagster.partitions import DaySource
from tests.e2e.dagster_ui import DagsterUI, Materialisation
from tests.lake.clouds import CLOUD_CREDENTIALS
from tests.waiting import eventually

ROOT = Path(__file__).parents[2]
REMOTE_BUCKET = "remote"
FINISHED = {"SUCCESS", "FAILURE", "CANCELED"}

PATIENCE_SECONDS = 300.0
"""Longest wait for something that goes through Dagster's daemons, on a machine that has other things to do."""


@dataclass(frozen=True, slots=True)
class Deployment:
    """A running deployment in ``project``. ``watched`` is the local bucket, ``remote`` one that nobody watches."""

    project: Path
    watched: Path
    remote: Path
    http_port: int
    ui: DagsterUI
    lrdb: Lrdb
    children: Children

    def adapter_answers(self) -> bool:
        """Whether the HTTP adapter takes events by now."""
        try:
            socket.create_connection(("127.0.0.1", self.http_port), timeout=5).close()
        except OSError:
            return False
        return True

    def partition(self, key: str) -> str:
        """Partition key of a raw object's day and source."""
        with self.lrdb.connection() as conn:
            (known,) = lineage.raw_objects_at(conn, key)
            source = profiles.source_of(conn, known.raw.organization_id, known.raw.collector)
        assert source is not None
        return str(DaySource(dateint_of(known.raw.event_time_ms), source.key).key)

    def queryable(self, key: str) -> int:
        """Records of a raw object in published segments."""
        with self.lrdb.connection() as conn:
            return sum(standing.published_records(conn, known.raw) for known in lineage.raw_objects_at(conn, key))

    def wait_until_queryable(self, key: str, records: int) -> None:
        """Return when all records of a raw object are in published segments."""

        def holds() -> bool:
            ended = self.children.ended()
            assert ended is None, f"{ended.name} has ended: {ended.tail()}"
            return self.queryable(key) == records

        eventually(holds, f"{records} records of {key} queryable", PATIENCE_SECONDS)

    def wait_until_materialised(self, asset: str, partition: str) -> Materialisation:
        """The first materialisation of a partition, once it is there."""
        found: list[Materialisation] = []

        def holds() -> bool:
            found[:] = self.ui.materialisations(asset, partition)
            return bool(found)

        eventually(holds, f"{asset} of {partition} materialised", PATIENCE_SECONDS)
        return found[-1]

    def wait_until_finished(self, run_id: str) -> tuple[str, dict[str, str]]:
        """Status and tags of a run, once it has come to its end."""
        eventually(lambda: self.ui.run(run_id)[0] in FINISHED, f"run {run_id} finished", PATIENCE_SECONDS)
        return self.ui.run(run_id)


@pytest.fixture(scope="package")
def deployment() -> Iterator[Deployment]:
    """What `lakerunner services up` and `dagster dev` give in the project's root, with both adapters beside."""
    with ExitStack() as stack:
        project = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="lakerunner-e2e-")))
        project.chmod(0o711)  # root's PostgreSQL runs as another user, who must get through
        for name in ("dagster.yaml", "pyproject.toml", "workspace.yaml"):
            (project / name).symlink_to(ROOT / name)
        with pytest.MonkeyPatch.context() as patch:  # the tests themselves stay where they are
            patch.chdir(project)
            for name in [name for name in os.environ if name.startswith(("LAKERUNNER_", "DAGSTER_"))]:
                patch.delenv(name)
            started = _start(project, stack, patch)
        eventually(started.adapter_answers, "the HTTP adapter answers", PATIENCE_SECONDS)
        eventually(started.ui.answers, "Dagster's UI answers", PATIENCE_SECONDS)
        yield started


def _start(project: Path, stack: ExitStack, patch: pytest.MonkeyPatch) -> Deployment:
    """Start it in the current directory and environment, to be stopped by the stack."""
    http_port, ui_port = free_port(0), free_port(0)
    patch.setenv("PYTHONPATH", str(ROOT))
    patch.setenv("LAKERUNNER_HTTP_PORT", str(http_port))
    patch.setenv("LAKERUNNER_BOX_AGE_SECONDS", "1")
    patch.setenv("LAKERUNNER_MONITOR_PORT", "0")
    for name, value in CLOUD_CREDENTIALS.items():
        patch.setenv(name, value)
    # Two segments of a size are merged, and no hour is left alone for long.
    patch.setenv("LAKERUNNER_COMPACTION_FANOUT", "2")
    patch.setenv("LAKERUNNER_COMPACTION_GATHER_SECONDS", "1")

    services = LocalServices(Settings(), project / ".env", durable=False)
    running = services.start()
    stack.callback(services.stop)
    settings = Settings()
    prepare_lrdb(settings, running.bucket)
    lrdb = stack.enter_context(Lrdb(lrdb_url(settings), max_size=2))
    remote = project / "remote"
    remote.mkdir()
    with lrdb.transaction() as conn:
        profiles.put_bucket(conn, BucketConfiguration(REMOTE_BUCKET, "file", endpoint=str(remote)))

    children = Children(project / "logs", {})
    stack.callback(children.stop)
    notify = [sys.executable, "-m", "lakerunner_dagster.cli", "notify"]
    children.start("notify-directory", [*notify, "directory", "local"])
    children.start("notify-http", [*notify, "http"])
    children.start("dagster", [sys.executable, "-m", "dagster", "dev", "-p", str(ui_port)])
    return Deployment(project, running.bucket, remote, http_port, DagsterUI(ui_port), lrdb, children)
