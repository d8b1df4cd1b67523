"""The boxer's tick: what Kafka says becomes rows of lrdb, and what waits there becomes boxes. One for every stage.

What belongs here: hearing a stage's topic, and the one transaction that makes it durable. What does not: what its
messages mean and which work makes a box (``boxing`` and what it names).
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from math import inf

from lakerunner_dagster.lake.lrdb.intake import Observed
from lakerunner_dagster.lake.model import Source
from lakerunner_dagster.lake.runs.context import Lake
from lakerunner_dagster.lake.stages import Stage
from lakerunner_dagster.lake.ticks.boxing import boxing_of
from lakerunner_dagster.lake.ticks.closing import Closed
from lakerunner_dagster.lake.ticks.letters import opened
from lakerunner_dagster.lake.ticks.listening import Listener
from lakerunner_dagster.lake.ticks.outbox import announce


@dataclass(frozen=True, slots=True)
class BoxerReport:
    """What a tick did: messages received, what was new of them or known already, boxes closed, messages sent.

    ``observed`` counts new raw objects by (source, dateint of their event time). ``trouble`` says why
    Kafka was not heard, or not told; what was known already was boxed all the same.
    """

    received: int
    new: int
    known: int
    dead: int
    boxes: int
    observed: Mapping[tuple[Source, int], Observed]
    outbox_published: int
    trouble: str | None


class BoxerTick:
    """One stage's boxer. It may live as long as its process, so that a tick finds the connection open.

    Any number of them may run at once, and be killed at any point: a message is heard again until it is recorded in the
    transaction that made it rows, a row is known by its unique key, and boxes are planned by one transaction at a time.
    """

    def __init__(self, lake: Lake, stage: Stage) -> None:
        self._lake = lake
        self._boxing = boxing_of(lake, stage)
        group = f"{lake.settings.kafka_topic_prefix}boxer.{stage.name}"
        self._listener = Listener(lake, group, stage.input_topic, urgent=stage.urgent)

    def run(self, now_ms: int, deadline: float, listen_seconds: float = 0.0) -> BoxerReport:
        """One tick: all that Kafka has, until ``deadline`` (of ``time.monotonic()``), made durable and planned.

        ``now_ms`` is the time at its beginning. For ``listen_seconds`` it goes on though nothing comes, so that news
        and boxes that come of age need not wait for the next tick.
        """
        began_ms = now_ms - int(time.monotonic() * 1000)
        counts: Counter[str] = Counter()
        observed: dict[tuple[Source, int], Observed] = {}
        closed = Closed(0)

        def until_due() -> float:
            """Seconds until a box comes of age."""
            due_ms = closed.next_ms
            return inf if due_ms is None else (due_ms - began_ms) / 1000 - time.monotonic()

        for received in self._listener.batches(deadline, listen_seconds, until_due):
            now_ms = began_ms + int(time.monotonic() * 1000)
            with self._lake.lrdb.transaction() as conn:
                letters, unreadable = opened(conn, received, now_ms)
                taken = self._boxing.take_in(conn, letters, now_ms)
                self._listener.record(conn)
                closed = self._boxing.close_boxes(conn, now_ms)
            self._listener.commit()
            if not self._listener.trouble:
                counts.update(sent=announce(self._lake.lrdb, self._lake.bus))
            counts.update(
                received=len(received),
                new=taken.new,
                known=taken.known,
                dead=unreadable + taken.dead,
                boxes=closed.boxes,
            )
            for place, more in taken.observed.items():
                seen = observed.get(place, Observed(0, 0))
                observed[place] = Observed(seen.objects + more.objects, seen.bytes + more.bytes)
        return BoxerReport(
            received=counts["received"],
            new=counts["new"],
            known=counts["known"],
            dead=counts["dead"],
            boxes=counts["boxes"],
            observed=observed,
            outbox_published=counts["sent"],
            trouble=self._listener.trouble,
        )
