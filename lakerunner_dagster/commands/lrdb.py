"""``lakerunner lrdb``: the database's schema and the truth of what is in it.

What belongs here: the commands. What does not: migrations and checks as such (``lake.lrdb``).
"""

from __future__ import annotations

import typer
from rich.table import Table

from lakerunner_dagster.commands.session import console, lrdb_snapshot
from lakerunner_dagster.lake.errors import ConservationBreach
from lakerunner_dagster.lake.lrdb import check as invariants
from lakerunner_dagster.lake.lrdb import migrate as migrations
from lakerunner_dagster.lake.runs.context import lrdb_url
from lakerunner_dagster.lake.settings import Settings

app = typer.Typer(no_args_is_help=True, help="The lake's database.")


@app.command()
def migrate() -> None:
    """Bring the schema up to date; twice, or by several at once, does no harm."""
    applied = migrations.migrate(lrdb_url(Settings()))
    console.print("\n".join(f"applied {name}" for name in applied) or "up to date")


@app.command()
def check() -> None:
    """Look for breaches of the invariants on live data: reads only, fails when one is found."""
    with lrdb_snapshot() as conn:
        breaches = invariants.breaches(conn)
    if not breaches:
        console.print("no breach found")
        return
    table = Table("invariant", "what", "cases", "for example")
    for breach in breaches:
        table.add_row(str(breach.invariant), breach.what, str(breach.cases), breach.example)
    console.print(table)
    raise ConservationBreach(
        f"{len(breaches)} invariants do not hold: keep lrdb and the bucket as they are, and report it"
    )
