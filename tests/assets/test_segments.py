"""The segment assets, run by Dagster on a real lake: what a person sees of a run, and what a failure leaves."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from typing import Any

import dagster as dg
import pytest

from lakerunner_dagster.assets.segments import stage_asset
from lakerunner_dagster.checks import conservation
from lakerunner_dagster.instance.lanes import TRIGGER_TAG, Trigger
from lakerunner_dagster.lake.model import HOUR_MS
from lakerunner_dagster.lake.signals import SIGNALS, Signal
from lakerunner_dagster.lake.stages import STAGES, Stage, ingest_stage
from lakerunner_dagster.partitions import SOURCES_NAME, DaySource
from lakerunner_dagster.resources.lake import LakeResource
from tests.lake.requests import logs, minutes
from tests.lake.world import COLLECTOR, DAY, NOON_MS, ORGANIZATION, World

LOGS = ingest_stage(Signal.LOGS)
SOURCE_KEY = f"acme/{COLLECTOR}"
TODAY = DaySource(DAY, SOURCE_KEY)
YESTERDAY = DaySource(DAY - 1, SOURCE_KEY)
DRAIN = {TRIGGER_TAG: str(Trigger.DISPATCHER), "dagster/partition": str(TODAY.key)}
REBUILD = {"dagster/partition": str(TODAY.key)}
MONTH = {
    "dagster/asset_partition_range_start": str(YESTERDAY.key),
    "dagster/asset_partition_range_end": str(TODAY.key),
}


def _run(instance: dg.DagsterInstance, tags: Mapping[str, str]) -> dg.ExecuteInProcessResult:
    instance.add_dynamic_partitions(SOURCES_NAME, [SOURCE_KEY])
    return dg.materialize(
        [stage_asset(LOGS, LOGS.assets[0])],
        resources={"lake": LakeResource()},
        instance=instance,
        partition_key=tags.get("dagster/partition"),
        tags=tags,
        raise_on_error=False,
    )


def _shown(events: list[dg.AssetMaterialization] | list[dg.AssetObservation]) -> dict[str, dict[str, Any]]:
    """The metadata of each event, by partition."""
    return {str(event.partition): {name: value.value for name, value in event.metadata.items()} for event in events}


def _materialised(result: dg.ExecuteInProcessResult) -> dict[str, dict[str, Any]]:
    return _shown([event.materialization for event in result.get_asset_materialization_events()])


def _observed(result: dg.ExecuteInProcessResult) -> dict[str, dict[str, Any]]:
    return _shown([event.asset_observation_data.asset_observation for event in result.get_asset_observation_events()])


def _send(world: World, name: str, count: int, start_ms: int = NOON_MS) -> None:
    world.send(Signal.LOGS, name, logs(name, minutes(start_ms, count)))


def test_a_drain_shows_what_it_did(world: World, instance: dg.DagsterInstance) -> None:
    _send(world, "a.binpb.gz", 5)
    _send(world, "b.binpb.gz", 7)
    world.box(Signal.LOGS)

    result = _run(instance, DRAIN)

    assert result.success
    assert list(_materialised(result)) == [TODAY.key]
    shown = _materialised(result)[TODAY.key]
    assert (shown["raw objects"], shown["records read"], shown["records written"], shown["records rejected"]) == (
        2,
        12,
        12,
        0,
    )
    assert shown["dagster/row_count"] == world.records(Signal.LOGS) == 12
    assert sum(row.data["records"] for row in shown["segment keys"].records) == 12
    assert (shown["event time from"], shown["event time to"]) == (NOON_MS / 1000, NOON_MS / 1000 + 6 * 60 + 0.001)
    assert shown["bytes out"] > 0 < shown["bytes in"] < shown["bytes in, decompressed"]
    assert shown["peak memory, bytes"] > 0
    (check,) = result.get_asset_check_evaluations()
    assert (check.check_name, check.passed) == (conservation.NAME, True)
    assert check.metadata["records read"].value == 12


def test_a_drain_ends_while_boxes_wait_and_a_persons_run_when_its_day_is_whole(
    world: World, instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LAKERUNNER_DRAIN_SECONDS", "1e-9")
    for number in range(4):
        _send(world, f"{number}.binpb.gz", 1)
        world.box(Signal.LOGS)
    drained = _run(instance, DRAIN)
    assert _materialised(drained)[TODAY.key]["records written"] == 1
    assert world.records(Signal.LOGS) == 1
    assert _materialised(_run(instance, REBUILD))[TODAY.key]["records written"] == 4
    assert world.records(Signal.LOGS) == 4


def test_a_drain_that_finds_nothing_says_nothing(world: World, instance: dg.DagsterInstance) -> None:
    assert world.objects() == {}
    result = _run(instance, DRAIN)
    assert result.success
    assert _materialised(result) == {}


def test_records_of_another_day_make_that_day_green_too(world: World, instance: dg.DagsterInstance) -> None:
    _send(world, "late.binpb.gz", 3, NOON_MS - 24 * HOUR_MS)
    _send(world, "now.binpb.gz", 2)
    world.box(Signal.LOGS)

    materialised = _materialised(_run(instance, DRAIN))

    assert set(materialised) == {TODAY.key, YESTERDAY.key}
    assert materialised[TODAY.key]["records written"] == 5
    assert materialised[YESTERDAY.key]["dagster/row_count"] == 3
    assert str(TODAY.key) in materialised[YESTERDAY.key]["came with"]


def test_a_corrupt_file_is_named_and_the_rest_goes_on(world: World, instance: dg.DagsterInstance) -> None:
    _send(world, "good.binpb.gz", 4)
    key = world.send(Signal.LOGS, "bad.binpb.gz", b"\x1f\x8b truncated")
    world.box(Signal.LOGS)

    result = _run(instance, DRAIN)

    assert result.success
    (row,) = _materialised(result)[TODAY.key]["set aside"].records
    assert (row.data["key"], row.data["state"]) == (key, "quarantined")
    assert world.records(Signal.LOGS) == 4


def test_a_box_that_fails_makes_the_run_red_and_leaves_what_was_done(
    world: World, instance: dg.DagsterInstance
) -> None:
    _send(world, "good.binpb.gz", 4)
    world.box(Signal.LOGS)
    _send(world, "earlier.binpb.gz", 2, NOON_MS - HOUR_MS)
    world.box(Signal.LOGS)
    day = world.place.bucket / f"db/{ORGANIZATION}/{COLLECTOR}/{DAY}/logs"
    day.mkdir(parents=True)
    (day / "11").touch()  # no segment of that hour can be put

    result = _run(instance, DRAIN)

    assert not result.success
    assert _materialised(result) == {}
    observed = _observed(result)[TODAY.key]
    assert observed["records written"] == world.records(Signal.LOGS) == 4
    assert "not complete" in observed


def test_materialising_a_day_rebuilds_it_with_the_same_result(world: World, instance: dg.DagsterInstance) -> None:
    _send(world, "a.binpb.gz", 5)
    world.ingest(Signal.LOGS)
    _send(world, "b.binpb.gz", 7, NOON_MS - HOUR_MS)
    world.ingest(Signal.LOGS)

    first = _run(instance, REBUILD)
    published = world.published(Signal.LOGS)
    second = _run(instance, REBUILD)

    assert first.success
    assert second.success
    assert world.published(Signal.LOGS) == published
    assert sum(records for *_, records in published) == 12
    assert _materialised(second)[TODAY.key]["records written"] == 12
    assert world.breaches() == []


def test_a_backfill_rebuilds_each_day_with_its_own_metadata(world: World, instance: dg.DagsterInstance) -> None:
    _send(world, "yesterday.binpb.gz", 3, NOON_MS - 24 * HOUR_MS)
    _send(world, "today.binpb.gz", 2)
    world.ingest(Signal.LOGS)

    materialised = _materialised(_run(instance, MONTH))

    assert {key: shown["records written"] for key, shown in materialised.items()} == {YESTERDAY.key: 3, TODAY.key: 2}


def test_a_failing_day_of_a_backfill_fails_alone(world: World, instance: dg.DagsterInstance) -> None:
    _send(world, "yesterday.binpb.gz", 3, NOON_MS - 24 * HOUR_MS)
    world.ingest(Signal.LOGS)
    _send(world, "today.binpb.gz", 2)
    world.ingest(Signal.LOGS)
    shutil.rmtree(world.place.bucket / f"db/{ORGANIZATION}/{COLLECTOR}/{YESTERDAY.dateint}")
    (world.place.bucket / f"db/{ORGANIZATION}/{COLLECTOR}/{YESTERDAY.dateint}").touch()  # nothing can be put there

    result = _run(instance, MONTH)

    assert not result.success
    assert set(_materialised(result)) == {TODAY.key}
    assert set(_observed(result)) == {YESTERDAY.key}


@pytest.mark.usefixtures("world")
def test_a_source_that_lrdb_does_not_know_is_told_of(instance: dg.DagsterInstance) -> None:
    instance.add_dynamic_partitions(SOURCES_NAME, ["acme/gone"])
    result = _run(instance, {"dagster/partition": str(DaySource(DAY, "acme/gone").key)})
    (failure,) = [event for event in result.all_events if event.is_step_failure]
    assert "lrdb knows no source 'acme/gone'" in str(failure.step_failure_data.error)


def test_the_partitions_status_is_what_the_run_left(world: World, instance: dg.DagsterInstance) -> None:
    _send(world, "a.binpb.gz", 5)
    world.box(Signal.LOGS)
    _run(instance, DRAIN)
    key = dg.AssetKey(SIGNALS[Signal.LOGS].segment_asset)
    assert instance.get_materialized_partitions(key) == {str(TODAY.key)}


@pytest.mark.parametrize("stage", list(STAGES.values()))
def test_a_new_code_version_reaches_dagster(stage: Stage) -> None:
    for asset in stage.assets:
        assert stage_asset(stage, asset).get_asset_spec().code_version == stage.code_version
