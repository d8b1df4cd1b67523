"""What a source's segments are in the store and in lrdb, held against each other.

What belongs here: objects that no row knows, objects that are no segments, and published rows without an object. What
does not: deleting (``deleting``), mending (a rebuild of the day).

An object is there before its row: an orphan is one that is old enough to be nobody's work any more. Memory is bounded
by one day of one source.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice

from lakerunner_dagster.lake.errors import ObjectMissing
from lakerunner_dagster.lake.lrdb import expiry, faults, profiles, segments
from lakerunner_dagster.lake.lrdb.deletions import Deletion, Reason
from lakerunner_dagster.lake.lrdb.segments import RowOfDay
from lakerunner_dagster.lake.maintenance.deleting import BATCH, DELETED, Deleter, deleter
from lakerunner_dagster.lake.maintenance.report import Findings, Order, Report
from lakerunner_dagster.lake.model import HOUR_MS, Source, date_of, segment_key
from lakerunner_dagster.lake.runs.context import Lake
from lakerunner_dagster.lake.settings import MaintenancePolicy
from lakerunner_dagster.lake.signals import Signal
from lakerunner_dagster.lake.store import Store, StoredObject

NAME = "orphans"

MISSING = "object_missing"
"""The error class of a published segment whose object is gone."""

AFTER_ALL_DAYS = 99_991_231

PLACE = re.compile(
    r"(?P<dateint>[0-9]{8})/(?P<signal>[a-z]+)/(?P<hour>[0-9]{2})/tbl_(?P<segment>[1-9][0-9]{0,18})\.parquet"
)
"""A segment's key (spec/segments.md), below its source's."""


@dataclass(frozen=True, slots=True)
class _Found:
    """A segment's object: what its key tells, and since when it is there."""

    key: str
    dateint: int
    signal: Signal
    hour: int
    segment_id: int
    last_modified_ms: int


@dataclass(slots=True)
class _Day:
    """A day of a source as it was listed: its objects by signal and id."""

    dateint: int
    found: dict[tuple[Signal, int], _Found] = field(default_factory=dict)


def orphans(lake: Lake, policy: MaintenancePolicy, order: Order) -> Report:
    """Delete objects that no row knows and that are old enough; flag published segments whose object is gone."""
    findings = Findings(NAME, order)
    with lake.lrdb.connection() as conn:
        sources = profiles.sources(conn)
    for source in sources:
        with findings.guarded(source.key):
            _Sweep(lake, source, policy, findings).run()
    return findings.report()


class _Sweep:
    """One source, day by day as it is listed."""

    def __init__(self, lake: Lake, source: Source, policy: MaintenancePolicy, findings: Findings) -> None:
        self._lake = lake
        self._source = source
        self._policy = policy
        self._findings = findings
        self._store = lake.stores.of(source.bucket)
        self._old_ms = findings.order.now_ms - int(policy.orphan_hours * HOUR_MS)

    def run(self) -> None:
        """Look at every day that has objects, then at those that should have and have none."""
        with self._lake.lrdb.connection() as conn:
            self._lost_before = faults.of_source(conn, self._source, MISSING)
            expected = {
                (signal, row.dateint)
                for signal in Signal
                for row in expiry.published_days(conn, self._source.organization_id, signal, AFTER_ALL_DAYS)
                if row.instance_num == self._source.instance_num
            }
        seen = set()
        for day in self._days():
            seen.add(day.dateint)
            self._compare(day)
        for dateint in sorted({dateint for _, dateint in expected} - seen):
            self._compare(_Day(dateint))

    def _days(self) -> Iterator[_Day]:
        """The source's objects in the order of their days; what is no segment's is told, and stays."""
        prefix = f"db/{self._source.organization_id}/{self._source.collector}/"
        day: _Day | None = None
        for there in self._store.list(prefix):
            found = self._found(prefix, there)
            if found is None:
                self._findings.add("no segment's key", there.key, "left alone")
                continue
            if day is None or day.dateint != found.dateint:
                if day is not None:
                    yield day
                day = _Day(found.dateint)
            day.found[found.signal, found.segment_id] = found
        if day is not None:
            yield day

    def _found(self, prefix: str, there: StoredObject) -> _Found | None:
        """What an object's key tells; None unless it is exactly that of a segment of this source."""
        place = PLACE.fullmatch(there.key.removeprefix(prefix)) if there.key.startswith(prefix) else None
        if place is None or place["signal"] not in set(Signal) or not _is_day(int(place["dateint"])):
            return None
        found = _Found(
            key=segment_key(
                self._source.organization_id,
                self._source.collector,
                dateint=int(place["dateint"]),
                signal=Signal(place["signal"]),
                hour=int(place["hour"]),
                segment_id=int(place["segment"]),
            ),
            dateint=int(place["dateint"]),
            signal=Signal(place["signal"]),
            hour=int(place["hour"]),
            segment_id=int(place["segment"]),
            last_modified_ms=there.last_modified_ms,
        )
        return found if found.key == there.key and found.segment_id < 2**63 else None

    def _compare(self, day: _Day) -> None:
        strangers: list[_Found] = []
        for signal in Signal:
            with self._lake.lrdb.connection() as conn:
                rows = segments.rows_of_day(conn, self._source, signal, day.dateint)
            found = {segment_id: there for (of, segment_id), there in day.found.items() if of is signal}
            strangers += [there for segment_id, there in found.items() if segment_id not in rows]
            for segment_id, there in found.items():
                if segment_id in rows and rows[segment_id].hour != there.hour:
                    self._findings.add("no segment's key", there.key, "its row names another hour; left alone")
            self._flag_lost(day.dateint, signal, rows, found)
        self._delete([there for there in strangers if there.last_modified_ms <= self._old_ms])
        self._findings.count(
            "too young to be judged", sum(there.last_modified_ms > self._old_ms for there in strangers)
        )

    def _delete(self, strangers: list[_Found]) -> None:
        if self._findings.order.dry_run:
            for there in strangers:
                self._findings.add(DELETED, there.key, str(Reason.ORPHAN))
        elif strangers:
            with deleter(self._lake, self._source, self._findings) as mine:
                if mine is not None:
                    self._delete_in_turn(mine, strangers)

    def _delete_in_turn(self, mine: Deleter, strangers: list[_Found]) -> None:
        left = iter(strangers)
        while batch := list(islice(left, BATCH)):
            old = [there for there in batch if _is_old(self._store, there.key, self._old_ms)]
            mine.delete(
                [
                    Deletion(
                        segment_id=there.segment_id,
                        signal=there.signal,
                        frequency_ms=0,
                        dateint=there.dateint,
                        key=there.key,
                        reason=Reason.ORPHAN,
                    )
                    for there in old
                ],
                self._policy.grace_seconds,
            )

    def _flag_lost(self, dateint: int, signal: Signal, rows: dict[int, RowOfDay], found: dict[int, _Found]) -> None:
        """Note which published segments have no object, and of which that was noted and has it again."""
        again = sorted(found.keys() & self._lost_before)
        for segment_id in again:
            self._findings.add("can be read again", found[segment_id].key)
        if again and not self._findings.order.dry_run:
            with self._lake.lrdb.transaction() as conn:
                faults.forget(conn, self._source.organization_id, again)
        for segment_id, row in sorted(rows.items()):
            if row.published and (segment_id not in found or found[segment_id].hour != row.hour):
                self._flag_unless_there(dateint, signal, segment_id, row)

    def _flag_unless_there(self, dateint: int, signal: Signal, segment_id: int, row: RowOfDay) -> None:
        key = segment_key(
            self._source.organization_id,
            self._source.collector,
            dateint=dateint,
            signal=signal,
            hour=row.hour,
            segment_id=segment_id,
        )
        try:
            self._store.head(key)
        except ObjectMissing as error:
            if self._findings.order.dry_run or self._flag(dateint, signal, segment_id, row, error):
                self._findings.add("published without its object", key, "`lakerunner quarantine list` says what to do")

    def _flag(self, dateint: int, signal: Signal, segment_id: int, row: RowOfDay, error: ObjectMissing) -> bool:
        """Note that an object is gone, unless its segment is published no more; whether it is."""
        with self._lake.lrdb.transaction() as conn:
            segments.lock_swaps(conn, self._source, signal, row.frequency_ms)
            published = segments.published_segments(
                conn, self._source, signal, dateint, frequency_ms=row.frequency_ms, hour=row.hour
            )
            lost = [segment for segment in published if segment.segment_id == segment_id]
            for segment in lost:
                faults.mark(conn, segment, MISSING, str(error), self._policy.fault_retry_seconds)
        return bool(lost)


def _is_day(dateint: int) -> bool:
    try:
        date_of(dateint)
    except ValueError:
        return False
    return True


def _is_old(store: Store, key: str, old_ms: int) -> bool:
    """Whether an object has not been written since: asked right before its deletion is intended."""
    try:
        return store.head(key).last_modified_ms <= old_ms
    except ObjectMissing:
        return False
