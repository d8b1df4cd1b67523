"""Real servers for the tests: started once in a session when a test first asks, stopped at its end."""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from lakerunner_dagster.local.postgres import PostgresServer


class TestDatabases:
    """A PostgreSQL server that hands out databases of their own."""

    __test__ = False

    def __init__(self, server: PostgresServer) -> None:
        self.server = server
        self._numbers = itertools.count(1)

    def create_database(self, *, template: str = "template1") -> str:
        """URL (``postgresql://…``) of a new database: empty, or a copy of ``template``."""
        return self.server.create_database(f"test_{next(self._numbers)}", template=template)


@pytest.fixture(scope="session")
def postgres() -> Iterator[TestDatabases]:
    """A throw-away PostgreSQL (fsync off); ``postgres.create_database()`` gives the URL of a new empty database."""
    with tempfile.TemporaryDirectory(prefix="lakerunner-test-") as directory:
        Path(directory).chmod(0o711)  # root's server runs as another user, who must get through
        server = PostgresServer(Path(directory) / "postgres", durable=False)
        server.start()
        try:
            yield TestDatabases(server)
        finally:
            server.stop()


@pytest.fixture(scope="session")
def migrated_template(postgres: TestDatabases) -> str:
    """Name of a database with lrdb's schema and nothing in it, to be copied."""
    from lakerunner_dagster.lake.lrdb.migrate import migrate  # noqa: PLC0415  # none is loaded in tests without lrdb

    name = "migrated_template"
    migrate(postgres.server.create_database(name))
    return name


@pytest.fixture
def lrdb_url(postgres: TestDatabases, migrated_template: str) -> Iterator[str]:
    """URL of a database of the test's own, with lrdb's schema and nothing in it."""
    url = postgres.create_database(template=migrated_template)
    yield url
    postgres.server.drop_database(url.rpartition("/")[2])
