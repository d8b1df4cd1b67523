"""The leaves of the segment tables: one a day and organization, made before anything is inserted into them.

What belongs here: creating them, dropping empty ones, and the locks that they cost. What does not: what is in them
(``segments``), and for how long they are needed (``maintenance.retention``).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple
from uuid import UUID

from psycopg import sql
from psycopg.errors import DeadlockDetected, LockNotAvailable

from lakerunner_dagster.lake.model import date_of
from lakerunner_dagster.lake.signals import SIGNALS, Signal

if TYPE_CHECKING:
    from lakerunner_dagster.lake.lrdb.connection import Conn, Lrdb

DAYS_AT_ONCE = 30
"""Days that one statement names where it looks at many: it locks the leaf of each, and the leaf's indexes, 7 to 9 locks
a day in a table that has room for some thousands."""

ALL_AT_ONCE = 2
"""So many transactions that look at every day there should be room for, besides what else is locked."""

DROP_MS = 500
"""How long a leaf that is to be dropped may keep readers waiting, in ms."""


def ensure_partitions(lrdb: Lrdb, signal: Signal, organization_id: UUID, dateints: Iterable[int]) -> None:
    """Make the day leaves (YYYYMMDD) of an organization that are missing; safe when many do it at once.

    Has transactions of its own and must be called outside any other. ValueError for a dateint that is no day.
    """
    table = SIGNALS[signal].segment_table
    branch = _branch(table, organization_id)
    leaves = {f"{branch}_{date_of(dateint):%Y%m%d}": dateint for dateint in dateints}
    with lrdb.connection() as conn:
        if _existing(conn, leaves) == set(leaves):
            return
    with lrdb.transaction() as conn:
        _lock_branch(conn, branch)  # look again, as the one before may have made the same leaves
        if not _existing(conn, [branch]):
            _create_branch(conn, table, branch, organization_id)
        for leaf in sorted(set(leaves) - _existing(conn, leaves)):
            _create_leaf(conn, branch, leaf, leaves[leaf])


def _lock_branch(conn: Conn, branch: str) -> None:
    """One maker or dropper of leaves at a time for each branch."""
    conn.execute("SELECT pg_advisory_xact_lock(hashtextextended(%s, 0))", (branch,))


def _existing(conn: Conn, names: Iterable[str]) -> set[str]:
    """Those of the names that are partitions."""
    rows = conn.execute(
        "SELECT relname FROM pg_class WHERE relispartition AND relnamespace = current_schema::regnamespace"
        " AND relname = ANY(%s)",
        (list(names),),
    )
    return {name for (name,) in rows}


def _branch(table: str, organization_id: UUID) -> str:
    return f"{table}_{organization_id.hex}"


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


def days(conn: Conn, signal: Signal, organization_id: UUID) -> list[int]:
    """The days (YYYYMMDD) of which an organization has a leaf, in order."""
    rows = conn.execute(
        "SELECT right(c.relname, 8)::int FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid"
        " JOIN pg_class p ON p.oid = i.inhparent AND p.relnamespace = current_schema::regnamespace"
        " WHERE p.relname = %s ORDER BY 1",
        (_branch(SIGNALS[signal].segment_table, organization_id),),
    )
    return [dateint for (dateint,) in rows]


def batches(dateints: Sequence[int]) -> Iterator[list[int]]:
    """The days, ``DAYS_AT_ONCE`` at a time: for statements that name them (``dateint = ANY``), each in a transaction
    of its own. One that names no day, or learns it from a join, locks the leaves of all days.
    """
    for start in range(0, len(dateints), DAYS_AT_ONCE):
        yield list(dateints[start : start + DAYS_AT_ONCE])


class LockRoom(NamedTuple):
    """What one transaction that looks at every day locks (leaves and their indexes), and what the server has room for.

    ``connections`` are those that the server allows: it has room for ``per_transaction`` locks of each.
    """

    needed: int
    per_transaction: int
    connections: int

    @property
    def enough(self) -> bool:
        """Whether there is room for ``ALL_AT_ONCE`` such transactions."""
        return self.per_transaction * self.connections >= ALL_AT_ONCE * self.needed

    @property
    def advised(self) -> int:
        """The power of two to set ``max_locks_per_transaction`` to, with room for as many days again."""
        return 1 << (2 * ALL_AT_ONCE * self.needed // self.connections).bit_length()


def lock_room(conn: Conn) -> LockRoom:
    """How far the days that there are fill PostgreSQL's lock table."""
    row = conn.execute(
        """
        SELECT (SELECT count(*) FROM pg_class WHERE relispartition AND relnamespace = current_schema::regnamespace),
               current_setting('max_locks_per_transaction')::int,
               current_setting('max_connections')::int + current_setting('max_prepared_transactions')::int
        """
    ).fetchone()
    assert row is not None  # noqa: S101  # a SELECT without FROM has one row
    return LockRoom(*row)


def empty_leaves(conn: Conn, signal: Signal, organization_id: UUID, before: int) -> list[int]:
    """The days before ``before`` (YYYYMMDD) of which an organization has a leaf without any row, in order."""
    branch = _branch(SIGNALS[signal].segment_table, organization_id)
    known = days(conn, signal, organization_id)
    return [dateint for dateint in known if dateint < before and _is_empty(conn, f"{branch}_{dateint}")]


def drop_leaf(lrdb: Lrdb, signal: Signal, organization_id: UUID, dateint: int) -> bool:
    """Drop a day's leaf unless it has a row, published or not; False where it has, or somebody is at work on it.

    It waits ``DROP_MS`` for readers at the most: behind it other readers of the organization would wait too. Work that
    has made sure of the leaf and not inserted yet fails, and makes it again when it is tried again.
    """
    branch = _branch(SIGNALS[signal].segment_table, organization_id)
    leaf = f"{branch}_{date_of(dateint):%Y%m%d}"
    with lrdb.connection() as conn:
        try:
            with conn.transaction():
                conn.execute(sql.SQL("SET LOCAL lock_timeout = {}").format(sql.Literal(DROP_MS)))
                _lock_branch(conn, branch)
                if not _existing(conn, [leaf]):
                    return False
                # Whoever reads or writes through the branch holds it; the other leaves need no lock.
                lock = sql.SQL("LOCK TABLE ONLY {}, {} IN ACCESS EXCLUSIVE MODE")
                conn.execute(lock.format(sql.Identifier(branch), sql.Identifier(leaf)))
                if not _is_empty(conn, leaf):
                    return False
                conn.execute(sql.SQL("DROP TABLE {}").format(sql.Identifier(leaf)))
        except (LockNotAvailable, DeadlockDetected):
            return False
    return True


def _is_empty(conn: Conn, leaf: str) -> bool:
    row = conn.execute(sql.SQL("SELECT EXISTS (SELECT FROM {})").format(sql.Identifier(leaf))).fetchone()
    return row is not None and not row[0]
