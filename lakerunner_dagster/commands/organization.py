"""``lakerunner organization``: the tenants of the lake, and the bucket that holds their telemetry.

What belongs here: the commands. What does not: storage profiles as such (``lake.lrdb.profiles``).
"""

from __future__ import annotations

from typing import Annotated
from uuid import UUID

import typer
from rich.table import Table

from lakerunner_dagster.commands.session import console, lrdb_snapshot, lrdb_transaction
from lakerunner_dagster.lake.lrdb import profiles

app = typer.Typer(no_args_is_help=True, help="The tenants of the lake.")


@app.command()
def add(
    name: Annotated[str, typer.Argument(help="A slug: it names the tenant in partitions and tables.")],
    organization_id: Annotated[
        UUID | None, typer.Option("--id", help="Its id in object keys; a new one if unset.")
    ] = None,
) -> None:
    """Register a tenant: what comes under otel-raw/{its id}/ is taken in from now on."""
    with lrdb_transaction() as conn:
        added = profiles.add_organization(conn, name, organization_id)
    console.print(f"{added.name}: raw objects go under [bold]otel-raw/{added.organization_id}/{{collector}}/[/]")


@app.command("list")
def list_organizations() -> None:
    """The tenants and their sources."""
    table = Table("organization", "id", "enabled", "sources")
    with lrdb_snapshot() as conn:
        sources = profiles.sources(conn)
        for organization in profiles.organizations(conn):
            own = [source.collector for source in sources if source.organization_id == organization.organization_id]
            table.add_row(
                organization.name,
                str(organization.organization_id),
                "yes" if organization.enabled else "no",
                ", ".join(own) or "none yet",
            )
    console.print(table)
