"""Dead letters sent again: those whose cause is gone are passed on, the others stay as they are.

What belongs here: what a letter was, and whether it leads anywhere now. What does not: the way into the lake
(``intake``), the letters' rows (``lrdb.dead_letters``).

A batch is marked once Kafka has acknowledged it. Killed before that, it is sent once more the next time, which changes
nothing: an object has one row, however often it is told of.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from lakerunner_dagster.lake.errors import InputError
from lakerunner_dagster.lake.lrdb import dead_letters
from lakerunner_dagster.lake.lrdb.intake import Notification
from lakerunner_dagster.lake.model import Message
from lakerunner_dagster.lake.notifications.events import ObjectEvent
from lakerunner_dagster.lake.notifications.intake import EVENT_TOPIC, PRODUCE_SECONDS, Intake
from lakerunner_dagster.lake.notifications.ownership import Owners
from lakerunner_dagster.lake.signals import SIGNALS

if TYPE_CHECKING:
    from lakerunner_dagster.lake.bus import Bus
    from lakerunner_dagster.lake.lrdb.connection import Conn, Lrdb
    from lakerunner_dagster.lake.lrdb.dead_letters import DeadLetter
    from lakerunner_dagster.lake.settings import Settings

BATCH = 500
"""Letters that are read, sent and marked at once."""

_SIGNALS = {spec.notification_topic: signal for signal, spec in SIGNALS.items()}


@dataclass(frozen=True, slots=True)
class Replayed:
    """How many letters were passed on, or would be; and how many stay, by why they still lead nowhere."""

    passed_on: int
    stay: Counter[str]


@dataclass(slots=True)
class _Sorted:
    """A batch of letters, by what becomes of them: object events of each adapter, and messages as they were."""

    letters: list[DeadLetter] = field(default_factory=list)
    events: defaultdict[str, list[ObjectEvent]] = field(default_factory=lambda: defaultdict(list))
    messages: list[Message] = field(default_factory=list)
    stay: Counter[str] = field(default_factory=Counter)


def waiting(lrdb: Lrdb, reason: str | None = None) -> Iterator[list[DeadLetter]]:
    """All letters (of a reason) that wait now, in batches: those that come meanwhile are none of them."""
    with lrdb.connection() as conn:
        last = dead_letters.last_id(conn)
    after = 0
    while True:
        with lrdb.connection() as conn:
            batch = dead_letters.waiting_between(conn, after, last, BATCH, reason=reason)
        if not batch:
            return
        yield batch
        after = batch[-1].dead_letter_id


def replay(
    lrdb: Lrdb, bus: Bus, settings: Settings, batches: Iterable[Sequence[DeadLetter]], *, dry_run: bool = False
) -> Replayed:
    """Send letters again, batch by batch; a dry run only tells what would become of them.

    BusUnavailable and LakeDatabaseUnavailable: this batch and those after it still wait.
    """
    intake = Intake(lrdb, bus, settings)
    passed_on = 0
    stay: Counter[str] = Counter()
    for batch in batches:
        with lrdb.connection() as conn:
            found = _sorted(conn, batch, settings.sources_per_organization)
        came_back = Counter[str]() if dry_run else _send(lrdb, bus, intake, found)
        passed_on += len(found.letters) - came_back.total()
        stay += found.stay + came_back
    return Replayed(passed_on, stay)


def _sorted(conn: Conn, batch: Iterable[DeadLetter], sources_per_organization: int) -> _Sorted:
    owners = Owners(conn, sources_per_organization)
    found = _Sorted()
    for letter in batch:
        try:
            again = _again(owners, letter)
        except InputError as error:
            found.stay[error.reason] += 1
            continue
        found.letters.append(letter)
        if isinstance(again, Message):
            found.messages.append(again)
        else:
            found.events[letter.adapter].append(again)
    return found


def _send(lrdb: Lrdb, bus: Bus, intake: Intake, found: _Sorted) -> Counter[str]:
    """Pass a batch on and mark it; what has become a dead letter again all the same, by reason."""
    came_back: Counter[str] = Counter()
    for adapter, events in found.events.items():
        came_back += intake.accept(events, adapter).dead
    bus.produce(found.messages, PRODUCE_SECONDS)
    with lrdb.transaction() as conn:
        dead_letters.mark_replayed(conn, found.letters)
    return came_back


def _again(owners: Owners, letter: DeadLetter) -> ObjectEvent | Message:
    """What a letter is sent again as; InputError where it still leads nowhere.

    A notification of another system goes by its object's key too. Where that tells nothing, the notification's own word
    stands, if there is such a source. What was no notification at all never becomes one.
    """
    if letter.topic == EVENT_TOPIC:
        event = _event(letter)
        owners.of(event)
        return event
    notification = _notification(letter)
    event = ObjectEvent(
        notification.bucket, notification.key, notification.size, notification.etag, notification.event_time_ms
    )
    try:
        owners.of(event)
    except InputError as error:
        if error.reason == "no_route" and owners.named(notification) is not None:
            return Message(letter.topic, letter.key, letter.body)
        raise
    return event


def _notification(letter: DeadLetter) -> Notification:
    try:
        return Notification.from_body(_SIGNALS[letter.topic], letter.body)
    except (KeyError, InputError) as error:
        raise InputError(letter.reason, f"what came on {letter.topic!r} is no notification of an object") from error


def _event(letter: DeadLetter) -> ObjectEvent:
    """The object event that a letter of an adapter was; InputError where it could not be read as one."""
    body = letter.body
    if "k" not in body:
        raise InputError(letter.reason, "it could not be read, and names no object")
    return ObjectEvent(bucket=body["b"], key=body["k"], size=body["s"], etag=body["e"], event_time_ms=body["et"])
