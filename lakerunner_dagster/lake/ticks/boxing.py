"""Notifications into rows, rows into boxes: what the boxer does with messages, the dispatcher with foreign boxes.

What belongs here: the steps inside their one transaction. What does not: Kafka (``listening``), the plan
(``planning.boxer``), the rows (``lrdb``).
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from uuid import UUID

from lakerunner_dagster.lake.bus import Received
from lakerunner_dagster.lake.errors import InputError
from lakerunner_dagster.lake.lrdb import boxes, dead_letters, intake, outbox, profiles
from lakerunner_dagster.lake.lrdb.connection import Conn, storable
from lakerunner_dagster.lake.lrdb.intake import Notification, Upserted
from lakerunner_dagster.lake.model import Message, Source, day_start_ms, rfc3339
from lakerunner_dagster.lake.notifications.routing import ORGANIZATION
from lakerunner_dagster.lake.planning.boxer import Pending, plan
from lakerunner_dagster.lake.settings import BoxPolicy, Limits
from lakerunner_dagster.lake.signals import DEADLETTER_TOPIC, SIGNALS, Signal

PENDING = 20_000
"""Objects that are planned at once; what waits beyond them is a later transaction's."""

LEGIBLE_BYTES = 16_384
"""Bytes that are kept of a message that is no notification: more than any notification has."""


@dataclass(frozen=True, slots=True)
class Letter:
    """Something that should be a notification: ``body`` as parsed, and the whole message that it came in."""

    body: object
    message: Received


@dataclass(frozen=True, slots=True)
class TakenIn:
    """What became of letters: rows, or as many ``dead`` ones."""

    upserted: Upserted
    dead: int


def opened(conn: Conn, received: Iterable[Received], now_ms: int) -> tuple[list[Letter], int]:
    """The messages with their JSON values; those that have none are dead letters, and counted."""
    letters = []
    dead = 0
    for message in received:
        try:
            letters.append(Letter(json.loads(message.body), message))
        except (ValueError, RecursionError) as error:
            _keep_dead(conn, _illegible(message), InputError("not_json", f"the body is no JSON: {error}"), now_ms)
            dead += 1
    return letters, dead


def take_in(conn: Conn, signal: Signal, letters: Iterable[Letter], limits: Limits, now_ms: int) -> TakenIn:
    """Every notification among the letters has a row afterwards; every other letter is a dead one."""
    buckets = {bucket.bucket_name for bucket in profiles.buckets(conn)}
    notified: list[Notification] = []
    keys: dict[Notification, str] = {}
    illegible: dict[tuple[str, int, int], tuple[Message, InputError]] = {}
    refused: list[tuple[Notification, InputError]] = []
    for letter in letters:
        message = letter.message
        try:
            notification = _dated(Notification.from_body(signal, letter.body), limits, now_ms)
        except InputError as error:
            # Many members of one box may be so: the box is kept once.
            illegible.setdefault((message.topic, message.partition, message.offset), (_illegible(message), error))
            continue
        keys[notification] = message.key
        fault = _fault(notification, buckets)
        if fault is None:
            notified.append(notification)
        else:
            refused.append((notification, fault))
    upserted = intake.upsert_raw_objects(conn, notified)
    refused.extend((notification, _unknown_source(notification)) for notification in upserted.unknown)
    # By its own topic, whatever message it came in: there it can be sent again.
    topic = SIGNALS[signal].notification_topic
    replayable = [(Message(topic, storable(keys[n]), n.body()), error) for n, error in refused]
    for dead, why in [*illegible.values(), *replayable]:
        _keep_dead(conn, dead, why, now_ms)
    return TakenIn(upserted, len(illegible) + len(refused))


def close_boxes(conn: Conn, signal: Signal, policy: BoxPolicy, now_ms: int) -> int:
    """Close the boxes that are full or old enough; how many. One transaction at a time does so for a signal."""
    waiting = intake.pending(conn, signal, PENDING, policy.window_seconds)
    return _close(conn, signal, waiting, policy, now_ms)


def close_partition(conn: Conn, signal: Signal, source: Source, dateint: int, *, policy: BoxPolicy, now_ms: int) -> int:
    """Close boxes of all that waits for a source and day, however young it is; how many."""
    partition = (source.organization_id, source.instance_num, dateint)
    waiting = intake.pending(conn, signal, PENDING, policy.window_seconds)
    return _close(conn, signal, [item for item in waiting if item.group[:3] == partition], at_once(policy), now_ms)


def at_once(policy: BoxPolicy) -> BoxPolicy:
    """The policy, but nothing has to wait for a box to fill."""
    return policy.model_copy(update={"age_seconds": 0.0})


def _close(conn: Conn, signal: Signal, waiting: Sequence[Pending], policy: BoxPolicy, now_ms: int) -> int:
    # Since when an item waits is by lrdb's clock, which may be ahead of ours.
    present_ms = max([now_ms, *(item.waiting_since_ms for item in waiting)])
    return sum(len(boxes.open_boxes(conn, signal, planned, now_ms)) for planned in plan(waiting, policy, present_ms))


def _fault(notification: Notification, buckets: Collection[str]) -> InputError | None:
    """Why an object cannot be taken, though its notification can be read: it would spoil its box, or is another's."""
    if notification.bucket not in buckets:
        return InputError(
            "unknown_bucket", f"no storage profile knows the bucket {notification.bucket!a}: add it, then send it again"
        )
    match notification.key.split("/"):
        case ["otel-raw", named, *_] if ORGANIZATION.fullmatch(named) and UUID(named) != notification.organization_id:
            return InputError(
                "other_organization",
                f"object key {notification.key!a} is not of organization {notification.organization_id}, as its "
                "notification says: correct its sender",
            )
    return None


def _dated(notification: Notification, limits: Limits, now_ms: int) -> Notification:
    """The notification, on a day that is a partition.

    The time of an object only says with which others it is boxed, and what a record without a time falls back to. One
    that the lake cannot have seen (0, or a wrong clock's) is none: then it is the time of being notified.
    """
    first_ms = day_start_ms(int(limits.first_date.strftime("%Y%m%d")))
    plausible = first_ms <= notification.event_time_ms <= now_ms + limits.ahead_ms
    return notification if plausible else replace(notification, event_time_ms=now_ms)


def _unknown_source(notification: Notification) -> InputError:
    return InputError(
        "unknown_source",
        f"{notification.bucket}/{notification.key}: organization {notification.organization_id} has no collector "
        f"{notification.collector or '(unnamed)'} with number {notification.instance_num}: register it, then replay",
    )


def _illegible(message: Received) -> Message:
    """What is kept of a message that may be anything: its beginning, as text."""
    text = message.body[:LEGIBLE_BYTES].decode(errors="backslashreplace")
    return Message(message.topic, storable(message.key), {"text": text})


def _keep_dead(conn: Conn, message: Message, error: InputError, now_ms: int) -> None:
    """Keep what is of no use, for a person to see and to send again: in lrdb, and on the dead-letter topic."""
    dead_letters.add(
        conn,
        topic=message.topic,
        key=message.key,
        reason=error.reason,
        error_text=str(error),
        body=message.body,
    )
    headers = {"topic": message.topic, "reason": error.reason, "time": rfc3339(now_ms)}
    outbox.add(conn, [replace(message, topic=DEADLETTER_TOPIC, headers=headers)])
