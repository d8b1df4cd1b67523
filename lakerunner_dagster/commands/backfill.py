"""``lakerunner backfill``: a range of days done anew, as a backfill that Dagster's UI shows.

What belongs here: what is asked, the plan before and the table after. What does not: counting (``lake.lrdb.backfill``),
launching and watching (``instance.backfills``), the work (``lake.runs``).

The backfill is Dagster's once it is launched: interrupted, this command leaves it running; called again with the same
arguments, it finds it and goes on watching.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from operator import attrgetter
from typing import TYPE_CHECKING, Annotated

import typer
import xxhash
from rich.box import SIMPLE_HEAD
from rich.progress import BarColumn as Bar
from rich.progress import Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from lakerunner_dagster.commands.session import console, lrdb_snapshot, say, shown
from lakerunner_dagster.lake.errors import RequestRefused
from lakerunner_dagster.lake.lrdb import backfill, profiles
from lakerunner_dagster.lake.lrdb.backfill import DayWork, Span, Sums, Target
from lakerunner_dagster.lake.model import Source, date_of
from lakerunner_dagster.lake.settings import MiB
from lakerunner_dagster.lake.signals import Signal
from lakerunner_dagster.lake.stages import Stage, StageAsset, compaction_stage, ingest_stage, rollup_stage
from lakerunner_dagster.lake.tiers import TIERS

if TYPE_CHECKING:
    from dagster import DagsterInstance

    from lakerunner_dagster.lake.lrdb.connection import Conn
    from lakerunner_dagster.partitions import DaySource

app = typer.Typer(no_args_is_help=True, help="Do a range of days anew: rollups, ingestion or compaction.")

LOOK_SECONDS = 2.0
"""How often Dagster is asked how far it is."""

FROM = Annotated[datetime, typer.Option("--from", formats=["%Y-%m-%d"], help="First day (UTC).")]
TO = Annotated[datetime, typer.Option("--to", formats=["%Y-%m-%d"], help="Last day (UTC), included.")]
SOURCES = Annotated[
    list[str] | None,
    typer.Option("--source", help="A source, organization/collector; may be repeated. Without it, all of them."),
]
SIGNAL = Annotated[list[Signal] | None, typer.Option("--signal", help="A signal; may be repeated. Without it, all.")]
TIER = Annotated[
    list[str] | None,
    typer.Option("--tier", help=f"A tier ({', '.join(t.label for t in TIERS.values())}); may be repeated."),
]
STALE = Annotated[bool, typer.Option("--stale", help="Only days that another code version has made.")]
DRY_RUN = Annotated[bool, typer.Option("--dry-run", help="Print what would be done, and launch nothing.")]


@app.command()
def rollups(
    first: FROM, last: TO, tier: TIER = None, source: SOURCES = None, *, stale: STALE = False, dry_run: DRY_RUN = False
) -> None:
    """Compute rollup tiers of a range of days anew, each from the next finer one; without --tier, all of them."""
    stage = rollup_stage()
    labels = {one.label: one.frequency_ms for one in TIERS.values()}
    if unknown := set(tier or ()) - labels.keys():
        raise RequestRefused(f"there is no tier {min(unknown)!r}: the tiers are {', '.join(labels)}")
    chosen = {labels[label] for label in tier or labels}
    targets = [(stage, asset) for asset in stage.assets if asset.frequency_ms in chosen]
    _backfill(Request("rollups", targets, span_of(first, last), source or [], stale=stale), dry_run=dry_run)


@app.command()
def ingest(
    first: FROM,
    last: TO,
    signal: SIGNAL = None,
    source: SOURCES = None,
    *,
    stale: STALE = False,
    dry_run: DRY_RUN = False,
) -> None:
    """Rebuild the segments of a range of days from their raw objects."""
    targets = [(stage, asset) for stage in map(ingest_stage, signal or Signal) for asset in stage.assets]
    _backfill(Request("ingest", targets, span_of(first, last), source or [], stale=stale), dry_run=dry_run)


@app.command()
def compact(
    first: FROM,
    last: TO,
    signal: SIGNAL = None,
    source: SOURCES = None,
    *,
    stale: STALE = False,
    dry_run: DRY_RUN = False,
) -> None:
    """Merge the segments of a range of days down to their final files."""
    targets = [(stage, asset) for stage in map(compaction_stage, signal or Signal) for asset in stage.assets]
    _backfill(Request("compact", targets, span_of(first, last), source or [], stale=stale), dry_run=dry_run)


def span_of(first: datetime, last: datetime) -> Span:
    """The days from the first to the last; RequestRefused where the last is before it."""
    if last < first:
        raise RequestRefused(f"--to {last:%Y-%m-%d} is before --from {first:%Y-%m-%d}: name the first day first")
    return Span(int(first.strftime("%Y%m%d")), int(last.strftime("%Y%m%d")))


@dataclass(frozen=True, slots=True)
class Request:
    """What was asked for: of which assets, days and sources (none: all); only what is ``stale``."""

    what: str
    targets: Sequence[tuple[Stage, StageAsset]]
    span: Span
    sources: Sequence[str]
    stale: bool = field(kw_only=True)

    @property
    def digest(self) -> str:
        """The same for the same request."""
        asked = [
            self.what,
            [asset.name for _, asset in self.targets],
            [self.span.first, self.span.last],
            sorted(self.sources),
            self.stale,
        ]
        return xxhash.xxh3_64_hexdigest(json.dumps(asked).encode())

    @property
    def title(self) -> str:
        """What the UI calls it."""
        return f"{self.what} {date_of(self.span.first)} to {date_of(self.span.last)}"


@dataclass(frozen=True, slots=True)
class Part:
    """What is to be done for one asset of one source."""

    target: Target
    days: Sequence[DayWork]
    before: Sums


def _backfill(request: Request, *, dry_run: bool) -> None:
    with lrdb_snapshot() as conn:
        parts = _parts(conn, request)
        paces = {stage.name: backfill.pace(conn, stage) for stage, _ in request.targets}
    if not parts:
        say("there is nothing to do for these days")
        return
    console.print(_plan_table(parts, paces))
    if dry_run:
        say("dry run: nothing is launched")
        return
    carry_out(request, parts)


def carry_out(request: Request, parts: Sequence[Part]) -> None:
    """Launch a backfill and follow it to its end, with what readers see before and after; Exit 1 if a run failed."""
    failed = _launch_and_watch(request, parts)
    with lrdb_snapshot() as conn:
        after = [backfill.sums(conn, part.target, request.span) for part in parts]
    console.print(_result_table(parts, after))
    for run_id, why in failed:
        say(("failed", "bold red"), f": run {run_id}: {why}")
    if failed:
        raise typer.Exit(1)


def _parts(conn: Conn, request: Request) -> list[Part]:
    parts = []
    for source in _sources(conn, request.sources):
        planned: dict[int, set[int]] = {}  # of each tier, the days that it is to have
        for stage, asset in request.targets:
            target = Target(stage, asset, source)
            tier = TIERS.get(asset.frequency_ms or 0)
            coming = planned.get(tier.finer_ms, set()) if tier else set()
            days = backfill.work(conn, target, request.span, time.time_ns() // 1_000_000, coming)
            if request.stale:
                stale = backfill.stale_days(conn, target, request.span)
                days = [day for day in days if day.dateint in stale]
            planned[asset.frequency_ms or 0] = {day.dateint for day in days}
            if days:
                parts.append(Part(target, days, backfill.sums(conn, target, request.span)))
    return parts


def _sources(conn: Conn, keys: Sequence[str]) -> list[Source]:
    if not keys:
        return sorted(profiles.sources(conn), key=attrgetter("key"))
    found = {key: profiles.source_by_key(conn, key) for key in keys}
    if unknown := [key for key, source in found.items() if source is None]:
        raise RequestRefused(f"there is no source {unknown[0]!r}: `lakerunner status` shows those that there are")
    return [source for source in found.values() if source is not None]


def _plan_table(parts: Sequence[Part], paces: dict[str, float | None]) -> Table:
    table = Table("source", "asset", "days", box=SIMPLE_HEAD, pad_edge=False)
    for heading in ("to read", "MiB", "about s"):
        table.add_column(heading, justify="right")
    for part in parts:
        size, pace = sum(day.bytes for day in part.days), paces[part.target.stage.name]
        table.add_row(
            shown(part.target.source.key),
            part.target.asset.name,
            _days(part.days),
            f"{sum(day.inputs for day in part.days):,}",
            f"{size / MiB:,.1f}",
            "not known yet" if not pace else f"{size / pace:,.0f}",
        )
    return table


def _days(days: Sequence[DayWork]) -> str:
    first, last = date_of(days[0].dateint), date_of(days[-1].dateint)
    return f"{len(days)}: {first}" + (f" to {last}" if len(days) > 1 else "")


def _launch_and_watch(request: Request, parts: Sequence[Part]) -> list[tuple[str, str]]:
    """The failures of the backfill, once it is over."""
    from lakerunner_dagster.instance import backfills  # noqa: PLC0415 - Dagster: seconds that a dry run need not wait

    instance = backfills.dagster_instance()
    going = backfills.unfinished(instance, request.digest)
    backfill_id = going or backfills.launch(instance, _partitions(parts), request=request.digest, title=request.title)
    say("goes on with" if going else "launched", f" backfill {backfill_id}: ", ("Runs > Backfills in the UI", "dim"))
    _watch(instance, backfill_id)
    return backfills.failures(instance, backfill_id)


def _partitions(parts: Sequence[Part]) -> dict[str, list[DaySource]]:
    from lakerunner_dagster.partitions import DaySource  # noqa: PLC0415 - imports dagster

    wanted: dict[str, list[DaySource]] = {}
    for part in parts:
        days = [DaySource(day.dateint, part.target.source.key) for day in part.days]
        wanted.setdefault(part.target.asset.name, []).extend(day for day in days if day.exists)
    return wanted


def _watch(instance: DagsterInstance, backfill_id: str) -> None:
    """Show how far it is until it is over."""
    from lakerunner_dagster.instance import backfills  # noqa: PLC0415 - imports dagster

    columns = (
        TextColumn("{task.description}"),
        Bar(),
        TextColumn("{task.completed}/{task.total}"),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console) as bar:
        task = bar.add_task("partitions")
        while True:
            now = backfills.progress(instance, backfill_id)
            bar.update(task, completed=now.done + now.failed, total=now.partitions)
            if now.ended is not None and not backfills.is_working(instance, backfill_id):
                break
            time.sleep(LOOK_SECONDS)
    say(f"{now.done} partitions done, {now.failed} not done: {now.ended}")


def _result_table(parts: Sequence[Part], after: Sequence[Sums]) -> Table:
    """What readers see now, and saw before."""
    table = Table("source", "asset", "days", box=SIMPLE_HEAD, pad_edge=False)
    for heading in ("segments\nbefore", "\nafter", "rows\nbefore", "\nafter", "Σcount\nbefore", "\nafter"):
        table.add_column(heading, justify="right")
    for part, now in zip(parts, after, strict=True):
        table.add_row(
            shown(part.target.source.key),
            part.target.asset.name,
            _days(part.days),
            *(f"{value:,.0f}" for pair in zip(_facts(part.before), _facts(now), strict=True) for value in pair),
        )
    return table


def _facts(sums: Sums) -> tuple[float, float, float]:
    """Segments, rows and the count, which of logs and traces is that of the records."""
    return sums.segments, sums.rows, sums.counted or sums.records
