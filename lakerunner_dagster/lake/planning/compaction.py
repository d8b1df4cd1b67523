"""The compaction planner: which published segments of an hour are merged now, and when an hour is done.

What belongs here: the decision, a pure function of the segments, the policy and the time. What does not: who asks and
how often, how a merge is done, and what it causes.

Only segments of one group and one ``rolledup`` are merged, each at most once in a plan, at least two at a time. One is
*full* from ``FULL`` of the target on, and never merged again; the others are *small*. The largest small one by records
is the *base*, the others are *stragglers*. Sizes are compared by records where they decide what is worth rewriting: a
merge keeps records and shrinks bytes.

A group is hot until ``cold_seconds`` after its hour's end, and from then on until no small segment came, by ingestion,
rollup or merge, for ``settle_seconds``.

- full (hot): a run of neighbours by size that reaches ``FULL`` of the target and does not pass the target is merged, if
  the largest in it becomes at least twice as large: what came out a little short of full is not rewritten for crumbs.
- tier (hot): a tier holds the sizes from ``fanout**n`` to below ``fanout**(n + 1)`` records. ``fanout`` or more of a
  tier are merged, as many as the target takes. So each record climbs at least one tier.
- cold: the stragglers are merged alone where the base holds at least ``fanout`` times as much, and everything is merged
  otherwise. One straggler so small is left: a cold group rests with at most two small segments. A merge here reads at
  most ``fanout`` targets, and fills its outputs up to the target: the last alone may be small.

A merge of any kind leaves at most one small segment in place of two or more, so planning comes to rest.

What that costs, in records rewritten by all merges of a group, of R records that ever came, the smallest segment with
r of them, T = tier(R) - tier(r):

- hot: at most R(T + 1) + M + S. A record climbs at most T tiers and becomes full once. M are the records of full merges
  whose output shrank to a small one; doubling bounds them by R(log2(R/r) + 1) + S. S are the records of cold merges
  with several outputs: a last small one of N' of their N records falls from tier(N), and N' times its fall is below N.
- cold: at most R + (1 + fanout)(L + Q) + kR/(1 + fanout). Merging everything reads less than 1 + fanout times the
  stragglers. These came since everything was merged last, among the L records that came when the hour was cold already;
  or they are of the Q records that merging everything left small beside the largest, where it took several merges.
  Each of k merges of stragglers alone reads at most 1/(1 + fanout) of what there is.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import TYPE_CHECKING, Literal, NamedTuple
from uuid import UUID

from lakerunner_dagster.lake.model import HOUR_MS, day_start_ms
from lakerunner_dagster.lake.signals import Signal

if TYPE_CHECKING:
    from lakerunner_dagster.lake.settings import CompactionPolicy

FULL = 0.75
"""Part of ``target_bytes`` from which a segment counts as full. Lower, final files are smaller; higher, more of what a
merge shrank is merged again."""

Reason = Literal["full", "tier", "cold"]
"""Why segments are merged: they make a full one, there are many of a tier, or their hour is cold."""


class SegmentGroup(NamedTuple):
    """What may be merged together. ``dateint`` is YYYYMMDD, ``hour`` 0-23, both UTC; ``frequency_ms`` as in Segment."""

    organization_id: UUID
    instance_num: int
    signal: Signal
    frequency_ms: int
    dateint: int
    hour: int

    @property
    def end_ms(self) -> int:
        """Epoch ms of the end of the hour."""
        return day_start_ms(self.dateint) + (self.hour + 1) * HOUR_MS


@dataclass(frozen=True, slots=True)
class Candidate:
    """A published segment. ``bytes`` is its file's size (> 0), ``created_ms`` the epoch time at which it was published.

    ``records`` (> 0) counts the raw records that it stands for: a merge has as many as its inputs together.
    """

    segment_id: int
    group: SegmentGroup
    rolledup: bool
    bytes: int
    records: int
    created_ms: int


@dataclass(frozen=True, slots=True)
class Merge:
    """Segments of one group, ids ascending, that shall become one: or several, where it would pass the target."""

    group: SegmentGroup
    segment_ids: tuple[int, ...]
    bytes: int
    records: int
    reason: Reason


@dataclass(frozen=True, slots=True)
class Outlook:
    """Small-file debt: ``segments`` below the target and their ``bytes``, ``merges`` to come and ``bytes_to_read``."""

    segments: int
    bytes: int
    merges: int
    bytes_to_read: int


def plan(segments: Iterable[Candidate], policy: CompactionPolicy, now_ms: int) -> list[Merge]:
    """The merges to do now, in the order of their groups, whatever the order of the segments; none shares a segment."""
    return [
        merge
        for smalls in _small(segments, policy)
        for merge in (_cold(smalls, policy) if _at_rest(smalls, policy, now_ms) else _hot(smalls, policy))
    ]


def settled(segments: Iterable[Candidate], policy: CompactionPolicy, now_ms: int) -> bool:
    """Whether a group's hour is cold and no merge will ever be planned, unless a segment comes or is rolled up."""
    known = list(segments)
    return all(_is_cold(group, policy, now_ms) for group in {segment.group for segment in known}) and not any(
        _cold(smalls, policy) for smalls in _small(known, policy)
    )


def outlook(segments: Iterable[Candidate], policy: CompactionPolicy) -> Outlook:
    """What is left to do, were every hour cold and at rest now and did no merge shrink a byte."""
    groups = _small(segments, policy)
    merges = [merge for smalls in groups for merge in _merges_to_come(smalls, policy)]
    return Outlook(
        segments=sum(len(smalls) for smalls in groups),
        bytes=sum(segment.bytes for smalls in groups for segment in smalls),
        merges=len(merges),
        bytes_to_read=sum(merge.bytes for merge in merges),
    )


def _small(segments: Iterable[Candidate], policy: CompactionPolicy) -> list[list[Candidate]]:
    """The small segments of each group and ``rolledup`` that has some, largest first."""
    groups: dict[tuple[SegmentGroup, bool], list[Candidate]] = {}
    for segment in segments:
        if _is_small(segment, policy):
            groups.setdefault((segment.group, segment.rolledup), []).append(segment)
    return [_by_size(smalls) for _, smalls in sorted(groups.items())]


def _is_small(segment: Candidate, policy: CompactionPolicy) -> bool:
    return segment.bytes < FULL * policy.target_bytes


def _by_size(segments: Iterable[Candidate]) -> list[Candidate]:
    """The segments with the most records first."""
    return sorted(segments, key=lambda segment: (-segment.records, -segment.bytes, segment.segment_id))


def _is_cold(group: SegmentGroup, policy: CompactionPolicy, now_ms: int) -> bool:
    return now_ms >= group.end_ms + policy.cold_seconds * 1000


def _at_rest(smalls: Sequence[Candidate], policy: CompactionPolicy, now_ms: int) -> bool:
    """Whether the hour is cold and nothing came for long enough that no more needs to be waited for."""
    newest_ms = max(segment.created_ms for segment in smalls)
    return _is_cold(smalls[0].group, policy, now_ms) and newest_ms <= now_ms - policy.settle_seconds * 1000


def _hot(smalls: Sequence[Candidate], policy: CompactionPolicy) -> list[Merge]:
    """Merges of a group while more is to come."""
    full = [_merge(run, "full") for run in _full_runs(smalls, policy)]
    taken = {segment_id for merge in full for segment_id in merge.segment_ids}
    rest = (segment for segment in smalls if segment.segment_id not in taken)
    return full + [_merge(members, "tier") for members in _crowds(rest, policy)]


def _full_runs(smalls: Sequence[Candidate], policy: CompactionPolicy) -> Iterator[Sequence[Candidate]]:
    """Runs of neighbours that make a full segment at least twice as large as their largest. A small one always fits."""
    begin = end = size = records = 0
    while begin < len(smalls):
        while end < len(smalls) and size + smalls[end].bytes <= policy.target_bytes:
            size += smalls[end].bytes
            records += smalls[end].records
            end += 1
        if size >= FULL * policy.target_bytes and records >= 2 * smalls[begin].records:
            yield smalls[begin:end]
            begin, size, records = end, 0, 0
        else:
            size -= smalls[begin].bytes
            records -= smalls[begin].records
            begin += 1


def _crowds(smalls: Iterable[Candidate], policy: CompactionPolicy) -> Iterator[Sequence[Candidate]]:
    """At least ``fanout`` segments of a tier that fit into the target together, the smallest files first."""
    for _, members in groupby(smalls, key=lambda segment: _tier(segment.records, policy.fanout)):
        by_bytes = sorted(members, key=lambda segment: segment.bytes)
        yield from (chunk for chunk in _chunks(by_bytes, policy.target_bytes) if len(chunk) >= policy.fanout)


def _tier(records: int, fanout: int) -> int:
    """The largest n with ``fanout**n <= records``; 0 where there is none."""
    tier = 0
    while records >= fanout:
        records //= fanout
        tier += 1
    return tier


def _cold(smalls: Sequence[Candidate], policy: CompactionPolicy) -> list[Merge]:
    """Merges of a group for which nothing more is waited for; none once it is done."""
    base, stragglers = smalls[0], smalls[1:]
    alone = sum(segment.records for segment in stragglers) * policy.fanout <= base.records
    chunks = _chunks(stragglers if alone else smalls, policy.fanout * policy.target_bytes)
    return [_merge(chunk, "cold") for chunk in chunks if len(chunk) > 1]


def _chunks(segments: Iterable[Candidate], limit_bytes: int) -> Iterator[list[Candidate]]:
    """The segments in their order, cut where the next would pass the limit; none is larger than that."""
    chunk: list[Candidate] = []
    size = 0
    for segment in segments:
        if size + segment.bytes > limit_bytes:
            yield chunk
            chunk, size = [], 0
        chunk.append(segment)
        size += segment.bytes
    yield chunk


def _merge(segments: Sequence[Candidate], reason: Reason) -> Merge:
    return Merge(
        group=segments[0].group,
        segment_ids=tuple(sorted(segment.segment_id for segment in segments)),
        bytes=sum(segment.bytes for segment in segments),
        records=sum(segment.records for segment in segments),
        reason=reason,
    )


def _merges_to_come(smalls: Sequence[Candidate], policy: CompactionPolicy) -> Iterator[Merge]:
    """The merges of a cold group, and those of their outputs, until nothing is planned."""
    while smalls and (merges := _cold(smalls, policy)):
        yield from merges
        taken = {segment_id for merge in merges for segment_id in merge.segment_ids}
        left = [segment for segment in smalls if segment.segment_id not in taken]
        left += [_last_output(merge, smalls[0], policy) for merge in merges]
        smalls = _by_size(segment for segment in left if _is_small(segment, policy))


def _last_output(merge: Merge, like: Candidate, policy: CompactionPolicy) -> Candidate:
    """The one output of a merge that may be small, under the id of its first input; the others are full."""
    size = merge.bytes % policy.target_bytes or policy.target_bytes
    return replace(like, segment_id=merge.segment_ids[0], bytes=size, records=merge.records * size // merge.bytes)
