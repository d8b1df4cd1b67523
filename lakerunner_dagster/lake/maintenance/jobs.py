"""The jobs of maintenance, declared once for the command line and for Dagster.

What belongs here: their list, in the order in which one turn of all makes sense. What does not: when each is due.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from lakerunner_dagster.lake.maintenance import holes, orphans, reconcile, retention, sources, superseded
from lakerunner_dagster.lake.maintenance.report import Order, Report
from lakerunner_dagster.lake.runs.context import Lake
from lakerunner_dagster.lake.settings import MaintenancePolicy


@dataclass(frozen=True, slots=True)
class MaintenanceJob:
    """One job: ``run`` is one turn of it, which may be killed anywhere and taken again.

    ``needs_partitions``: its order must have Dagster's partitions.
    """

    name: str
    summary: str
    run: Callable[[Lake, MaintenancePolicy, Order], Report]
    needs_partitions: bool = False


JOBS = (
    MaintenanceJob(
        reconcile.NAME,
        "Notify raw objects that no adapter has told of, and announce boxes again that no run was asked for.",
        reconcile.reconcile,
    ),
    MaintenanceJob(
        holes.NAME,
        "Mark the hours of rollup tiers that lack what the finer tier has, though nobody knows of it.",
        holes.holes,
    ),
    MaintenanceJob(
        retention.NAME,
        "Take days that are older than they are kept out of readers' sight. Raw objects are never deleted.",
        retention.retention,
    ),
    MaintenanceJob(
        superseded.NAME,
        "Delete the objects of segments that were replaced or have expired, after the grace period.",
        superseded.superseded,
    ),
    MaintenanceJob(
        orphans.NAME,
        "Delete objects of segments that no row knows, and flag published segments whose object is gone.",
        orphans.orphans,
    ),
    MaintenanceJob(
        sources.NAME,
        "Remove source partitions from Dagster that nobody needs any more.",
        sources.sources,
        needs_partitions=True,
    ),
)
