"""The lake as a Dagster resource, and as what a process keeps of it: its connections, for every run and tick.

What belongs here: one open lake for each process, and how long. What does not: what is done with it, and how it is
opened (``lake.runs.context``).

Opening it costs a process tens of milliseconds and PostgreSQL as much. Nothing is kept that lrdb does not know: a
process that is killed loses time only.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import dagster as dg

from lakerunner_dagster.lake.runs.context import Lake, Stores, open_lake
from lakerunner_dagster.lake.settings import BoxPolicy, CompactionPolicy, Limits, RollupPolicy, Settings


class LakeResource(dg.ConfigurableResource[Lake]):
    """The lake of the settings in the environment.

    It has no configuration of its own: what is configured in Dagster is stored with each run, secrets too.
    """

    @contextmanager
    def open(self) -> Iterator[Lake]:
        """The lake for a run or a check; ConfigurationError where the settings name none.

        Its connections are the process's. Its buckets are those that lrdb knows now, and are opened as they are needed.
        """
        kept = kept_lake()
        yield replace(kept, stores=Stores(kept.lrdb))


class _Slot:
    """The lake of this process, and for which settings and process it was opened."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.opened_for: tuple[object, ...] = ()
        self.lake: Lake | None = None


_slot = _Slot()


def kept_lake() -> Lake:
    """The lake of this process: opened when it is first needed, and again where the settings have changed."""
    settings = Settings.current()
    policies = (BoxPolicy.current(), CompactionPolicy.current(), RollupPolicy.current())
    needed = (os.getpid(), settings, Limits.current(), *policies)
    with _slot.lock:
        if _slot.lake is None or _slot.opened_for != needed:
            _close()
            _slot.lake = open_lake(settings)
            _slot.opened_for = needed
        return _slot.lake


def close_kept_lake() -> None:
    """Give the connections back; whoever needs the lake next opens others."""
    with _slot.lock:
        _close()


def _close() -> None:
    if _slot.lake is not None and _slot.opened_for[0] == os.getpid():
        _slot.lake.close()
    _slot.lake = None
