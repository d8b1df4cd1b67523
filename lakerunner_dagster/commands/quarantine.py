"""``lakerunner quarantine``: objects and segments that were set aside, why, and sending them round again.

What belongs here: the commands and their text. What does not: what is set aside (``lake.lrdb.quarantine``),
dead letters (``commands.deadletter``).
"""

from __future__ import annotations

import json
from dataclasses import asdict
from itertools import chain
from typing import TYPE_CHECKING, Annotated

import typer

from lakerunner_dagster.commands.session import lrdb_snapshot, lrdb_transaction, say, without_key
from lakerunner_dagster.lake.lrdb import dead_letters, faults, profiles, quarantine
from lakerunner_dagster.lake.model import RawState, date_of
from lakerunner_dagster.lake.stages import asset_of

if TYPE_CHECKING:
    from lakerunner_dagster.lake.lrdb.faults import Fault
    from lakerunner_dagster.lake.lrdb.quarantine import SetAside

_STATES = {
    RawState.INGESTED: "ingested in part",
    RawState.QUARANTINED: "quarantined",
    RawState.MISSING: "missing",
}

app = typer.Typer(no_args_is_help=True, help="Raw objects and segments that were set aside.")


@app.command("list")
def list_items(
    limit: Annotated[int, typer.Option(help="Most objects, and most segments, of an organization.", min=1)] = 50,
) -> None:
    """Objects that are quarantined, missing or lost records, and segments that cannot be read."""
    with lrdb_snapshot() as conn:
        ids = [organization.organization_id for organization in profiles.organizations(conn)]
        objects = [quarantine.set_aside(conn, organization_id, limit) for organization_id in ids]
        unreadable = [faults.faults(conn, organization_id, limit) for organization_id in ids]
        letters = sum(dead_letters.count_waiting(conn).values())
    for item in chain.from_iterable(objects):
        _say_object(item)
    for fault in chain.from_iterable(unreadable):
        _say_fault(fault)
    counts = [*map(len, objects), *map(len, unreadable)]
    if not any(counts):
        say("nothing is set aside")
    if limit in counts:
        say((f"there may be more: these are the latest {limit}, --limit shows others", "dim"))
    if letters:
        say(f"{letters:,} dead letters wait: `lakerunner deadletter list`")


def _say_object(item: SetAside) -> None:
    reasons = ", ".join(f"{count:,} {reason}" for reason, count in sorted(item.rejected.items()))
    counted = f"{sum(item.rejected.values()):,} of its {item.records_read:,} records are rejected: {reasons}"
    say(
        *((item.item_id, "bold"), "  ", (_STATES[item.state], "red"), f"  {item.reason}  "),
        f"{item.organization_name}/{item.raw.collector}, {item.raw.signal}",
    )
    say(f"  {item.raw.bucket}/{item.raw.key}")
    say("  ", (without_key(item.error_text, item.raw.key) if item.error_text else counted, "dim"))


def _say_fault(fault: Fault) -> None:
    source, day = f"{fault.organization_name}/{fault.collector}", date_of(fault.dateint).isoformat()
    say(
        *((fault.item_id, "bold"), "  ", ("segment cannot be read", "red"), f"  {fault.error_class}  "),
        f"{source}, {fault.signal}, {fault.attempts:,} times",
    )
    say(f"  {fault.key}")
    say("  ", (fault.error_text, "dim"))
    asset = asset_of(fault.signal, fault.frequency_ms)
    say(f"  what mends it: materialise the partition {day}|{source} of {asset}, which computes its hour anew")


@app.command()
def show(item: Annotated[str, typer.Argument(help="An item as `list` names it: raw:12, segment:7.")]) -> None:
    """Everything that is known of one item, as JSON."""
    with lrdb_snapshot() as conn:
        found = quarantine.show(conn, item)
    say(json.dumps({"item": item} | asdict(found), default=str, indent=2, ensure_ascii=False))


@app.command()
def retry(
    items: Annotated[list[str], typer.Argument(help="Items as `list` names them: raw:12, segment:7.")],
) -> None:
    """Send items round again: objects wait for a box, segments are read again."""
    with lrdb_transaction() as conn:
        retried = quarantine.retry(conn, dict.fromkeys(items))
    if retried.pending:
        say(f"{len(retried.pending):,} of the objects wait for a box again")
    if retried.due:
        say(f"{len(retried.due):,} of the segments will be read again when work comes to them")
