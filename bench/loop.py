"""The same lake without Dagster: services, adapters, and one process whose loop ticks every stage and drains at once.

What belongs here: what is left of the platform where nothing schedules, shows or remembers runs; beside it one sees
what Dagster costs. What does not: load and figures (``bench.scale``).

``python -m bench.loop`` is that process, with the settings of its environment.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

from lakerunner_dagster.lake.lrdb.connection import Lrdb
from lakerunner_dagster.lake.runs.context import lrdb_url, open_lake
from lakerunner_dagster.lake.runs.drain import drain
from lakerunner_dagster.lake.runs.report import Step
from lakerunner_dagster.lake.settings import Settings
from lakerunner_dagster.lake.stages import STAGES
from lakerunner_dagster.lake.store import Store
from lakerunner_dagster.lake.ticks.boxer import BoxerTick
from lakerunner_dagster.lake.ticks.dispatcher import DispatcherTick
from lakerunner_dagster.local.dev import DEMO_BUCKET, DEV_DEFAULTS, local_bucket, prepare_lrdb
from lakerunner_dagster.local.processes import Children
from lakerunner_dagster.local.services import LocalServices

BACKGROUND_SECONDS = 30.0
"""Time between two ticks of a stage that nobody waits for, as its sensors have it."""


@dataclass(frozen=True, slots=True)
class PlainLake:
    """What can be asked of a running lake, as ``local.dev.Platform`` names it."""

    services: LocalServices
    children: Children
    lrdb: Lrdb
    store: Store

    def failure(self) -> str | None:
        """Which part has ended by itself; None while everything runs."""
        ended = self.children.ended()
        return f"{ended.name} has ended: {ended.tail()}" if ended is not None else self.services.failure()


@contextmanager
def plain_lake(settings: Settings, on_progress: Callable[[str], None]) -> Iterator[PlainLake]:
    """Services, the adapter of the local bucket and the loop, with what ``dev`` gives its processes."""
    with ExitStack() as stack:
        on_progress("starting PostgreSQL and Kafka")
        services = LocalServices(settings)
        running = services.start()
        stack.callback(services.stop)
        os.environ.update(running.env)
        for name, value in DEV_DEFAULTS.items():
            os.environ.setdefault(name, value)
        prepare_lrdb(Settings(), running.bucket)
        lrdb = stack.enter_context(Lrdb(lrdb_url(Settings()), max_size=2))
        children = Children(settings.home.absolute() / "logs", {})
        stack.callback(children.stop)
        on_progress("starting the loop and the adapters")
        notify = [sys.executable, "-m", "lakerunner_dagster.cli", "notify"]
        children.start("notify-directory", [*notify, "directory", DEMO_BUCKET])
        children.start("notify-http", [*notify, "http"])
        children.start("loop", [sys.executable, "-m", "bench.loop"])
        yield PlainLake(services, children, lrdb, Store.open(local_bucket(running.bucket)))


def _nobody(_step: Step) -> None:
    """Nobody is told."""


def main() -> None:
    """Tick and drain until the process is ended."""
    lake = open_lake(Settings())
    ticks = [(stage, BoxerTick(lake, stage), DispatcherTick(lake, stage)) for stage in STAGES.values()]
    next_at = dict.fromkeys(STAGES, 0.0)
    while True:
        for stage, boxer, dispatcher in ticks:
            if time.monotonic() < next_at[stage.name]:
                continue
            next_at[stage.name] = time.monotonic() + (0.0 if stage.urgent else BACKGROUND_SECONDS)
            now_ms, deadline = int(time.time() * 1000), time.monotonic() + lake.settings.tick_seconds
            boxer.run(now_ms, deadline)
            for found in dispatcher.run(list, lake.settings.active_runs, now_ms, deadline):
                drain(lake, stage, found.source, found.dateint, run_id=found.run_key, on_step=_nobody)


if __name__ == "__main__":
    main()
