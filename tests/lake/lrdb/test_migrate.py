"""Migrations: once, whoever runs them, and whole or not at all."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psycopg
import pytest

from lakerunner_dagster.lake.errors import LakeDatabaseUnavailable
from lakerunner_dagster.lake.lrdb import migrate as migrations
from lakerunner_dagster.lake.lrdb.migrate import migrate
from tests.conftest import TestDatabases

ALL = [path.stem for path in sorted(migrations.MIGRATIONS.glob("*.sql"))]


@pytest.fixture
def empty_url(postgres: TestDatabases) -> str:
    return postgres.create_database()


def test_running_twice_changes_nothing(empty_url: str) -> None:
    assert migrate(empty_url) == ALL
    assert migrate(empty_url) == []


def test_many_processes_at_once_apply_each_migration_once(empty_url: str) -> None:
    with ThreadPoolExecutor(6) as pool:
        applied = [name for names in pool.map(migrate, [empty_url] * 6) for name in names]
    assert sorted(applied) == ALL


def test_a_migrator_killed_with_the_librarys_lock_held_does_not_block_the_next(empty_url: str) -> None:
    with psycopg.connect(empty_url, autocommit=True) as conn:
        conn.execute("CREATE TABLE yoyo_lock (locked INT PRIMARY KEY, ctime TIMESTAMP, pid INT NOT NULL)")
        conn.execute("INSERT INTO yoyo_lock (locked, ctime, pid) VALUES (1, now(), 1)")
    assert migrate(empty_url) == ALL


def test_a_migration_that_fails_halfway_leaves_nothing_and_can_be_mended(
    empty_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "0001.good.sql").write_text("CREATE TABLE good (id INT);")
    bad = tmp_path / "0002.bad.sql"
    bad.write_text("-- depends: 0001.good\nCREATE TABLE half (id INT);\nSELECT 1/0;")
    monkeypatch.setattr(migrations, "MIGRATIONS", tmp_path)
    with pytest.raises(psycopg.errors.DivisionByZero):
        migrate(empty_url)
    with psycopg.connect(empty_url) as conn:
        assert conn.execute("SELECT to_regclass('good')::text, to_regclass('half')::text").fetchone() == ("good", None)
    bad.write_text("-- depends: 0001.good\nCREATE TABLE half (id INT);")
    assert migrate(empty_url) == ["0002.bad"]


def test_no_server_is_an_error_that_says_so(empty_url: str) -> None:
    nowhere = psycopg.conninfo.make_conninfo(empty_url, port=1, connect_timeout=2)
    with pytest.raises(LakeDatabaseUnavailable, match="start PostgreSQL"):
        migrate(nowhere)
