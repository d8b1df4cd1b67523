"""The pool: what a lost server becomes, and that it comes back."""

from __future__ import annotations

import psycopg
import pytest

from lakerunner_dagster.lake.errors import LakeDatabaseUnavailable
from lakerunner_dagster.lake.lrdb import connection
from lakerunner_dagster.lake.lrdb.connection import Conn, Lrdb, storable
from tests.lake.lrdb.work import do, one


def do_and_fail(conn: Conn, statement: str) -> None:
    conn.execute(statement)
    conn.execute("SELECT 1/0")


def cut(lrdb: Lrdb, conn: Conn) -> None:
    do(lrdb, "SELECT pg_terminate_backend(%s)", conn.info.backend_pid)
    conn.execute("SELECT 1")


def test_an_exception_rolls_the_transaction_back(lrdb: Lrdb) -> None:
    with pytest.raises(psycopg.errors.DivisionByZero), lrdb.transaction() as conn:
        do_and_fail(conn, "INSERT INTO bucket_configurations (bucket_name, cloud_provider) VALUES ('lake', 'file')")
    assert one(lrdb, "SELECT count(*) FROM bucket_configurations") == 0


def test_a_connection_cut_in_use_is_unavailable_and_the_next_one_works(lrdb: Lrdb) -> None:
    with pytest.raises(LakeDatabaseUnavailable, match="try again"), lrdb.transaction() as conn:
        cut(lrdb, conn)
    assert one(lrdb, "SELECT 1") == 1


def test_connections_cut_while_idle_are_never_lent(lrdb: Lrdb, shared_url: str) -> None:
    one(lrdb, "SELECT 1")
    with psycopg.connect(shared_url, autocommit=True) as conn:
        conn.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
            " WHERE datname = current_database() AND pid <> pg_backend_pid()"
        )
    assert one(lrdb, "SELECT 1") == 1


def test_no_server_is_unavailable_and_the_password_is_not_told(
    shared_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "POOL_TIMEOUT_SECONDS", 0.2)
    nowhere = psycopg.conninfo.make_conninfo(shared_url, port=1, password="hunter2")
    with (
        Lrdb(nowhere) as lost,
        pytest.raises(LakeDatabaseUnavailable, match=r"127\.0\.0\.1:1/") as caught,
        lost.connection(),
    ):
        pass
    assert "hunter2" not in str(caught.value)


def test_a_process_that_stops_in_a_transaction_does_not_keep_its_locks(
    shared_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "IDLE_IN_TRANSACTION_MS", 100)
    with Lrdb(shared_url, max_size=2) as lrdb, pytest.raises(LakeDatabaseUnavailable):
        stop_with_a_lock(lrdb)


def stop_with_a_lock(lrdb: Lrdb) -> None:
    """Hold a lock and do nothing more in this transaction, until another one has got the lock."""
    take = "SELECT pg_advisory_xact_lock(42)"
    with lrdb.transaction() as stopped:
        stopped.execute(take)
        with lrdb.transaction() as other:
            other.execute(take)


def test_nothing_is_planned_for_parameters_to_come(lrdb: Lrdb) -> None:
    """Such a plan would lock every leaf of a segment table, and run out of locks in a lake of years."""
    with lrdb.connection() as conn:
        for number in range(20):
            conn.execute("SELECT count(*) FROM log_seg WHERE dateint = %s", (number,))
        assert conn.execute("SELECT count(*) FROM pg_prepared_statements").fetchone() == (0,)


def test_a_snapshot_sees_one_moment_and_writes_nothing(lrdb: Lrdb) -> None:
    with lrdb.snapshot() as conn:
        before = conn.execute("SELECT count(*) FROM bucket_configurations").fetchone()
        do(lrdb, "INSERT INTO bucket_configurations (bucket_name, cloud_provider) VALUES ('lake', 'file')")
        assert conn.execute("SELECT count(*) FROM bucket_configurations").fetchone() == before
        with pytest.raises(psycopg.errors.ReadOnlySqlTransaction):
            conn.execute("DELETE FROM bucket_configurations")


@pytest.mark.parametrize("text", ["a\0b", "half \ud800 a pair", "x" * 10_000])
def test_hostile_text_can_be_kept(lrdb: Lrdb, text: str) -> None:
    assert one(lrdb, "SELECT %s::text", storable(text)) == storable(text)
