"""An empty lrdb for each test, and one organization with one source in it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
from psycopg import sql

from lakerunner_dagster.lake.lrdb import migrate as migrations
from lakerunner_dagster.lake.lrdb.connection import Lrdb
from lakerunner_dagster.lake.model import Source
from tests.conftest import TestDatabases
from tests.lake.lrdb.work import add_source

FILLED = (
    "unsettled_hours",
    "dirty_slots",
    "raw_objects",
    "boxes",
    "box_totals",
    "compression_ratios",
    "lineage",
    "ledger",
    "supersessions",
    "deletions",
    "segment_faults",
    "log_seg",
    "metric_seg",
    "trace_seg",
    "outbox",
    "consumed_offsets",
    "dead_letters",
    "bucket_prefix_mappings",
    "retentions",
    "organization_buckets",
    "bucket_configurations",
    "organizations",
)
"""Every table, so that what refers to another comes before it."""


@pytest.fixture(scope="session")
def shared_url(postgres: TestDatabases, migrated_template: str) -> str:
    """URL of the one database that tests use in turn: emptying it costs a hundredth of copying a template."""
    return postgres.create_database(template=migrated_template)


def disconnect(url: str) -> None:
    """End the sessions that a test before has left behind, and the locks that they hold."""
    with psycopg.connect(url, autocommit=True) as conn:
        conn.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
            " WHERE datname = current_database() AND pid <> pg_backend_pid() AND backend_type = 'client backend'"
        )


def empty(url: str) -> None:
    """Take everything out of a database that earlier tests have put in.

    Day leaves stay: organizations of one name have one id in all tests, so that leaves are made once for all.
    """
    with psycopg.connect(url, autocommit=True) as conn:
        for table in FILLED:
            conn.execute(sql.SQL("DELETE FROM {}").format(sql.Identifier(table)))


@pytest.fixture
def lrdb(shared_url: str) -> Iterator[Lrdb]:
    """An open Lrdb with nothing in it."""
    disconnect(shared_url)
    empty(shared_url)
    with Lrdb(shared_url, min_size=1, max_size=12) as lrdb:
        yield lrdb


@pytest.fixture
def before_history(postgres: TestDatabases, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """URL of a database to which only the migrations before ``0008.history`` were applied."""
    url = postgres.create_database()
    for path in sorted(migrations.MIGRATIONS.glob("000[1-7].*.sql")):
        (tmp_path / path.name).write_text(path.read_text())
    with monkeypatch.context() as patched:
        patched.setattr(migrations, "MIGRATIONS", tmp_path)
        migrations.migrate(url)
    yield url
    postgres.server.drop_database(url.rpartition("/")[2])


@pytest.fixture
def edge(lrdb: Lrdb) -> Source:
    """The collector ``edge`` of the organization ``acme``."""
    return add_source(lrdb, "acme", "edge")
