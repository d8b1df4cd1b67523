"""Hours with small segments into boxes: what a tick of a compaction stage does.

What belongs here: the steps inside its one transaction. What does not: Kafka (``listening``), the plan
(``planning.compaction``), the rows (``lrdb.unsettled``).

Messages only wake: which hours there are to look at is lrdb's word, since whoever publishes a segment notes its hour.
A box is one hour of a source (of metrics: and of a tier). What exactly is merged is planned again by the run, from what
is published then, so that no plan is ever old.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Protocol, TypeVar
from uuid import UUID

from lakerunner_dagster.lake.lrdb import outbox, unsettled
from lakerunner_dagster.lake.lrdb.connection import Conn
from lakerunner_dagster.lake.lrdb.unsettled import PublishedSegment
from lakerunner_dagster.lake.planning.compaction import SegmentGroup, plan, settled
from lakerunner_dagster.lake.runs.announce import compaction_box
from lakerunner_dagster.lake.runs.context import Lake
from lakerunner_dagster.lake.signals import Signal
from lakerunner_dagster.lake.ticks.closing import Closed
from lakerunner_dagster.lake.ticks.letters import Letter, TakenIn
from lakerunner_dagster.lake.ticks.waking import woken

HOURS = 500
"""Hours that are looked at in one transaction; what is due beyond them is a later one's."""


class CompactionBoxing:
    """How hours of a signal are heard of and boxed."""

    def __init__(self, lake: Lake, signal: Signal) -> None:
        self._policy = lake.compaction
        self._signal = signal

    def take_in(self, conn: Conn, letters: Iterable[Letter], now_ms: int) -> TakenIn:
        """The hours of all published segments that the letters tell of are unsettled afterwards.

        Of a segment that is not published (any more) there is nothing to do. What is no such letter is a dead one.
        """

        def wake(organization_id: UUID, dateint: int, segment_ids: Sequence[int]) -> int:
            return unsettled.wake(conn, organization_id, dateint, self._signal, segment_ids)

        return woken(conn, letters, now_ms, wake)

    def close_boxes(self, conn: Conn, now_ms: int, *, at_once: bool = False) -> Closed:
        """Look at the hours that are due (all, ``at_once``): box those with something to merge."""
        groups = unsettled.due(conn, self._signal, HOURS, at_once=at_once)
        published = unsettled.published(conn, groups)
        merges = _by_group(plan([one.candidate for one in published if not one.aside], self._policy, now_ms))
        facts = {one.candidate.segment_id: one for one in published}
        for group, planned in merges.items():
            members = [facts[segment_id] for merge in planned for segment_id in merge.segment_ids]
            _open_box(conn, group, members, planned[0].reason, now_ms)
        rest = set(groups) - merges.keys()
        standing = _by_group(one.candidate for one in published)
        kept = {one.candidate.group for one in published if one.aside}
        done = {group for group in rest - kept if settled(standing.get(group, []), self._policy, now_ms)}
        unsettled.settle(conn, sorted(done))
        unsettled.postpone(conn, sorted(rest - done), self._policy.gather_seconds)
        return Closed(len(merges))


def _open_box(conn: Conn, group: SegmentGroup, members: Sequence[PublishedSegment], reason: str, now_ms: int) -> None:
    size = sum(member.candidate.bytes for member in members)
    box_id = unsettled.open_box(conn, group, members=len(members), size=size, reason=reason)
    outbox.add(conn, [compaction_box(group, members, box_id, now_ms)])


class _Grouped(Protocol):
    @property
    def group(self) -> SegmentGroup: ...


T = TypeVar("T", bound=_Grouped)


def _by_group(items: Iterable[T]) -> dict[SegmentGroup, list[T]]:
    grouped: defaultdict[SegmentGroup, list[T]] = defaultdict(list)
    for item in items:
        grouped[item.group].append(item)
    return dict(grouped)
