"""The compacted assets, run by Dagster on a real lake: a dispatcher's run drains, a person's merges the day fully."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import dagster as dg

from lakerunner_dagster.assets.segments import stage_asset
from lakerunner_dagster.checks import conservation
from lakerunner_dagster.instance.lanes import TRIGGER_TAG, Trigger
from lakerunner_dagster.lake.signals import Signal
from lakerunner_dagster.lake.stages import compaction_stage
from lakerunner_dagster.partitions import SOURCES_NAME, DaySource
from lakerunner_dagster.resources.lake import LakeResource
from tests.lake.requests import logs, minutes
from tests.lake.world import COLLECTOR, DAY, NOON_MS, World

SOURCE_KEY = f"acme/{COLLECTOR}"
TODAY = DaySource(DAY, SOURCE_KEY)
STAGE = compaction_stage(Signal.LOGS)
BY_HAND = {"dagster/partition": str(TODAY.key)}
DRAIN = {TRIGGER_TAG: str(Trigger.DISPATCHER), **BY_HAND}


def _ingest(world: World, count: int) -> None:
    for number in range(count):
        name = f"{number}.binpb.gz"
        world.send(Signal.LOGS, name, logs(name, minutes(NOON_MS, 5)))
        world.ingest(Signal.LOGS)


def _run(instance: dg.DagsterInstance, tags: Mapping[str, str]) -> dg.ExecuteInProcessResult:
    instance.add_dynamic_partitions(SOURCES_NAME, [SOURCE_KEY])
    return dg.materialize(
        [stage_asset(STAGE, STAGE.assets[0])],
        resources={"lake": LakeResource()},
        instance=instance,
        partition_key=tags["dagster/partition"],
        tags=tags,
        raise_on_error=False,
    )


def _shown(result: dg.ExecuteInProcessResult) -> dict[str, dict[str, Any]]:
    events = [event.materialization for event in result.get_asset_materialization_events()]
    return {str(event.partition): {name: value.value for name, value in event.metadata.items()} for event in events}


def test_a_drain_shows_what_it_merged(world: World, instance: dg.DagsterInstance) -> None:
    _ingest(world, 4)
    world.box_stage(STAGE)

    result = _run(instance, DRAIN)

    assert result.success
    shown = _shown(result)[TODAY.key]
    assert (shown["segments superseded"], shown["segments"], shown["records read"], shown["records written"]) == (
        4,
        1,
        20,
        20,
    )
    assert len(world.published(Signal.LOGS)) == 1
    (check,) = result.get_asset_check_evaluations()
    assert (check.check_name, check.passed) == (conservation.NAME, True)


def test_a_drain_that_finds_nothing_says_nothing(world: World, instance: dg.DagsterInstance) -> None:
    _ingest(world, 1)
    result = _run(instance, DRAIN)
    assert result.success
    assert _shown(result) == {}


def test_materialising_a_day_merges_it_fully_and_twice_changes_nothing(
    world: World, instance: dg.DagsterInstance
) -> None:
    _ingest(world, 3)
    assert _shown(_run(instance, BY_HAND))[TODAY.key]["segments superseded"] == 3
    published = world.published(Signal.LOGS)
    second = _run(instance, BY_HAND)
    assert second.success
    assert _shown(second)[TODAY.key]["segments superseded"] == 0
    assert world.published(Signal.LOGS) == published
    assert world.breaches() == []
