"""The maintenance jobs and schedules as Dagster runs them."""

from __future__ import annotations

import dagster as dg
import pytest
from dagster._core.test_utils import create_run_for_test, instance_for_test

from lakerunner_dagster.definitions import defs
from lakerunner_dagster.instance.lanes import BACKGROUND_TAG, lane_tags
from lakerunner_dagster.jobs.maintenance import DUE, job_name, maintenance_job, maintenance_schedule
from lakerunner_dagster.lake.maintenance.jobs import JOBS
from lakerunner_dagster.lake.signals import Signal
from lakerunner_dagster.lake.stages import ingest_stage, rollup_stage
from lakerunner_dagster.partitions import SOURCES_NAME
from lakerunner_dagster.resources.lake import LakeResource
from tests.lake.requests import logs, minutes
from tests.lake.world import NOON_MS, World

BY_NAME = {job.name: job for job in JOBS}


def _run(instance: dg.DagsterInstance, name: str, *, dry_run: bool = False) -> dg.ExecuteInProcessResult:
    return maintenance_job(BY_NAME[name]).execute_in_process(
        instance=instance,
        resources={"lake": LakeResource()},
        run_config={"ops": {f"{name}_turn": {"config": {"dry_run": dry_run}}}},
        raise_on_error=False,
    )


def test_every_job_is_due_at_some_time() -> None:
    assert set(DUE) == {*BY_NAME, "history"}
    schedules = {schedule.name: schedule for schedule in defs.get_repository_def().schedule_defs}
    assert set(schedules) == {f"{job_name(name)}_schedule" for name in DUE}
    assert {schedule.default_status for schedule in schedules.values()} == {dg.DefaultScheduleStatus.RUNNING}


@pytest.mark.parametrize("name", BY_NAME)
def test_a_turn_on_a_lake_in_order_finds_nothing_wrong(name: str, world: World, instance: dg.DagsterInstance) -> None:
    world.send(Signal.LOGS, "a", logs("a", minutes(NOON_MS, 3)))
    world.ingest(Signal.LOGS)
    assert _run(instance, name).success
    assert world.records(Signal.LOGS) == 3
    assert world.breaches() == []


def test_a_source_that_is_gone_leaves_the_partitions(world: World, instance: dg.DagsterInstance) -> None:
    known = world.source.key
    instance.add_dynamic_partitions(SOURCES_NAME, [known, "acme/gone"])
    assert _run(instance, "sources", dry_run=True).success
    assert len(instance.get_dynamic_partitions(SOURCES_NAME)) == 2
    assert _run(instance, "sources").success
    assert instance.get_dynamic_partitions(SOURCES_NAME) == [known]


def test_no_turn_is_asked_for_while_one_is_queued_or_going() -> None:
    schedule = maintenance_schedule("reconcile", BY_NAME["reconcile"].summary)
    with instance_for_test() as instance:  # a schedule opens its instance anew, so it must be on disk
        context = dg.build_schedule_context(instance=instance)
        assert isinstance(schedule(context), dg.RunRequest)
        run = create_run_for_test(instance, job_name="maintain_reconcile", status=dg.DagsterRunStatus.STARTED)
        assert isinstance(schedule(context), dg.SkipReason)
        instance.report_run_canceled(run)
        assert isinstance(schedule(context), dg.RunRequest)


def test_a_turn_leaves_its_place_to_new_data() -> None:
    tags = maintenance_job(BY_NAME["orphans"]).tags
    assert lane_tags([], tags)[BACKGROUND_TAG] == "true"
    assert rollup_stage().priority < int(tags["dagster/priority"]) < ingest_stage(Signal.LOGS).priority
