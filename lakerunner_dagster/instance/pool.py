"""The connections of a Dagster process to Dagster's PostgreSQL: a few are kept, and used again by every storage.

What belongs here: the pool of a process, and what becomes of it in a fork. What does not: what is stored (``storage``).

dagster-postgres opens a connection for each statement, which costs more than nearly every statement does. A connection
of the pool that has died (the server was restarted, or closed it as idle) is found out by a ping before it is handed
out, and replaced: a run never sees it. A ping is one round trip.
"""

from __future__ import annotations

import os
from functools import cache
from typing import TYPE_CHECKING

from dagster_postgres.utils import create_pg_engine
from sqlalchemy import event

if TYPE_CHECKING:
    from sqlalchemy import Engine
    from sqlalchemy.engine.interfaces import DBAPIConnection

IDLE_SECONDS = 300
"""After so long without a statement the server closes a connection: many idle processes hold none."""

RECYCLE_SECONDS = 3600
"""So old, a connection is replaced: the server's process behind it has grown, or is not the one that the name means."""

_engines: list[Engine] = []


@cache
def pooled_engine(url: str, kept: int) -> Engine:
    """The engine of this process, whoever asks, for the database at ``url``; it keeps at most ``kept`` connections.

    Beyond these it opens and closes connections as they are needed, as there would be without a pool: Dagster's code
    asks for a second one while it holds a first, so that with a bound threads would wait for each other.
    """
    engine = create_pg_engine(
        url,
        isolation_level="AUTOCOMMIT",
        pool_size=kept,
        max_overflow=-1,
        pool_pre_ping=True,
        pool_recycle=RECYCLE_SECONDS,
        pool_use_lifo=True,  # what is not needed rests until it is closed
    )
    event.listen(engine, "connect", _close_when_idle)
    _engines.append(engine)
    return engine


def _close_when_idle(connection: DBAPIConnection, _record: object) -> None:
    cursor = connection.cursor()
    cursor.execute(f"SET idle_session_timeout = '{IDLE_SECONDS}s'")
    cursor.close()


def close_connections() -> None:
    """Close those that this process keeps; a storage that is used again opens others."""
    for engine in _engines:
        engine.dispose()


def _forget_the_parents_connections() -> None:
    """Leave them as they are: closing one here would end the parent's session."""
    for engine in _engines:
        engine.dispose(close=False)


os.register_at_fork(after_in_child=_forget_the_parents_connections)
