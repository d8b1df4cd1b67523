"""The adapter of a cloud's queue: receive, pass on, acknowledge, and hold what cannot be passed on yet.

What belongs here: the one loop, and what a queue must be able to do for it. What does not: any cloud's queue (``sqs``,
``pubsub``, ``azure_queue``), formats (``events``), what becomes of the news (``intake``).

A message is acknowledged after Kafka has acknowledged what came of it, never before. Killed in between, it comes again,
and repetition changes nothing. While Kafka or lrdb is away, nothing more is received: what is in hand stays there, its
lease extended, for a message that is given back counts as delivered once more, and a queue's dead-letter rule takes
away what was delivered too often.
"""

from __future__ import annotations

import logging
import random
import threading
import time
from collections import Counter
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from lakerunner_dagster.lake.errors import (
    BusUnavailable,
    InputError,
    LakeDatabaseUnavailable,
    LakeError,
    QueueDenied,
    QueueUnavailable,
)
from lakerunner_dagster.lake.notifications.events import Parsed, parse
from lakerunner_dagster.lake.notifications.metrics import AdapterMetrics
from lakerunner_dagster.lake.notifications.monitoring import Pulse

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from lakerunner_dagster.lake.notifications.events import Entry
    from lakerunner_dagster.lake.notifications.intake import AcceptReport, Intake
    from lakerunner_dagster.lake.settings import Settings

logger = logging.getLogger(__name__)

FIRST_PAUSE_SECONDS = 0.2
LONGEST_PAUSE_SECONDS = 30.0

EVENTS = 1000
"""Events that are passed on at once, unless one message has more: one is made of some 1 kB of a body."""

ACKNOWLEDGE_ATTEMPTS = 3
"""How often a message that was passed on is acknowledged, before it is left to come again."""

BEATS_OF_LEASE = 3
"""Signs of life within one lease: two may be lost."""


@dataclass(slots=True)
class QueueMessage:
    """One delivery of a message. ``deliveries`` counts this one too, 0 where the queue does not count.

    ``sent`` is epoch seconds by the queue's clock. ``receipt`` is what its queue knows the delivery by; extending the
    lease may change it.
    """

    body: bytes
    sent: float
    deliveries: int
    receipt: Any
    attributes: Mapping[str, str] = field(default_factory=dict)


class Queue(Protocol):
    """What the loop needs of a cloud's queue. It is shared between threads; a message is in one thread's hand.

    Every method may raise QueueUnavailable and QueueDenied, but those that say what is left instead.
    """

    name: str
    """The adapter's name: of its command, its metrics, and its messages in Kafka."""

    def check(self) -> str | None:
        """What should be mended though it works without (a missing dead-letter rule); None where nothing."""

    def receive(self, limit: int, stop: threading.Event) -> list[QueueMessage]:
        """Up to ``limit`` messages, ours for a lease; waits a while for the first one, not beyond ``stop``."""

    def extend(self, messages: Sequence[QueueMessage]) -> None:
        """They are ours for another lease from now on. One that is ours no more is passed over."""

    def acknowledge(self, messages: Sequence[QueueMessage]) -> Sequence[QueueMessage]:
        """They are done, and never come again; those of which the queue has not confirmed it."""

    def refuse(self, messages: Sequence[QueueMessage]) -> None:
        """They cannot be understood: the queue's own dead-letter rule decides, and they come again until it does."""

    def give_back(self, messages: Sequence[QueueMessage]) -> None:
        """Others may have them at once."""

    def close(self) -> None:
        """Let the connections go."""


def filled(
    first: list[QueueMessage], page: int, limit: int, more: Callable[[int], list[QueueMessage]], seconds: float
) -> list[QueueMessage]:
    """What came, and ``more`` (of a number) as long as every request brings a full page, up to ``limit`` messages.

    Not for longer than ``seconds``: leases are extended only once all of them are in hand.
    """
    messages = list(first)
    deadline = time.monotonic() + seconds
    while messages and len(messages) % page == 0 and len(messages) < limit and time.monotonic() < deadline:
        try:
            came = more(min(limit - len(messages), page))
        except (QueueUnavailable, QueueDenied):
            break  # the next request will tell
        if not came:
            break
        messages += came
    return messages


class Pauses:
    """Growing waits between attempts, of random lengths so that many adapters do not come back at once."""

    def __init__(self, stop: threading.Event, longest_seconds: float | None = None) -> None:
        self._stop = stop
        self._longest_seconds = longest_seconds or LONGEST_PAUSE_SECONDS
        self._seconds = FIRST_PAUSE_SECONDS

    def pause(self) -> bool:
        """Wait; whether we were told to end, before or meanwhile."""
        length = self._seconds * random.uniform(0.5, 1.0)  # noqa: S311 - nobody gains by guessing it
        self._seconds = min(self._seconds * 2, self._longest_seconds)
        return self._stop.wait(length)

    def reset(self) -> None:
        """It went well: the next wait is a short one."""
        self._seconds = FIRST_PAUSE_SECONDS


class _Complaints:
    """What is wrong, logged when it begins and when it is over, not at every attempt."""

    def __init__(self, adapter: str) -> None:
        self._adapter = adapter
        self._kinds: set[type[LakeError]] = set()
        self._lock = threading.Lock()

    def begin(self, error: LakeError) -> None:
        with self._lock:
            new = type(error) not in self._kinds
            self._kinds.add(type(error))
        if new:
            logger.warning("%s adapter waits and goes on trying: %s", self._adapter, error)

    def end(self, *kinds: type[LakeError]) -> None:
        with self._lock:
            over = self._kinds.intersection(kinds)
            self._kinds -= over
        if over:
            logger.info("%s adapter goes on", self._adapter)

    def of(self, *kinds: type[LakeError]) -> bool:
        with self._lock:
            return not self._kinds.isdisjoint(kinds)


@dataclass(slots=True)
class _Hand:
    """The messages that one thread has in hand; its lock keeps a heartbeat from extending what was just let go."""

    loop: str
    messages: list[QueueMessage] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)


class PullingAdapter:
    """Passes on what a queue brings. At most ``queue_receivers`` times ``queue_batch`` messages are in hand at once.

    An error of a queue, of Kafka or lrdb is waited out; any other one ends ``run``: what was in hand comes again.
    """

    def __init__(self, queue: Queue, intake: Intake, settings: Settings) -> None:
        self.metrics = AdapterMetrics(queue.name)
        self.pulse = Pulse(settings.monitor_stall_seconds)
        self._queue = queue
        self._intake = intake
        self._batch = settings.queue_batch
        self._body_bytes = settings.http_body_bytes
        self._beat_seconds = min(settings.queue_lease_seconds, settings.monitor_stall_seconds) / BEATS_OF_LEASE
        self._complaints = _Complaints(queue.name)
        self._hands = [_Hand(f"receiver {number}") for number in range(settings.queue_receivers)]
        self._heard = False

    def troubles(self) -> list[str]:
        """Which of ``lrdb``, ``kafka`` and ``queue`` does not answer."""
        return self._intake.troubles() + ["queue"] * self._complaints.of(QueueUnavailable, QueueDenied)

    def run(self, stop: threading.Event) -> None:
        """Pass on until ``stop`` is set; what is in hand then is brought to its end, or given back.

        QueueDenied where the queue refuses us from the start.
        """
        self._check()
        with ThreadPoolExecutor(len(self._hands), "receiver") as pool, self._heartbeat():
            loops = [pool.submit(self._receive_until, stop, hand) for hand in self._hands]
            wait(loops, return_when=FIRST_COMPLETED)
            # Whichever ends by an error takes the others with it.
            stop.set()
            wait(loops)
        for loop in loops:
            loop.result()

    def _check(self) -> None:
        try:
            advice = self._queue.check()
        except QueueUnavailable as error:
            self._complaints.begin(error)
            return
        if advice is not None:
            logger.warning("%s", advice)

    def _receive_until(self, stop: threading.Event, hand: _Hand) -> None:
        pauses = Pauses(stop)
        while not stop.is_set():
            self.pulse.beat(hand.loop)
            try:
                messages = self._received(hand, stop)
            except (QueueUnavailable, QueueDenied) as error:
                if isinstance(error, QueueDenied) and not self._heard:
                    raise
                self._left("queue", error)
                pauses.pause()
                continue
            pauses.reset()
            with self._holding(hand, messages):
                self._pass_on(hand, stop)

    def _received(self, hand: _Hand, stop: threading.Event) -> list[QueueMessage]:
        messages = self._queue.receive(self._batch, stop)
        self._heard = True
        self._complaints.end(QueueUnavailable, QueueDenied)
        self.metrics.count("received", len(messages))
        self.metrics.found(hand.loop, min((message.sent for message in messages), default=None))
        return messages

    @contextmanager
    def _holding(self, hand: _Hand, messages: list[QueueMessage]) -> Iterator[None]:
        """The messages are in hand, and their leases extended, until each is let go."""
        with hand.lock:
            hand.messages = messages
        self.metrics.hold(len(messages))
        try:
            yield
        finally:
            self._let_go(hand, list(hand.messages))

    def _let_go(self, hand: _Hand, messages: Sequence[QueueMessage]) -> None:
        gone = set(map(id, messages))
        with hand.lock:
            hand.messages = [message for message in hand.messages if id(message) not in gone]
        self.metrics.hold(-len(messages))

    def _pass_on(self, hand: _Hand, stop: threading.Event) -> None:
        """Bring what is in hand to its end: acknowledged, refused, or given back because we are to end."""
        began = time.perf_counter()
        for messages, said in self._portions(self._understood(hand)):
            events = [event for parsed in said for event in parsed.entries]
            report = self._accepted(hand, events, stop)
            if report is None:
                self._give_back(hand)
                return
            self._count(report, said)
            self.metrics.observe(time.perf_counter() - began)
            self._acknowledge(hand, messages, stop)

    def _understood(self, hand: _Hand) -> list[tuple[QueueMessage, Parsed]]:
        """What the messages in hand say; those that say nothing are refused, and hold up no other."""
        understood: list[tuple[QueueMessage, Parsed]] = []
        refused: list[QueueMessage] = []
        for message in hand.messages:
            try:
                understood.append((message, self._parsed(message)))
            except InputError as error:
                refused.append(message)
                self.metrics.count_reasons("failed", {error.reason: 1})
                logger.warning(
                    "message refused (%s, delivery %d): %s; it begins %a",
                    error.reason,
                    message.deliveries,
                    error,
                    message.body[:200],
                )
        if refused:
            self._let_go(hand, refused)
            self._tell(self._queue.refuse, refused)
        return understood

    def _parsed(self, message: QueueMessage) -> Parsed:
        if len(message.body) > self._body_bytes:
            raise InputError(
                "too_large",
                f"the message has {len(message.body)} bytes, more than the {self._body_bytes} of "
                "LAKERUNNER_HTTP_BODY_BYTES",
            )
        return parse(message.body, message.attributes)

    @staticmethod
    def _portions(
        understood: Sequence[tuple[QueueMessage, Parsed]],
    ) -> Iterator[tuple[list[QueueMessage], list[Parsed]]]:
        """The messages in portions of at most EVENTS events, or of one message: one may tell of thousands."""
        start, events = 0, 0
        for end, (_, parsed) in enumerate(understood):
            if end > start and events + len(parsed.entries) > EVENTS:
                yield _unzipped(understood[start:end])
                start, events = end, 0
            events += len(parsed.entries)
        if start < len(understood):
            yield _unzipped(understood[start:])

    def _accepted(self, hand: _Hand, events: list[Entry], stop: threading.Event) -> AcceptReport | None:
        """Pass events on, however long Kafka or lrdb is away; None when we are to end before that is done."""
        pauses = Pauses(stop)
        while True:
            self.pulse.beat(hand.loop)
            try:
                report = self._intake.accept(events, self._queue.name)
            except (BusUnavailable, LakeDatabaseUnavailable) as error:
                self._left("unavailable", error)
                if pauses.pause():
                    return None
            else:
                self._complaints.end(BusUnavailable, LakeDatabaseUnavailable)
                return report

    def _count(self, report: AcceptReport, said: Sequence[Parsed]) -> None:
        ignored = sum((parsed.ignored for parsed in said), Counter(report.ignored))
        ignored["handshake"] += sum(parsed.handshake is not None for parsed in said)
        self.metrics.count("produced", report.produced)
        self.metrics.count_reasons("ignored", +ignored)
        self.metrics.count_reasons("dead_letters", report.dead)

    def _acknowledge(self, hand: _Hand, messages: list[QueueMessage], stop: threading.Event) -> None:
        # Let go first: a heartbeat must not change a receipt that is being used.
        self._let_go(hand, messages)
        left: Sequence[QueueMessage] = messages
        pauses = Pauses(stop)
        for attempt in range(ACKNOWLEDGE_ATTEMPTS):
            if attempt:
                pauses.pause()
            left = self._queue.acknowledge(left)
            if not left:
                return
        self.metrics.count_reasons("failed", {"not_acknowledged": len(left)})
        logger.warning("%d messages were passed on and could not be acknowledged: they come again", len(left))

    def _give_back(self, hand: _Hand) -> None:
        messages = list(hand.messages)
        self._let_go(hand, messages)
        self._tell(self._queue.give_back, messages)
        logger.info("%d messages that could not be passed on were given back", len(messages))

    def _tell(self, what: Callable[[Sequence[QueueMessage]], None], messages: Sequence[QueueMessage]) -> None:
        """Tell the queue; where it does not hear it, the messages' leases end by themselves."""
        try:
            what(messages)
        except (QueueUnavailable, QueueDenied) as error:
            self._left("queue", error)

    def _left(self, reason: str, error: LakeError) -> None:
        self.metrics.count_reasons("failed", {reason: 1})
        self._complaints.begin(error)

    @contextmanager
    def _heartbeat(self) -> Iterator[None]:
        """Leases of what is in hand are extended for the length of the block.

        Each hand has a thread for it: where the queue is slow to answer for one, the others' leases do not wait.
        """
        ended = threading.Event()
        beating = [
            threading.Thread(target=self._beat_until, args=(ended, hand), name=f"heartbeat of {hand.loop}")
            for hand in self._hands
        ]
        for thread in beating:
            thread.start()
        try:
            yield
        finally:
            ended.set()
            for thread in beating:
                thread.join()

    def _beat_until(self, ended: threading.Event, hand: _Hand) -> None:
        while not ended.wait(self._beat_seconds):
            self.pulse.beat(f"heartbeat of {hand.loop}")
            with hand.lock:
                if hand.messages:
                    self._tell(self._queue.extend, hand.messages)


def _unzipped(pairs: Sequence[tuple[QueueMessage, Parsed]]) -> tuple[list[QueueMessage], list[Parsed]]:
    return [message for message, _ in pairs], [parsed for _, parsed in pairs]
