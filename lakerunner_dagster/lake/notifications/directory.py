"""The directory adapter: looks at a local bucket again and again, and notifies each file that has settled.

What belongs here: which files are new and whole. What does not: listing (``listing``), what becomes of the news
(``intake``).
"""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lakerunner_dagster.lake.errors import (
    BusUnavailable,
    ConfigurationError,
    InputError,
    LakeDatabaseUnavailable,
    LakeError,
    ObjectMissing,
    StoreDenied,
    StoreUnavailable,
)
from lakerunner_dagster.lake.notifications.events import ObjectEvent
from lakerunner_dagster.lake.notifications.listing import hidden, raw_objects
from lakerunner_dagster.lake.notifications.metrics import AdapterMetrics
from lakerunner_dagster.lake.notifications.monitoring import Pulse

if TYPE_CHECKING:
    import threading
    from collections.abc import Callable

    from lakerunner_dagster.lake.notifications.intake import Intake
    from lakerunner_dagster.lake.settings import Settings
    from lakerunner_dagster.lake.store import Store, StoredObject

logger = logging.getLogger(__name__)

ADAPTER = "directory"

BATCH = 500
"""Most files notified at once: so many are notified again when Kafka goes away in between."""


@dataclass(slots=True)
class _Sighting:
    """A file as it was last seen: its size and time, since when they are so, and whether that was dealt with."""

    size: int
    modified_ms: int
    since: float
    done: bool = False
    trouble: str = ""


class DirectoryAdapter:
    """Watches one local bucket. A file is news once it has kept its size and time for ``directory_settle_seconds``.

    Files that were there before it started are notified only where lrdb does not know them. An error concerns its file
    or its turn: what was not acknowledged is tried again at the next look.
    """

    def __init__(
        self, store: Store, intake: Intake, settings: Settings, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """ConfigurationError when the bucket is not a directory."""
        if not store.local:
            raise ConfigurationError(
                f"bucket {store.bucket!r} is not a directory: let its cloud notify the HTTP adapter instead"
            )
        self.metrics = AdapterMetrics(ADAPTER)
        self.pulse = Pulse(settings.monitor_stall_seconds)
        self._store = store
        self._intake = intake
        self._poll_seconds = settings.directory_poll_seconds
        self._settle_seconds = settings.directory_settle_seconds
        self._clock = clock
        self._started_ms = time.time_ns() // 1_000_000
        self._sightings: dict[str, _Sighting] = {}
        self._trouble: type[LakeError] | None = None

    def run(self, stop: threading.Event) -> None:
        """Look again and again until ``stop`` is set; at least half of the time is spent waiting."""
        while not stop.is_set():
            began = self._clock()
            self.look()
            stop.wait(max(self._poll_seconds, self._clock() - began))

    def look(self) -> int:
        """List the bucket once and notify what has settled; how many objects Kafka has acknowledged."""
        self.pulse.beat()
        trouble: LakeError | None = self._list()
        settled = self._settled()
        produced = 0
        try:
            for start in range(0, len(settled), BATCH):
                produced += self._notify(settled[start : start + BATCH])
        except (BusUnavailable, LakeDatabaseUnavailable) as error:
            self.metrics.count_reasons("failed", {"unavailable": 1})
            trouble = error
        self._complain(trouble)
        return produced

    def _list(self) -> StoreDenied | StoreUnavailable | None:
        """Look at every file; what kept us from seeing some of them."""
        now = self._clock()
        seen: dict[str, _Sighting] = {}
        try:
            for found in raw_objects(self._store):
                self.pulse.beat()
                seen[found.key] = self._sighting(found, now)
        except (StoreDenied, StoreUnavailable) as error:
            # What was not listed is not gone.
            self._sightings.update(seen)
            return error
        self._sightings = seen
        return None

    def _settled(self) -> list[str]:
        """The keys of files that are to be dealt with now."""
        now = self._clock()
        return [
            key
            for key, sighting in self._sightings.items()
            if not sighting.done and now - sighting.since >= self._settle_seconds and not self._hidden(key, sighting)
        ]

    def _sighting(self, found: StoredObject, now: float) -> _Sighting:
        before = self._sightings.get(found.key)
        if before is not None and (before.size, before.modified_ms) == (found.size, found.last_modified_ms):
            return before
        return _Sighting(found.size, found.last_modified_ms, since=now)

    def _hidden(self, key: str, sighting: _Sighting) -> bool:
        if not hidden(self._store, key):
            return False
        sighting.done = True
        self.metrics.count_reasons("ignored", {"hidden": 1})
        return True

    def _notify(self, keys: list[str]) -> int:
        events = [event for key in keys if (event := self._event(key)) is not None]
        old = [event for event in events if event.event_time_ms < self._started_ms]
        new = [event for event in events if event.event_time_ms >= self._started_ms]
        return self._pass_on(old, skip_known=True) + self._pass_on(new, skip_known=False)

    def _pass_on(self, events: list[ObjectEvent], *, skip_known: bool) -> int:
        if not events:
            return 0
        began = time.perf_counter()
        report = self._intake.accept(events, ADAPTER, skip_known=skip_known)
        self.metrics.observe(time.perf_counter() - began)
        self.metrics.count("received", len(events))
        self.metrics.count("produced", report.produced)
        self.metrics.count_reasons("dead_letters", report.dead)
        self.metrics.count_reasons("ignored", report.ignored)
        for event in events:
            self._sightings[event.key].done = True
        return report.produced

    def _event(self, key: str) -> ObjectEvent | None:
        """The news of a settled file; None where there is none, or none yet."""
        self.pulse.beat()
        sighting = self._sightings[key]
        try:
            found = self._store.head(key)
        except InputError:
            # Its name is the trouble: passed on, it becomes a dead letter, which a person sees.
            return ObjectEvent(self._store.bucket, key, sighting.size, "", sighting.modified_ms)
        except ObjectMissing:
            return None
        except LakeError as error:
            if sighting.trouble != str(error):
                sighting.trouble = str(error)
                self.metrics.count_reasons("failed", {"unreadable": 1})
                logger.warning("not notified yet: %s", error)
            return None
        if (found.size, found.last_modified_ms) != (sighting.size, sighting.modified_ms):
            self._sightings[key] = _Sighting(found.size, found.last_modified_ms, since=self._clock())
            return None
        return ObjectEvent(self._store.bucket, key, found.size, found.etag, found.last_modified_ms)

    def _complain(self, trouble: LakeError | None) -> None:
        """Say what is wrong when it begins, not at every look."""
        kind = type(trouble) if trouble is not None else None
        if trouble is not None and kind is not self._trouble:
            logger.warning("directory adapter of bucket %s goes on trying: %s", self._store.bucket, trouble)
        self._trouble = kind
