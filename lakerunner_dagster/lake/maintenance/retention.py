"""Retention: days whose event time is over for longer than they are kept go out of readers' sight, and then go.

What belongs here: which days have expired. What does not: unpublishing (``lrdb.expiry``), deleting the objects
(``superseded``, once readers have let go of them). Raw objects are never deleted.
"""

from __future__ import annotations

from lakerunner_dagster.lake.lrdb import expiry, partitions, profiles, segments, slots
from lakerunner_dagster.lake.lrdb.expiry import TierDay
from lakerunner_dagster.lake.lrdb.profiles import Organization
from lakerunner_dagster.lake.maintenance.report import Findings, Order, Report
from lakerunner_dagster.lake.model import date_of, rfc3339
from lakerunner_dagster.lake.runs.context import Lake
from lakerunner_dagster.lake.settings import MaintenancePolicy
from lakerunner_dagster.lake.signals import SIGNALS, Signal
from lakerunner_dagster.lake.tiers import Tier, tier_above

NAME = "retention"


def retention(lake: Lake, _policy: MaintenancePolicy, order: Order) -> Report:
    """Unpublish the days that have expired, each source's tier and day in one transaction, and drop empty leaves."""
    findings = Findings(NAME, order)
    with lake.lrdb.connection() as conn:
        organizations = profiles.organizations(conn)
    for organization in organizations:
        for signal in Signal:
            with findings.guarded(f"{organization.name}, {signal}"):
                _expire(lake, organization, signal, findings)
                _drop_leaves(lake, organization, signal, findings)
    return findings.report()


def _expire(lake: Lake, organization: Organization, signal: Signal, findings: Findings) -> None:
    now_ms = findings.order.now_ms
    with lake.lrdb.connection() as conn:
        kept = {
            tier: expiry.first_kept(conn, organization.organization_id, signal, tier, now_ms)
            for tier in SIGNALS[signal].tiers_ms
        }
        days = expiry.published_days(conn, organization.organization_id, signal, max(kept.values()))
    for day in days:
        if day.dateint < kept.get(day.frequency_ms, expiry.NEVER):
            above = tier_above(day.frequency_ms)
            outlived = above is not None and day.dateint >= kept[above.frequency_ms]
            _expire_day(lake, organization, signal, day, findings, above=above if outlived else None)


def _expire_day(
    lake: Lake, organization: Organization, signal: Signal, day: TierDay, findings: Findings, *, above: Tier | None
) -> None:
    """Unpublish a day, unless the tier ``above``, which is kept for longer, is still to be computed from it."""
    with lake.lrdb.connection() as conn:
        source = profiles.source_of_instance(conn, organization.organization_id, day.instance_num)
    if source is None:
        return
    tier = f" of {day.frequency_ms // 1000} s" if day.frequency_ms else ""
    subject = f"{source.key}, {signal}{tier}, {date_of(day.dateint)}"
    gone = day.segments
    with lake.lrdb.transaction() as conn:
        segments.lock_swaps(conn, source, signal, day.frequency_ms)  # under which the slots of the next tier are marked
        if above is not None and (dirty := slots.dirty_in_day(conn, source, above, day.dateint)):
            note = f"{dirty:,} slots of the {above.label} tier are still to be computed from it"
            findings.add("kept for the next tier", subject, note)
            return
        if not findings.order.dry_run:
            gone = len(
                expiry.expire(
                    conn,
                    source,
                    signal,
                    frequency_ms=day.frequency_ms,
                    dateint=day.dateint,
                    run_id=f"retention {rfc3339(findings.order.now_ms)}",
                )
            )
    findings.add("expired", subject, f"{gone:,} segments")


def _drop_leaves(lake: Lake, organization: Organization, signal: Signal, findings: Findings) -> None:
    """Drop the leaves of days that have expired in every tier and in which nothing is left."""
    with lake.lrdb.connection() as conn:
        before = min(
            expiry.first_kept(conn, organization.organization_id, signal, tier, findings.order.now_ms)
            for tier in SIGNALS[signal].tiers_ms
        )
        empty = partitions.empty_leaves(conn, signal, organization.organization_id, before)
    for dateint in empty:
        subject = f"{organization.name}, {SIGNALS[signal].segment_table}, {date_of(dateint)}"
        if findings.order.dry_run or partitions.drop_leaf(lake.lrdb, signal, organization.organization_id, dateint):
            findings.add("leaf dropped", subject)
        else:
            findings.add("leaf left for the next time", subject, "somebody reads or writes there")
