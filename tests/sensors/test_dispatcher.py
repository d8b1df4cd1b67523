"""The dispatchers' sensors on a real lake: a run for each partition that waits, and never two at once."""

from __future__ import annotations

import dagster as dg
import pytest
from dagster._core.test_utils import create_run_for_test

from lakerunner_dagster.definitions import defs
from lakerunner_dagster.instance.lanes import TRIGGER_TAG
from lakerunner_dagster.lake.model import HOUR_MS
from lakerunner_dagster.lake.signals import Signal
from lakerunner_dagster.lake.stages import ingest_stage, rollup_stage
from lakerunner_dagster.lake.ticks.dispatcher import Dispatch
from lakerunner_dagster.partitions import DaySource
from lakerunner_dagster.sensors.dispatcher import _run_request, dispatcher_sensor
from tests.lake.requests import logs, minutes
from tests.lake.world import COLLECTOR, DAY, NOON_MS, World

LOGS = ingest_stage(Signal.LOGS)
SOURCE_KEY = f"acme/{COLLECTOR}"
TODAY = DaySource(DAY, SOURCE_KEY)
YESTERDAY = DaySource(DAY - 1, SOURCE_KEY)
ELSEWHERE = DaySource(DAY, "acme/core")


def _tick(instance: dg.DagsterInstance) -> dg.SensorResult:
    with dg.build_sensor_context(instance=instance) as context:
        result = dispatcher_sensor(LOGS)(context)
    assert isinstance(result, dg.SensorResult)
    return result


def _box(world: World, name: str, day_ms: int = NOON_MS, collector: str = COLLECTOR) -> None:
    key = world.put(Signal.LOGS, name, logs(name, minutes(day_ms, 3)), collector=collector)
    world.intake.accept([world.event(key, event_time_ms=day_ms)], "test")
    world.box(Signal.LOGS)


def _running(instance: dg.DagsterInstance, partition: DaySource, status: dg.DagsterRunStatus) -> None:
    tags = {TRIGGER_TAG: "dispatcher", "dagster/partition": str(partition.key)}
    create_run_for_test(instance, job_name=LOGS.job, tags=tags, status=status)


def test_each_waiting_source_gets_one_run_however_many_boxes_wait(world: World, instance: dg.DagsterInstance) -> None:
    for number in range(3):
        _box(world, f"today-{number}.binpb.gz")
    _box(world, "yesterday.binpb.gz", NOON_MS - 24 * HOUR_MS)
    _box(world, "elsewhere.binpb.gz", collector="core")

    result = _tick(instance)

    requests = {request.partition_key: request for request in result.run_requests or []}
    assert set(requests) == {TODAY.key, ELSEWHERE.key}
    tags = requests[TODAY.key].tags
    assert tags[TRIGGER_TAG] == "dispatcher"
    assert tags["lakerunner/lane.log_segments"] == f"dispatcher {SOURCE_KEY}"
    assert int(tags["dagster/priority"]) > 0
    (addition,) = result.dynamic_partitions_requests or []
    assert addition.partition_keys == [ELSEWHERE.source_key, SOURCE_KEY]


def test_a_run_does_not_look_at_all_of_the_lake(world: World, instance: dg.DagsterInstance) -> None:
    _box(world, "a.binpb.gz")
    (request,) = _tick(instance).run_requests or []
    assert (request.asset_selection, request.asset_check_keys) == (None, None)  # all of the job
    run = defs.resolve_job_def(LOGS.job)
    assert [node.name for node in run.nodes] == ["log_segments"]
    assert {check.name for check in run.asset_layer.asset_graph.asset_check_keys} == {"conservation"}


def test_a_run_that_rolls_up_makes_the_tiers_that_have_boxes_and_no_other(world: World) -> None:
    stage = rollup_stage()
    first, second, *_ = (asset for asset in stage.assets)
    frequencies = [asset.frequency_ms or 0 for asset in (first, second)]
    request = _run_request(stage, TODAY, Dispatch(world.source, TODAY.dateint, (1, 2), tuple(frequencies), "key"))
    run = defs.resolve_job_def(stage.job).get_subset(
        asset_selection=set(request.asset_selection or ()), asset_check_selection=set(request.asset_check_keys or ())
    )
    assert {node.name for node in run.nodes} == {first.name, second.name}
    assert {check.name for check in run.asset_layer.asset_graph.asset_check_keys} == {"conservation"}


def test_two_ticks_never_ask_for_one_partition_under_two_keys(world: World, instance: dg.DagsterInstance) -> None:
    _box(world, "a.binpb.gz")
    assert len(_tick(instance).run_requests or []) == 1
    assert not _tick(instance).run_requests


@pytest.mark.parametrize("status", [dg.DagsterRunStatus.NOT_STARTED, dg.DagsterRunStatus.STARTED])
def test_a_source_with_a_run_waits_for_its_end_with_all_its_days(
    world: World, instance: dg.DagsterInstance, status: dg.DagsterRunStatus
) -> None:
    _running(instance, TODAY, status)
    _box(world, "today.binpb.gz")
    _box(world, "yesterday.binpb.gz", NOON_MS - 24 * HOUR_MS)
    _box(world, "elsewhere.binpb.gz", collector="core")
    (request,) = _tick(instance).run_requests or []
    assert request.partition_key == ELSEWHERE.key


@pytest.mark.parametrize("status", [dg.DagsterRunStatus.SUCCESS, dg.DagsterRunStatus.FAILURE])
def test_a_finished_run_holds_nothing_up(
    world: World, instance: dg.DagsterInstance, status: dg.DagsterRunStatus
) -> None:
    _running(instance, TODAY, status)
    _box(world, "today.binpb.gz")
    (request,) = _tick(instance).run_requests or []
    assert request.partition_key == TODAY.key


def test_no_more_runs_are_asked_for_than_there_is_room_for(
    world: World, instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LAKERUNNER_ACTIVE_RUNS", "2")
    _running(instance, DaySource(DAY, "acme/a"), dg.DagsterRunStatus.STARTED)
    _box(world, "today.binpb.gz")
    _box(world, "elsewhere.binpb.gz", collector="core")
    assert len(_tick(instance).run_requests or []) == 1

    _running(instance, DaySource(DAY, "acme/b"), dg.DagsterRunStatus.NOT_STARTED)
    full = _tick(instance)
    assert not full.run_requests
    assert "no room" in str(full.skip_reason)


def test_a_box_of_a_day_that_is_no_partition_does_not_keep_the_others_waiting(
    world: World, instance: dg.DagsterInstance
) -> None:
    _box(world, "old.binpb.gz")
    world.query("UPDATE boxes SET dateint = 19700101 RETURNING box_id")
    _box(world, "today.binpb.gz")
    _box(world, "elsewhere.binpb.gz", collector="core")
    ticks = [[request.partition_key for request in _tick(instance).run_requests or []] for _ in range(2)]
    assert ticks == [[ELSEWHERE.key], [TODAY.key]]
