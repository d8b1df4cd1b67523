"""Partitions: one UTC day of one source, shared by every asset.

What belongs here: the definition, and keys into it and out of it. What does not: which partitions there are work for
(``lake/ticks``), which sources exist (``lrdb``).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import date
from typing import Self

import dagster as dg

from lakerunner_dagster.lake.model import date_of
from lakerunner_dagster.lake.settings import Limits

DATE = "date"
SOURCE = "source"

PARTITION_TAG = "dagster/partition"
"""Where Dagster notes the partition of a run that has one."""

SOURCES_NAME = "sources"
SOURCES = dg.DynamicPartitionsDefinition(name=SOURCES_NAME)
"""The sources, ``{organization name}/{collector}``: sensors add each when they first see it."""

DAYS = dg.DailyPartitionsDefinition(
    start_date=Limits().first_date.isoformat(),
    end_offset=1,  # today is a partition too
)
"""The UTC days of the lake."""

DAY_BY_SOURCE = dg.MultiPartitionsDefinition(
    {
        DATE: DAYS,
        SOURCE: SOURCES,
    }
)
"""What every asset is partitioned by. A key reads ``2026-02-01|acme/web``."""


@dataclass(frozen=True, slots=True, order=True)
class DaySource:
    """One partition: the day as dateint (YYYYMMDD) and the source by its key."""

    dateint: int
    source_key: str

    @classmethod
    def of(cls, partition_key: str) -> Self:
        """The partition of a key of ``DAY_BY_SOURCE``."""
        day, _, source_key = partition_key.partition("|")
        return cls(_dateint(date.fromisoformat(day)), source_key)

    @property
    def exists(self) -> bool:
        """Whether its day is a partition by now: not before the first of the lake, not after today (UTC)."""
        return DAYS.has_partition_key(date_of(self.dateint).isoformat())

    @property
    def key(self) -> dg.MultiPartitionKey:
        """Its key in ``DAY_BY_SOURCE``."""
        return dg.MultiPartitionKey({DATE: date_of(self.dateint).isoformat(), SOURCE: self.source_key})


class SourcePartitions:
    """The sources that a Dagster instance shows, for maintenance to remove those that are gone."""

    def __init__(self, instance: dg.DagsterInstance) -> None:
        self._instance = instance

    def keys(self) -> list[str]:
        """Their keys, ``{organization name}/{collector}``."""
        return list(self._instance.get_dynamic_partitions(SOURCES_NAME))

    def remove(self, key: str) -> None:
        """Show this one no longer; what was materialised stays in Dagster's history, and comes back with the key."""
        self._instance.delete_dynamic_partition(SOURCES_NAME, key)


def new_sources(instance: dg.DagsterInstance, source_keys: Iterable[str]) -> list[dg.AddDynamicPartitionsRequest]:
    """The request (none or one) that adds those of the source keys that are no partition yet."""
    known = set(instance.get_dynamic_partitions(SOURCES_NAME))
    missing = sorted(set(source_keys) - known)
    return [SOURCES.build_add_request(missing)] if missing else []


def _dateint(day: date) -> int:
    return day.year * 10_000 + day.month * 100 + day.day
