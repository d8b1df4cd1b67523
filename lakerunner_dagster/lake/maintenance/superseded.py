"""Segments that were replaced or have expired: their objects are deleted once no reader can be about to read them.

What belongs here: finding them and showing what would go. What does not: deleting (``deleting``).
"""

from __future__ import annotations

from collections.abc import Iterator

from lakerunner_dagster.lake.lrdb import deletions, profiles
from lakerunner_dagster.lake.lrdb.deletions import Deletion
from lakerunner_dagster.lake.maintenance.deleting import BATCH, DELETED, deleter
from lakerunner_dagster.lake.maintenance.report import Findings, Order, Report
from lakerunner_dagster.lake.model import Source
from lakerunner_dagster.lake.runs.context import Lake
from lakerunner_dagster.lake.settings import MaintenancePolicy
from lakerunner_dagster.lake.signals import Signal

NAME = "superseded"


def superseded(lake: Lake, policy: MaintenancePolicy, order: Order) -> Report:
    """Delete what was superseded longer ago than the grace period, by lrdb's clock, and what was begun before."""
    findings = Findings(NAME, order)
    with lake.lrdb.connection() as conn:
        sources = profiles.sources(conn)
    for source in sources:
        with findings.guarded(source.key):
            if order.dry_run:
                _show(lake, source, policy, findings)
            else:
                _delete(lake, source, policy, findings)
    if not order.dry_run:
        with findings.guarded("deletions remembered"), lake.lrdb.transaction() as conn:
            findings.count("deletions forgotten", deletions.purge(conn, policy.deletions_days))
    return findings.report()


def _delete(lake: Lake, source: Source, policy: MaintenancePolicy, findings: Findings) -> None:
    with deleter(lake, source, findings) as mine:
        if mine is not None:
            mine.take_up()
            for batch in _candidates(lake, source, policy.grace_seconds):
                mine.delete(batch, policy.grace_seconds)


def _show(lake: Lake, source: Source, policy: MaintenancePolicy, findings: Findings) -> None:
    after = 0
    while True:
        with lake.lrdb.connection() as conn:
            begun = deletions.unconfirmed(conn, source, BATCH, after)
        for deletion in begun:
            findings.add(DELETED, deletion.key, f"{deletion.reason}, begun before")
        if not begun:
            break
        after = begun[-1].segment_id
    for batch in _candidates(lake, source, policy.grace_seconds):
        for deletion in batch:
            findings.add(DELETED, deletion.key, str(deletion.reason))


def _candidates(lake: Lake, source: Source, grace_seconds: float) -> Iterator[list[Deletion]]:
    """All that may go, in batches of one signal and day."""
    for signal in Signal:
        with lake.lrdb.connection() as conn:
            days = deletions.superseded_days(conn, source, signal, grace_seconds=grace_seconds)
        for dateint in days:
            yield from _candidates_of_day(lake, source, signal, dateint, grace_seconds)


def _candidates_of_day(
    lake: Lake, source: Source, signal: Signal, dateint: int, grace_seconds: float
) -> Iterator[list[Deletion]]:
    after = 0
    while True:
        with lake.lrdb.connection() as conn:
            batch = deletions.superseded(
                conn, source, signal, dateint, grace_seconds=grace_seconds, limit=BATCH, after=after
            )
        if not batch:
            break
        yield batch
        after = batch[-1].segment_id
