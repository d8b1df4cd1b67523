"""What an hour's merges have rewritten, beside the bound that the planner states (``planning.compaction``).

What belongs here: the bound, from what came and what was merged. What does not: planning and merging.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from lakerunner_dagster.lake.lrdb.unsettled import group_of
from lakerunner_dagster.lake.planning.compaction import FULL, SegmentGroup

if TYPE_CHECKING:
    from lakerunner_dagster.lake.model import Segment
    from lakerunner_dagster.lake.runs.report import Step
    from lakerunner_dagster.lake.settings import CompactionPolicy


@dataclass(slots=True)
class HourCost:
    """One hour's records: all, the smallest segment's, those that came when it was cold, and those rewritten.

    ``missed`` were in merges that were to fill a file and did not, ``split`` in merges with several outputs;
    ``piles`` counts merges of stragglers beside a larger segment.
    """

    came: int = 0
    smallest: int = 1 << 60
    late: int = 0
    missed: int = 0
    split: int = 0
    piles: int = 0
    rewritten: int = 0

    def bound(self, fanout: int) -> float:
        """The most that may have been rewritten: the planner's own sum, in its order."""
        tiers = _tier(self.came, fanout) - _tier(self.smallest, fanout)
        hot = self.came * (tiers + 1) + self.missed + self.split
        cold = self.came + (1 + fanout) * (self.late + self.split) + self.piles * self.came / (1 + fanout)
        return hot + cold


@dataclass(slots=True)
class Cost:
    """The cost of every hour."""

    policy: CompactionPolicy
    hours: defaultdict[SegmentGroup, HourCost] = field(default_factory=lambda: defaultdict(HourCost))

    def ingested(self, segment: Segment, now_ms: int) -> None:
        """A segment came."""
        group = group_of(segment)
        hour = self.hours[group]
        hour.came += segment.records
        hour.smallest = min(hour.smallest, segment.records)
        hour.late += segment.records * self._cold(group, now_ms)

    def merged(self, step: Step, now_ms: int) -> None:
        """A merge took the place of its inputs."""
        group = group_of(step.segments[0])
        hour, full = self.hours[group], FULL * self.policy.target_bytes
        hour.rewritten += step.records_written
        if len(step.segments) > 1:
            hour.split += step.records_written
        elif step.bytes_in >= full > step.bytes_out:
            hour.missed += step.records_written
        elif self._cold(group, now_ms) and step.records_written * (1 + self.policy.fanout) <= hour.came:
            hour.piles += 1

    def beyond(self) -> list[str]:
        """The hours in which more was rewritten than the bound allows, a sentence each."""
        return [
            f"{group} had {hour.rewritten} records rewritten of {hour.came}, more than {hour.bound(self.policy.fanout)}"
            for group, hour in self.hours.items()
            if hour.rewritten > hour.bound(self.policy.fanout)
        ]

    @property
    def amplification(self) -> float:
        """Records rewritten for each that came."""
        return sum(hour.rewritten for hour in self.hours.values()) / sum(hour.came for hour in self.hours.values())

    @property
    def allowed(self) -> float:
        """The bound for each record that came."""
        bounds = sum(hour.bound(self.policy.fanout) for hour in self.hours.values())
        return bounds / sum(hour.came for hour in self.hours.values())

    def _cold(self, group: SegmentGroup, now_ms: int) -> bool:
        return now_ms >= group.end_ms + self.policy.cold_seconds * 1000


def _tier(records: int, fanout: int) -> int:
    return max((n for n in range(1, records.bit_length() + 1) if fanout**n <= records), default=0)
