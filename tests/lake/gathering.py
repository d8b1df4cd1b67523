"""What Kafka brings in its own time: objects that are to be in one box, a box that another boxer has made."""

from __future__ import annotations

from dataclasses import replace

from lakerunner_dagster.lake.settings import BoxPolicy
from lakerunner_dagster.lake.signals import Signal
from lakerunner_dagster.lake.stages import Stage, ingest_stage
from lakerunner_dagster.lake.ticks.boxer import BoxerTick
from lakerunner_dagster.lake.ticks.dispatcher import Dispatch, DispatcherTick
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


def dispatched(world: World, stage: Stage) -> Dispatch:
    """The one partition that a dispatcher wants a run for, once it has heard of a box."""
    dispatcher = DispatcherTick(world.lake, stage)
    found: list[Dispatch] = []

    def heard() -> bool:
        found.extend(dispatcher.run(set, 10, now_ms(), soon()))
        return bool(found)

    eventually(heard, f"a box of {stage.name} is dispatched")
    (dispatch,) = found
    return dispatch
