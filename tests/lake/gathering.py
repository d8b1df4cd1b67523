"""Objects that are to be in one box: what is notified at once may come to a boxer in pieces."""

from __future__ import annotations

from dataclasses import replace

from lakerunner_dagster.lake.settings import BoxPolicy
from lakerunner_dagster.lake.signals import Signal
from lakerunner_dagster.lake.stages import ingest_stage
from lakerunner_dagster.lake.ticks.boxer import BoxerTick
from tests.lake.world import World, now_ms, soon
from tests.waiting import eventually


def gather(world: World, signal: Signal, objects: int) -> None:
    """Let lrdb hear of so many objects, and box none: the next tick of the world's own boxer finds all of them."""
    patient = BoxerTick(replace(world.lake, policy=BoxPolicy(age_seconds=3600.0)), ingest_stage(signal))

    def heard() -> bool:
        patient.run(now_ms(), soon())
        pending = "SELECT count(*) FROM raw_objects WHERE signal = %s AND state = 'pending'"
        return world.query(pending, str(signal)) == [(objects,)]

    eventually(heard, f"{objects} {signal} objects are known")
