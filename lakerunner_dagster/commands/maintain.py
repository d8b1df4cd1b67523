"""``lakerunner maintain``: one turn of a maintenance job, or what it would do.

What belongs here: the commands and their output. What does not: the jobs (``lake.maintenance``, ``instance.history``),
their schedules (``jobs.maintenance``).
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Annotated

import typer
from rich.box import SIMPLE_HEAD
from rich.table import Table

from lakerunner_dagster.commands.session import console, opened_lake, say, shown
from lakerunner_dagster.lake.maintenance.jobs import JOBS, MaintenanceJob
from lakerunner_dagster.lake.maintenance.report import FAILED, Order, Report
from lakerunner_dagster.lake.settings import HistoryPolicy, MaintenancePolicy

if TYPE_CHECKING:
    from lakerunner_dagster.lake.maintenance.report import PartitionKeys

app = typer.Typer(no_args_is_help=True, help="Keep the lake clean: what schedules do, by hand.")

DRY_RUN = Annotated[bool, typer.Option("--dry-run", help="Change nothing, and print what would be done.")]


def _command(job: MaintenanceJob) -> Callable[..., None]:
    def command(dry_run: DRY_RUN = False) -> None:
        _run([job], dry_run=dry_run)

    command.__doc__ = job.summary
    return command


for _job in JOBS:
    app.command(_job.name)(_command(_job))


@app.command("history")
def run_history(dry_run: DRY_RUN = False) -> None:
    """Delete what old runs said and wrote, and old events that newer ones supersede, from Dagster's own storage."""
    from lakerunner_dagster.instance.backfills import dagster_instance  # noqa: PLC0415 - imports dagster
    from lakerunner_dagster.instance.history import history  # noqa: PLC0415 - imports dagster

    report = history(dagster_instance(), HistoryPolicy(), _order(dry_run=dry_run))
    _show(report)
    if report.failed:
        raise typer.Exit(1)


@app.command("all")
def run_all(dry_run: DRY_RUN = False) -> None:
    """Every job once, in the order in which that makes sense; without DAGSTER_HOME, none that needs Dagster."""
    _run([job for job in JOBS if _partitions() is not None or not job.needs_partitions], dry_run=dry_run)
    if _partitions() is not None:
        run_history(dry_run)


def _order(*, dry_run: bool, partitions: PartitionKeys | None = None) -> Order:
    return Order(dry_run, time.time_ns() // 1_000_000, partitions)


def _run(jobs: Sequence[MaintenanceJob], *, dry_run: bool) -> None:
    failed = 0
    with opened_lake() as lake:
        for job in jobs:
            partitions = _partitions() if job.needs_partitions else None
            report = job.run(lake, MaintenancePolicy(), _order(dry_run=dry_run, partitions=partitions))
            _show(report)
            failed += report.failed
    if failed:
        raise typer.Exit(1)


def _partitions() -> PartitionKeys | None:
    """Dagster's own, where the environment says which instance; it is asked for only here, for it takes seconds."""
    if "DAGSTER_HOME" not in os.environ:
        return None
    import dagster as dg  # noqa: PLC0415 - seconds that the other commands need not wait

    from lakerunner_dagster.partitions import SourcePartitions  # noqa: PLC0415 - imports dagster

    return SourcePartitions(dg.DagsterInstance.get())


def _show(report: Report) -> None:
    """How much of what, then the things themselves."""
    would = ", dry run: nothing is changed" if report.dry_run else ""
    counts = ", ".join(f"{count:,} {outcome}" for outcome, count in sorted(report.counts.items()))
    say((f"{report.job}{would}", "bold"), f": {counts or 'nothing to do'}")
    if report.items:
        table = Table("outcome", "what", "why", box=SIMPLE_HEAD, pad_edge=False)
        for item in report.items:
            style = "red" if item.outcome == FAILED else ""
            table.add_row(shown(item.outcome), shown(item.subject), shown(item.note), style=style)
        console.print(table)
