"""What the boxer's sensor has seen and not told yet: its cursor.

What belongs here: adding up, and when it is time to tell. What does not: telling (``sensors.boxer``).

Each event costs Dagster tens of milliseconds and is kept for years, so a partition is told about once a minute, except
for the first time: a new day or source shows at once.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Self

from pydantic import TypeAdapter, ValidationError

from lakerunner_dagster.lake.lrdb.intake import Observed

TELL_MS = 60_000
"""Time between two events of a partition, in ms."""

CHECK_MS = 300_000
"""Time between two evaluations of the checks, in ms."""

FORGET_MS = 86_400_000
"""A partition that was silent for so long counts as new again, so that the cursor does not grow with the lake."""


@dataclass(frozen=True, slots=True)
class Seen:
    """A partition's raw objects and stored bytes since it was last told about (epoch ms; 0: never)."""

    objects: int = 0
    bytes: int = 0
    told_ms: int = 0


@dataclass(frozen=True, slots=True)
class Observations:
    """By partition key what is to be told, and when the checks were last evaluated (epoch ms)."""

    partitions: Mapping[str, Seen] = field(default_factory=dict)
    checked_ms: int = 0

    @classmethod
    def of_cursor(cls, cursor: str | None) -> Self:
        """What a cursor holds; nothing where there is none, or one of another version of the code."""
        try:
            return TypeAdapter(cls).validate_json(cursor or "{}")
        except ValidationError:
            return cls()

    @property
    def cursor(self) -> str:
        """These observations as a cursor."""
        return TypeAdapter(type(self)).dump_json(self).decode()

    def with_observed(self, observed: Mapping[str, Observed]) -> Self:
        """These, and what a tick has observed, by partition key."""
        partitions = dict(self.partitions)
        for key, more in observed.items():
            seen = partitions.get(key, Seen())
            partitions[key] = replace(seen, objects=seen.objects + more.objects, bytes=seen.bytes + more.bytes)
        return replace(self, partitions=partitions)

    def due(self, now_ms: int) -> dict[str, Seen]:
        """The partitions to tell about now."""
        return {key: seen for key, seen in self.partitions.items() if seen.objects and seen.told_ms + TELL_MS <= now_ms}

    def told(self, now_ms: int) -> Self:
        """What is left once those that are due are told about."""
        due = self.due(now_ms)
        partitions = {key: Seen(told_ms=now_ms) if key in due else seen for key, seen in self.partitions.items()}
        kept = {key: seen for key, seen in partitions.items() if seen.objects or seen.told_ms + FORGET_MS > now_ms}
        return replace(self, partitions=kept)

    def check_due(self, now_ms: int) -> bool:
        """Whether it is time to evaluate the checks."""
        return self.checked_ms + CHECK_MS <= now_ms

    def checked(self, now_ms: int) -> Self:
        """These, once the checks were evaluated."""
        return replace(self, checked_ms=now_ms)
