"""Killing a process of the lake between two of its steps, whichever they are.

A child opens the same lake with its handles watched. Each time it has taken a step that the outside can see (bytes read
or written, a transaction committed, a message sent, offsets committed) it passes a boundary. At the n-th it kills
itself with SIGKILL, so that nothing of Python is tidied up.
"""

from __future__ import annotations

import os
import signal as signals
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any, cast

import pytest

from lakerunner_dagster.lake.bus import Bus
from lakerunner_dagster.lake.lrdb.connection import Conn, Lrdb
from lakerunner_dagster.lake.runs.context import Lake, Stores
from lakerunner_dagster.lake.store import Store
from tests.lake.world import Place

Task = Callable[[Lake, int], None]
"""What the child does, given the lake and the number of the boundary at which it dies."""

LONGEST_SECONDS = 60.0


class Boundaries:
    """Counts the boundaries that this process passes, and kills it at one of them."""

    def __init__(self, deadly: int, epitaph: Path) -> None:
        self._deadly = deadly
        self._epitaph = epitaph
        self._passed = 0
        self._lock = threading.Lock()

    def passed(self, boundary: str) -> None:
        """Die here, if this is the one."""
        with self._lock:
            self._passed += 1
            if self._passed == self._deadly:
                self._epitaph.write_text(boundary)
                os.kill(os.getpid(), signals.SIGKILL)


class Watched:
    """A handle with some of its methods watched; the others are its own."""

    def __init__(self, inner: Any, boundaries: Boundaries) -> None:
        self._inner = inner
        self._boundaries = boundaries

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)


class WatchedLrdb(Watched):
    @contextmanager
    def transaction(self) -> Iterator[Conn]:
        with self._inner.transaction() as conn:
            yield conn
            self._boundaries.passed("before a commit")
        self._boundaries.passed("after a commit")


class WatchedStore(Watched):
    def read(self, key: str, max_bytes: int) -> Any:
        found = self._inner.read(key, max_bytes)
        self._boundaries.passed("after a read")
        return found

    def read_into(self, path: Path, key: str, max_bytes: int) -> Any:
        described = self._inner.read_into(path, key, max_bytes)
        self._boundaries.passed("after a read")
        return described

    def download(self, key: str, path: Path) -> None:
        self._inner.download(key, path)
        self._boundaries.passed("after a download")

    def create(self, key: str, data: Any) -> bool:
        created: bool = self._inner.create(key, data)
        self._boundaries.passed("after an upload")
        return created

    def delete(self, keys: Any) -> Any:
        outcomes: dict[str, Any] = {}
        for key in keys:
            outcomes |= self._inner.delete([key])
            self._boundaries.passed("after a delete")
        return outcomes


class WatchedStores(Watched):
    def of(self, bucket: str) -> Store:
        return cast("Store", WatchedStore(self._inner.of(bucket), self._boundaries))


class WatchedBus(Watched):
    def produce(self, messages: Any, timeout_seconds: float) -> None:
        self._boundaries.passed("before messages are sent")
        self._inner.produce(messages, timeout_seconds)
        self._boundaries.passed("after messages are sent")

    def consumer(self, group: str, topics: Any, *, urgent: bool = True) -> Any:
        return WatchedConsumer(self._inner.consumer(group, topics, urgent=urgent), self._boundaries)


class WatchedConsumer(Watched):
    def poll(self, max_messages: int, timeout_seconds: float) -> Any:
        received = self._inner.poll(max_messages, timeout_seconds)
        self._boundaries.passed("after a poll")
        return received

    def commit(self, next_offsets: Any) -> None:
        self._boundaries.passed("before offsets are committed")
        self._inner.commit(next_offsets)
        self._boundaries.passed("after offsets are committed")


def watched(lake: Lake, boundaries: Boundaries) -> Lake:
    """The lake, every handle of it watched."""
    return replace(
        lake,
        lrdb=cast("Lrdb", WatchedLrdb(lake.lrdb, boundaries)),
        bus=cast("Bus", WatchedBus(lake.bus, boundaries)),
        stores=cast("Stores", WatchedStores(lake.stores, boundaries)),
    )


def _live(place: Place, task: Task, deadly: int, epitaph: Path) -> None:
    task(watched(place.open(), Boundaries(deadly, epitaph)), deadly)
    os._exit(0)  # it has lived to its end; what is left open is the system's to close


def kill_everywhere(place: Place, task: Task, before: Callable[[int], None] = lambda _: None) -> list[str]:
    """Run the task once for each of its boundaries, killed there; the boundaries, in order.

    ``before`` is called before each of these runs with the boundary's number, and before the last run, which lives.
    """
    context = get_context("forkserver")
    context.set_forkserver_preload(["__main__", "tests.lake.world", "lakerunner_dagster.lake.runs.rebuild"])
    epitaph = place.bucket.with_name("epitaph")
    boundaries: list[str] = []
    while True:
        deadly = len(boundaries) + 1
        before(deadly)
        child = context.Process(target=_live, args=(place, task, deadly, epitaph))
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(tempfile, "tempdir", None)  # a test's own may be too long a path for the server's socket
            child.start()
        child.join(LONGEST_SECONDS)
        assert child.exitcode is not None, f"the task hangs, to be killed at boundary {deadly}; so far: {boundaries}"
        if child.exitcode == 0:
            return boundaries
        assert child.exitcode == -signals.SIGKILL, f"the task failed by itself, beyond boundary {boundaries[-1:]}"
        boundaries.append(epitaph.read_text())
