"""A run whose machine died does not hold its place in the queue for ever; one whose server is merely slow keeps it."""

from __future__ import annotations

import json
import sys
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import dagster as dg
import pytest
from dagster._core.launcher import WorkerStatus
from dagster._core.storage.tags import GRPC_INFO_TAG
from dagster._core.test_utils import create_run_for_test
from dagster._grpc.client import DagsterGrpcClient

from lakerunner_dagster.launcher.watchful import WatchfulRunLauncher
from lakerunner_dagster.local.processes import Children
from tests.waiting import eventually


@pytest.fixture
def instance() -> Iterator[dg.DagsterInstance]:
    with dg.DagsterInstance.ephemeral() as instance:
        yield instance


@pytest.fixture
def launcher(instance: dg.DagsterInstance) -> WatchfulRunLauncher:
    launcher = WatchfulRunLauncher()
    launcher.register_instance(instance)
    return launcher


def _started_by(instance: dg.DagsterInstance, socket: Path | None) -> dg.DagsterRun:
    tags = {GRPC_INFO_TAG: json.dumps({"host": "localhost", "socket": str(socket)})} if socket else {}
    run: dg.DagsterRun = create_run_for_test(
        instance, run_id=str(uuid.uuid4()), status=dg.DagsterRunStatus.STARTED, tags=tags
    )
    return run


@contextmanager
def _serving(*command: str, socket: Path) -> Iterator[None]:
    """A code server of Dagster's, by one of its commands, as its supervisor starts it anew."""
    servers = Children(socket.parent, {})
    servers.start(
        socket.name,
        [sys.executable, "-m", "dagster", *command, "--socket", str(socket), "-m", "lakerunner_dagster.definitions"],
    )
    try:
        yield
    finally:
        servers.stop()


def test_run_monitoring_asks_this_launcher(launcher: WatchfulRunLauncher) -> None:
    assert launcher.supports_check_run_worker_health


def test_a_run_is_lost_once_its_code_server_was_started_anew_at_its_address_or_is_gone(
    instance: dg.DagsterInstance, launcher: WatchfulRunLauncher, tmp_path: Path
) -> None:
    socket = tmp_path / "code-server"
    run = _started_by(instance, socket)

    def lost() -> str:
        health = launcher.check_run_worker_health(run)
        assert health.status is WorkerStatus.FAILED
        return str(health.msg)

    with _serving("api", "grpc", socket=socket):
        eventually(lambda: "knows nothing of it" in lost(), "the server answers")
    assert "is gone" in lost()


def test_a_run_goes_while_the_proxy_is_there_whose_code_server_may_be_another_one_since(
    instance: dg.DagsterInstance, launcher: WatchfulRunLauncher, tmp_path: Path
) -> None:
    socket = tmp_path / "code-server"
    run = _started_by(instance, socket)

    def status() -> WorkerStatus:
        return launcher.check_run_worker_health(run).status

    with _serving("code-server", "start", socket=socket):
        eventually(lambda: status() is WorkerStatus.RUNNING, "the server answers")
        client = DagsterGrpcClient(socket=str(socket))
        eventually(lambda: bool(client.ping("")), "the server behind it answers")
        client.reload_code(timeout=60)
        assert status() is WorkerStatus.RUNNING
    assert status() is WorkerStatus.FAILED


def test_a_run_that_no_code_server_is_known_to_have_launched_is_lost(
    instance: dg.DagsterInstance, launcher: WatchfulRunLauncher
) -> None:
    assert launcher.check_run_worker_health(_started_by(instance, None)).status is WorkerStatus.NOT_FOUND
