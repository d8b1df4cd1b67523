"""The maintenance jobs: for each a Dagster job that takes one turn of it, and a schedule that asks for turns.

What belongs here: when each is due, and how its report is shown. What does not: what it does (``lake.maintenance``).
"""

# No postponed annotations here: Dagster reads those of decorated functions as they stand.

import time
from collections.abc import Mapping
from types import MappingProxyType

import dagster as dg

from lakerunner_dagster.instance.lanes import TRIGGER_TAG, UNFINISHED, Trigger
from lakerunner_dagster.lake.maintenance.jobs import MaintenanceJob
from lakerunner_dagster.lake.maintenance.report import Order, Report
from lakerunner_dagster.lake.settings import MaintenancePolicy
from lakerunner_dagster.partitions import SourcePartitions
from lakerunner_dagster.resources.lake import LakeResource
from lakerunner_dagster.tables import table

MAINTENANCE_TAG = "lakerunner/maintenance"
"""Names the job, so that the run queue lets one run of each go at a time."""

DUE: Mapping[str, str] = MappingProxyType(
    {
        "reconcile": "*/10 * * * *",
        "superseded": "5-59/10 * * * *",
        "rollups": "27 * * * *",
        "retention": "17 * * * *",
        "orphans": "43 3 * * *",
        "sources": "53 3 * * *",
    }
)
"""When each job is due, as cron has it (UTC)."""

PRIORITY = "-10"
"""Below backfills, whose runs have 0."""


class MaintenanceConfig(dg.Config):
    """How a turn is taken."""

    dry_run: bool = False


def maintenance_job(job: MaintenanceJob) -> dg.JobDefinition:
    """The Dagster job of a maintenance job."""

    @dg.op(name=f"{job.name}_turn", description=job.summary)
    def turn(context: dg.OpExecutionContext, config: MaintenanceConfig, lake: LakeResource) -> None:
        order = Order(config.dry_run, time.time_ns() // 1_000_000, SourcePartitions(context.instance))
        with lake.open() as opened:
            report = job.run(opened, MaintenancePolicy(), order)
        metadata = _metadata(report)
        if report.failed:
            raise dg.Failure(f"{report.failed} things could not be done; the next turn tries again", metadata)
        context.add_output_metadata(metadata)

    @dg.job(name=job_name(job), description=job.summary, tags=_tags(job))
    def maintain() -> None:
        turn()

    return maintain


def maintenance_schedule(job: MaintenanceJob) -> dg.ScheduleDefinition:
    """The schedule of a maintenance job, which asks for no turn while one is queued or going."""

    @dg.schedule(
        name=f"{job_name(job)}_schedule",
        job_name=job_name(job),
        cron_schedule=DUE[job.name],
        default_status=dg.DefaultScheduleStatus.RUNNING,
        description=job.summary,
    )
    def schedule(context: dg.ScheduleEvaluationContext) -> dg.RunRequest | dg.SkipReason:
        going = dg.RunsFilter(job_name=job_name(job), statuses=UNFINISHED)
        if context.instance.get_runs(going, limit=1):
            return dg.SkipReason("the turn before is queued or going")
        return dg.RunRequest()

    return schedule


def job_name(job: MaintenanceJob) -> str:
    """Name of the Dagster job."""
    return f"maintain_{job.name}"


def _tags(job: MaintenanceJob) -> dict[str, str]:
    return {TRIGGER_TAG: str(Trigger.MAINTENANCE), MAINTENANCE_TAG: job.name, "dagster/priority": PRIORITY}


def _metadata(report: Report) -> dict[str, dg.MetadataValue]:
    counts: dict[str, dg.MetadataValue] = {
        outcome: dg.MetadataValue.int(count) for outcome, count in sorted(report.counts.items())
    }
    items = table(
        {"outcome": "string", "what": "string", "why": "string"},
        ((item.outcome, item.subject, item.note) for item in report.items),
    )
    return {"dry run": dg.MetadataValue.bool(report.dry_run), **counts, **({"items": items} if report.items else {})}
