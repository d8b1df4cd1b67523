"""``lakerunner status``: what waits where, how old it is, and what failed.

What belongs here: the tables. What does not: the counting (``lake.lrdb.status``).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.table import Table

from lakerunner_dagster.commands.session import console, lrdb_snapshot
from lakerunner_dagster.lake.lrdb import profiles, status
from lakerunner_dagster.lake.model import date_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lakerunner_dagster.lake.lrdb.status import FailedBox, SourceStatus


def show_status() -> None:
    """Backlog per stage and source, its age, and the boxes that failed."""
    with lrdb_snapshot() as conn:
        rows = status.status(conn)
        failed = [
            box
            for organization in profiles.organizations(conn)
            for box in status.failed_boxes(conn, organization.organization_id)
        ]
    console.print(status_table(rows) if rows else "nothing has been notified yet")
    if failed:
        console.print(_failed_table(failed))


def status_table(rows: Sequence[SourceStatus]) -> Table:
    """A row for each source and stage; times in seconds."""
    table = Table(caption="objects, but for records and segments; seconds from notification to queryable")
    table.add_column("source")
    table.add_column("stage")
    for heading in ("notified", "boxed", "ingested", "quarantined", "missing", "records", "segments", "failed boxes"):
        table.add_column(heading, justify="right")
    for heading in ("oldest waits", "p50", "p95"):
        table.add_column(heading, justify="right")
    for row in rows:
        table.add_row(
            row.source,
            row.stage,
            f"{row.notified:,}",
            f"{row.boxed:,}",
            f"{row.ingested:,}",
            _alarming(row.quarantined),
            _alarming(row.missing),
            f"{row.records:,}",
            f"{row.segments:,}",
            _alarming(row.boxes_failed),
            *(_seconds(value) for value in (row.oldest_seconds, row.p50_seconds, row.p95_seconds)),
        )
    return table


def _failed_table(failed: Sequence[FailedBox]) -> Table:
    table = Table(
        "box", "source", "day", "objects", "attempts", "why", title="failed boxes: materialise their partition"
    )
    for box in failed:
        table.add_row(
            str(box.box_id),
            box.source,
            date_of(box.dateint).isoformat(),
            str(box.members),
            str(box.attempts),
            f"{box.error_class}: {box.error_text}",
        )
    return table


def _alarming(count: int) -> str:
    return f"[red]{count:,}[/]" if count else "0"


def _seconds(value: float | None) -> str:
    return "" if value is None else f"{value:,.1f}"
