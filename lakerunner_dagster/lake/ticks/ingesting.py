"""Notifications of raw objects into rows, rows into boxes: what a tick of an ingest stage does.

What belongs here: the steps inside its one transaction. What does not: Kafka (``listening``), the plan
(``planning.boxer``), the rows (``lrdb``).
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import replace
from uuid import UUID

from lakerunner_dagster.lake.errors import InputError
from lakerunner_dagster.lake.lrdb import boxes, intake, profiles
from lakerunner_dagster.lake.lrdb.connection import Conn, storable
from lakerunner_dagster.lake.lrdb.intake import Notification
from lakerunner_dagster.lake.model import HOUR_MS, Message, Source, dateint_of, day_start_ms
from lakerunner_dagster.lake.notifications.routing import ORGANIZATION
from lakerunner_dagster.lake.planning.boxer import Pending, next_ms, plan
from lakerunner_dagster.lake.runs.context import Lake
from lakerunner_dagster.lake.settings import BoxPolicy, Limits
from lakerunner_dagster.lake.signals import SIGNALS, Signal
from lakerunner_dagster.lake.ticks.closing import Closed
from lakerunner_dagster.lake.ticks.letters import Illegible, Letter, TakenIn, keep_dead

PENDING = 20_000
"""Objects that are planned at once; what waits beyond them is a later transaction's."""


class IngestBoxing:
    """How raw objects of a signal are taken in and boxed."""

    def __init__(self, lake: Lake, signal: Signal) -> None:
        self._lake = lake
        self._signal = signal

    def take_in(self, conn: Conn, letters: Iterable[Letter], now_ms: int) -> TakenIn:
        """Every notification among the letters has a row afterwards; every other letter is a dead one."""
        return take_in(conn, self._signal, letters, self._lake.limits, now_ms)

    def close_boxes(self, conn: Conn, now_ms: int, *, at_once: bool = False) -> Closed:
        """Close the boxes that are full or old enough, or all of them ``at_once``."""
        policy = without_age(self._lake.policy) if at_once else self._lake.policy
        waiting = intake.pending(conn, self._signal, PENDING, policy.window_seconds)
        return _close(conn, self._signal, waiting, policy, now_ms)


def take_in(conn: Conn, signal: Signal, letters: Iterable[Letter], limits: Limits, now_ms: int) -> TakenIn:
    """Every notification among the letters has a row afterwards; every other letter is a dead one."""
    buckets = {bucket.bucket_name for bucket in profiles.buckets(conn)}
    notified: list[Notification] = []
    keys: dict[Notification, str] = {}
    unread = Illegible()
    refused: list[tuple[Notification, InputError]] = []
    for letter in letters:
        try:
            notification = _dated(Notification.from_body(signal, letter.body), limits, now_ms)
        except InputError as error:
            unread.add(letter.message, error)
            continue
        keys[notification] = letter.message.key
        fault = _fault(notification, buckets)
        if fault is None:
            notified.append(notification)
        else:
            refused.append((notification, fault))
    upserted = intake.upsert_raw_objects(conn, notified)
    refused.extend((notification, _unknown_source(notification)) for notification in upserted.unknown)
    # By its own topic, whatever message it came in: there it can be sent again.
    topic = SIGNALS[signal].notification_topic
    for notification, why in refused:
        keep_dead(conn, Message(topic, storable(keys[notification]), notification.body()), why, now_ms)
    return TakenIn(
        new=upserted.new,
        known=upserted.duplicates + upserted.reopened,
        dead=unread.keep(conn, now_ms) + len(refused),
        observed=upserted.observed,
    )


def close_partition(conn: Conn, signal: Signal, source: Source, dateint: int, *, policy: BoxPolicy, now_ms: int) -> int:
    """Close boxes of all that waits for a source and day, however young it is; how many."""
    partition = (source.organization_id, source.instance_num, dateint)
    waiting = intake.pending(conn, signal, PENDING, policy.window_seconds)
    of_it = [item for item in waiting if item.group[:3] == partition]
    return _close(conn, signal, of_it, without_age(policy), now_ms).boxes


def without_age(policy: BoxPolicy) -> BoxPolicy:
    """The policy, but nothing has to wait for a box to fill."""
    return policy.model_copy(update={"age_seconds": 0.0})


def _close(conn: Conn, signal: Signal, waiting: Sequence[Pending], policy: BoxPolicy, now_ms: int) -> Closed:
    # Since when an item waits is by lrdb's clock, which may be ahead of ours.
    present_ms = max([now_ms, *(item.waiting_since_ms for item in waiting)])
    planned = plan(waiting, policy, present_ms)
    opened = sum(len(boxes.open_boxes(conn, signal, box, now_ms)) for box in planned)
    boxed = {item_id for box in planned for item_id in box.item_ids}
    rest = [item for item in waiting if item.item_id not in boxed]
    return Closed(opened, now_ms if len(waiting) == PENDING else next_ms(rest, policy))


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
    that the lake cannot have seen (0, or a wrong clock's) is none: then it is the time of being notified. One of a
    clock that is a little ahead of midnight is still today's, whose boxes need not wait for it.
    """
    first_ms = day_start_ms(int(limits.first_date.strftime("%Y%m%d")))
    plausible = first_ms <= notification.event_time_ms <= now_ms + limits.ahead_ms
    today_ends_ms = day_start_ms(dateint_of(now_ms)) + 24 * HOUR_MS - 1
    return replace(notification, event_time_ms=min(notification.event_time_ms, today_ends_ms) if plausible else now_ms)


def _unknown_source(notification: Notification) -> InputError:
    return InputError(
        "unknown_source",
        f"{notification.bucket}/{notification.key}: organization {notification.organization_id} has no collector "
        f"{notification.collector or '(unnamed)'} with number {notification.instance_num}: register it, then replay",
    )
