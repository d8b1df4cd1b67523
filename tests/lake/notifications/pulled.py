"""An adapter of a queue that runs in threads of the test, and what it has not acknowledged."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

from lakerunner_dagster.lake.notifications.intake import Intake
from lakerunner_dagster.lake.notifications.pulling import PullingAdapter, Queue
from lakerunner_dagster.lake.settings import Settings
from tests.waiting import eventually

LOGS = "objstore.ingest.logs"


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
