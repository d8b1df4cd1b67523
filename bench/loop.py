"""The same lake without Dagster: services, adapters, and one process whose loop ticks every stage and drains at once.

What belongs here: what is left of the platform where nothing schedules, shows or remembers runs; beside it one sees
what Dagster costs. What does not: load and figures (``bench.scale``).

``python -m bench.loop`` is that process, with the settings of its environment.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from lakerunner_dagster.lake.runs.context import open_lake
from lakerunner_dagster.lake.runs.drain import drain
from lakerunner_dagster.lake.runs.report import Step
from lakerunner_dagster.lake.settings import Settings
from lakerunner_dagster.lake.stages import STAGES
from lakerunner_dagster.lake.ticks.boxer import BoxerTick
from lakerunner_dagster.lake.ticks.dispatcher import DispatcherTick
from lakerunner_dagster.local.dev import LocalLake, local_lake
from lakerunner_dagster.sensors.pace import interval_seconds


@contextmanager
def looped_lake(settings: Settings, on_progress: Callable[[str], None]) -> Iterator[LocalLake]:
    """The lake of ``dev``, its adapters ready, with the loop in place of Dagster."""
    with local_lake(settings, on_progress) as lake:
        on_progress("starting the loop")
        lake.children.start("loop", [sys.executable, "-m", "bench.loop"])
        lake.wait_for_adapters()
        yield lake


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
            next_at[stage.name] = time.monotonic() + (0 if stage.urgent else interval_seconds(stage))
            now_ms, deadline = int(time.time() * 1000), time.monotonic() + lake.settings.tick_seconds
            boxer.run(now_ms, deadline)
            for found in dispatcher.run(list, lake.settings.active_runs, now_ms, deadline):
                drain(lake, stage, found.source, found.dateint, run_id=found.run_key, on_step=_nobody)


if __name__ == "__main__":
    main()
