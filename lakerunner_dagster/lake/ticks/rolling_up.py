"""Dirty slots into boxes: what a tick of the rollup stage does.

What belongs here: the steps inside its one transaction. What does not: Kafka (``listening``), which slots are dirty
(``lrdb.slots``), which of them are computed together (``planning.rollup``).

Messages only wake: which slots are dirty is lrdb's word, since whoever changes a tier marks those of the next one. A
box is the due slots of one hour of a source's tier.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import groupby
from operator import attrgetter
from uuid import UUID

from lakerunner_dagster.lake.lrdb import outbox, slots, unsettled
from lakerunner_dagster.lake.lrdb.connection import Conn
from lakerunner_dagster.lake.runs.announce import rollup_box
from lakerunner_dagster.lake.runs.context import Lake
from lakerunner_dagster.lake.signals import Signal
from lakerunner_dagster.lake.ticks.closing import Closed
from lakerunner_dagster.lake.ticks.letters import Letter, TakenIn
from lakerunner_dagster.lake.ticks.waking import woken
from lakerunner_dagster.lake.tiers import TIERS, Tier

SLOTS = 500
"""Slots of a tier that are looked at in one transaction; what is due beyond them is a later one's."""


class RollupBoxing:
    """How dirty slots are heard of and boxed."""

    def __init__(self, lake: Lake, _signal: Signal) -> None:
        self._policy = lake.rollup

    def take_in(self, conn: Conn, letters: Iterable[Letter], now_ms: int) -> TakenIn:
        """The slots of all segments that the letters tell of and that are not rolled up are dirty afterwards.

        What is no such letter is a dead one.
        """

        def wake(organization_id: UUID, dateint: int, segment_ids: Sequence[int]) -> int:
            return slots.wake(conn, organization_id, dateint, segment_ids)

        return woken(conn, letters, now_ms, wake)

    def close_boxes(self, conn: Conn, now_ms: int, *, at_once: bool = False) -> Closed:
        """Box the slots that have gathered long enough (all, ``at_once``), a box for each hour of a tier."""
        return Closed(sum(self._close(conn, tier, now_ms, at_once=at_once) for tier in TIERS.values()))

    def _close(self, conn: Conn, tier: Tier, now_ms: int, *, at_once: bool) -> int:
        wait = 0.0 if at_once else self._policy.gather_seconds(tier.label)
        due = sorted(slots.due(conn, tier.frequency_ms, wait, SLOTS))
        hours = [(group, list(members)) for group, members in groupby(due, key=attrgetter("group"))]
        for group, members in hours:
            box_id = slots.open_box(conn, group, members)
            finer = unsettled.published(conn, [group._replace(frequency_ms=tier.finer_ms)])
            read = [one for one in finer if _touches(members, tier, one.start_ms, one.end_ms)]
            outbox.add(conn, [rollup_box(group, tier, read, box_id, now_ms)])
        return len(hours)


def _touches(members: Iterable[slots.Slot], tier: Tier, start_ms: int, end_ms: int) -> bool:
    """Whether a time touches any of the slots."""
    return any(slot.start_ms < end_ms and start_ms < slot.start_ms + tier.slot_ms for slot in members)
