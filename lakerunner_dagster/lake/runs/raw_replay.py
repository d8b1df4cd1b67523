"""The raw objects of a range of days, as lrdb knows them and as the buckets hold them, for a replay.

What belongs here: looking at both, and what must be so before the days can be rebuilt (their sources registered). What
does not: adding up (``planning.replay``), rebuilding (``rebuild``, which finds the objects of a day again by itself).

An object's day is that of its event time. Of one that lrdb does not know it is the time of storing.
"""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import NamedTuple
from uuid import UUID

from lakerunner_dagster.lake.errors import InputError, ObjectMissing
from lakerunner_dagster.lake.lrdb import profiles, raw_days
from lakerunner_dagster.lake.lrdb.backfill import Span
from lakerunner_dagster.lake.lrdb.connection import Conn
from lakerunner_dagster.lake.lrdb.expiry import first_kept
from lakerunner_dagster.lake.lrdb.raw_days import SeenDay, Version
from lakerunner_dagster.lake.model import RawObject, RawState, Source, dateint_of
from lakerunner_dagster.lake.notifications.events import ObjectEvent
from lakerunner_dagster.lake.notifications.intake import Intake
from lakerunner_dagster.lake.notifications.listing import hidden, raw_objects_below, with_etag
from lakerunner_dagster.lake.notifications.ownership import Owners
from lakerunner_dagster.lake.notifications.routing import Route
from lakerunner_dagster.lake.planning import replay
from lakerunner_dagster.lake.planning.replay import DayPlan, KnownDay, RawDay, Sighting
from lakerunner_dagster.lake.runs.context import Lake
from lakerunner_dagster.lake.signals import SIGNALS, Signal
from lakerunner_dagster.lake.store import Store, StoredObject
from lakerunner_dagster.lake.tiers import ROLLED_UP, TIERS

ADAPTER = "replay"
"""Who told of an object that lies in another bucket than its source's home."""

BATCH = 500
"""Objects that lrdb is asked for, and Kafka is told of, at once."""

RAW_PREFIX = "otel-raw/"


class Collector(NamedTuple):
    """A collector of an organization, registered or not."""

    organization_id: UUID
    name: str


@dataclass(frozen=True, slots=True)
class Scope:
    """What is to be replayed: days, signals, and collectors (none named: all)."""

    span: Span
    signals: Collection[Signal]
    collectors: Collection[Collector] = ()

    def holds(self, route: Route) -> bool:
        """Whether an object of this route is meant."""
        return route.signal in self.signals and self.names(Collector(route.organization_id, route.collector))

    def names(self, collector: Collector) -> bool:
        """Whether a collector is meant."""
        return not self.collectors or collector in self.collectors

    def has_day(self, dateint: int) -> bool:
        """Whether a day is one of the span."""
        return self.span.first <= dateint <= self.span.last


@dataclass(frozen=True, slots=True)
class ReplayDay:
    """A day to be replayed: what there is to read, what will be replaced, and what follows from it.

    ``source_key`` names its source, which lrdb may not know yet. ``missing`` objects are ingested, and in the store no
    more: an hour that stands on one stays as it is. ``tiers`` are computed anew from what the day will have.
    """

    day: RawDay
    source_key: str
    work: DayPlan
    seen: SeenDay
    missing: Sequence[RawObject]
    tiers: Sequence[str]


@dataclass(frozen=True, slots=True)
class ReplayPlan:
    """The days, in order; the bucket of each collector that is to be registered; and what is left out, by why."""

    days: Sequence[ReplayDay]
    unregistered: dict[Collector, str]
    left_out: Counter[str]


def plan_replay(lake: Lake, scope: Scope) -> ReplayPlan:
    """Look at lrdb and at every bucket; nothing is changed. Raises StoreUnavailable and StoreDenied."""
    with lake.lrdb.connection() as conn:
        look = _Look(lake, conn, scope)
        plans = replay.plan(look.known(), look.sightings(), look.homes)
        days = [look.judged(day, work) for day, work in plans.items() if look.is_kept(day)]
        return ReplayPlan(days, look.unregistered({Collector(*one.day[:2]) for one in days}), look.left_out)


def register(lake: Lake, collectors: dict[Collector, str]) -> None:
    """Make sources of collectors, each at home in its bucket, as the intake would. InputError."""
    with lake.lrdb.transaction() as conn:
        for (organization_id, name), bucket in sorted(collectors.items()):
            profiles.register_source(conn, organization_id, name, bucket, lake.settings.sources_per_organization)


def notify_elsewhere(lake: Lake, scope: Scope) -> int:
    """Tell Kafka of what lrdb does not know in buckets where a rebuild does not look; how many objects.

    Their sources must be registered. BusUnavailable.
    """
    intake = Intake(lake.lrdb, lake.bus, lake.settings)
    with lake.lrdb.connection() as conn:
        look = _Look(lake, conn, scope)
        events = look.elsewhere()
        told = 0
        while batch := list(islice(events, BATCH)):
            told += intake.accept(batch, ADAPTER, skip_known=True).produced
    return told


class _Sighted(NamedTuple):
    """An object of the scope as the store has it, and what lrdb knows of this content."""

    event: ObjectEvent
    route: Route
    version: Version | None


class _Look:
    """One look at what there is; ``homes`` are the buckets of its collectors, registered or found."""

    def __init__(self, lake: Lake, conn: Conn, scope: Scope) -> None:
        self._lake = lake
        self._conn = conn
        self._scope = scope
        self._now_ms = time.time_ns() // 1_000_000
        self._owners = Owners(conn, lake.settings.sources_per_organization)
        self._names = {one.organization_id: one.name for one in profiles.organizations(conn)}
        self._sources = {Collector(one.organization_id, one.collector): one for one in profiles.sources(conn)}
        self._numbers = {(one.organization_id, one.instance_num): one for one in self._sources.values()}
        self._seen: dict[tuple[Collector, Signal], dict[int, SeenDay]] = {}
        self.homes: dict[tuple[UUID, str], str] = {one: source.bucket for one, source in self._sources.items()}
        self.left_out: Counter[str] = Counter()

    def known(self) -> dict[RawDay, KnownDay]:
        """The days that lrdb knows."""
        return {
            RawDay(*collector, signal, dateint): known
            for collector, source in self._sources.items()
            if self._scope.names(collector)
            for signal in self._scope.signals
            for dateint, known in raw_days.known_days(self._conn, source, signal, self._scope.span).items()
        }

    def sightings(self) -> Iterator[Sighting]:
        """What the buckets hold of the days, bucket by bucket; a new collector's home is where it is first found."""
        for event, route, version in self._sighted():
            self.homes.setdefault((route.organization_id, route.collector), event.bucket)
            yield Sighting(
                day=RawDay(route.organization_id, route.collector, route.signal, dateint_of(event.event_time_ms)),
                size=event.size,
                bucket=event.bucket,
                row_day=self._row_day(route.organization_id, version) if version is not None else None,
                ingested=version is not None and version.state is RawState.INGESTED,
            )

    def elsewhere(self) -> Iterator[ObjectEvent]:
        """What lrdb does not know and a rebuild would not find."""
        for event, route, version in self._sighted():
            if version is None and self.homes.get((route.organization_id, route.collector)) != event.bucket:
                yield event

    def is_kept(self, day: RawDay) -> bool:
        """Whether a day can be replayed: it is one of the lake's, and not past the retention of what is ingested."""
        if not int(self._lake.limits.first_date.strftime("%Y%m%d")) <= day.dateint <= dateint_of(self._now_ms):
            self.left_out["days before the first of the lake, or to come"] += 1
            return False
        if day.dateint < self._first_kept(day, SIGNALS[day.signal].frequency_ms):
            self.left_out["days past their retention"] += 1
            return False
        return True

    def judged(self, day: RawDay, work: DayPlan) -> ReplayDay:
        """A day with what it means for readers."""
        collector = Collector(day.organization_id, day.collector)
        source = self._sources.get(collector)
        return ReplayDay(
            day=day,
            source_key=f"{self._names[day.organization_id]}/{day.collector}",
            work=work,
            seen=self._seen_of(source, day.signal).get(day.dateint, SeenDay()) if source else SeenDay(),
            missing=self._missing(source, day) if source and work.unsighted else (),
            tiers=self._tiers(day),
        )

    def unregistered(self, collectors: Iterable[Collector]) -> dict[Collector, str]:
        """Those of the collectors that lrdb does not know, with the bucket where each was found."""
        return {one: self.homes[one] for one in sorted(collectors) if one not in self._sources}

    def _first_kept(self, day: RawDay, frequency_ms: int) -> int:
        return first_kept(self._conn, day.organization_id, day.signal, frequency_ms, self._now_ms)

    def _tiers(self, day: RawDay) -> Sequence[str]:
        if day.signal is not ROLLED_UP:
            return ()
        return [tier.label for tier in TIERS.values() if day.dateint >= self._first_kept(day, tier.finer_ms)]

    def _seen_of(self, source: Source, signal: Signal) -> dict[int, SeenDay]:
        place = (Collector(source.organization_id, source.collector), signal)
        if place not in self._seen:
            self._seen[place] = raw_days.seen_days(self._conn, source, signal, self._scope.span)
        return self._seen[place]

    def _missing(self, source: Source, day: RawDay) -> list[RawObject]:
        """The ingested objects of a day that the store does not hold as they were: each is asked for."""
        objects = raw_days.ingested(self._conn, source, day.signal, day.dateint)
        return [raw for raw in objects if not _is_there(self._lake.stores.of(raw.bucket), raw)]

    def _row_day(self, organization_id: UUID, version: Version) -> RawDay:
        source = self._numbers[organization_id, version.instance_num]
        return RawDay(organization_id, source.collector, version.signal, version.dateint)

    def _sighted(self) -> Iterator[_Sighted]:
        for bucket in profiles.buckets(self._conn):
            store = self._lake.stores.of(bucket.bucket_name)
            listed = raw_objects_below(store, self._prefixes(bucket.bucket_name))
            visible = (found for found in listed if not hidden(store, found.key))
            while batch := list(islice(visible, BATCH)):
                yield from self._of_batch(store, batch)

    def _prefixes(self, bucket: str) -> list[str]:
        own = [f"{RAW_PREFIX}{one.organization_id}/{one.name}/" for one in self._scope.collectors] or [RAW_PREFIX]
        return [*own, *profiles.mapped_prefixes(self._conn, bucket)]

    def _of_batch(self, store: Store, batch: Sequence[StoredObject]) -> Iterator[_Sighted]:
        routed: defaultdict[UUID, list[tuple[StoredObject, Route]]] = defaultdict(list)
        for found in batch:
            if (route := self._route(store.bucket, found)) is not None:
                routed[route.organization_id].append((found, route))
        for organization_id, members in routed.items():
            keys = [found.key for found, _ in members]
            versions: defaultdict[str, list[Version]] = defaultdict(list)
            for version in raw_days.versions(self._conn, organization_id, store.bucket, keys):
                versions[version.key].append(version)
            for found, route in members:
                yield from self._of_object(store, found, route, versions[found.key])

    def _of_object(
        self, store: Store, found: StoredObject, route: Route, versions: Sequence[Version]
    ) -> Iterator[_Sighted]:
        """The object, if it was stored in the span or lrdb has it there; its etag, which may be dear, only then."""
        days = {dateint_of(found.last_modified_ms), *(version.dateint for version in versions)}
        if not any(map(self._scope.has_day, days)):
            return
        there = with_etag(store, found)
        if there is None:
            return
        version = next((version for version in versions if version.etag == there.etag), None)
        if version is not None or self._scope.has_day(dateint_of(there.last_modified_ms)):
            event = ObjectEvent(store.bucket, there.key, there.size, there.etag, there.last_modified_ms)
            yield _Sighted(event, route, version)

    def _route(self, bucket: str, found: StoredObject) -> Route | None:
        """Whose an object is, if it is meant; what leads nowhere is counted where it is of the days."""
        try:
            route = self._owners.of(ObjectEvent(bucket, found.key, found.size, "", found.last_modified_ms))
        except InputError as error:
            if self._scope.has_day(dateint_of(found.last_modified_ms)):
                self.left_out[f"objects that lead nowhere ({error.reason})"] += 1
            return None
        return route if self._scope.holds(route) else None


def _is_there(store: Store, raw: RawObject) -> bool:
    try:
        return store.head(raw.key).etag == raw.etag
    except (ObjectMissing, InputError):
        return False
