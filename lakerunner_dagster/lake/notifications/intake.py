"""Object events become notifications in Kafka, or dead letters: nothing that was an event is dropped.

What belongs here: whose object it is, by lrdb; the message; what is kept where it is nobody's. What does not: formats
(``events``), how the news came (``http``, ``directory``), and dead letters that are sent again (``replay``).

The order is the safety: dead letters are committed to lrdb, then everything is sent to Kafka, and only Kafka's
acknowledgement ends ``accept``. Killed before that, the sender sends again; repetition changes nothing.
"""

from __future__ import annotations

import logging
import time
from collections import Counter, defaultdict
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cache, lru_cache, partial
from typing import TYPE_CHECKING, Any

from lakerunner_dagster.lake.errors import InputError, LakeError
from lakerunner_dagster.lake.lrdb import dead_letters, profiles
from lakerunner_dagster.lake.lrdb.connection import storable
from lakerunner_dagster.lake.lrdb.intake import Notification
from lakerunner_dagster.lake.lrdb.known import ObjectName, known_objects
from lakerunner_dagster.lake.model import Message, Source
from lakerunner_dagster.lake.notifications.events import Entry, ObjectEvent, Unreadable
from lakerunner_dagster.lake.notifications.routing import route, uninteresting
from lakerunner_dagster.lake.signals import DEADLETTER_TOPIC, SIGNALS
from lakerunner_dagster.lake.store import KEY_BYTES, check_key

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from uuid import UUID

    from lakerunner_dagster.lake.bus import Bus
    from lakerunner_dagster.lake.lrdb.connection import Conn, Lrdb
    from lakerunner_dagster.lake.lrdb.profiles import PrefixMapping
    from lakerunner_dagster.lake.settings import Settings

    Lend = Callable[[], Conn]
    """A connection for the while of a call, lent when it is first asked for."""

logger = logging.getLogger(__name__)

PRODUCE_SECONDS = 10.0
"""How long Kafka may take to acknowledge, before the news is left to its sender."""

SOURCE_SECONDS = 30.0
"""How long a source is remembered: so late is noticed that an organization was disabled."""

EVENT_TOPIC = "objstore.ingest"
"""What a dead letter of an adapter names as its topic: the event has come no further, its signal may be unknown."""

SHOWN_CHARACTERS = 2 * KEY_BYTES
"""How much of a name is kept that can be none."""


@dataclass(frozen=True, slots=True)
class AcceptReport:
    """What became of object events: acknowledged by Kafka, dead letters by reason, passed over by reason."""

    produced: int
    dead: Counter[str]
    ignored: Counter[str]


@dataclass(slots=True)
class _Sorted:
    """Events, each where it belongs."""

    notifications: list[Notification] = field(default_factory=list)
    refused: list[tuple[Entry, InputError]] = field(default_factory=list)
    ignored: Counter[str] = field(default_factory=Counter)


class Intake:
    """The way into the lake that all adapters share; safe to share between threads."""

    def __init__(self, lrdb: Lrdb, bus: Bus, settings: Settings) -> None:
        self._lrdb = lrdb
        self._bus = bus
        self._sources_per_organization = settings.sources_per_organization
        self._sources: dict[tuple[UUID, str, str], tuple[float, Source]] = {}

    def accept(self, events: Iterable[Entry], adapter: str, *, skip_known: bool = False) -> AcceptReport:
        """Pass events on; returns once Kafka has acknowledged every message, and every dead letter is in lrdb.

        What cannot be read is a dead letter. A new collector of a known organization is registered. With
        ``skip_known``, objects of which lrdb has a row are ignored as ``known``. BusUnavailable and
        LakeDatabaseUnavailable: nothing may be taken for passed on.
        """
        [report] = self.accept_each([events], adapter, skip_known=skip_known)
        return report

    def accept_each(
        self, groups: Iterable[Iterable[Entry]], adapter: str, *, skip_known: bool = False
    ) -> list[AcceptReport]:
        """Pass groups of events on together, as ``accept`` does one; what became of each, in their order."""
        queued_ms = time.time_ns() // 1_000_000
        with ExitStack() as lent:
            # Mostly nothing need be asked: then lrdb may even be away, for Kafka keeps the news.
            lrdb = cache(partial(lent.enter_context, self._lrdb.connection()))
            results = [self._sorted(lrdb, events, adapter, queued_ms) for events in groups]
            if skip_known:
                for result in results:
                    _leave_out_known(lrdb, result)
        refused = [refusal for result in results for refusal in result.refused]
        letters = self._keep_dead(refused, adapter, queued_ms) if refused else []
        messages = [_message(notification) for result in results for notification in result.notifications]
        self._bus.produce([*messages, *letters], PRODUCE_SECONDS)
        return [_report(result) for result in results]

    def troubles(self) -> list[str]:
        """Which of ``lrdb`` and ``kafka`` does not answer."""
        return [name for name, ask in (("lrdb", self._ask_lrdb), ("kafka", self._bus.cluster_id)) if not _answers(ask)]

    def _sorted(self, lrdb: Lend, events: Iterable[Entry], adapter: str, queued_ms: int) -> _Sorted:
        result = _Sorted()
        for event in events:
            if isinstance(event, Unreadable):
                result.refused.append((event, event.error))
                continue
            reason = uninteresting(event.key)
            if reason is not None:
                result.ignored[reason] += 1
                continue
            try:
                result.notifications.append(self._notification(lrdb, event, adapter, queued_ms))
            except InputError as error:
                result.refused.append((event, error))
        return result

    def _notification(self, lrdb: Lend, event: ObjectEvent, adapter: str, queued_ms: int) -> Notification:
        """The notification of an event; InputError when it is nobody's object, or its name can be none."""
        check_key(event.key)
        found = route(event.key, _mappings(lrdb, event))
        source = self._source(lrdb, found.organization_id, found.collector, event.bucket)
        return Notification(
            signal=found.signal,
            organization_id=source.organization_id,
            instance_num=source.instance_num,
            collector=source.collector,
            bucket=event.bucket,
            key=event.key,
            size=event.size,
            etag=event.etag,
            event_time_ms=event.event_time_ms or queued_ms,
            queued=_rfc3339(queued_ms),
            adapter=adapter,
        )

    def _source(self, lrdb: Lend, organization_id: UUID, collector: str, bucket: str) -> Source:
        """The source, registered in lrdb. Only what is there is remembered: one that is added is found at once."""
        name = (organization_id, collector, bucket)
        remembered = self._sources.get(name)
        if remembered is not None and time.monotonic() < remembered[0]:
            return remembered[1]
        source = profiles.register_source(lrdb(), organization_id, collector, bucket, self._sources_per_organization)
        self._sources[name] = (time.monotonic() + SOURCE_SECONDS, source)
        return source

    def _keep_dead(self, refused: Sequence[tuple[Entry, InputError]], adapter: str, queued_ms: int) -> list[Message]:
        """Write dead letters to lrdb; their messages."""
        letters = [_dead_letter(event, error, queued_ms) for event, error in refused]
        kept = [
            dead_letters.NewLetter(
                letter.headers["topic"], letter.key, error.reason, f"{letter.key}: {error}", letter.body, adapter
            )
            for (_, error), letter in zip(refused, letters, strict=True)
        ]
        with self._lrdb.transaction() as conn:
            dead_letters.add(conn, kept)
        return letters

    def _ask_lrdb(self) -> None:
        with self._lrdb.connection() as conn:
            conn.execute("SELECT 1")


def _mappings(lrdb: Lend, event: ObjectEvent) -> Iterator[PrefixMapping]:
    """The prefix mappings that fit a key, asked for only where the key does not tell its route itself."""
    yield from profiles.prefix_mappings(lrdb(), event.bucket, event.key)


def _leave_out_known(lrdb: Lend, result: _Sorted) -> None:
    names: defaultdict[UUID, list[ObjectName]] = defaultdict(list)
    for notification in result.notifications:
        names[notification.organization_id].append(_name(notification))
    known = set().union(*(known_objects(lrdb(), organization_id, of_it) for organization_id, of_it in names.items()))
    unknown = [notification for notification in result.notifications if _name(notification) not in known]
    result.ignored.update({"known": len(result.notifications) - len(unknown)})
    result.notifications = unknown


def _report(result: _Sorted) -> AcceptReport:
    dead = Counter(error.reason for _, error in result.refused)
    return AcceptReport(produced=len(result.notifications), dead=dead, ignored=result.ignored)


def _name(notification: Notification) -> ObjectName:
    return ObjectName(notification.bucket, notification.key, notification.etag)


def _message(notification: Notification) -> Message:
    return Message(
        topic=SIGNALS[notification.signal].notification_topic,
        key=f"{notification.organization_id}/{notification.collector}",
        body=notification.body(),
    )


def _dead_letter(event: Entry, error: InputError, queued_ms: int) -> Message:
    """The message of a dead letter: what the event said, or how it looked."""
    key, body = ("unreadable", {"text": event.text}) if isinstance(event, Unreadable) else _said(event)
    return Message(
        topic=DEADLETTER_TOPIC,
        key=key,
        body={**body, "t": _rfc3339(queued_ms)},
        headers={"topic": EVENT_TOPIC, "reason": error.reason, "time": _rfc3339(queued_ms)},
    )


def _said(event: ObjectEvent) -> tuple[str, dict[str, Any]]:
    """The key and body of an event's letter. Names that no object has may be of any length: they are cut, to fit.

    In the body they stay what they are otherwise (JSON can say any text), so that a replay sends no other name.
    """
    bucket, key = event.bucket[:SHOWN_CHARACTERS], event.key[:SHOWN_CHARACTERS]
    body = {"b": bucket, "k": key, "s": event.size, "e": event.etag, "et": event.event_time_ms}
    return storable(f"{bucket}/{key}"), body


@lru_cache(maxsize=16)  # the events of a batch came at one time
def _rfc3339(ms: int) -> str:
    return datetime.fromtimestamp(ms / 1000, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _answers(ask: Callable[[], object]) -> bool:
    try:
        ask()
    except LakeError as error:
        logger.warning("not ready: %s", error)
        return False
    return True
