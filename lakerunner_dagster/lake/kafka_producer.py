"""One producer for all threads, and what becomes of it when one of them has waited in vain.

What belongs here: sending records, and the life of the client. What does not: what a record is, and which error it is
that one was not acknowledged (``bus``).

A client that could not deliver a message may skip none, so it is given up: new calls get another one. Calls that are
under way with it go on, and the last of them ends it; what one has given up may still be sent until then. A client is
made at the first use, so that this may be built before a fork.
"""

from __future__ import annotations

import threading
import time
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from confluent_kafka import KafkaError, KafkaException, Producer

from lakerunner_dagster.lake.kafka_client import made

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from confluent_kafka import Message as KafkaMessage

FLUSH_SECONDS = 0.01
"""How long a thread whose messages are acknowledged may still wait for those of others, in seconds."""


@dataclass(slots=True)
class Batch:
    """How far the messages of one call are; the client's delivery callback writes it. ``error`` is why, where known."""

    unacknowledged: int
    error: KafkaError | None = field(default=None)

    def delivered(self, error: KafkaError | None, _message: KafkaMessage) -> None:
        """What the client calls for each message."""
        if error is None:
            self.unacknowledged -= 1
        else:
            self.error = error


@dataclass(slots=True)
class _Shared:
    """A client, and how many calls of ``send`` are under way with it."""

    producer: Producer
    calls: int = 0


class SharedProducer:
    """A producer with the client's settings ``config``; safe to share among threads."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        self._config = config
        self._shared: _Shared | None = None
        self._lock = threading.Lock()

    def client(self) -> Producer:
        """The client that new calls get, connecting if it is new. ConfigurationError where it refuses a setting."""
        with self._lock:
            return self._current().producer

    def send(self, records: Sequence[Mapping[str, Any]], deadline: float) -> Batch:
        """Send records (arguments of the client's ``produce``); how far they are at the end.

        That is when all are acknowledged, one has failed, or ``deadline`` (monotonic seconds) is reached. Of what is
        not acknowledged nothing is known. ConfigurationError as ``client``.
        """
        batch = Batch(unacknowledged=len(records))
        with self._lent() as shared:
            try:
                _send(shared.producer, records, batch, deadline)
            except KafkaException as error:
                batch.error = error.args[0]
            if batch.unacknowledged:
                self._give_up(shared)
        return batch

    def close(self) -> None:
        """Let the client go, once the calls that are under way have ended. The next call makes another one."""
        with self._lock:
            self._shared = None

    def _current(self) -> _Shared:
        """What new calls get; the lock is held."""
        if self._shared is None:
            self._shared = _Shared(made(Producer, self._config))
        return self._shared

    @contextmanager
    def _lent(self) -> Iterator[_Shared]:
        """The client for the length of a call; one that was given up ends with the last call that has it."""
        with self._lock:
            shared = self._current()
            shared.calls += 1
        try:
            yield shared
        finally:
            with self._lock:
                shared.calls -= 1
                over = shared is not self._shared and not shared.calls
            if over:
                # Else its end would wait for what was given up, which its callers send again.
                shared.producer.purge()
                shared.producer.poll(0)

    def _give_up(self, shared: _Shared) -> None:
        with self._lock:
            if self._shared is shared:
                self._shared = None


def _send(producer: Producer, records: Sequence[Mapping[str, Any]], batch: Batch, deadline: float) -> None:
    """Hand records to the client, and wait until they are acknowledged, one has failed, or the time is up."""
    for record in records:
        _enqueue(producer, record, batch, deadline)
    while batch.unacknowledged and batch.error is None and time.monotonic() < deadline:
        # While it flushes the client sends what it has, and does not linger for more. It returns when there is nothing
        # of other threads either, so its turns are short.
        producer.flush(min(FLUSH_SECONDS, max(deadline - time.monotonic(), 0.0)))


def _enqueue(producer: Producer, record: Mapping[str, Any], batch: Batch, deadline: float) -> None:
    """Hand a record to the client; while its queue is full, wait for acknowledgements."""
    while True:
        try:
            producer.produce(**record, on_delivery=batch.delivered)
        except BufferError:
            if time.monotonic() >= deadline:
                raise KafkaException(KafkaError(KafkaError._QUEUE_FULL)) from None  # noqa: SLF001  # its public name
            producer.poll(0.1)
        else:
            return
