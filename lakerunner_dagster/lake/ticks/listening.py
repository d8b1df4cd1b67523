"""One topic, heard from where lrdb says that it was heard to: the part of a tick that every tick shares.

What belongs here: positions, in lrdb's transaction and in Kafka. What does not: what messages mean.

The order is: take one of ``batches``, ``record`` it in the transaction that makes the messages durable, ``commit`` to
Kafka. Killed anywhere, the next listener reads again what was not recorded, and the rows are the same.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from math import inf

from lakerunner_dagster.lake.bus import BusConsumer, Received
from lakerunner_dagster.lake.errors import BusUnavailable
from lakerunner_dagster.lake.lrdb import offsets
from lakerunner_dagster.lake.lrdb.connection import Conn
from lakerunner_dagster.lake.runs.context import Lake

logger = logging.getLogger(__name__)

BATCH = 2000
"""Most messages that are made durable in one transaction."""

FIRST_SECONDS = 0.25
"""How long a tick waits for a first message, before it looks at what else there is to do."""

NEXT_SECONDS = 0.1
"""How long it waits for another, which the client will have fetched already."""

LOOK_SECONDS = 5.0
"""How long it listens before it looks again at what else there is to do: what Kafka does not tell of waits so long."""

Positions = dict[tuple[str, int], int]
"""The next offset to read of each (topic, partition)."""


class Listener:
    """A topic's reader. It may live as long as its process, so that a tick finds the connection open.

    Kafka's absence is no error here, for lrdb knows what there is to do; ``trouble`` then says why nothing was heard.
    """

    def __init__(self, lake: Lake, group: str, topic: str, *, urgent: bool = True) -> None:
        self._lake = lake
        self._group = group
        self._topic = topic
        self._urgent = urgent
        self._consumer: BusConsumer | None = None
        self._cluster = ""
        self._recorded: Positions | None = None
        self._reached: Positions = {}
        self.trouble: str | None = None

    def batches(
        self, deadline: float, listen_seconds: float = 0.0, until_due: Callable[[], float] = lambda: inf
    ) -> Iterator[list[Received]]:
        """What has come since the last recorded message, until ``deadline`` (of ``time.monotonic()``).

        Each batch is to be recorded before the next is asked for. For ``listen_seconds`` an empty batch is followed by
        others, so that the reader can do what time brings: within LOOK_SECONDS, or when it is ``until_due`` (seconds
        from now). After that, or when Kafka cannot be reached, an empty batch is the last.
        """
        quiet_until = min(time.monotonic() + listen_seconds, deadline)
        received = self._receive(FIRST_SECONDS)
        yield received
        while time.monotonic() < deadline and (received or self._goes_on(quiet_until)):
            rest = max(min(LOOK_SECONDS, until_due(), quiet_until - time.monotonic()), 0.0)
            received = self._receive(NEXT_SECONDS if received else rest)
            yield received

    def _goes_on(self, quiet_until: float) -> bool:
        return self.trouble is None and time.monotonic() < quiet_until

    def _receive(self, timeout_seconds: float) -> list[Received]:
        try:
            received = self._assigned().poll(BATCH, timeout_seconds)
        except BusUnavailable as error:
            logger.warning("%s is not heard: %s", self._topic, error)
            self.trouble = str(error)
            self.close()
            return []
        self.trouble = None
        for message in received:
            self._reached[message.topic, message.partition] = message.offset + 1
        return received

    def record(self, conn: Conn) -> None:
        """Write how far this listener has received into lrdb: part of the caller's transaction."""
        if self._consumer is not None:
            offsets.record(conn, self._group, self._cluster, self._reached)

    def commit(self) -> None:
        """After that transaction: tell Kafka too, for people who look at its lag. Nothing depends on it."""
        if self._consumer is None or self._reached == self._recorded:
            return
        self._recorded = dict(self._reached)
        try:
            self._consumer.commit(self._reached)
        except BusUnavailable as error:
            logger.warning("offsets of %s are in lrdb, but not committed to Kafka: %s", self._topic, error)

    def close(self) -> None:
        """Let the connection go; the next tick begins anew from lrdb."""
        if self._consumer is not None:
            self._consumer.close()
        self._consumer = None
        self._recorded = None

    def _assigned(self) -> BusConsumer:
        """The consumer, where lrdb says: it was elsewhere if a transaction failed, or another tick or cluster came."""
        cluster = self._lake.bus.cluster_id()
        if self._consumer is None or cluster != self._cluster:
            self.close()
            self._consumer = self._lake.bus.consumer(self._group, [self._topic], urgent=self._urgent)
        with self._lake.lrdb.connection() as conn:
            positions = offsets.load(conn, self._group, cluster)
        if self._recorded is None or positions != self._recorded or self._reached != self._recorded:
            self._consumer.assign(positions)
            self._cluster, self._recorded, self._reached = cluster, positions, dict(positions)
        return self._consumer
