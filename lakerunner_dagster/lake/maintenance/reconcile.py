"""Reconciliation: what the buckets hold and lrdb has never heard of goes through Kafka's front door after all.

What belongs here: which raw objects were missed, and which boxes' messages. What does not: where an object belongs
(``notifications.ownership``), sending (``notifications.intake``, ``ticks.outbox``).

It looks at what was stored within the look-back and has settled; before that, a rebuild finds what was missed.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from uuid import UUID

from lakerunner_dagster.lake.errors import InputError
from lakerunner_dagster.lake.lrdb import dead_letters, overdue, profiles
from lakerunner_dagster.lake.lrdb.connection import Conn, storable
from lakerunner_dagster.lake.lrdb.expiry import first_kept
from lakerunner_dagster.lake.lrdb.known import ObjectName, known_objects
from lakerunner_dagster.lake.maintenance.report import Findings, Order, Report
from lakerunner_dagster.lake.model import HOUR_MS, dateint_of
from lakerunner_dagster.lake.notifications.events import ObjectEvent
from lakerunner_dagster.lake.notifications.intake import EVENT_TOPIC, Intake
from lakerunner_dagster.lake.notifications.listing import hidden, raw_objects_below, with_etag
from lakerunner_dagster.lake.notifications.ownership import Owners
from lakerunner_dagster.lake.notifications.routing import Route
from lakerunner_dagster.lake.runs.context import Lake
from lakerunner_dagster.lake.settings import MaintenancePolicy
from lakerunner_dagster.lake.signals import SIGNALS, Signal
from lakerunner_dagster.lake.store import Store, StoredObject
from lakerunner_dagster.lake.ticks.outbox import announce

NAME = "reconcile"

ADAPTER = "reconciliation"
"""Who told of an object that was found here."""

RAW_PREFIX = "otel-raw/"
"""Where raw objects stand whose keys tell whose they are; the others stand under mapped prefixes."""

BATCH = 500
"""Objects that lrdb is asked for, and Kafka is told of, at once."""

BOXES = 500
"""Boxes of a signal that are announced again in one turn."""


def reconcile(lake: Lake, policy: MaintenancePolicy, order: Order) -> Report:
    """Notify what no adapter has told of, and announce boxes again that no run was asked for. Repeating is harmless."""
    findings = Findings(NAME, order)
    with lake.lrdb.connection() as conn:
        buckets = [bucket.bucket_name for bucket in profiles.buckets(conn)]
    for bucket in buckets:
        with findings.guarded(bucket):
            _Bucket(lake, bucket, policy, findings).run()
    with findings.guarded("boxes"):
        _announce_overdue(lake, policy, findings)
    return findings.report()


def _announce_overdue(lake: Lake, policy: MaintenancePolicy, findings: Findings) -> None:
    for signal in Signal:
        with lake.lrdb.transaction() as conn:
            boxes = overdue.overdue(conn, signal, policy.overdue_seconds, BOXES)
            if not findings.order.dry_run:
                overdue.announce_again(conn, boxes, findings.order.now_ms)
        for box_id in boxes:
            findings.add("box announced again", f"box {box_id} of {signal}")
    if not findings.order.dry_run:
        announce(lake.lrdb, lake.bus)


@dataclass(slots=True)
class _Sorted:
    """A batch of objects, each where it belongs; ``counts`` are those with which nothing is done, by why not."""

    unknown: list[ObjectEvent] = field(default_factory=list)
    refused: list[tuple[ObjectEvent, InputError]] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)


class _Bucket:
    """One bucket, batch by batch as it is listed."""

    def __init__(self, lake: Lake, bucket: str, policy: MaintenancePolicy, findings: Findings) -> None:
        self._lake = lake
        self._bucket = bucket
        self._findings = findings
        self._intake = Intake(lake.lrdb, lake.bus, lake.settings)
        self._store = lake.stores.of(bucket)
        self._since_ms = findings.order.now_ms - int(policy.look_back_hours * HOUR_MS)
        self._until_ms = findings.order.now_ms - int(policy.settle_seconds * 1000)

    def run(self) -> None:
        """Look at everything that may be raw telemetry."""
        with self._lake.lrdb.connection() as conn:
            prefixes = [RAW_PREFIX, *profiles.mapped_prefixes(conn, self._bucket)]
        recent = self._recent(raw_objects_below(self._store, prefixes))
        while batch := list(islice(recent, BATCH)):
            self._pass_on([event for found in batch if (event := _event(self._store, found)) is not None])

    def _recent(self, listed: Iterable[StoredObject]) -> Iterator[StoredObject]:
        """What was stored within the look-back, and is not so young that its news may be on its way."""
        for found in listed:
            if self._since_ms <= found.last_modified_ms <= self._until_ms and not hidden(self._store, found.key):
                yield found

    def _pass_on(self, events: Sequence[ObjectEvent]) -> None:
        with self._lake.lrdb.connection() as conn:
            sorted_ = self._sorted(conn, events)
        news = [*sorted_.unknown, *(event for event, _ in sorted_.refused)]
        if news and not self._findings.order.dry_run:
            self._intake.accept(news, ADAPTER, skip_known=True)
        for event in sorted_.unknown:
            self._findings.add("notified", f"{event.bucket}/{event.key}")
        for event, error in sorted_.refused:
            self._findings.add("dead letter", f"{event.bucket}/{event.key}", error.reason)
        for outcome, number in sorted_.counts.items():
            self._findings.count(outcome, number)

    def _sorted(self, conn: Conn, events: Sequence[ObjectEvent]) -> _Sorted:
        result = _Sorted()
        of_organization: defaultdict[UUID, list[tuple[ObjectEvent, Route]]] = defaultdict(list)
        owners = Owners(conn, self._lake.settings.sources_per_organization)
        for event in events:
            try:
                found = owners.of(event)
                of_organization[found.organization_id].append((event, found))
            except InputError as error:
                result.refused.append((event, error))
        for organization_id, routed in of_organization.items():
            known = known_objects(conn, organization_id, [_name(event) for event, _ in routed])
            for event, found in routed:
                if _name(event) in known:
                    result.counts["known"] += 1
                elif dateint_of(event.event_time_ms or 0) < self._first_kept(conn, found):
                    result.counts["expired already"] += 1
                else:
                    result.unknown.append(event)
        _leave_out_letters(conn, result)
        return result

    def _first_kept(self, conn: Conn, found: Route) -> int:
        frequency_ms = SIGNALS[found.signal].frequency_ms
        return first_kept(conn, found.organization_id, found.signal, frequency_ms, self._findings.order.now_ms)


def _leave_out_letters(conn: Conn, result: _Sorted) -> None:
    """What is a dead letter already a person knows of: telling of it again and again would help nobody."""
    if result.refused:
        names = [storable(f"{event.bucket}/{event.key}") for event, _ in result.refused]
        known = dead_letters.known_keys(conn, EVENT_TOPIC, names)
        result.counts["dead letter already"] += sum(name in known for name in names)
        result.refused = [pair for pair, name in zip(result.refused, names, strict=True) if name not in known]


def _event(store: Store, found: StoredObject) -> ObjectEvent | None:
    """The news of an object; None where it is gone again, or has a name that none can have."""
    there = with_etag(store, found)
    if there is None:
        return None
    return ObjectEvent(store.bucket, there.key, there.size, there.etag, there.last_modified_ms)


def _name(event: ObjectEvent) -> ObjectName:
    return ObjectName(event.bucket, event.key, event.etag)
