"""What the code server keeps between ticks, beside its lake: each boxer and dispatcher with its consumer.

What belongs here: keeping them, and that no two ticks use the same boxer at once. What does not: what a tick does
(``lake.ticks``), the lake (``resources.lake``).

Opening all of it costs a tick hundreds of milliseconds. Nothing is kept that lrdb does not know: a code server that is
killed loses time only.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from lakerunner_dagster.lake.runs.context import Lake
from lakerunner_dagster.lake.stages import STAGES, Stage
from lakerunner_dagster.lake.ticks.boxer import BoxerTick
from lakerunner_dagster.lake.ticks.dispatcher import DispatcherTick
from lakerunner_dagster.resources.lake import kept_lake


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


_lock = threading.Lock()
_residents: list[Resident] = []


def resident() -> Resident:
    """The resident of this process: made at its first tick, and again where its lake was opened again."""
    lake = kept_lake()
    with _lock:
        if not _residents or _residents[0].lake is not lake:
            _residents[:] = [Resident(lake)]
        return _residents[0]
