"""``lakerunner lrdb``: the database's schema and the truth of what is in it.

What belongs here: the commands. What does not: migrations and checks as such (``lake.lrdb``).
"""

from __future__ import annotations

import typer

from lakerunner_dagster.commands.session import lrdb_snapshot, reachable_url, say
from lakerunner_dagster.lake.errors import ConservationBreach
from lakerunner_dagster.lake.lrdb import check as invariants
from lakerunner_dagster.lake.lrdb import migrate as migrations
from lakerunner_dagster.lake.runs.context import lrdb_url
from lakerunner_dagster.lake.settings import Settings

app = typer.Typer(no_args_is_help=True, help="The lake's database.")


@app.command()
def migrate() -> None:
    """Bring the schema up to date; twice, or by several at once, does no harm."""
    applied = migrations.migrate(reachable_url(lrdb_url(Settings())))
    say("\n".join(f"applied {name}" for name in applied) or "up to date")


@app.command()
def check() -> None:
    """Look for breaches of the invariants on live data: reads only, fails when one is found."""
    with lrdb_snapshot() as conn:
        breaches = invariants.breaches(conn)
    for breach in breaches:
        say((f"invariant {breach.invariant}: {breach.what}", "bold"))
        say(f"  {breach.cases:,} {'case' if breach.cases == 1 else 'cases'}, for example ", breach.example)
    if breaches:
        raise ConservationBreach(
            f"lrdb does not hold together, in {len(breaches)} {'way' if len(breaches) == 1 else 'ways'} (above): keep "
            "lrdb and the bucket as they are, and report it; docs/operations.md says what each invariant means"
        )
    say("no breach found")
