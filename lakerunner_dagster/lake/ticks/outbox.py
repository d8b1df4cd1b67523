"""From lrdb's outbox to Kafka: messages leave the outbox only once Kafka has acknowledged them.

What belongs here: moving what committed transactions have left. What does not: what is in a message.
"""

from __future__ import annotations

import logging
import time

from lakerunner_dagster.lake.bus import Bus
from lakerunner_dagster.lake.errors import BusUnavailable
from lakerunner_dagster.lake.lrdb import outbox
from lakerunner_dagster.lake.lrdb.connection import Lrdb

logger = logging.getLogger(__name__)

BATCH = 100
"""Messages that are locked, sent and deleted together: so many may be sent again after a crash, each up to 900 kB."""

ANNOUNCE_SECONDS = 5.0
"""How long a tick or a run waits for Kafka to take what it has left in the outbox."""


def announce(lrdb: Lrdb, bus: Bus) -> int:
    """Send what commits have left in the outbox; the number sent. Kafka's absence only delays the rest."""
    try:
        return publish_outbox(lrdb, bus, ANNOUNCE_SECONDS)
    except BusUnavailable as error:
        logger.warning("messages stay in the outbox, for the next tick to send: %s", error)
        return 0


def publish_outbox(lrdb: Lrdb, bus: Bus, timeout_seconds: float) -> int:
    """Send what the outbox holds, oldest first, until it is empty or the time is up; the number sent.

    Safe at once in many processes: each locks other rows. Killed between the acknowledgement and the delete, the
    next one sends the batch again: every reader of a topic takes repetition. BusUnavailable leaves the rows.
    """
    deadline = time.monotonic() + timeout_seconds
    sent = 0
    while True:
        with lrdb.transaction() as conn:
            batch = outbox.take(conn, BATCH)
            if batch:
                bus.produce([item.message for item in batch], max(deadline - time.monotonic(), 1.0))
                outbox.delete(conn, [item.outbox_id for item in batch])
        sent += len(batch)
        if len(batch) < BATCH or time.monotonic() >= deadline:
            return sent
