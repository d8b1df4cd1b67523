"""Holes of rollup tiers: hours that stand for other points than the finer tier, though nobody knows of it.

What belongs here: marking them, so that they are computed anew. What does not: finding them (``lrdb.coverage``).

No commit leaves a hole. A database that was restored, or rows that a person has changed, may. Where the finer tier has
nothing at all, the tier may be all that is left: it is told, and a person rebuilds the one or the other.
"""

from __future__ import annotations

from lakerunner_dagster.lake.lrdb import coverage, profiles, slots
from lakerunner_dagster.lake.maintenance.report import Findings, Order, Report
from lakerunner_dagster.lake.model import HOUR_MS, date_of, dateint_of
from lakerunner_dagster.lake.planning.compaction import SegmentGroup
from lakerunner_dagster.lake.runs.context import Lake
from lakerunner_dagster.lake.settings import MaintenancePolicy
from lakerunner_dagster.lake.tiers import ROLLED_UP, TIERS

NAME = "rollups"


def holes(lake: Lake, policy: MaintenancePolicy, order: Order) -> Report:
    """Mark the slots of every hour in the look-back that has a hole, an organization in one transaction."""
    findings = Findings(NAME, order)
    since = dateint_of(order.now_ms - int(policy.look_back_hours * HOUR_MS))
    with lake.lrdb.connection() as conn:
        organizations = profiles.organizations(conn)
    for organization in organizations:
        with findings.guarded(organization.name), lake.lrdb.transaction() as conn:
            for hole in coverage.holes(conn, organization.organization_id, since):
                group = SegmentGroup(
                    organization.organization_id,
                    hole.instance_num,
                    ROLLED_UP,
                    hole.frequency_ms,
                    hole.dateint,
                    hole.hour,
                )
                computable = hole.finer_records > 0
                if computable and not order.dry_run:
                    slots.mark(conn, slots.of_group(group))
                findings.add(
                    "marked" if computable else "nothing to compute it from",
                    f"{organization.name}, instance {hole.instance_num}, {TIERS[hole.frequency_ms].label} tier, "
                    f"{date_of(hole.dateint)} {hole.hour:02d}h",
                    f"{hole.records:,} points, {hole.finer_records:,} in the finer tier",
                )
    return findings.report()
