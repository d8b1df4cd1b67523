"""Whose objects are, told without changing anything: for whoever must know before the intake is asked.

What belongs here: the intake's verdict on an object, foreseen from lrdb as it is. What does not: registering a
collector and passing objects on (``intake``), what can be told from a key alone (``routing``).
"""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING

from lakerunner_dagster.lake.errors import InputError
from lakerunner_dagster.lake.lrdb import profiles
from lakerunner_dagster.lake.notifications.routing import Route, route
from lakerunner_dagster.lake.store import check_key

if TYPE_CHECKING:
    from collections.abc import Iterator
    from uuid import UUID

    from lakerunner_dagster.lake.lrdb.connection import Conn
    from lakerunner_dagster.lake.lrdb.intake import Notification
    from lakerunner_dagster.lake.lrdb.profiles import PrefixMapping
    from lakerunner_dagster.lake.model import Source
    from lakerunner_dagster.lake.notifications.events import ObjectEvent


class Owners:
    """Whose objects are by the storage profiles of one moment, of which ``conn`` tells.

    A collector that it has found counts as one of its organization's, as if the intake had registered it.
    """

    def __init__(self, conn: Conn, sources_per_organization: int) -> None:
        self._conn = conn
        self._most = sources_per_organization
        self._buckets = {bucket.bucket_name for bucket in profiles.buckets(conn)}
        self._enabled = {one.organization_id: one.enabled for one in profiles.organizations(conn)}
        self._sources = {(one.organization_id, one.instance_num): one for one in profiles.sources(conn)}
        self._collectors: defaultdict[UUID, set[str]] = defaultdict(set)
        for source in self._sources.values():
            self._collectors[source.organization_id].add(source.collector)

    def of(self, event: ObjectEvent) -> Route:
        """The route of an object; InputError where the intake would make a dead letter of it."""
        check_key(event.key)
        found = route(event.key, self._mappings(event))
        if event.bucket not in self._buckets:
            raise InputError("unknown_bucket", f"no storage profile knows the bucket {event.bucket[:300]!a}")
        if found.organization_id not in self._enabled:
            raise InputError("unknown_organization", f"no organization has the id {found.organization_id}")
        if not self._enabled[found.organization_id]:
            raise InputError("organization_disabled", f"organization {found.organization_id} is disabled")
        collectors = self._collectors[found.organization_id]
        if found.collector not in collectors and len(collectors) >= self._most:
            raise InputError("too_many_collectors", f"{found.collector!r} would be one more than {self._most}")
        collectors.add(found.collector)
        return found

    def named(self, notification: Notification) -> Source | None:
        """The source that another system's notification names, where there is one and its bucket is known."""
        source = self._sources.get((notification.organization_id, notification.instance_num))
        if source is None or notification.bucket not in self._buckets:
            return None
        return source if notification.collector in ("", source.collector) else None

    def _mappings(self, event: ObjectEvent) -> Iterator[PrefixMapping]:
        """The prefix mappings that fit a key, asked for only where the key does not tell its route itself."""
        yield from profiles.prefix_mappings(self._conn, event.bucket, event.key)
