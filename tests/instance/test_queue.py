"""Which queued runs go next, by Dagster's own run queue with the limits of the project's dagster.yaml."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import dagster as dg
import pytest
import yaml  # type: ignore[import-untyped]
from dagster._core.remote_origin import RegisteredCodeLocationOrigin, RemoteJobOrigin, RemoteRepositoryOrigin
from dagster._core.test_utils import create_run_for_test, instance_for_test
from dagster._daemon.run_coordinator.queued_run_coordinator_daemon import QueuedRunCoordinatorDaemon

from lakerunner_dagster.instance.lanes import TRIGGER_TAG, lane_tags
from lakerunner_dagster.jobs.maintenance import job_name, maintenance_job
from lakerunner_dagster.lake.maintenance.jobs import JOBS
from lakerunner_dagster.lake.signals import Signal
from lakerunner_dagster.lake.stages import Stage, compaction_stage, ingest_stage, rollup_stage

ROOT = Path(__file__).parents[2]
HERE = RemoteRepositoryOrigin(RegisteredCodeLocationOrigin("lakerunner"), "__repository__")
TURNS = {job_name(job.name): maintenance_job(job).tags for job in JOBS}
QUEUED, STARTED = dg.DagsterRunStatus.QUEUED, dg.DagsterRunStatus.STARTED


@pytest.fixture
def instance() -> Iterator[dg.DagsterInstance]:
    """One that has the project's run queue."""
    coordinator = yaml.safe_load((ROOT / "dagster.yaml").read_text())["run_coordinator"]
    with instance_for_test(overrides={"run_coordinator": coordinator}) as instance:
        yield instance


def add(instance: dg.DagsterInstance, job: str, tags: Mapping[str, str], status: dg.DagsterRunStatus = QUEUED) -> None:
    """A run as the coordinator tags it; maintenance has no assets."""
    create_run_for_test(instance, job, tags=tags, status=status, remote_job_origin=RemoteJobOrigin(HERE, job))


def add_stage(instance: dg.DagsterInstance, stage: Stage, source: str) -> None:
    """What a dispatcher asked for."""
    tags = {TRIGGER_TAG: "dispatcher", "dagster/partition": f"2026-02-03|acme/{source}"}
    lanes = lane_tags([asset.name for asset in stage.assets], tags)
    add(instance, stage.job, tags | lanes | {"dagster/priority": str(stage.priority)})


def add_turn(instance: dg.DagsterInstance, job: str, status: dg.DagsterRunStatus = QUEUED) -> None:
    """What a schedule asked for."""
    add(instance, job, {**TURNS[job], **lane_tags([], TURNS[job])}, status)


def next_jobs(instance: dg.DagsterInstance) -> list[str]:
    """The jobs of the runs that go now, in order."""
    daemon = QueuedRunCoordinatorDaemon(1)
    runs = daemon._get_runs_to_dequeue(instance, instance.get_concurrency_config(), None)
    return [run.job_name for run in runs]


def test_rollup_and_compaction_without_end_do_not_keep_maintenance_waiting(instance: dg.DagsterInstance) -> None:
    for source in ("a", "b", "c", "d"):
        add_stage(instance, rollup_stage(), source)
        add_stage(instance, compaction_stage(Signal.LOGS), source)
    add_turn(instance, "maintain_superseded")
    add_stage(instance, ingest_stage(Signal.LOGS), "a")
    assert next_jobs(instance) == ["ingest_logs", "maintain_superseded", "rollup_metrics"]


def test_maintenance_takes_no_place_of_new_data(instance: dg.DagsterInstance) -> None:
    add_turn(instance, "maintain_superseded")
    for source in ("a", "b", "c"):
        add_stage(instance, ingest_stage(Signal.LOGS), source)
    assert next_jobs(instance) == ["ingest_logs"] * 3


def test_one_turn_of_maintenance_goes_at_a_time_and_leaves_a_place_to_rollup(instance: dg.DagsterInstance) -> None:
    add_turn(instance, "maintain_orphans", STARTED)
    add_turn(instance, "maintain_superseded")
    add_stage(instance, rollup_stage(), "a")
    assert next_jobs(instance) == ["rollup_metrics"]
