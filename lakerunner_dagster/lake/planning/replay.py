"""What a replay of raw objects is to do, from what lrdb knows and what the store holds: a pure function.

What belongs here: adding up both, day by day. What does not: listing and asking (``runs.raw_replay``), doing it (a
backfill: ``runs.rebuild``).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import NamedTuple
from uuid import UUID

from lakerunner_dagster.lake.signals import Signal


class RawDay(NamedTuple):
    """A UTC day (YYYYMMDD) of a signal of a collector, which lrdb may not know."""

    organization_id: UUID
    collector: str
    signal: Signal
    dateint: int


class KnownDay(NamedTuple):
    """The raw objects of a day that have a row in lrdb, their stored bytes, and how many of them are ingested."""

    objects: int = 0
    bytes: int = 0
    ingested: int = 0


class Sighting(NamedTuple):
    """An object that the store holds: the day on which it was stored, its stored bytes and its bucket.

    ``row_day`` is the day that lrdb has it on, None where it does not know this content; ``ingested`` says how its row
    ended.
    """

    day: RawDay
    size: int
    bucket: str
    row_day: RawDay | None = None
    ingested: bool = False


@dataclass(frozen=True, slots=True)
class DayPlan:
    """What a rebuild of a day will find.

    ``known`` raw objects have a row. ``found`` ones are in the source's home bucket and have none; ``elsewhere`` are
    those in other buckets, where a rebuild does not look. ``unsighted`` are ingested, and no listing showed them.
    ``bytes`` are the stored ones of known and found objects.
    """

    known: int
    found: int
    elsewhere: int
    unsighted: int
    bytes: int


def plan(
    known: Mapping[RawDay, KnownDay], sightings: Iterable[Sighting], homes: Mapping[tuple[UUID, str], str]
) -> dict[RawDay, DayPlan]:
    """Every day for which there is anything to do, in order.

    ``known`` are the days that lrdb knows; ``homes`` the bucket of each (organization, collector) with objects, which
    may grow while ``sightings`` are looked at.
    """
    found: Counter[RawDay] = Counter()
    found_bytes: Counter[RawDay] = Counter()
    elsewhere: Counter[RawDay] = Counter()
    sighted: Counter[RawDay] = Counter()
    for one in sightings:
        if one.row_day is not None:
            sighted[one.row_day] += one.ingested
        elif homes[one.day.organization_id, one.day.collector] == one.bucket:
            found[one.day] += 1
            found_bytes[one.day] += one.size
        else:
            elsewhere[one.day] += 1
    plans = {}
    for day in sorted({*known, *found, *elsewhere}):
        of_lrdb = known.get(day, KnownDay())
        plans[day] = DayPlan(
            known=of_lrdb.objects,
            found=found[day],
            elsewhere=elsewhere[day],
            unsighted=of_lrdb.ingested - sighted[day],
            bytes=of_lrdb.bytes + found_bytes[day],
        )
    return plans
