"""What a stage hears: messages that should be something, and what is kept of those that are not.

What belongs here: opening messages, and dead letters. What does not: what a stage makes of letters (``ingesting``,
``compacting``), Kafka (``listening``).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

from lakerunner_dagster.lake.bus import Received
from lakerunner_dagster.lake.errors import InputError
from lakerunner_dagster.lake.lrdb import dead_letters, outbox
from lakerunner_dagster.lake.lrdb.connection import Conn, storable
from lakerunner_dagster.lake.lrdb.intake import Observed
from lakerunner_dagster.lake.model import Message, Source, rfc3339
from lakerunner_dagster.lake.signals import DEADLETTER_TOPIC

LEGIBLE_BYTES = 16_384
"""Bytes that are kept of a message that is no notification: more than any notification has."""

BOX_IDS = 2**63
"""Ids of boxes are less: what is not cannot be asked for."""


@dataclass(frozen=True, slots=True)
class Letter:
    """Something that should be a notification: ``body`` as parsed, and the whole message that it came in."""

    body: object
    message: Received

    @property
    def box_id(self) -> int | None:
        """The number of our box that it is about; None where it is about another system's, or about none."""
        box_id = self.body.get("box") if isinstance(self.body, dict) else None
        return box_id if isinstance(box_id, int) and not isinstance(box_id, bool) and 0 < box_id < BOX_IDS else None

    @property
    def members(self) -> list[Letter]:
        """The notifications in a box's message; where there are none, the whole, to be kept as what it is not."""
        members = self.body.get("m") if isinstance(self.body, dict) else None
        return [replace(self, body=member) for member in members] if isinstance(members, list) else [self]


@dataclass(frozen=True, slots=True)
class TakenIn:
    """What became of letters: work that is new, or was known already, and ``dead`` ones.

    ``observed`` counts new raw objects by (source, dateint of their event time); only ingest stages see any.
    """

    new: int
    known: int
    dead: int
    observed: Mapping[tuple[Source, int], Observed] = field(default_factory=dict)


def opened(conn: Conn, received: Iterable[Received], now_ms: int) -> tuple[list[Letter], int]:
    """The messages with their JSON values; those that have none are dead letters, and counted."""
    letters = []
    dead = 0
    for message in received:
        try:
            letters.append(Letter(json.loads(message.body), message))
        except (ValueError, RecursionError) as error:
            keep_dead(conn, illegible(message), InputError("not_json", f"the body is no JSON: {error}"), now_ms)
            dead += 1
    return letters, dead


class Illegible:
    """Letters that are no notification. Many members of one box may be so: its message is kept once."""

    def __init__(self) -> None:
        self._kept: dict[tuple[str, int, int], tuple[Message, InputError]] = {}

    def add(self, message: Received, error: InputError) -> None:
        """Keep the message that a letter came in."""
        self._kept.setdefault((message.topic, message.partition, message.offset), (illegible(message), error))

    def keep(self, conn: Conn, now_ms: int) -> int:
        """Make dead letters of them; how many."""
        for dead, why in self._kept.values():
            keep_dead(conn, dead, why, now_ms)
        return len(self._kept)


def illegible(message: Received) -> Message:
    """What is kept of a message that may be anything: its beginning, as text."""
    text = message.body[:LEGIBLE_BYTES].decode(errors="backslashreplace")
    return Message(message.topic, storable(message.key), {"text": text})


def keep_dead(conn: Conn, message: Message, error: InputError, now_ms: int) -> None:
    """Keep what is of no use, for a person to see and to send again: in lrdb, and on the dead-letter topic."""
    letter = dead_letters.NewLetter(message.topic, message.key, error.reason, str(error), message.body)
    dead_letters.add(conn, [letter])
    headers = {"topic": message.topic, "reason": error.reason, "time": rfc3339(now_ms)}
    outbox.add(conn, [replace(message, topic=DEADLETTER_TOPIC, headers=headers)])
