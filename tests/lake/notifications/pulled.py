"""An adapter of a queue that runs in threads of the test, and what it has not acknowledged."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, cast

from lakerunner_dagster.lake.errors import LakeError
from lakerunner_dagster.lake.notifications.events import ObjectEvent
from lakerunner_dagster.lake.notifications.intake import AcceptReport, Intake
from lakerunner_dagster.lake.notifications.pulling import PullingAdapter, Queue
from lakerunner_dagster.lake.settings import Settings
from tests.waiting import eventually

LOGS = "objstore.ingest.logs"


class Gate:
    """An intake that is away, or busy, until it is let go."""

    def __init__(self, inner: Intake, error: LakeError | None = None) -> None:
        self._inner = inner
        self.error = error
        self.free = threading.Event()
        self.asked = threading.Event()
        self.sizes: list[int] = []

    def accept(self, events: list[ObjectEvent], adapter: str) -> AcceptReport:
        self.asked.set()
        if self.error is not None and not self.free.is_set():
            raise self.error
        assert self.free.wait(60)
        self.sizes.append(len(events))
        return self._inner.accept(events, adapter)

    def troubles(self) -> list[str]:
        return []

    @property
    def intake(self) -> Intake:
        return cast("Intake", self)


@contextmanager
def pulling(queue: Queue, intake: Intake, settings: Settings) -> Iterator[PullingAdapter]:
    """The adapter for the length of the block; told to end, it must."""
    adapter = PullingAdapter(queue, intake, settings)
    stop = threading.Event()
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(adapter.run, stop)
        try:
            yield adapter
        finally:
            stop.set()
            running.result(60)
    queue.close()
    assert adapter.metrics.in_hand == 0


def counted(adapter: PullingAdapter, counter: str, number: int, reason: str = "") -> None:
    """Return once the adapter has counted so many."""
    eventually(lambda: adapter.metrics.value(counter, reason) >= number, f"{number} {counter} {reason}")


def quick(settings: Settings, **changes: Any) -> Settings:
    """Settings with which a test need not wait for a queue's clock."""
    return settings.model_copy(update={"queue_wait_seconds": 1, "queue_lease_seconds": 2, **changes})


def kept_for_leases(adapter: PullingAdapter, lease_seconds: float, number: int) -> None:
    """Return once so many leases have passed, in which nothing that is in hand came again."""
    until = time.monotonic() + lease_seconds * number
    received = adapter.metrics.value("received")
    eventually(lambda: time.monotonic() > until, "leases pass")
    assert adapter.metrics.value("received") == received
