"""The embedded PostgreSQL: starts, keeps its data, survives being killed, leaves nothing running."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
import psycopg
import pytest

from lakerunner_dagster.local.errors import AlreadyRunning, ServiceFailed
from lakerunner_dagster.local.postgres import PostgresServer, find_binaries
from tests.waiting import eventually


@pytest.fixture
def directory() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="lakerunner-test-") as name:
        Path(name).chmod(0o711)
        yield Path(name) / "postgres"


def query(url: str, text: str) -> object:
    with psycopg.connect(url) as conn:
        row = conn.execute(text.encode()).fetchone()
        return row[0] if row else None


def test_data_outlives_a_restart_and_the_server_does_not(directory: Path) -> None:
    server = PostgresServer(directory, durable=False)
    server.start()
    url = server.create_database("lrdb")
    with psycopg.connect(url) as conn:
        conn.execute("CREATE TABLE kept AS SELECT 42 AS answer")
    process_id = server.process_id
    assert process_id is not None
    with pytest.raises(AlreadyRunning, match=str(os.getpid())):
        PostgresServer(directory, durable=False).start()
    server.stop()
    server.stop()
    assert not psutil.pid_exists(process_id)
    server.start()
    try:
        assert query(server.create_database("lrdb"), "SELECT answer FROM kept") == 42
    finally:
        server.stop()


def test_a_killed_owner_leaves_no_server_and_no_lock(directory: Path) -> None:
    script = (
        "import sys, time; from pathlib import Path; from lakerunner_dagster.local.postgres import PostgresServer\n"
        "server = PostgresServer(Path(sys.argv[1])); server.start()\n"
        "print(server.process_id, server.create_database('lrdb'), flush=True); time.sleep(600)"
    )
    owner = subprocess.Popen([sys.executable, "-c", script, str(directory)], stdout=subprocess.PIPE, text=True)
    assert owner.stdout is not None
    with owner.stdout:
        process_id, url = owner.stdout.readline().split()
    with psycopg.connect(url) as conn:
        conn.execute("CREATE TABLE kept AS SELECT 42 AS answer")
        assert conn.execute("SHOW fsync").fetchone() == ("on",)
    owner.kill()
    owner.wait()
    if sys.platform == "linux":
        eventually(lambda: not psutil.pid_exists(int(process_id)), "the server ends with its owner")
    server = PostgresServer(directory)
    server.start()
    try:
        assert query(server.url("lrdb"), "SELECT answer FROM kept") == 42
    finally:
        server.stop()


@contextmanager
def computing(url: str) -> Iterator[None]:
    """A process of the server that computes for long, and looks at nothing meanwhile."""

    def compute() -> None:
        with suppress(psycopg.OperationalError):
            query(url, "SELECT count(*) FROM generate_series(1, 100000) AS a, generate_series(1, 100000) AS b")

    thread = threading.Thread(target=compute)
    thread.start()
    busy = "SELECT count(*) FROM pg_stat_activity WHERE state = 'active' AND query LIKE '%generate_series(1, 10%'"
    eventually(lambda: query(url, f"{busy} AND pid <> pg_backend_pid()") == 1, "it computes")
    yield
    thread.join()


def test_a_killed_server_starts_again_at_its_port_with_what_was_committed(directory: Path) -> None:
    server = PostgresServer(directory)
    server.start()
    url = server.create_database("lrdb")
    with psycopg.connect(url) as conn:
        conn.execute("CREATE TABLE kept AS SELECT 42 AS answer")
    process_id = server.process_id
    assert process_id is not None
    with computing(url):
        os.kill(process_id, signal.SIGKILL)
        server.stop()
        assert (directory / "data" / "postmaster.pid").exists()
        server.start()
    try:
        assert query(url, "SELECT answer FROM kept") == 42
    finally:
        server.stop()


def test_a_pid_file_that_names_another_process_by_now_is_no_obstacle(directory: Path) -> None:
    server = PostgresServer(directory, durable=False)
    server.start()
    server.stop()
    (directory / "data" / "postmaster.pid").write_text(f"{os.getpid()}\n{directory}\n")
    server.start()
    assert server.process_id is not None
    server.stop()


def test_a_data_directory_that_was_not_finished_is_made_anew(directory: Path) -> None:
    (directory / "data.new").mkdir(parents=True)
    (directory / "data.new" / "PG_VERSION").write_text("18\n")
    server = PostgresServer(directory, durable=False)
    server.start()
    assert query(server.url("postgres"), "SELECT 1") == 1
    server.stop()


def test_what_is_no_data_directory_is_left_alone(directory: Path) -> None:
    (directory / "data").mkdir(parents=True)
    (directory / "data" / "precious").touch()
    with pytest.raises(ServiceFailed, match="move it away"):
        PostgresServer(directory, durable=False).start()
    assert (directory / "data" / "precious").exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root starts the server as another user")
def test_root_needs_no_permission_changed_on_directories_that_only_it_may_enter() -> None:
    with tempfile.TemporaryDirectory(prefix="lakerunner-test-") as name:
        assert Path(name).stat().st_mode & 0o777 == 0o700
        server = PostgresServer(Path(name) / "postgres", durable=False)
        server.start()
        assert query(server.create_database("lrdb"), "SELECT 1") == 1
        server.stop()
        assert Path(name).stat().st_mode & 0o777 == 0o700


def test_only_the_password_opens_the_server(directory: Path) -> None:
    server = PostgresServer(directory, durable=False)
    server.start()
    try:
        with pytest.raises(psycopg.OperationalError, match="authentication failed"):
            psycopg.connect(server.url("postgres").replace(":", ":x", 2).replace(":x//", "://"))
        assert (directory / "password").stat().st_mode & 0o777 == 0o600
    finally:
        server.stop()


def test_a_server_that_cannot_start_says_what_its_log_says(directory: Path) -> None:
    server = PostgresServer(directory, durable=False)
    server.start()
    server.stop()
    (directory / "data" / "postgresql.conf").write_text("no_such_setting = 1\n")
    with pytest.raises(ServiceFailed, match="no_such_setting"):
        server.start()


def test_a_version_that_nobody_has_is_named() -> None:
    assert find_binaries().major >= 15
    with pytest.raises(ServiceFailed, match="PostgreSQL 7,"):
        find_binaries(7)
