"""Many runs through one zygote: libraries work in every child, and nothing is left behind of any."""

from __future__ import annotations

import os
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import dagster as dg
import psutil
import psycopg
import pytest

from tests.launcher.conftest import Open
from tests.launcher.platform import FINISHED, Launching
from tests.waiting import eventually

AT_ONCE = 4
SCALE = int(os.environ.get("TEST_LAUNCHER_SCALE", "1"))
"""10 makes it 1,000 trivial runs: as it stands each test takes about half a minute on two cores of its own."""

TRIVIAL_RUNS = 100 * SCALE
BUSY_RUNS = 50 * SCALE

FREE_SECONDS = 0.5
"""Longer than there is nothing to do while runs go, so that processes execute many of them."""


@pytest.fixture
def kafka(kafka_bootstrap: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TEST_KAFKA", kafka_bootstrap)


def _all(running: Launching, asset: str, count: int) -> list[str]:
    """Runs of an asset, a few at a time, each waited for."""

    def one(_number: int) -> str:
        run = running.run(asset)
        assert running.wait(run) is dg.DagsterRunStatus.SUCCESS, running.messages(run)
        return run

    with ThreadPoolExecutor(AT_ONCE) as threads:
        return list(threads.map(one, range(count)))


def _descriptors(process: psutil.Process) -> list[str]:
    """What a process holds open."""
    held = [str(one.readlink()) for one in Path(f"/proc/{process.pid}/fd").iterdir()]
    return sorted(one.partition(":")[0] for one in held)


def _children_gone(zygote: psutil.Process) -> bool:
    return zygote.children() == []  # zombies count


@pytest.fixture
def tmp_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A temporary directory that nobody else's processes write to."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", None)
    return tmp_path


@pytest.mark.usefixtures("kafka")
def test_pyarrow_duckdb_psycopg_and_kafka_work_in_every_child(opened: Open) -> None:
    running = opened()
    for run in _all(running, "busy", BUSY_RUNS):
        assert running.place.mark(f"busy-{run}") == f"{sum(range(10_000))} 1"


def test_many_runs_leave_no_process_descriptor_file_or_connection(tmp_of_its_own: Path, opened: Open) -> None:
    running = opened(free_seconds=FREE_SECONDS)
    _all(running, "simple", 1)
    (zygote,) = running.zygotes()
    eventually(lambda: _children_gone(zygote), "the first child is reaped")
    descriptors, files = _descriptors(zygote), sorted(tmp_of_its_own.iterdir())
    connections = _connections()
    _all(running, "simple", TRIVIAL_RUNS)
    for asset in ("leaving", "failing"):  # ended by themselves, by others, and told of by a child of its own
        run = running.run(asset)
        eventually(lambda run=run: running.status(run) in FINISHED, "it ends")  # type: ignore[misc]
    eventually(lambda: _children_gone(zygote), "every child is reaped")
    assert _descriptors(zygote) == descriptors
    assert sorted(tmp_of_its_own.iterdir()) == files
    eventually(lambda: _connections() <= connections, "connections are closed")
    assert running.zygotes() == [zygote]


def _connections() -> int:
    """Connections to the platform's database, but for the one that asks."""
    with psycopg.connect(os.environ["TEST_DATABASE"]) as conn:
        row = conn.execute(
            "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
        ).fetchone()
    assert row is not None
    return int(row[0])
