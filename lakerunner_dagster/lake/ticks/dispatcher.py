"""The dispatcher's tick: which partitions have boxes waiting, and so need a run.

What belongs here: hearing ``segments.*.ingest``, taking up boxes that are not ours, choosing partitions. What does not:
starting the run (the sensor does), and what the run does (``runs``).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, replace

import xxhash

from lakerunner_dagster.lake.bus import Received
from lakerunner_dagster.lake.lrdb import boxes
from lakerunner_dagster.lake.lrdb.boxes import WaitingPartition
from lakerunner_dagster.lake.lrdb.connection import Conn
from lakerunner_dagster.lake.model import Source, date_of
from lakerunner_dagster.lake.runs.context import Lake
from lakerunner_dagster.lake.signals import SIGNALS, Signal
from lakerunner_dagster.lake.ticks.boxing import Letter, at_once, close_boxes, opened, take_in
from lakerunner_dagster.lake.ticks.listening import Listener
from lakerunner_dagster.lake.ticks.outbox import announce

BOX_IDS = 2**63
"""Ids of boxes are less: what is not cannot be asked for."""


@dataclass(frozen=True, slots=True)
class Dispatch:
    """A partition that needs a run, and the boxes that it is started for.

    ``run_key`` is a function of the boxes and of how often each was claimed and dispatched before: another one whenever
    another run is called for, the same for all that look at the same state.
    """

    source: Source
    dateint: int
    box_ids: tuple[int, ...]
    run_key: str


class DispatcherTick:
    """One signal's dispatcher. It may live as long as its process, so that a tick finds the connection open.

    What waits is read from lrdb alone. Kafka only brings boxes of others: it may be away, lose them or repeat them.
    """

    def __init__(self, lake: Lake, signal: Signal) -> None:
        self._lake = lake
        self._signal = signal
        topic = SIGNALS[signal].box_topic
        self._listener = Listener(lake, f"{lake.settings.kafka_topic_prefix}dispatcher.{signal}.ingest", topic)

    def run(
        self,
        active: AbstractSet[tuple[str, int]],
        room: int,
        now_ms: int,
        deadline: float,
        listen_seconds: float = 0.0,
    ) -> list[Dispatch]:
        """One tick: the partitions to start a run for, longest wait first.

        ``active`` are the (source key, dateint) that have a run queued or going, ``room`` is how many more may start.
        ``deadline`` is of ``time.monotonic()``: Kafka is polled no longer. For ``listen_seconds`` the tick waits for a
        partition, so that a box need not wait for the next tick.
        """
        for received in self._listener.batches(deadline, listen_seconds if room > 0 else 0.0):
            with self._lake.lrdb.transaction() as conn:
                self._take_up(conn, received, now_ms)
                self._listener.record(conn)
            self._listener.commit()
            if not self._listener.trouble:
                announce(self._lake.lrdb, self._lake.bus)
            if not received and (chosen := self._chosen(active, room)):
                return chosen
        return self._chosen(active, room)

    def _chosen(self, active: AbstractSet[tuple[str, int]], room: int) -> list[Dispatch]:
        """The partitions to start a run for, noted as dispatched."""
        with self._lake.lrdb.transaction() as conn:
            waiting = boxes.waiting_partitions(conn, boxes.ingest_stage(self._signal))
            free = [partition for partition in waiting if (partition.source.key, partition.dateint) not in active]
            chosen = [self._dispatch(partition) for partition in free[: max(room, 0)]]
            boxes.mark_dispatched(conn, [box_id for dispatch in chosen for box_id in dispatch.box_ids])
        return chosen

    def _take_up(self, conn: Conn, received: Sequence[Received], now_ms: int) -> None:
        """Give rows and boxes of ours to what comes in boxes that lrdb does not know: another boxer's, or lost ones."""
        letters, _ = opened(conn, received, now_ms)
        unknown = boxes.unknown_boxes(conn, [box_id for letter in letters if (box_id := _box_id(letter)) is not None])
        foreign = [letter for letter in letters if _box_id(letter) is None or _box_id(letter) in unknown]
        members = [member for letter in foreign for member in _members(letter)]
        if members:
            take_in(conn, self._signal, members, self._lake.limits, now_ms)
            close_boxes(conn, self._signal, at_once(self._lake.policy), now_ms)

    def _dispatch(self, partition: WaitingPartition) -> Dispatch:
        state = list(zip(partition.box_ids, partition.attempts, partition.dispatches, strict=True))
        digest = xxhash.xxh3_64_hexdigest(json.dumps(state).encode())
        day = date_of(partition.dateint).isoformat()
        return Dispatch(
            source=partition.source,
            dateint=partition.dateint,
            box_ids=partition.box_ids,
            run_key=f"{boxes.ingest_stage(self._signal)}/{partition.source.key}/{day}/{digest}",
        )


def _box_id(letter: Letter) -> int | None:
    """The number of our box that the message is about; None where it is about another system's, or about none."""
    box_id = letter.body.get("box") if isinstance(letter.body, dict) else None
    return box_id if isinstance(box_id, int) and not isinstance(box_id, bool) and 0 < box_id < BOX_IDS else None


def _members(letter: Letter) -> list[Letter]:
    """The notifications in a box's message; where there are none, the whole, to be kept as what it is not."""
    members = letter.body.get("m") if isinstance(letter.body, dict) else None
    return [replace(letter, body=member) for member in members] if isinstance(members, list) else [letter]
