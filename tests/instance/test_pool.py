"""Dagster's storages on a pool: few connections, none shared by two processes, and none that is dead reaches a run."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from threading import Event, Thread
from typing import Any

import dagster as dg
import psycopg2  # type: ignore[import-untyped]
import pytest
import sqlalchemy
from dagster._core.instance.ref import InstanceRef
from dagster_postgres import DagsterPostgresStorage
from sqlalchemy import Connection, Engine

from lakerunner_dagster.instance.storage import SettingsPostgresStorage
from lakerunner_dagster.lake.settings import Settings
from lakerunner_dagster.local.postgres import PostgresServer
from tests.conftest import TestDatabases
from tests.waiting import eventually

KEPT = 2
STORAGES = ("_run_storage", "_event_log_storage", "_schedule_storage")
STOCK = """
storage:
  postgres:
    postgres_url: {env: LAKERUNNER_DAGSTER_DATABASE_URL}
"""
POOLED = """
storage:
  custom:
    module: lakerunner_dagster.instance.storage
    class: SettingsPostgresStorage
"""


def _psycopg2(url: str) -> str:
    return url.replace("postgresql:", "postgresql+psycopg2:")


@pytest.fixture
def url(postgres: TestDatabases, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A database of the test's own, which the environment names."""
    url = _psycopg2(postgres.create_database())
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LAKERUNNER_DAGSTER_DATABASE_URL", url)
    return url


@pytest.fixture
def storage(url: str) -> SettingsPostgresStorage:
    return SettingsPostgresStorage(url, KEPT, None)


@contextmanager
def _instance(home: Path, configuration: str = POOLED) -> Iterator[dg.DagsterInstance]:
    home.mkdir(exist_ok=True)
    (home / "dagster.yaml").write_text(configuration + "telemetry: {enabled: false}\n")
    with dg.DagsterInstance.from_ref(InstanceRef.from_dir(str(home))) as instance:
        yield instance


@contextmanager
def _connected(storage: DagsterPostgresStorage, name: str = "_run_storage") -> Iterator[Connection]:
    inner: Any = getattr(storage, name)
    with inner.index_connection() if name == "_event_log_storage" else inner.connect() as connection:
        yield connection


def _backend(connection: Connection) -> int:
    return int(connection.execute(sqlalchemy.text("SELECT pg_backend_pid()")).scalar_one())


def _commits_by_itself(connection: Connection) -> bool:
    return bool(connection.connection.dbapi_connection.autocommit)  # type: ignore[union-attr]  # psycopg2's own


def _ends_well(child: Callable[[], None]) -> bool:
    """Whether a forked process does this and raises nothing. It unwinds nothing that it has of its parent."""
    process = os.fork()
    if process == 0:
        try:
            child()
        except BaseException:  # noqa: BLE001  # whatever it is, this process must go no further
            os._exit(1)
        os._exit(0)
    return os.waitpid(process, 0)[1] == 0


@dg.op
def first() -> int:
    return 1


@dg.op
def second(first: int) -> int:
    return first + 1


@dg.job
def two_steps() -> None:
    second(first())


def test_dagster_postgres_is_inside_what_the_pool_relies_on(url: str) -> None:
    stock = DagsterPostgresStorage(url)
    for name in STORAGES:
        inner: Any = getattr(stock, name)
        assert isinstance(inner._engine, Engine)
        inner._engine = sqlalchemy.create_engine(url, poolclass=sqlalchemy.StaticPool)
        with _connected(stock, name) as one, _connected(stock, name) as same:
            assert _backend(one) == _backend(same), f"{name} connects with something else"
        inner._engine.dispose()


@pytest.mark.usefixtures("url")
def test_a_run_keeps_to_the_connections_of_its_pool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert Settings().dagster_connections == KEPT
    connect, opened = psycopg2.connect, [0]

    def counted(*arguments: Any, **options: Any) -> Any:
        opened[0] += 1
        return connect(*arguments, **options)

    monkeypatch.setattr(psycopg2, "connect", counted)

    def connections(home: Path, configuration: str) -> int:
        before = opened[0]
        with _instance(home, configuration) as instance:
            assert two_steps.execute_in_process(instance=instance).success
        return opened[0] - before

    stock = connections(tmp_path / "stock", STOCK)
    assert connections(tmp_path / "pooled", POOLED) <= KEPT + 1  # a first event looks up an index while it is stored
    assert connections(tmp_path / "again", POOLED) <= 1
    assert stock > 50, "there would be nothing to gain"


def test_a_run_goes_on_when_postgresql_is_restarted_under_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tmp_path.chmod(0o711)
    server = PostgresServer(tmp_path / "postgres", durable=False)
    server.start()
    url = server.create_database("dagster")
    port = int(url.rpartition("/")[0].rpartition(":")[2])
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LAKERUNNER_DAGSTER_DATABASE_URL", _psycopg2(url))
    monkeypatch.setattr("lakerunner_dagster.local.postgres.free_port", lambda: port)

    @dg.op
    def restart() -> int:
        server.stop()
        server.start()
        return 1

    @dg.job
    def restarting() -> None:
        second(restart())

    try:
        with _instance(tmp_path / "home") as instance:
            done = restarting.execute_in_process(instance=instance)
            stored = instance.all_logs(done.run_id, of_type=dg.DagsterEventType.STEP_SUCCESS)
    finally:
        server.stop()
    assert done.success
    assert [event.step_key for event in stored] == ["restart", "second"]


def test_a_forked_process_has_connections_of_its_own(storage: SettingsPostgresStorage) -> None:
    with _connected(storage) as connection:
        before = _backend(connection)

    def child() -> None:
        for name in STORAGES:
            with _connected(storage, name) as connection:
                assert _backend(connection) != before

    assert _ends_well(child)
    with _connected(storage) as connection:
        assert _backend(connection) == before, "the child has ended a session of its parent's"


def test_a_fork_in_a_transaction_leaves_it_to_the_parent(storage: SettingsPostgresStorage) -> None:
    events = storage._event_log_storage

    def child() -> None:
        assert events.get_dynamic_partitions("sources") == []
        events.add_dynamic_partitions("sources", ["child"])

    with events.index_transaction() as connection:
        connection.execute(sqlalchemy.text("INSERT INTO dynamic_partitions VALUES (DEFAULT, 'sources', 'parent')"))
        assert _ends_well(child)
    assert sorted(events.get_dynamic_partitions("sources")) == ["child", "parent"]


def test_a_fork_beside_a_thread_in_a_transaction(storage: SettingsPostgresStorage) -> None:
    events = storage._event_log_storage
    inside, forked = Event(), Event()

    def thread() -> None:
        with events.index_transaction() as connection:
            connection.execute(sqlalchemy.text("INSERT INTO dynamic_partitions VALUES (DEFAULT, 'sources', 'thread')"))
            inside.set()
            assert forked.wait(60)

    beside = Thread(target=thread)
    beside.start()
    assert inside.wait(60)
    ended_well = _ends_well(lambda: events.add_dynamic_partitions("sources", ["child"]))
    forked.set()
    beside.join()
    assert ended_well
    assert sorted(events.get_dynamic_partitions("sources")) == ["child", "thread"]


def test_fifty_threads_wait_for_no_connection_and_leave_few_behind(storage: SettingsPostgresStorage) -> None:
    events = storage._event_log_storage

    def work(number: int) -> None:
        with events.index_transaction() as connection:  # a second connection while the first is held, as Dagster does
            events.add_dynamic_partitions(f"of {number}", [str(number)])
            _backend(connection)

    with ThreadPoolExecutor(50) as threads:
        list(threads.map(work, range(500)))
    assert all(events.get_dynamic_partitions(f"of {number}") == [str(number)] for number in range(500))
    assert storage._event_log_storage._engine.pool.checkedin() <= KEPT  # type: ignore[attr-defined]  # a QueuePool


def test_the_server_closes_what_is_idle_and_nobody_notices(
    storage: SettingsPostgresStorage, postgres: TestDatabases
) -> None:
    with _connected(storage) as connection:
        idle = _backend(connection)
        assert connection.execute(sqlalchemy.text("SHOW idle_session_timeout")).scalar_one() == "5min"
        connection.execute(sqlalchemy.text("SET idle_session_timeout = '1ms'"))

    def is_gone() -> bool:
        with psycopg2.connect(postgres.server.url("postgres")) as other, other.cursor() as cursor:
            cursor.execute("SELECT FROM pg_stat_activity WHERE pid = %s", (idle,))
            return cursor.fetchone() is None

    eventually(is_gone, "the server closes the idle connection")
    with _connected(storage) as connection:
        assert _backend(connection) != idle


def test_the_storages_of_a_process_share_its_connections(url: str, storage: SettingsPostgresStorage) -> None:
    backends = set()
    for one in (storage, SettingsPostgresStorage(url, KEPT, None)):
        for name in STORAGES:
            with _connected(one, name) as connection:
                backends.add(_backend(connection))
    assert len(backends) == 1


def test_a_transaction_leaves_its_connection_as_it_found_it(storage: SettingsPostgresStorage) -> None:
    with storage._event_log_storage.index_transaction() as connection:
        used = _backend(connection)
        assert not _commits_by_itself(connection)
    for name in STORAGES:
        with _connected(storage, name) as connection:
            assert _backend(connection) == used
            assert _commits_by_itself(connection)


@pytest.mark.usefixtures("url")
def test_the_web_servers_statement_timeout_is_its_own(tmp_path: Path) -> None:
    def timeouts(instance: dg.DagsterInstance) -> set[str]:
        connections = (
            instance.run_storage.connect,  # type: ignore[attr-defined]  # of SQL storages
            instance.event_log_storage.index_connection,  # type: ignore[attr-defined]
            instance.schedule_storage.connect,  # type: ignore[union-attr]
        )
        found = set()
        for connected in connections:
            with connected() as connection:
                found.add(connection.execute(sqlalchemy.text("SHOW statement_timeout")).scalar_one())
        return found

    with _instance(tmp_path / "web-server") as instance:
        instance.optimize_for_webserver(15000, 3600, 20)
        assert timeouts(instance) == {"15s"}
    with _instance(tmp_path / "daemon") as instance:
        assert timeouts(instance) == {"0"}


def test_an_empty_database_gets_dagsters_tables_once_and_they_can_be_migrated(url: str) -> None:
    for _ in range(2):
        storage = SettingsPostgresStorage(url, KEPT, None)
        for name in STORAGES:
            inner: Any = getattr(storage, name)
            assert inner.alembic_version()[0] == inner.alembic_version()[1] is not None
            inner.upgrade()
