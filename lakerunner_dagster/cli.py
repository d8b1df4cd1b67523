"""``lakerunner``: the command line.

What belongs here: which commands there are, and what an error looks like. What does not: the commands (``commands``).
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

import typer
from rich.console import Console
from rich.text import Text

from lakerunner_dagster.commands import (
    backfill,
    deadletter,
    lrdb,
    maintain,
    notify,
    organization,
    profile,
    quarantine,
    replay,
    services,
)
from lakerunner_dagster.commands.dev import dev
from lakerunner_dagster.commands.doctor import doctor
from lakerunner_dagster.commands.lineage import show_lineage
from lakerunner_dagster.commands.session import shown
from lakerunner_dagster.commands.status import show_status
from lakerunner_dagster.lake.errors import LakeError

app = typer.Typer(
    no_args_is_help=True, pretty_exceptions_enable=False, help="The OpenTelemetry lake: run it, look into it, trust it."
)
app.command()(dev)
app.command("status")(show_status)
app.command("lineage")(show_lineage)
app.command()(doctor)
app.add_typer(services.app, name="services")
app.add_typer(notify.app, name="notify")
app.add_typer(quarantine.app, name="quarantine")
app.add_typer(deadletter.app, name="deadletter")
app.add_typer(organization.app, name="organization")
app.add_typer(profile.app, name="profile")
app.add_typer(lrdb.app, name="lrdb")
app.add_typer(maintain.app, name="maintain")
app.add_typer(backfill.app, name="backfill")
app.add_typer(replay.app, name="replay")


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a command (by default the process's own arguments); an error of the lake is one message and exit code 1."""
    try:
        app(arguments)
    except LakeError as error:
        Console(stderr=True).print(Text.assemble(("error: ", "bold red"), shown(str(error))), soft_wrap=True)
        sys.exit(1)


if __name__ == "__main__":
    main()
