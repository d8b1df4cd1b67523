"""``lakerunner quarantine``: what was set aside, why, and sending it round again.

What belongs here: the commands and their tables. What does not: what is set aside (``lake.lrdb.quarantine``).
"""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Annotated

import typer
from rich.table import Table

from lakerunner_dagster.commands.session import console, lrdb_snapshot, opened_lake
from lakerunner_dagster.lake.errors import WorkIncomplete
from lakerunner_dagster.lake.lrdb import dead_letters, profiles, quarantine
from lakerunner_dagster.lake.notifications.intake import Intake

app = typer.Typer(no_args_is_help=True, help="Raw objects and notifications that were set aside.")

ITEMS = typer.Argument(help="Items as `list` names them: raw:12, dead:3.")


@app.command("list")
def list_items(limit: Annotated[int, typer.Option(help="Most items of an organization.", min=1)] = 50) -> None:
    """Objects that are quarantined, missing or lost records, and dead letters; the latest first."""
    table = Table("item", "state", "reason", "whose", "object", "what")
    with lrdb_snapshot() as conn:
        for organization in profiles.organizations(conn):
            for item in quarantine.set_aside(conn, organization.organization_id, limit):
                table.add_row(
                    item.item_id,
                    str(item.state),
                    item.reason,
                    f"{item.organization_name}/{item.raw.collector}",
                    item.raw.key,
                    item.error_text or f"{sum(item.rejected.values())} of {item.records_read} records rejected",
                )
        for letter in dead_letters.waiting(conn, limit):
            table.add_row(
                f"dead:{letter.dead_letter_id}", "dead letter", letter.reason, "", letter.key, letter.error_text
            )
    console.print(table if table.row_count else "nothing is set aside")


@app.command()
def show(item: Annotated[str, ITEMS]) -> None:
    """Everything that is known of one item, as JSON."""
    with lrdb_snapshot() as conn:
        found = quarantine.show(conn, item)
    console.print_json(json.dumps(asdict(found), default=_text))


@app.command()
def retry(items: Annotated[list[str], ITEMS]) -> None:
    """Send items round again: objects wait for a box, dead letters are routed anew."""
    with opened_lake() as lake:
        with lake.lrdb.transaction() as conn:
            retried = quarantine.retry(conn, items)
        sent = Intake(lake.lrdb, lake.bus, lake.settings).replay(retried.letters)
    console.print(f"{len(retried.pending)} objects wait for a box again, {len(sent)} dead letters were passed on")
    if len(sent) < len(retried.letters):
        raise WorkIncomplete(
            f"{len(retried.letters) - len(sent)} dead letters still lead nowhere: `lakerunner quarantine list` says why"
        )


def _text(value: object) -> object:
    return dict(value.items()) if hasattr(value, "items") else str(value)
