"""What the code server keeps between ticks: the lake's connections, and each boxer and dispatcher with its consumer.

What belongs here: one open lake for each process, and that no two ticks use the same boxer at once. What does not: what
a tick does (``lake.ticks``).

Opening all of it costs a tick hundreds of milliseconds. Nothing is kept that lrdb does not know: a code server that is
killed loses time only.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from lakerunner_dagster.lake.runs.context import Lake, open_lake
from lakerunner_dagster.lake.settings import BoxPolicy, CompactionPolicy, Limits, RollupPolicy, Settings
from lakerunner_dagster.lake.stages import STAGES, Stage
from lakerunner_dagster.lake.ticks.boxer import BoxerTick
from lakerunner_dagster.lake.ticks.dispatcher import DispatcherTick


class Resident:
    """An open lake and the ticks of every stage on it."""

    def __init__(self, lake: Lake) -> None:
        self.lake = lake
        self._boxers = {name: BoxerTick(lake, stage) for name, stage in STAGES.items()}
        self._dispatchers = {name: DispatcherTick(lake, stage) for name, stage in STAGES.items()}
        # Dagster runs a sensor one tick at a time, but a person's "test sensor" in the UI runs beside it.
        self._locks = {tick: threading.Lock() for tick in (*self._boxers.values(), *self._dispatchers.values())}

    @contextmanager
    def boxer(self, stage: Stage) -> Iterator[BoxerTick]:
        """The boxer of a stage, for one tick alone."""
        with self._locks[self._boxers[stage.name]]:
            yield self._boxers[stage.name]

    @contextmanager
    def dispatcher(self, stage: Stage) -> Iterator[DispatcherTick]:
        """The dispatcher of a stage, for one tick alone."""
        with self._locks[self._dispatchers[stage.name]]:
            yield self._dispatchers[stage.name]


class _Slot:
    """The resident of this process, and for which settings and process it was opened."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.opened_for: tuple[object, ...] = ()
        self.resident: Resident | None = None


_slot = _Slot()


def resident() -> Resident:
    """The resident of this process: opened at its first tick, and again where the settings have changed."""
    settings = Settings.current()
    policies = (BoxPolicy.current(), CompactionPolicy.current(), RollupPolicy.current())
    needed = (os.getpid(), settings, Limits.current(), *policies)
    with _slot.lock:
        if _slot.resident is None or _slot.opened_for != needed:
            _close()
            _slot.resident = Resident(open_lake(settings))
            _slot.opened_for = needed
        return _slot.resident


def close_resident() -> None:
    """Give the connections back; the next tick opens others."""
    with _slot.lock:
        _close()


def _close() -> None:
    if _slot.resident is not None and _slot.opened_for[0] == os.getpid():
        _slot.resident.lake.close()
    _slot.resident = None
