"""The maintenance jobs: for each a Dagster job that takes one turn of it, and a schedule that asks for turns.

What belongs here: when each is due, and how its report is shown. What does not: what it does (``lake.maintenance``;
of Dagster's own tables ``instance.history``).
"""

# No postponed annotations here: Dagster reads those of decorated functions as they stand.

import time
from collections.abc import Mapping
from types import MappingProxyType

import dagster as dg

from lakerunner_dagster.instance import history
from lakerunner_dagster.instance.lanes import TRIGGER_TAG, UNFINISHED, Trigger
from lakerunner_dagster.lake.maintenance.jobs import MaintenanceJob
from lakerunner_dagster.lake.maintenance.report import Order, Report
from lakerunner_dagster.lake.settings import HistoryPolicy, MaintenancePolicy
from lakerunner_dagster.partitions import SourcePartitions
from lakerunner_dagster.resources.lake import LakeResource
from lakerunner_dagster.tables import table

MAINTENANCE_TAG = "lakerunner/maintenance"
"""Names the job; of all runs that have it, the run queue lets one go at a time."""

DUE: Mapping[str, str] = MappingProxyType(
    {
        "reconcile": "*/10 * * * *",
        "superseded": "5-59/10 * * * *",
        "rollups": "27 * * * *",
        "retention": "17 * * * *",
        "orphans": "43 3 * * *",
        "sources": "53 3 * * *",
        history.NAME: "13 4 * * *",
    }
)
"""When each job is due, as cron has it (UTC)."""

PRIORITY = "8"
"""Below new data, above the rest: a queue that rollup and compaction keep full lets nothing go that stands below them.

One turn goes at a time and each ends, so that they keep a place in the background.
"""


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
        _tell(context, report)

    return _job_of(job.name, job.summary, turn)


def history_job() -> dg.JobDefinition:
    """The Dagster job that keeps the history of the Dagster it runs in within bounds."""

    @dg.op(name=f"{history.NAME}_turn", description=history.SUMMARY)
    def turn(context: dg.OpExecutionContext, config: MaintenanceConfig) -> None:
        order = Order(config.dry_run, time.time_ns() // 1_000_000)
        _tell(context, history.history(context.instance, HistoryPolicy(), order))

    return _job_of(history.NAME, history.SUMMARY, turn)


def _job_of(name: str, summary: str, turn: dg.OpDefinition) -> dg.JobDefinition:
    @dg.job(name=job_name(name), description=summary, tags=_tags(name))
    def maintain() -> None:
        turn()

    return maintain


def maintenance_schedule(name: str, summary: str) -> dg.ScheduleDefinition:
    """The schedule of a maintenance job, which asks for no turn while one is queued or going."""

    @dg.schedule(
        name=f"{job_name(name)}_schedule",
        job_name=job_name(name),
        cron_schedule=DUE[name],
        default_status=dg.DefaultScheduleStatus.RUNNING,
        description=summary,
    )
    def schedule(context: dg.ScheduleEvaluationContext) -> dg.RunRequest | dg.SkipReason:
        going = dg.RunsFilter(job_name=job_name(name), statuses=UNFINISHED)
        if context.instance.get_runs(going, limit=1):
            return dg.SkipReason("the turn before is queued or going")
        return dg.RunRequest()

    return schedule


def job_name(name: str) -> str:
    """The name that a maintenance job has in Dagster."""
    return f"maintain_{name}"


def _tags(name: str) -> dict[str, str]:
    return {TRIGGER_TAG: str(Trigger.MAINTENANCE), MAINTENANCE_TAG: name, "dagster/priority": PRIORITY}


def _tell(context: dg.OpExecutionContext, report: Report) -> None:
    """Show the report; the run fails where something could not be done."""
    metadata = _metadata(report)
    if report.failed:
        raise dg.Failure(f"{report.failed} things could not be done; the next turn tries again", metadata)
    context.add_output_metadata(metadata)


def _metadata(report: Report) -> dict[str, dg.MetadataValue]:
    counts: dict[str, dg.MetadataValue] = {
        outcome: dg.MetadataValue.int(count) for outcome, count in sorted(report.counts.items())
    }
    items = table(
        {"outcome": "string", "what": "string", "why": "string"},
        ((item.outcome, item.subject, item.note) for item in report.items),
    )
    return {"dry run": dg.MetadataValue.bool(report.dry_run), **counts, **({"items": items} if report.items else {})}
