"""The dispatcher's tick: which partitions have boxes waiting, and so need a run.

What belongs here: hearing a stage's boxes, taking up those that are not ours, choosing partitions. What does not:
starting the run (the sensor does), and what the run does (``runs``).
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from math import inf

import xxhash

from lakerunner_dagster.lake.bus import Received
from lakerunner_dagster.lake.lrdb import boxes
from lakerunner_dagster.lake.lrdb.boxes import WaitingPartition
from lakerunner_dagster.lake.lrdb.connection import Conn
from lakerunner_dagster.lake.model import Source, date_of
from lakerunner_dagster.lake.planning.fairness import fair_share
from lakerunner_dagster.lake.runs.context import Lake
from lakerunner_dagster.lake.stages import Stage
from lakerunner_dagster.lake.ticks.boxing import boxing_of
from lakerunner_dagster.lake.ticks.letters import opened
from lakerunner_dagster.lake.ticks.listening import Listener
from lakerunner_dagster.lake.ticks.outbox import announce

BLOCKED_SECONDS = 1.0
"""How soon a tick that listens looks again where something waits for a run to end, of which Kafka does not tell."""


@dataclass(frozen=True, slots=True)
class Dispatch:
    """A partition that needs a run, the boxes that it is started for, and the tiers (ms; 0 for none) that these are of.

    ``run_key`` is a function of the boxes and of how often each was claimed and dispatched before: another one whenever
    another run is called for, the same for all that look at the same state.
    """

    source: Source
    dateint: int
    box_ids: tuple[int, ...]
    frequencies_ms: tuple[int, ...]
    run_key: str


class DispatcherTick:
    """One stage's dispatcher. It may live as long as its process, so that a tick finds the connection open.

    What waits is read from lrdb alone. Kafka only brings boxes of others: it may be away, lose them or repeat them.
    """

    def __init__(self, lake: Lake, stage: Stage) -> None:
        self._lake = lake
        self._stage = stage
        self._boxing = boxing_of(lake, stage)
        group = f"{lake.settings.kafka_topic_prefix}dispatcher.{stage.name}"
        self._listener = Listener(lake, group, stage.box_topic, urgent=stage.urgent)

    def run(
        self,
        active: Callable[[], Collection[str]],
        places: int,
        now_ms: int,
        deadline: float,
        listen_seconds: float = 0.0,
    ) -> list[Dispatch]:
        """One tick: the partitions to start a run for, longest wait first, places shared among organizations.

        A source has one run at a time: the run queue lets no second one go, which would hold a place while it waits.
        ``active`` tells the source key of each run that is queued or going, and is asked only where something waits;
        ``places`` is how many runs there may be. ``deadline`` is of ``time.monotonic()``: Kafka is polled no longer.
        For ``listen_seconds`` the tick waits for a partition, so that a box need not wait for the next tick.
        """
        blocked = False

        def until_due() -> float:
            """Seconds after which a run may have ended that something waits for."""
            return BLOCKED_SECONDS if blocked else inf

        for received in self._listener.batches(deadline, listen_seconds, until_due):
            with self._lake.lrdb.transaction() as conn:
                self._take_up(conn, received, now_ms)
                self._listener.record(conn)
            self._listener.commit()
            if not self._listener.trouble:
                announce(self._lake.lrdb, self._lake.bus)
            if not received:
                chosen, blocked = self._chosen(active, places)
                if chosen:
                    return chosen
        return self._chosen(active, places)[0]

    def _chosen(self, going: Callable[[], Collection[str]], places: int) -> tuple[list[Dispatch], bool]:
        """The partitions to start a run for, noted as dispatched; and whether others wait for a run to end."""
        with self._lake.lrdb.connection() as conn:
            if not boxes.waiting_partitions(conn, self._stage.name):
                return [], False
        active = going()  # before we look at what waits: a run that ends meanwhile has its boxes done
        with self._lake.lrdb.transaction() as conn:
            waiting = boxes.waiting_partitions(conn, self._stage.name)
            free = [partition for partition in _oldest_of_each_source(waiting) if partition.source.key not in active]
            room = max(places - len(active), 0)
            shared = fair_share(
                free, lambda partition: partition.source.organization_name, _organizations(active), room
            )
            chosen = [self._dispatch(partition) for partition in shared]
            boxes.mark_dispatched(conn, [box_id for dispatch in chosen for box_id in dispatch.box_ids])
        return chosen, len(chosen) < len(waiting)

    def _take_up(self, conn: Conn, received: Sequence[Received], now_ms: int) -> None:
        """Give rows and boxes of ours to what comes in boxes that lrdb does not know: another boxer's, or lost ones."""
        letters, _ = opened(conn, received, now_ms)
        unknown = boxes.unknown_boxes(conn, [letter.box_id for letter in letters if letter.box_id is not None])
        foreign = [letter for letter in letters if letter.box_id is None or letter.box_id in unknown]
        members = [member for letter in foreign for member in letter.members]
        if members:
            self._boxing.take_in(conn, members, now_ms)
            self._boxing.close_boxes(conn, now_ms, at_once=True)

    def _dispatch(self, partition: WaitingPartition) -> Dispatch:
        state = list(zip(partition.box_ids, partition.attempts, partition.dispatches, strict=True))
        digest = xxhash.xxh3_64_hexdigest(json.dumps(state).encode())
        day = date_of(partition.dateint).isoformat()
        return Dispatch(
            source=partition.source,
            dateint=partition.dateint,
            box_ids=partition.box_ids,
            frequencies_ms=partition.frequencies_ms,
            run_key=f"{self._stage.name}/{partition.source.key}/{day}/{digest}",
        )


def _oldest_of_each_source(waiting: Sequence[WaitingPartition]) -> list[WaitingPartition]:
    oldest: dict[str, WaitingPartition] = {}
    for partition in waiting:
        oldest.setdefault(partition.source.key, partition)
    return list(oldest.values())


def _organizations(active: Collection[str]) -> Counter[str]:
    """How many runs each organization (by name) has; a source's key begins with it."""
    return Counter(source_key.partition("/")[0] for source_key in active)
