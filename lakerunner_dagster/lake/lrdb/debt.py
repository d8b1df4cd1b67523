"""Small-file debt: what compaction has still to do for each source, and how long that takes.

What belongs here: adding up the planner's own outlook over the hours that are not settled. What does not: the outlook
(``planning.compaction``), judging it (``checks.debt``), showing it.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lakerunner_dagster.lake.lrdb import profiles, unsettled
from lakerunner_dagster.lake.lrdb.unsettled import PublishedSegment
from lakerunner_dagster.lake.model import HOUR_MS, Source, day_start_ms
from lakerunner_dagster.lake.planning.compaction import Candidate, SegmentGroup, outlook
from lakerunner_dagster.lake.stages import compaction_stage

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from uuid import UUID

    from lakerunner_dagster.lake.lrdb.connection import Conn
    from lakerunner_dagster.lake.settings import CompactionPolicy
    from lakerunner_dagster.lake.signals import Signal

RATE_SECONDS = 3600
"""The present pace is that of the merges of the last hour."""

OVERDUE_MS = HOUR_MS
"""How long a cold hour may wait for its last merges before that is worth a warning."""


@dataclass(frozen=True, slots=True)
class SourceDebt:
    """What compaction has to do for a source and stage.

    ``hours`` are not settled, ``overdue`` of them are cold for long and have merges to come all the same. ``segments``
    and ``bytes`` are below target in them. ``merges`` are still to come, if nothing new is published, and read
    ``merge_bytes``; at the pace of the last hour's merges that is ``drain_seconds`` of one run's work (None: there were
    none).
    ``aside`` segments cannot be read, ``boxes_failed`` wait for a person.
    """

    stage: str
    source: str
    hours: int
    overdue: int
    segments: int
    bytes: int
    merges: int
    merge_bytes: int
    drain_seconds: float | None
    aside: int
    boxes_failed: int


def debt(conn: Conn, signal: Signal, policy: CompactionPolicy, now_ms: int) -> list[SourceDebt]:
    """A row for every source of the signal that owes anything, by source."""
    return sorted(
        (
            row
            for organization in profiles.organizations(conn)
            for row in _of_organization(conn, organization.organization_id, signal, policy, now_ms)
        ),
        key=lambda row: row.source,
    )


def _of_organization(
    conn: Conn, organization_id: UUID, signal: Signal, policy: CompactionPolicy, now_ms: int
) -> list[SourceDebt]:
    groups = unsettled.of_signal(conn, organization_id, signal)
    failed = _failed(conn, organization_id, signal)
    rates = _rates(conn, organization_id, signal)
    published: defaultdict[SegmentGroup, list[PublishedSegment]] = defaultdict(list)
    for segment in unsettled.published(conn, groups):
        published[segment.candidate.group].append(segment)
    of_source: defaultdict[int, list[SegmentGroup]] = defaultdict(list)
    for group in groups:
        of_source[group.instance_num].append(group)
    found = []
    for instance_num in of_source.keys() | failed.keys():
        source = profiles.source_of_instance(conn, organization_id, instance_num)
        if source is not None:
            hours = {group: published[group] for group in of_source[instance_num]}
            owing = _Owing(source, hours, rates.get(instance_num, 0.0), failed.get(instance_num, 0))
            found.append(_debt_of(owing, signal, policy, now_ms))
    return found


@dataclass(frozen=True, slots=True)
class _Owing:
    """What a source's debt is told from: its unsettled hours, bytes that a second of its merges reads, failed boxes."""

    source: Source
    hours: Mapping[SegmentGroup, Sequence[PublishedSegment]]
    rate: float
    boxes_failed: int


def _debt_of(owing: _Owing, signal: Signal, policy: CompactionPolicy, now_ms: int) -> SourceDebt:
    hours = owing.hours
    outlooks = {group: outlook(_readable(segments), policy) for group, segments in hours.items()}
    merge_bytes = sum(one.bytes_to_read for one in outlooks.values())
    return SourceDebt(
        stage=compaction_stage(signal).name,
        source=owing.source.key,
        hours=len(hours),
        overdue=sum(bool(one.merges) and _overdue(group, policy, now_ms) for group, one in outlooks.items()),
        segments=sum(one.segments for one in outlooks.values()),
        bytes=sum(one.bytes for one in outlooks.values()),
        merges=sum(one.merges for one in outlooks.values()),
        merge_bytes=merge_bytes,
        drain_seconds=0.0 if not merge_bytes else merge_bytes / owing.rate if owing.rate else None,
        aside=sum(segment.aside for segments in hours.values() for segment in segments),
        boxes_failed=owing.boxes_failed,
    )


def _readable(segments: Iterable[PublishedSegment]) -> list[Candidate]:
    return [segment.candidate for segment in segments if not segment.aside]


def _overdue(group: SegmentGroup, policy: CompactionPolicy, now_ms: int) -> bool:
    cold_ms = day_start_ms(group.dateint) + (group.hour + 1) * HOUR_MS + policy.cold_seconds * 1000
    return cold_ms + OVERDUE_MS < now_ms


def _rates(conn: Conn, organization_id: UUID, signal: Signal) -> dict[int, float]:
    """Bytes that a second of merging has read lately, by instance."""
    rows = conn.execute(
        """
        SELECT instance_num, sum(bytes_in)::float / sum(seconds) FROM ledger
        WHERE organization_id = %s AND signal = %s AND operation = 'compact'
          AND committed_at > now() - %s * interval '1 second'
        GROUP BY instance_num HAVING sum(seconds) > 0
        """,
        (organization_id, str(signal), RATE_SECONDS),
    )
    return dict(rows.fetchall())


def _failed(conn: Conn, organization_id: UUID, signal: Signal) -> dict[int, int]:
    """Failed boxes of compaction, by instance."""
    rows = conn.execute(
        """
        SELECT instance_num, count(*) FROM boxes
        WHERE organization_id = %s AND stage = %s AND state = 'failed' GROUP BY instance_num
        """,
        (organization_id, compaction_stage(signal).name),
    )
    return dict(rows.fetchall())
