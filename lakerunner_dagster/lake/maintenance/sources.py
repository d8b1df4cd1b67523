"""Source partitions that Dagster shows and nobody needs: their source is gone, or is of a tenant with nothing left.

What belongs here: which these are. What does not: Dagster (``report.PartitionKeys``).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from psycopg import sql

from lakerunner_dagster.lake.errors import ConfigurationError
from lakerunner_dagster.lake.lrdb import partitions, profiles
from lakerunner_dagster.lake.maintenance.report import Findings, Order, Report
from lakerunner_dagster.lake.model import Source
from lakerunner_dagster.lake.runs.context import Lake
from lakerunner_dagster.lake.settings import MaintenancePolicy
from lakerunner_dagster.lake.signals import SIGNALS

if TYPE_CHECKING:
    from lakerunner_dagster.lake.lrdb.connection import Conn

NAME = "sources"


def sources(lake: Lake, _policy: MaintenancePolicy, order: Order) -> Report:
    """Remove what is stale from the partitions; it comes back with the source's first new object."""
    if order.partitions is None:
        raise ConfigurationError("source partitions are Dagster's: set DAGSTER_HOME to the directory of its instance")
    findings = Findings(NAME, order)
    with lake.lrdb.connection() as conn:
        stale = stale_keys(conn, order.partitions.keys())
    for key, why in stale.items():
        if not order.dry_run:
            order.partitions.remove(key)
        findings.add("removed from Dagster", key, why)
    return findings.report()


def stale_keys(conn: Conn, keys: Iterable[str]) -> dict[str, str]:
    """Those of the partition keys that nobody needs, and why."""
    known = {source.key: source for source in profiles.sources(conn)}
    enabled = {organization.organization_id: organization.enabled for organization in profiles.organizations(conn)}
    stale = {}
    for key in sorted(keys):
        source = known.get(key)
        if source is None:
            stale[key] = "lrdb knows no such source"
        elif not enabled[source.organization_id] and not _has_anything(conn, source):
            stale[key] = "its organization is disabled, and nothing is left of it"
    return stale


def _has_anything(conn: Conn, source: Source) -> bool:
    """Whether anything is on its way to a segment, or a segment has a row: asked in the order in which it goes there.

    Best where each statement commits by itself: in one transaction it locks every day.
    """
    under_way = (("raw_objects", "state = 'pending'"), ("boxes", "state <> 'done'"))
    return any(_exists(conn, source, table, sql.SQL(condition)) for table, condition in under_way) or any(
        _exists(conn, source, spec.segment_table, sql.SQL("dateint = ANY({})").format(sql.Literal(batch)))
        for signal, spec in SIGNALS.items()
        for batch in partitions.batches(partitions.days(conn, signal, source.organization_id))
    )


def _exists(conn: Conn, source: Source, table: str, condition: sql.Composable) -> bool:
    row = conn.execute(
        sql.SQL(
            "SELECT EXISTS (SELECT FROM {table} WHERE organization_id = {organization} AND instance_num = {instance}"
            " AND {condition})"
        ).format(
            table=sql.Identifier(table),
            organization=sql.Literal(source.organization_id),
            instance=sql.Literal(source.instance_num),
            condition=condition,
        )
    ).fetchone()
    return row is not None and bool(row[0])
