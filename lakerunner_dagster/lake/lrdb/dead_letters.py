"""What no stage could take: kept until a person has seen to it.

What belongs here: their rows. What does not: why something is a dead letter (adapters and ticks say), the message on
the dead-letter topic, sending one again (``notifications.intake``).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from hashlib import sha256
from typing import TYPE_CHECKING, Any

from psycopg.rows import class_row

from lakerunner_dagster.lake.lrdb.connection import storable

if TYPE_CHECKING:
    from lakerunner_dagster.lake.lrdb.connection import Conn


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """Something that was sent to us. ``topic`` is where it came from or was meant for (without prefix).

    ``body`` is its JSON object (of what is none: how it looked). Its key ``t``, the time of sending, is no part of what
    it is: the same thing sent again is the same letter, seen more ``times``, and waits again if it was replayed.
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


def add(
    conn: Conn, *, topic: str, key: str, reason: str, error_text: str, body: Mapping[str, Any], adapter: str = ""
) -> int:
    """Keep what cannot be taken; its id, which is that of the first time where it was kept before."""
    row = conn.execute(
        """
        INSERT INTO dead_letters AS d (digest, topic, key, reason, error_text, body, adapter)
        VALUES (%s, %s, %s, %s, %s, %s, %s)
        ON CONFLICT (digest) DO UPDATE SET
            times = d.times + 1, last_at = now(), error_text = excluded.error_text, body = excluded.body,
            replayed_at = NULL
        RETURNING dead_letter_id
        """,
        (
            _digest(topic, key, reason, body),
            storable(topic),
            storable(key),
            storable(reason),
            storable(error_text),
            json.dumps(body),
            storable(adapter),
        ),
    ).fetchone()
    assert row is not None  # noqa: S101  # RETURNING of one inserted or updated row
    return int(row[0])


def _digest(topic: str, key: str, reason: str, body: Mapping[str, Any]) -> str:
    letter = {name: value for name, value in body.items() if name != "t"}
    return sha256(json.dumps([topic, key, reason, letter], sort_keys=True).encode()).hexdigest()


_LETTERS = """
    SELECT dead_letter_id, topic, key, reason, error_text, body, adapter, times, first_at, last_at, replayed_at
    FROM dead_letters
"""


def waiting(conn: Conn, limit: int) -> list[DeadLetter]:
    """The dead letters that nobody has replayed, the latest first."""
    with conn.cursor(row_factory=class_row(DeadLetter)) as cursor:
        return cursor.execute(
            f"{_LETTERS} WHERE replayed_at IS NULL ORDER BY dead_letter_id DESC LIMIT %s", (limit,)
        ).fetchall()


def waiting_keys(conn: Conn, topic: str, keys: Sequence[str]) -> set[str]:
    """Those keys of which a dead letter of this topic waits."""
    rows = conn.execute(
        "SELECT DISTINCT key FROM dead_letters WHERE replayed_at IS NULL AND topic = %s AND key = ANY(%s)",
        (topic, [storable(key) for key in keys]),
    )
    return {key for (key,) in rows}


def count_waiting(conn: Conn) -> int:
    """How many dead letters nobody has replayed."""
    row = conn.execute("SELECT count(*) FROM dead_letters WHERE replayed_at IS NULL").fetchone()
    return row[0] if row else 0


def show(conn: Conn, dead_letter_id: int) -> DeadLetter | None:
    """One dead letter."""
    with conn.cursor(row_factory=class_row(DeadLetter)) as cursor:
        return cursor.execute(f"{_LETTERS} WHERE dead_letter_id = %s", (dead_letter_id,)).fetchone()


def mark_replayed(conn: Conn, dead_letter_ids: Sequence[int]) -> None:
    """These were sent again: they do not wait any more."""
    conn.execute("UPDATE dead_letters SET replayed_at = now() WHERE dead_letter_id = ANY(%s)", (list(dead_letter_ids),))
