"""``lakerunner replay raw``: the raw objects of a range of days sent through ingestion again.

What belongs here: what is asked, the plan before. What does not: the plan itself (``lake.runs.raw_replay``), launching
and following the backfill that it ends in (``commands.backfill``).
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from operator import attrgetter
from typing import TYPE_CHECKING, Annotated

import typer
from rich.box import SIMPLE_HEAD
from rich.table import Table

from lakerunner_dagster.commands.backfill import FROM, SIGNAL, TO, Part, Request, carry_out, span_of
from lakerunner_dagster.commands.session import console, opened_lake, say, shown
from lakerunner_dagster.lake.errors import InputError, RequestRefused
from lakerunner_dagster.lake.lrdb import backfill, profiles
from lakerunner_dagster.lake.lrdb.backfill import DayWork, Target
from lakerunner_dagster.lake.model import check_collector, date_of
from lakerunner_dagster.lake.runs.raw_replay import (
    Collector,
    ReplayDay,
    ReplayPlan,
    Scope,
    notify_elsewhere,
    plan_replay,
    register,
)
from lakerunner_dagster.lake.settings import MiB
from lakerunner_dagster.lake.signals import Signal
from lakerunner_dagster.lake.stages import ingest_stage

if TYPE_CHECKING:
    from lakerunner_dagster.lake.lrdb.backfill import Span
    from lakerunner_dagster.lake.lrdb.connection import Conn

app = typer.Typer(no_args_is_help=True, help="Send raw objects through ingestion again.")

SHOWN_MISSING = 10
"""Missing objects of a day that are named; the others are counted."""

SOURCES = Annotated[
    list[str] | None,
    typer.Option("--source", help="A source, organization/collector, which may be new; may be repeated. Else all."),
]


@app.command()
def raw(
    first: FROM,
    last: TO,
    source: SOURCES = None,
    signal: SIGNAL = None,
    *,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the plan, and change nothing.")] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
) -> None:
    """Rebuild a range of days from the raw objects that lrdb knows and that the buckets hold.

    Also of days and collectors that lrdb has never heard of, as after it was lost. A raw object's day is the UTC day of
    its event time; of one that lrdb does not know, that on which it was stored. Its records go to the days of their own
    times. Doing it twice changes nothing.
    """
    span = span_of(first, last)
    with opened_lake() as lake:
        with lake.lrdb.connection() as conn:
            collectors = [_collector(conn, key) for key in source or ()]
        scope = Scope(span, signal or list(Signal), collectors)
        plan = plan_replay(lake, scope)
        _show(plan)
        if not plan.days:
            say("there is nothing to replay for these days")
            return
        if dry_run:
            say("dry run: nothing is registered or launched")
            return
        if not yes and sys.stdin.isatty():
            typer.confirm("Replay these days?", abort=True)
        register(lake, plan.unregistered)
        if sum(one.work.elsewhere for one in plan.days):
            say(f"{notify_elsewhere(lake, scope):,} objects in other buckets are notified")
        with lake.lrdb.connection() as conn:
            parts = _parts(conn, plan, span)
    targets = [(part.target.stage, part.target.asset) for part in parts]
    if parts:
        carry_out(Request("replay of raw objects", targets, span, source or [], stale=False), parts)


def _collector(conn: Conn, key: str) -> Collector:
    name, _, collector = key.partition("/")
    organization = profiles.organization_named(conn, name)
    if organization is None:
        raise RequestRefused(f"there is no organization {name!r}: `lakerunner organization list` shows those there are")
    try:
        check_collector(collector)
    except InputError as error:
        raise RequestRefused(f"{key!r} names no source: {error}") from error
    return Collector(organization.organization_id, collector)


def _parts(conn: Conn, plan: ReplayPlan, span: Span) -> list[Part]:
    """The partitions of the backfill: of each source and signal the days that there is anything to read for."""
    found: dict[tuple[str, Signal], list[DayWork]] = {}
    for one in plan.days:
        if inputs := one.work.known + one.work.found:
            work = DayWork(one.day.dateint, inputs, one.work.bytes)
            found.setdefault((one.source_key, one.day.signal), []).append(work)
    parts = []
    for (source_key, signal), days in sorted(found.items()):
        source = profiles.source_by_key(conn, source_key)
        if source is None:
            raise RequestRefused(f"source {source_key!r} is gone: plan again")
        stage = ingest_stage(signal)
        targets = [Target(stage, asset, source) for asset in stage.assets]
        parts += [Part(target, days, backfill.sums(conn, target, span)) for target in targets]
    return parts


def _show(plan: ReplayPlan) -> None:
    if plan.days:
        console.print(_table(sorted(plan.days, key=attrgetter("source_key", "day.signal", "day.dateint"))))
    for collector, bucket in plan.unregistered.items():
        say(f"{collector.name} of organization {collector.organization_id} is new: it will be registered in {bucket}")
    for one in plan.days:
        _say_missing(one)
    if elsewhere := sum(one.work.elsewhere for one in plan.days):
        say(f"{elsewhere:,} unknown objects are in other buckets than their sources' home: Kafka will be told of them")
    for why, number in sorted(plan.left_out.items()):
        say(f"left out: {number:,} {why}")


def _say_missing(one: ReplayDay) -> None:
    for gone in one.missing[:SHOWN_MISSING]:
        say(("missing", "red"), f": {gone.bucket}/{gone.key}: the hours of {one.source_key} on it stay as they are")
    if len(one.missing) > SHOWN_MISSING:
        say(f"and {len(one.missing) - SHOWN_MISSING:,} more of {date_of(one.day.dateint)}")


def _table(days: Sequence[ReplayDay]) -> Table:
    table = Table("source", "signal", "day", box=SIMPLE_HEAD, pad_edge=False)
    headings = ("objects\nknown", "\nfound", "\nmissing", "MiB\nto read", "to replace\nsegments", "\nrecords", "\nMiB")
    for heading in headings:
        table.add_column(heading, justify="right")
    table.add_column("then\ntiers")
    for one in days:
        numbers = (one.work.known, one.work.found, len(one.missing))
        table.add_row(
            shown(one.source_key),
            one.day.signal,
            date_of(one.day.dateint).isoformat(),
            *(f"{number:,}" for number in numbers),
            f"{one.work.bytes / MiB:,.1f}",
            f"{one.seen.segments:,}",
            f"{one.seen.records:,}",
            f"{one.seen.bytes / MiB:,.1f}",
            " ".join(one.tiers),
        )
    return table
