"""``lakerunner quarantine``: what was set aside, why, and sending it round again.

What belongs here: the commands and their text. What does not: what is set aside (``lake.lrdb.quarantine``).
"""

from __future__ import annotations

import json
from dataclasses import asdict
from itertools import chain
from typing import TYPE_CHECKING, Annotated

import typer

from lakerunner_dagster.commands.session import lrdb_snapshot, opened_lake, say
from lakerunner_dagster.lake.errors import WorkIncomplete
from lakerunner_dagster.lake.lrdb import dead_letters, faults, profiles, quarantine
from lakerunner_dagster.lake.model import RawState, date_of
from lakerunner_dagster.lake.notifications.intake import Intake

if TYPE_CHECKING:
    from lakerunner_dagster.lake.lrdb.dead_letters import DeadLetter
    from lakerunner_dagster.lake.lrdb.faults import Fault
    from lakerunner_dagster.lake.lrdb.quarantine import SetAside

_STATES = {
    RawState.INGESTED: "ingested in part",
    RawState.QUARANTINED: "quarantined",
    RawState.MISSING: "missing",
}

app = typer.Typer(no_args_is_help=True, help="Raw objects, segments and notifications that were set aside.")


@app.command("list")
def list_items(
    limit: Annotated[int, typer.Option(help="Most objects of an organization, and most dead letters.", min=1)] = 50,
) -> None:
    """Objects that are quarantined, missing or lost records, segments that cannot be read, and dead letters."""
    with lrdb_snapshot() as conn:
        ids = [organization.organization_id for organization in profiles.organizations(conn)]
        objects = [quarantine.set_aside(conn, organization_id, limit) for organization_id in ids]
        unreadable = [faults.faults(conn, organization_id, limit) for organization_id in ids]
        letters = dead_letters.waiting(conn, limit)
    for item in chain.from_iterable(objects):
        _say_object(item)
    for fault in chain.from_iterable(unreadable):
        _say_fault(fault)
    for letter in letters:
        _say_letter(letter)
    counts = [len(letters), *map(len, objects), *map(len, unreadable)]
    if not any(counts):
        say("nothing is set aside")
    if max(counts) == limit:
        say((f"there may be more: these are the latest {limit}, --limit shows others", "dim"))


def _say_object(item: SetAside) -> None:
    reasons = ", ".join(f"{count:,} {reason}" for reason, count in sorted(item.rejected.items()))
    counted = f"{sum(item.rejected.values()):,} of its {item.records_read:,} records are rejected: {reasons}"
    say(
        *((item.item_id, "bold"), "  ", (_STATES[item.state], "red"), f"  {item.reason}  "),
        f"{item.organization_name}/{item.raw.collector}, {item.raw.signal}",
    )
    say(f"  {item.raw.bucket}/{item.raw.key}")
    say("  ", (_without_key(item.error_text, item.raw.key) if item.error_text else counted, "dim"))


def _say_fault(fault: Fault) -> None:
    source, day = f"{fault.organization_name}/{fault.collector}", date_of(fault.dateint).isoformat()
    say(
        *((fault.item_id, "bold"), "  ", ("segment cannot be read", "red"), f"  {fault.error_class}  "),
        f"{source}, {fault.signal}, {fault.attempts:,} times",
    )
    say(f"  {fault.key}")
    say("  ", (fault.error_text, "dim"))
    say(f"  what mends it: materialise the partition {day}|{source}, which writes its hour anew from the raw objects")


def _say_letter(letter: DeadLetter) -> None:
    times = f", {letter.times:,} times" if letter.times > 1 else ""
    say(
        *((f"dead:{letter.dead_letter_id}", "bold"), "  ", ("dead letter", "red"), f"  {letter.reason}  "),
        f"{letter.adapter or letter.topic}{times}",
    )
    say(f"  {letter.key}")
    say("  ", (_without_key(letter.error_text, letter.key), "dim"))


def _without_key(error_text: str, key: str) -> str:
    """An error's text without the key that it begins with: it stands above already."""
    return error_text.removeprefix(f"{key}: ")


@app.command()
def show(item: Annotated[str, typer.Argument(help="An item as `list` names it: raw:12, segment:7, dead:3.")]) -> None:
    """Everything that is known of one item, as JSON."""
    with lrdb_snapshot() as conn:
        found = quarantine.show(conn, item)
    say(json.dumps({"item": item} | asdict(found), default=str, indent=2, ensure_ascii=False))


@app.command()
def retry(
    items: Annotated[list[str], typer.Argument(help="Items as `list` names them: raw:12, segment:7, dead:3.")],
) -> None:
    """Send items round again: objects wait for a box, segments are read again, dead letters are routed anew."""
    with opened_lake() as lake:
        with lake.lrdb.transaction() as conn:
            retried = quarantine.retry(conn, dict.fromkeys(items))
        sent = Intake(lake.lrdb, lake.bus, lake.settings).replay(retried.letters)
    if retried.pending:
        say(f"{len(retried.pending):,} of the objects wait for a box again")
    if retried.due:
        say(f"{len(retried.due):,} of the segments will be read again when work comes to them")
    if sent:
        say(f"{len(sent):,} of the dead letters were passed on")
    if len(sent) < len(retried.letters):
        raise WorkIncomplete(
            f"{len(retried.letters) - len(sent):,} of the dead letters still lead nowhere: "
            "`lakerunner quarantine list` says why"
        )
