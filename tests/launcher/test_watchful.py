"""A run whose machine died does not hold its place in the queue for ever; one whose server is merely slow keeps it."""

from __future__ import annotations

import json
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path

import dagster as dg
import pytest
from dagster._core.launcher import WorkerStatus
from dagster._core.storage.tags import GRPC_INFO_TAG
from dagster._core.test_utils import create_run_for_test

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


def test_run_monitoring_asks_this_launcher(launcher: WatchfulRunLauncher) -> None:
    assert launcher.supports_check_run_worker_health


def test_a_run_is_going_while_its_code_server_is_there_and_failed_once_it_is_gone(
    instance: dg.DagsterInstance, launcher: WatchfulRunLauncher, tmp_path: Path
) -> None:
    socket = tmp_path / "code-server"
    servers = Children(tmp_path, {})
    servers.start(
        "code-server",
        [
            sys.executable,
            "-m",
            "dagster",
            "api",
            "grpc",
            "--socket",
            str(socket),
            "-m",
            "lakerunner_dagster.definitions",
        ],
    )
    run = _started_by(instance, socket)

    def is_going() -> bool:
        return launcher.check_run_worker_health(run).status is WorkerStatus.RUNNING

    try:
        eventually(is_going, "the code server answers")
    finally:
        servers.stop()
    assert launcher.check_run_worker_health(run).status is WorkerStatus.FAILED


def test_a_run_that_no_code_server_is_known_to_have_launched_is_lost(
    instance: dg.DagsterInstance, launcher: WatchfulRunLauncher
) -> None:
    assert launcher.check_run_worker_health(_started_by(instance, None)).status is WorkerStatus.NOT_FOUND
