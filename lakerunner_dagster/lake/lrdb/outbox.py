"""Messages that committed transactions have left for Kafka.

What belongs here: their rows. What does not: what they say, sending them (``ticks.outbox``).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lakerunner_dagster.lake.model import Message

if TYPE_CHECKING:
    from lakerunner_dagster.lake.lrdb.connection import Conn


@dataclass(frozen=True, slots=True)
class OutboxItem:
    """A message and its place in the outbox."""

    outbox_id: int
    message: Message


def add(conn: Conn, messages: Iterable[Message]) -> None:
    """Leave messages, to be sent once the transaction has committed."""
    rows = [(m.topic, m.key, json.dumps(m.body), json.dumps(m.headers)) for m in messages]
    with conn.cursor() as cursor:
        cursor.executemany("INSERT INTO outbox (topic, key, body, headers) VALUES (%s, %s, %s, %s)", rows)


def take(conn: Conn, limit: int) -> list[OutboxItem]:
    """The oldest messages that nobody else has taken, locked until the transaction ends; at most ``limit``."""
    rows = conn.execute(
        "SELECT outbox_id, topic, key, body, headers FROM outbox ORDER BY outbox_id LIMIT %s FOR UPDATE SKIP LOCKED",
        (limit,),
    )
    return [OutboxItem(outbox_id, Message(topic, key, body, headers)) for outbox_id, topic, key, body, headers in rows]


def count(conn: Conn) -> int:
    """How many messages Kafka has not acknowledged yet."""
    row = conn.execute("SELECT count(*) FROM outbox").fetchone()
    return row[0] if row else 0


def delete(conn: Conn, outbox_ids: Sequence[int]) -> None:
    """Forget messages that Kafka has acknowledged."""
    conn.execute("DELETE FROM outbox WHERE outbox_id = ANY(%s)", (list(outbox_ids),))
