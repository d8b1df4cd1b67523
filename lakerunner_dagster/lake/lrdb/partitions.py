"""The leaves of the segment tables: one a day and organization, made before anything is inserted into them.

What belongs here: creating them. What does not: what is in them (``segments``), dropping them (retention).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING
from uuid import UUID

from psycopg import sql

from lakerunner_dagster.lake.model import date_of
from lakerunner_dagster.lake.signals import SIGNALS, Signal

if TYPE_CHECKING:
    from lakerunner_dagster.lake.lrdb.connection import Conn, Lrdb


def ensure_partitions(lrdb: Lrdb, signal: Signal, organization_id: UUID, dateints: Iterable[int]) -> None:
    """Make the day leaves (YYYYMMDD) of an organization that are missing; safe when many do it at once.

    Has transactions of its own and must be called outside any other. ValueError for a dateint that is no day.
    """
    table = SIGNALS[signal].segment_table
    branch = f"{table}_{organization_id.hex}"
    leaves = {f"{branch}_{date_of(dateint):%Y%m%d}": dateint for dateint in dateints}
    with lrdb.connection() as conn:
        if _existing(conn, leaves) == set(leaves):
            return
    with lrdb.transaction() as conn:
        # One maker at a time for each branch; look again, as the one before may have made the same leaves.
        conn.execute("SELECT pg_advisory_xact_lock(hashtextextended(%s, 0))", (branch,))
        if not _existing(conn, [branch]):
            _create_branch(conn, table, branch, organization_id)
        for leaf in sorted(set(leaves) - _existing(conn, leaves)):
            _create_leaf(conn, branch, leaf, leaves[leaf])


def _existing(conn: Conn, names: Iterable[str]) -> set[str]:
    """Those of the names that are partitions."""
    rows = conn.execute(
        "SELECT relname FROM pg_class WHERE relispartition AND relnamespace = current_schema::regnamespace"
        " AND relname = ANY(%s)",
        (list(names),),
    )
    return {name for (name,) in rows}


# Made apart and then attached: CREATE TABLE ... PARTITION OF locks out all readers of the parent, of every tenant.


def _create_branch(conn: Conn, table: str, branch: str, organization_id: UUID) -> None:
    names = {"parent": sql.Identifier(table), "branch": sql.Identifier(branch)}
    conn.execute(
        sql.SQL("CREATE TABLE {branch} (LIKE {parent} INCLUDING ALL) PARTITION BY RANGE (dateint)").format(**names)
    )
    conn.execute(
        sql.SQL("ALTER TABLE {parent} ATTACH PARTITION {branch} FOR VALUES IN ({organization})").format(
            **names, organization=sql.Literal(str(organization_id))
        )
    )


def _create_leaf(conn: Conn, branch: str, leaf: str, dateint: int) -> None:
    names = {"branch": sql.Identifier(branch), "leaf": sql.Identifier(leaf)}
    conn.execute(sql.SQL("CREATE TABLE {leaf} (LIKE {branch} INCLUDING ALL)").format(**names))
    conn.execute(
        sql.SQL("ALTER TABLE {branch} ATTACH PARTITION {leaf} FOR VALUES FROM ({day}) TO ({after})").format(
            **names, day=sql.Literal(dateint), after=sql.Literal(dateint + 1)
        )
    )
