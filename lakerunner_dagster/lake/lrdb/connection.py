"""A pool of connections to lrdb, and the one place where a lost server becomes an error of the lake.

What belongs here: opening, lending and closing connections; text that PostgreSQL can hold. What does not: any query.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from types import TracebackType
from typing import Any, Self, TypeAlias

import psycopg
from psycopg import Connection
from psycopg.conninfo import conninfo_to_dict
from psycopg_pool import ConnectionPool

from lakerunner_dagster.lake.errors import LakeDatabaseUnavailable

Conn: TypeAlias = Connection[tuple[Any, ...]]
"""A connection as every function of this package takes it; who calls owns its transaction."""

POOL_TIMEOUT_SECONDS = 10.0
"""How long a caller waits for a free or a working connection."""

IDLE_IN_TRANSACTION_MS = 120_000
"""How long a process that has stopped, or is cut off, in the middle of a transaction keeps its locks."""

ERROR_TEXT_LENGTH = 4000
"""Characters of an error that are kept."""


class Lrdb:
    """The database of the lake. Threads may share it; a forked process opens its own (the pool has threads).

    ``url`` is any libpq connection string. ``max_size`` bounds the connections of this process; a caller waits 10 s
    for one, then gets LakeDatabaseUnavailable, as with every loss of the server inside the contexts below.
    """

    def __init__(self, url: str, *, min_size: int = 1, max_size: int = 4) -> None:
        self._pool: ConnectionPool[Conn] = ConnectionPool(
            url,
            min_size=min_size,
            max_size=max_size,
            open=False,
            timeout=POOL_TIMEOUT_SECONDS,
            # Plans made for any parameters would lock every leaf of a segment table: nothing is prepared for later.
            kwargs={"autocommit": True, "application_name": "lakerunner", "prepare_threshold": None},
            configure=_configure,
            # A server that was restarted has cut idle connections: none of them may be lent.
            check=ConnectionPool.check_connection,
            name="lrdb",
        )
        self._pool.open()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @contextmanager
    def connection(self) -> Iterator[Conn]:
        """A connection in which every statement commits by itself: for single reads."""
        try:
            with self._pool.connection() as conn:
                yield conn
        except (psycopg.OperationalError, psycopg.errors.IdleInTransactionSessionTimeout) as error:
            raise LakeDatabaseUnavailable(f"lrdb ({self._place()}) did not answer: {error}; try again") from error

    @contextmanager
    def transaction(self) -> Iterator[Conn]:
        """A connection in one transaction, READ COMMITTED: committed at the end, rolled back by any exception."""
        with self.connection() as conn, conn.transaction():
            yield conn

    @contextmanager
    def snapshot(self) -> Iterator[Conn]:
        """A connection in one read-only transaction that sees lrdb as it was when it began."""
        with self.transaction() as conn:
            conn.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY")
            yield conn

    def clock(self) -> datetime:
        """What lrdb's clock says: times that transactions of different processes compare are read from it alone."""
        with self.connection() as conn:
            row = conn.execute("SELECT clock_timestamp()").fetchone()
        assert row is not None  # noqa: S101  # a SELECT without FROM has one row
        return row[0]  # type: ignore[no-any-return]

    def close(self) -> None:
        """Close every connection; the object cannot be used any more."""
        self._pool.close()

    def _place(self) -> str:
        parameters = conninfo_to_dict(str(self._pool.conninfo))
        return f"{parameters.get('host', 'local')}:{parameters.get('port', 5432)}/{parameters.get('dbname', '')}"


def _configure(conn: Conn) -> None:
    conn.execute("SET TIME ZONE 'UTC'")
    conn.execute(f"SET idle_in_transaction_session_timeout = {IDLE_IN_TRANSACTION_MS}")


def storable(text: str) -> str:
    """Text that PostgreSQL takes: hostile names may hold NUL or halves of surrogate pairs, and errors quote them."""
    return text.encode("utf-8", "replace").decode().replace("\0", "\N{REPLACEMENT CHARACTER}")[:ERROR_TEXT_LENGTH]
