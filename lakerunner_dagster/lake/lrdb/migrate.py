"""Brings lrdb's schema up to date: the plain SQL files of ``migrations/``, in order, each exactly once.

What belongs here: running them. What does not: what they say; day partitions of the segment tables (``partitions``).
"""

from __future__ import annotations

from pathlib import Path

import psycopg
from psycopg.conninfo import conninfo_to_dict
from yoyo import read_migrations
from yoyo.backends.core.postgresql import PostgresqlPsycopgBackend
from yoyo.connections import DatabaseURI

from lakerunner_dagster.lake.errors import LakeDatabaseUnavailable

MIGRATIONS = Path(__file__).parent / "migrations"

LOCK = 0x6C72_6462_6D69_6772
"""The advisory lock of migrations: "lrdbmigr"."""


def migrate(url: str) -> list[str]:
    """Apply what is not applied yet; the names of what was. Safe at once in many processes, and to be killed.

    LakeDatabaseUnavailable where the server is. An error of a migration itself is PostgreSQL's, and leaves nothing of
    that migration behind.
    """
    try:
        with psycopg.connect(url, autocommit=True, application_name="lakerunner-migrate") as guard:
            guard.execute("SELECT pg_advisory_lock(%s)", (LOCK,))
            return _apply_all(url)
    except psycopg.OperationalError as error:
        raise LakeDatabaseUnavailable(f"lrdb cannot be migrated: {error}; start PostgreSQL, then try again") from error


def pending_migrations(url: str) -> list[str]:
    """The names of the migrations that are not applied yet. It changes nothing."""
    migrations = read_migrations(str(MIGRATIONS))
    try:
        with _backend(url) as backend:
            # In a database that was never migrated the library would wait for a lock in a table that is not there.
            known = backend.migration_table in backend.list_tables()
            return [migration.id for migration in (backend.to_apply(migrations) if known else migrations)]
    except psycopg.OperationalError as error:
        raise LakeDatabaseUnavailable(f"lrdb's schema cannot be read: {error}; start PostgreSQL first") from error


def _backend(url: str) -> PostgresqlPsycopgBackend:
    # libpq reads the connection string, so that whatever connects elsewhere connects here.
    parameters = conninfo_to_dict(url)
    place = DatabaseURI("postgresql+psycopg", None, None, None, None, parameters.pop("dbname", None), parameters)
    return PostgresqlPsycopgBackend(place, "lrdb_migrations")


def _apply_all(url: str) -> list[str]:
    with _backend(url) as backend:
        backend.init_database()
        backend.break_lock()  # under our lock nobody else is at work: a row of the library's lock is a dead one's
        migrations = backend.to_apply(read_migrations(str(MIGRATIONS)))
        for migration in migrations:
            # One transaction for the migration and the note that it is done, which the library's own loop splits.
            with backend.transaction():
                migration.process_steps(backend, "apply")
                backend.mark_one(migration, log=False)
        return [migration.id for migration in migrations]
