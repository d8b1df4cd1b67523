"""Virtual time for a real PostgreSQL: a database whose ``now()`` is what the simulation says.

What belongs here: the clock. What does not: what happens in its time (``simulation``).
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING

import psycopg

if TYPE_CHECKING:
    from lakerunner_dagster.lake.lrdb.connection import Conn

SCHEMA = """
    CREATE SCHEMA virtual;
    CREATE TABLE virtual.clock (at TIMESTAMPTZ NOT NULL);
    INSERT INTO virtual.clock VALUES (pg_catalog.now());
    CREATE FUNCTION virtual.now() RETURNS TIMESTAMPTZ LANGUAGE SQL STABLE AS 'SELECT at FROM virtual.clock';
    CREATE FUNCTION virtual.clock_timestamp() RETURNS TIMESTAMPTZ LANGUAGE SQL STABLE AS 'SELECT at FROM virtual.clock';
"""
"""Found before PostgreSQL's own, by every query and by every default that is made later."""


def install(url: str) -> None:
    """Give an empty database virtual time; what is migrated into it afterwards lives by it."""
    with psycopg.connect(url, autocommit=True) as conn:
        conn.execute(SCHEMA.encode())
        conn.execute(f"ALTER DATABASE {conn.info.dbname} SET search_path = virtual, pg_catalog, public".encode())


def turn_to(conn: Conn, epoch_ms: int) -> None:
    """It is now that time."""
    conn.execute("UPDATE virtual.clock SET at = %s", (datetime.fromtimestamp(epoch_ms / 1000, UTC),))
