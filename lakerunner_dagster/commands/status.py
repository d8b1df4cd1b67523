"""``lakerunner status``: what waits where, how old it is, and what failed.

What belongs here: the tables. What does not: the counting (``lake.lrdb.status``).
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from operator import attrgetter
from typing import TYPE_CHECKING

from rich.box import SIMPLE_HEAD
from rich.table import Table

from lakerunner_dagster.commands.session import console, lrdb_snapshot, say
from lakerunner_dagster.lake.lrdb import coverage, dead_letters, debt, outbox, profiles, status
from lakerunner_dagster.lake.model import date_of, dateint_of
from lakerunner_dagster.lake.settings import CompactionPolicy, MiB
from lakerunner_dagster.lake.signals import Signal
from lakerunner_dagster.lake.stages import STAGES, Operation

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from lakerunner_dagster.lake.lrdb.coverage import TierCoverage
    from lakerunner_dagster.lake.lrdb.debt import SourceDebt
    from lakerunner_dagster.lake.lrdb.status import FailedBox, SourceStatus


def show_status() -> None:
    """Backlog per stage and source, its age, and what waits for a person."""
    with lrdb_snapshot() as conn:
        rows = status.status(conn)
        failed = [
            box
            for organization in profiles.organizations(conn)
            for box in status.failed_boxes(conn, organization.organization_id)
        ]
        now_ms, policy = time.time_ns() // 1_000_000, CompactionPolicy()
        debts = [row for signal in Signal for row in debt.debt(conn, signal, policy, now_ms)]
        tiers = coverage.coverage(conn, dateint_of(now_ms - coverage.LOOK_BACK_MS))
        letters = sum(dead_letters.count_waiting(conn).values())
        unsent = outbox.count(conn)
    if rows:
        console.print(status_table(rows))
    else:
        say("nothing has been notified yet")
    if tiers:
        console.print(coverage_table(tiers))
    if debts:
        console.print(debt_table(debts))
    elif rows:
        say("compaction has nothing to do")
    if aside := sum(row.quarantined + row.missing for row in rows):
        say(f"{aside:,} objects are set aside: `lakerunner quarantine list`")
    if letters:
        say(f"{letters:,} dead letters wait: `lakerunner deadletter list`")
    if unsent:
        say(f"{unsent:,} messages wait for Kafka to take them (lrdb keeps them until it does)")
    for box in failed:
        _say_failed(box)


def status_table(rows: Sequence[SourceStatus]) -> Table:
    """A row for each source and stage; what is set aside or failed has a column only where there is any."""
    shown = [column for column in _COLUMNS if column.always or any(column.value(row) for row in rows)]
    table = Table(box=SIMPLE_HEAD, pad_edge=False, padding=(0, 1))
    for heading in ("source", "stage"):
        table.add_column(heading, no_wrap=True)
    for column in shown:
        table.add_column(column.heading, justify="right", style=column.style)
    for row in rows:
        table.add_row(row.source, row.stage, *(_number(column.value(row)) for column in shown))
    return table


@dataclass(frozen=True, slots=True)
class _Column:
    """A column of numbers; one that is not ``always`` there appears with its first number that is not 0."""

    heading: str
    value: Callable[[SourceStatus], float | None]
    always: bool = True
    style: str = ""


_COLUMNS = (
    _Column("notified", attrgetter("notified")),
    _Column("boxed", attrgetter("boxed")),
    _Column("ingested", attrgetter("ingested")),
    _Column("quaran-\ntined", attrgetter("quarantined")),
    _Column("missing", attrgetter("missing"), always=False, style="red"),
    _Column("records", attrgetter("records")),
    _Column("segments", attrgetter("segments")),
    _Column("failed\nboxes", attrgetter("boxes_failed"), always=False, style="red"),
    _Column("oldest\nwaits s", attrgetter("oldest_seconds")),
    _Column("queryable\np50 s", attrgetter("p50_seconds")),
    _Column("\np95 s", attrgetter("p95_seconds")),
)


def coverage_table(rows: Sequence[TierCoverage]) -> Table:
    """How far each tier is behind the finer one, a row for each source that has metrics, and tier."""
    table = Table(box=SIMPLE_HEAD, pad_edge=False, padding=(0, 1))
    for heading in ("source", "tier"):
        table.add_column(heading, no_wrap=True)
    for heading in ("slots to\ncompute", "oldest\nwaits s"):
        table.add_column(heading, justify="right")
    for heading in ("hours with\na hole", "failed\nboxes"):
        table.add_column(heading, justify="right", style="red")
    table.add_column("bytes read\nper byte", justify="right")
    for row in rows:
        table.add_row(
            row.source,
            row.label,
            *map(_number, (row.dirty, row.oldest_seconds, row.holes or None, row.boxes_failed or None)),
            _number(row.amplification),
        )
    return table


def debt_table(debts: Sequence[SourceDebt]) -> Table:
    """What compaction has to do, a row for each source and stage that owes anything."""
    table = Table(box=SIMPLE_HEAD, pad_edge=False, padding=(0, 1))
    for heading in ("source", "stage"):
        table.add_column(heading, no_wrap=True)
    for heading in ("hours not\nsettled", "segments\nbelow target", "MiB below\ntarget", "merges\nto come"):
        table.add_column(heading, justify="right")
    table.add_column("which\ntake s", justify="right")
    table.add_column("set\naside", justify="right", style="red")
    for row in sorted(debts, key=attrgetter("source", "stage")):
        table.add_row(
            row.source,
            row.stage,
            *map(_number, (row.hours, row.segments, row.bytes / MiB, row.merges, row.drain_seconds)),
            _number(row.aside or None),
        )
    return table


_MEMBERS = {Operation.INGEST: "objects", Operation.ROLLUP: "slots", Operation.COMPACT: "segments"}


def _say_failed(box: FailedBox) -> None:
    day = date_of(box.dateint).isoformat()
    what = f"{box.stage} of {box.source}, {day}, {box.members:,} {_MEMBERS[STAGES[box.stage].operation]}"
    say((f"box {box.box_id} has failed", "bold red"), f": {what}")
    say(f"  {box.error_class}: {box.error_text}")
    assets = " or ".join(asset.name for asset in STAGES[box.stage].assets)
    say(f"  once that is mended, materialise the partition {day}|{box.source} of {assets}")


def _number(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:,}" if isinstance(value, int) else f"{value:,.1f}"
