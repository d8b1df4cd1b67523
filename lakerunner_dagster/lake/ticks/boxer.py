"""The boxer's tick: notifications from Kafka become rows of lrdb, and rows that wait become boxes.

What belongs here: hearing ``objstore.ingest.*``, and the one transaction that makes it durable. What does not: which
rows make a box (``planning.boxer``), how they are stored (``lrdb``).
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from lakerunner_dagster.lake.lrdb.intake import Observed
from lakerunner_dagster.lake.model import Source
from lakerunner_dagster.lake.runs.context import Lake
from lakerunner_dagster.lake.signals import SIGNALS, Signal
from lakerunner_dagster.lake.ticks.boxing import close_boxes, opened, take_in
from lakerunner_dagster.lake.ticks.listening import Listener
from lakerunner_dagster.lake.ticks.outbox import announce


@dataclass(frozen=True, slots=True)
class BoxerReport:
    """What a tick did. ``observed`` counts new raw objects by (source, dateint of their event time).

    ``trouble`` says why Kafka was not heard, or not told; what was known already was boxed all the same.
    """

    received: int
    new: int
    duplicates: int
    dead: int
    boxes: int
    observed: Mapping[tuple[Source, int], Observed]
    outbox_published: int
    trouble: str | None


class BoxerTick:
    """One signal's boxer. It may live as long as its process, so that a tick finds the connection open.

    Any number of them may run at once, and be killed at any point: a message is heard again until it is recorded in the
    transaction that made it rows, a row is known by its unique key, and boxes are planned by one transaction at a time.
    """

    def __init__(self, lake: Lake, signal: Signal) -> None:
        self._lake = lake
        self._signal = signal
        topic = SIGNALS[signal].notification_topic
        self._listener = Listener(lake, f"{lake.settings.kafka_topic_prefix}boxer.{signal}.ingest", topic)

    def run(self, now_ms: int, deadline: float, listen_seconds: float = 0.0) -> BoxerReport:
        """One tick: all that Kafka has, until ``deadline`` (of ``time.monotonic()``), made durable and planned.

        ``now_ms`` is the time at its beginning. For ``listen_seconds`` it goes on though nothing comes, so that news
        and boxes that come of age need not wait for the next tick.
        """
        began_ms = now_ms - int(time.monotonic() * 1000)
        counts: Counter[str] = Counter()
        observed: dict[tuple[Source, int], Observed] = {}
        for received in self._listener.batches(deadline, listen_seconds):
            now_ms = began_ms + int(time.monotonic() * 1000)
            with self._lake.lrdb.transaction() as conn:
                letters, unreadable = opened(conn, received, now_ms)
                taken = take_in(conn, self._signal, letters, self._lake.limits, now_ms)
                self._listener.record(conn)
                boxes = close_boxes(conn, self._signal, self._lake.policy, now_ms)
            self._listener.commit()
            if not self._listener.trouble:
                counts.update(sent=announce(self._lake.lrdb, self._lake.bus))
            new, duplicates = taken.upserted.new, taken.upserted.duplicates + taken.upserted.reopened
            counts.update(
                received=len(received), new=new, duplicates=duplicates, dead=unreadable + taken.dead, boxes=boxes
            )
            for place, more in taken.upserted.observed.items():
                seen = observed.get(place, Observed(0, 0))
                observed[place] = Observed(seen.objects + more.objects, seen.bytes + more.bytes)
        return BoxerReport(
            received=counts["received"],
            new=counts["new"],
            duplicates=counts["duplicates"],
            dead=counts["dead"],
            boxes=counts["boxes"],
            observed=observed,
            outbox_published=counts["sent"],
            trouble=self._listener.trouble,
        )
