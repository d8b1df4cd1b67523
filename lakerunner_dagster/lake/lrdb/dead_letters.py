"""What no stage could take: kept until a person has seen to it.

What belongs here: their rows. What does not: why something is a dead letter (adapters and ticks say), the message on
the dead-letter topic, sending one again (``notifications.replay``).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from hashlib import sha256
from typing import TYPE_CHECKING, Any

from psycopg import sql
from psycopg.rows import class_row

from lakerunner_dagster.lake.errors import RequestRefused
from lakerunner_dagster.lake.lrdb.connection import storable

if TYPE_CHECKING:
    from lakerunner_dagster.lake.lrdb.connection import Conn


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """Something that was sent to us. ``topic`` is where it came from or was meant for (without prefix).

    ``body`` is its JSON object (of what is none: how it looked). Its key ``t``, the time of sending, is no part of what
    it is: the same thing sent again is the same letter, seen more ``times``, and waits again if it was replayed. One
    that a person has discarded stays so.
    """

    dead_letter_id: int
    topic: str
    key: str
    reason: str
    error_text: str
    body: Mapping[str, Any]
    adapter: str
    times: int
    first_at: datetime
    last_at: datetime
    replayed_at: datetime | None
    discarded_at: datetime | None
    discarded_by: str | None
    discarded_because: str | None


@dataclass(frozen=True, slots=True)
class NewLetter:
    """Something that cannot be taken, as it came."""

    topic: str
    key: str
    reason: str
    error_text: str
    body: Mapping[str, Any]
    adapter: str = ""


def add(conn: Conn, letters: Iterable[NewLetter]) -> None:
    """Keep what cannot be taken; what was kept before is counted once more."""
    rows = [
        (
            _digest(letter),
            storable(letter.topic),
            storable(letter.key),
            storable(letter.reason),
            storable(letter.error_text),
            json.dumps(letter.body),
            storable(letter.adapter),
        )
        for letter in letters
    ]
    with conn.cursor() as cursor:
        cursor.executemany(
            """
            INSERT INTO dead_letters AS d (digest, topic, key, reason, error_text, body, adapter)
            VALUES (%s, %s, %s, %s, %s, %s, %s)
            ON CONFLICT (digest) DO UPDATE SET
                times = d.times + 1, last_at = now(), error_text = excluded.error_text, body = excluded.body,
                replayed_at = NULL
            """,
            # In one order everywhere, so that two that keep the same letters wait for each other and not in a circle.
            sorted(rows),
        )


def _digest(letter: NewLetter) -> str:
    body = {name: value for name, value in letter.body.items() if name != "t"}
    return sha256(json.dumps([letter.topic, letter.key, letter.reason, body], sort_keys=True).encode()).hexdigest()


_LETTERS = sql.SQL("""
    SELECT dead_letter_id, topic, key, reason, error_text, body, adapter, times, first_at, last_at, replayed_at,
        discarded_at, discarded_by, discarded_because
    FROM dead_letters
""")

_WAITS = sql.SQL("replayed_at IS NULL AND discarded_at IS NULL")


def waiting(conn: Conn, limit: int, *, reason: str | None = None) -> list[DeadLetter]:
    """The dead letters (of a reason) that nobody has replayed or discarded, the latest first."""
    return _found(conn, sql.SQL("{} AND {}").format(_WAITS, _of(reason)), sql.SQL("DESC"), limit)


def kept(conn: Conn, limit: int, *, reason: str | None = None) -> list[DeadLetter]:
    """The same with those that were replayed or discarded."""
    return _found(conn, _of(reason), sql.SQL("DESC"), limit)


def waiting_between(conn: Conn, after: int, last: int, limit: int, *, reason: str | None = None) -> list[DeadLetter]:
    """The first of the waiting ones with ids greater than ``after``, up to ``last``, in their order."""
    condition = sql.SQL("{} AND dead_letter_id > {} AND dead_letter_id <= {} AND {}").format(
        _WAITS, sql.Literal(after), sql.Literal(last), _of(reason)
    )
    return _found(conn, condition, sql.SQL("ASC"), limit)


def last_id(conn: Conn) -> int:
    """The greatest id that there is; 0 where there is none."""
    row = conn.execute("SELECT coalesce(max(dead_letter_id), 0) FROM dead_letters").fetchone()
    return row[0] if row else 0


def _of(reason: str | None) -> sql.Composable:
    return sql.SQL("true") if reason is None else sql.SQL("reason = {}").format(sql.Literal(storable(reason)))


def _found(conn: Conn, condition: sql.Composable, order: sql.SQL, limit: int) -> list[DeadLetter]:
    query = sql.SQL("{letters} WHERE {condition} ORDER BY dead_letter_id {order} LIMIT %s")
    with conn.cursor(row_factory=class_row(DeadLetter)) as cursor:
        return cursor.execute(query.format(letters=_LETTERS, condition=condition, order=order), (limit,)).fetchall()


def known_keys(conn: Conn, topic: str, keys: Sequence[str]) -> set[str]:
    """Those keys of which a dead letter of this topic waits, or was discarded: a person knows of them."""
    rows = conn.execute(
        "SELECT DISTINCT key FROM dead_letters "
        "WHERE (replayed_at IS NULL OR discarded_at IS NOT NULL) AND topic = %s AND key = ANY(%s)",
        (topic, [storable(key) for key in keys]),
    )
    return {key for (key,) in rows}


def count_waiting(conn: Conn) -> dict[str, int]:
    """How many dead letters wait, by reason, the most frequent first."""
    query = sql.SQL("SELECT reason, count(*) FROM dead_letters WHERE {} GROUP BY 1 ORDER BY 2 DESC, 1")
    return dict(conn.execute(query.format(_WAITS)))


def show(conn: Conn, dead_letter_id: int) -> DeadLetter:
    """One dead letter; RequestRefused when there is none of that id."""
    found = _found(conn, sql.SQL("dead_letter_id = {}").format(sql.Literal(dead_letter_id)), sql.SQL("ASC"), 1)
    if not found:
        raise RequestRefused(
            f"there is no dead letter {dead_letter_id}: `lakerunner deadletter list --all` shows those that there are"
        )
    return found[0]


def mark_replayed(conn: Conn, letters: Sequence[DeadLetter]) -> None:
    """These were sent again: they do not wait any more, but for those that came back since they were read."""
    conn.execute(
        """
        UPDATE dead_letters d SET replayed_at = now()
        FROM unnest(%s::bigint[], %s::int[]) AS n (dead_letter_id, times)
        WHERE d.dead_letter_id = n.dead_letter_id AND d.times = n.times
        """,
        ([letter.dead_letter_id for letter in letters], [letter.times for letter in letters]),
    )


def discard(
    conn: Conn, by: str, because: str, *, ids: Sequence[int] | None = None, reason: str | None = None
) -> dict[str, int]:
    """Letters that wait (those of the ids, of the reason, or all) wait no more; how many, by reason.

    The rows stay, and say who has done it, when and why.
    """
    chosen = sql.SQL("true") if ids is None else sql.SQL("dead_letter_id = ANY({})").format(sql.Literal(list(ids)))
    query = sql.SQL("""
        WITH discarded AS (
            UPDATE dead_letters SET discarded_at = now(), discarded_by = %s, discarded_because = %s
            WHERE {waits} AND {chosen} AND {of_reason} RETURNING reason
        )
        SELECT reason, count(*) FROM discarded GROUP BY 1 ORDER BY 2 DESC, 1
    """).format(waits=_WAITS, chosen=chosen, of_reason=_of(reason))
    return dict(conn.execute(query, (storable(by), storable(because))))
