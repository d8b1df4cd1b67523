"""An hour of one source as a planner meets it: segments come, merges are done, and what they cost is kept."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import accumulate, chain, repeat
from uuid import UUID

from lakerunner_dagster.lake.planning.compaction import FULL, Candidate, Merge, SegmentGroup, plan
from lakerunner_dagster.lake.settings import CompactionPolicy
from lakerunner_dagster.lake.signals import Signal

GROUP = SegmentGroup(UUID(int=1), 7, Signal.LOGS, 0, 20_250_615, 10)
BEGIN = 1_749_981_600_000
"""2025-06-15T10:00:00Z, when the hour of GROUP begins."""
END = BEGIN + 3_600_000

POLICY = CompactionPolicy(target_bytes=1000, fanout=4, cold_seconds=600, settle_seconds=600)

PLAIN = (1.0, 1.0)
"""A merge that shrinks nothing and spreads records evenly over bytes."""


def tier_of(records: int, fanout: int) -> int:
    return max((n for n in range(1, records.bit_length() + 1) if fanout**n <= records), default=0)


@dataclass
class Costs:
    """What was rewritten, and what the bound on it is made of: the names are those of the planner's docstring."""

    fanout: int
    R: int = 0
    r: int = 1 << 60
    L: int = 0
    M: int = 0
    S: int = 0
    Q: int = 0
    k: int = 0
    full: int = 0
    tier: int = 0
    cold: int = 0

    @property
    def T(self) -> int:  # noqa: N802
        return tier_of(self.R, self.fanout) - tier_of(self.r, self.fanout)

    @property
    def hot(self) -> int:
        return self.full + self.tier

    @property
    def hot_bound(self) -> float:
        return self.R * (self.T + 1) + self.M + self.S

    @property
    def cold_bound(self) -> float:
        return self.R + (1 + self.fanout) * (self.L + self.Q) + self.k * self.R / (1 + self.fanout)

    @property
    def missed_bound(self) -> float:
        return self.R * (tier_of(self.R, 2) - tier_of(self.r, 2)) + self.S


@dataclass
class Hour:
    """The segments of GROUP that are published at ``now_ms``, the first ms of the hour at first."""

    policy: CompactionPolicy
    now_ms: int = BEGIN
    segments: dict[int, Candidate] = field(default_factory=dict)
    costs: Costs = field(init=False)
    last_id: int = 0

    def __post_init__(self) -> None:
        self.costs = Costs(self.policy.fanout)

    @property
    def small(self) -> list[Candidate]:
        return [one for one in self.segments.values() if one.bytes < FULL * self.policy.target_bytes]

    @property
    def cold_ms(self) -> float:
        return END + self.policy.cold_seconds * 1000

    def come(self, records: int, size: int) -> None:
        """A segment is ingested."""
        self._publish(records, size)
        self.costs.R += records
        self.costs.r = min(self.costs.r, records)
        self.costs.L += records * (self.now_ms >= self.cold_ms)

    def wait(self, seconds: float) -> None:
        self.now_ms += round(seconds * 1000)

    def settle(self) -> None:
        """Time passes until the hour is cold and nothing that is there is fresh any more."""
        newest = max((one.created_ms for one in self.segments.values()), default=0)
        self.now_ms = round(max(self.now_ms, self.cold_ms, newest + self.policy.settle_seconds * 1000))

    def look(self, fates: Iterable[tuple[float, float]] = ()) -> list[Merge]:
        """The planner is asked and what it says is done; ``fates`` tell in turn how each merge comes out.

        A fate is the factor that the bytes shrink by, and how many times the records that its bytes amount to the last
        of several outputs has.
        """
        merges = plan(self.segments.values(), self.policy, self.now_ms)
        before = sum(one.records for one in self.small)
        for merge, (factor, share) in zip(merges, chain(fates, repeat(PLAIN)), strict=False):
            self._execute(merge, factor, share)
        cold = [merge for merge in merges if merge.reason == "cold"]
        read = sum(merge.records for merge in cold)
        if cold and read * (1 + self.policy.fanout) <= before:
            self.costs.k += 1
        elif cold:
            left = [one.records for one in self.small]
            self.costs.Q += sum(left) - max(left, default=0)
        return merges

    def finish(self, fates: Iterable[tuple[float, float]] = ()) -> int:
        """Looks until nothing is planned any more: how many found something to do."""
        left = iter(fates)
        for looks in range(1000):
            self.settle()
            if not self.look(left):
                return looks
        raise AssertionError("the planner never comes to rest")

    def _publish(self, records: int, size: int) -> Candidate:
        self.last_id += 1
        one = Candidate(self.last_id, GROUP, rolledup=False, bytes=size, records=records, created_ms=self.now_ms)
        self.segments[one.segment_id] = one
        return one

    def _execute(self, merge: Merge, factor: float, share: float) -> None:
        inputs = [self.segments.pop(segment_id) for segment_id in merge.segment_ids]
        assert merge.bytes == sum(one.bytes for one in inputs)
        assert merge.records == sum(one.records for one in inputs)
        sizes = list(_filled(max(1, round(merge.bytes * factor)), self.policy.target_bytes))
        outputs = [
            self._publish(records, size)
            for records, size in zip(_spread(merge.records, sizes, share), sizes, strict=True)
        ]
        self._account(merge, outputs)

    def _account(self, merge: Merge, outputs: list[Candidate]) -> None:
        costs, small = self.costs, outputs[-1].bytes < FULL * self.policy.target_bytes
        setattr(costs, merge.reason, getattr(costs, merge.reason) + merge.records)
        costs.M += merge.records * (merge.reason == "full" and small)
        costs.S += merge.records * (merge.reason == "cold" and len(outputs) > 1)


def _filled(size: int, target: int) -> Iterator[int]:
    """The sizes of a merge's outputs: as many as fill the target, and what is left."""
    yield from repeat(target, (size - 1) // target)
    yield size - (size - 1) // target * target


def _spread(records: int, sizes: list[int], share: float) -> Iterator[int]:
    """The records of a merge's outputs, by bytes; of several, the last has ``share`` times as many as that, or one."""
    last = records if len(sizes) == 1 else min(records, max(1, round(records * sizes[-1] / sum(sizes) * share)))
    ends = [(records - last) * end // max(1, sum(sizes[:-1])) for end in accumulate(sizes[:-1])]
    yield from (end - begin for begin, end in zip([0, *ends], ends, strict=False))
    yield last
