"""``lakerunner organization``: the tenants of the lake, and whether anything is taken in for them.

What belongs here: the commands. What does not: storage profiles as such (``lake.lrdb.profiles``).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated
from uuid import UUID

import typer
from rich.box import SIMPLE_HEAD
from rich.table import Table

from lakerunner_dagster.commands.session import console, lrdb_snapshot, lrdb_transaction, say
from lakerunner_dagster.lake.errors import RequestRefused
from lakerunner_dagster.lake.lrdb import profiles
from lakerunner_dagster.lake.signals import SIGNALS, Signal

if TYPE_CHECKING:
    from lakerunner_dagster.lake.lrdb.connection import Conn
    from lakerunner_dagster.lake.lrdb.profiles import Organization

app = typer.Typer(no_args_is_help=True, help="The tenants of the lake.")

NAME = typer.Argument(help="Name of the tenant.")


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
    say(f"{added.name}: raw objects go under ", (f"otel-raw/{added.organization_id}/{{collector}}/", "bold"))


@app.command("list")
def list_organizations() -> None:
    """The tenants and their sources."""
    table = Table("organization", "id", "taken in", "collectors", "kept", box=SIMPLE_HEAD, pad_edge=False)
    with lrdb_snapshot() as conn:
        sources = profiles.sources(conn)
        for organization in profiles.organizations(conn):
            own = [source.collector for source in sources if source.organization_id == organization.organization_id]
            table.add_row(
                organization.name,
                str(organization.organization_id),
                "yes" if organization.enabled else "no",
                ", ".join(own) or "none yet",
                _kept(profiles.retentions(conn, organization.organization_id)),
            )
    if table.row_count:
        console.print(table)
    else:
        say("no organization yet: `lakerunner organization add NAME` registers one")


def _kept(rules: list[tuple[Signal, int, int]]) -> str:
    """What is kept for how long, where that was said: everything else stays for ever."""
    return ", ".join(
        f"{signal}{f' of {frequency_ms // 1000} s' if frequency_ms else ''}: {f'{days:,} days' if days else 'for ever'}"
        for signal, frequency_ms, days in rules
    )


@app.command()
def retention(
    name: Annotated[str, NAME],
    signal: Annotated[Signal, typer.Argument(help="What is kept.")],
    days: Annotated[int, typer.Argument(help="Days of event time; 0 keeps for ever.", min=0, max=100_000)],
    frequency: Annotated[
        int | None, typer.Option(help="A metric tier by its width in seconds (10, 60, 300, 1200, 3600); unset: all.")
    ] = None,
) -> None:
    """Keep a tenant's segments for so many days. Older days go within the hour; raw objects are never deleted."""
    tiers = [tier // 1000 for tier in SIGNALS[signal].tiers_ms if tier]
    if frequency is not None and frequency not in tiers:
        raise RequestRefused(
            f"{signal} have no tier of {frequency} s: "
            + (f"they have those of {', '.join(map(str, tiers))} s" if tiers else "leave --frequency out")
        )
    with lrdb_transaction() as conn:
        organization = organization_of(conn, name)
        profiles.set_retention(conn, organization.organization_id, signal, days, (frequency or 0) * 1000)
        rules = profiles.retentions(conn, organization.organization_id)
    say(f"{name} keeps {_kept(rules)}")


@app.command()
def disable(name: Annotated[str, NAME]) -> None:
    """Take in nothing more for a tenant: what comes becomes dead letters. What is in already stays."""
    _enable(name, enabled=False)
    say(f"{name}: what comes from now on becomes dead letters (adapters notice within 30 s)")


@app.command()
def enable(name: Annotated[str, NAME]) -> None:
    """Take in what comes for a tenant again."""
    _enable(name, enabled=True)
    say(f"{name}: taken in again; what came meanwhile: `lakerunner deadletter replay --reason organization_disabled`")


def _enable(name: str, *, enabled: bool) -> None:
    with lrdb_transaction() as conn:
        profiles.enable_organization(conn, organization_of(conn, name).organization_id, enabled=enabled)


def organization_of(conn: Conn, name: str) -> Organization:
    """The tenant of that name; RequestRefused where there is none."""
    organization = profiles.organization_named(conn, name)
    if organization is None:
        raise RequestRefused(f"there is no organization {name!r}: `lakerunner organization list` shows those that are")
    return organization
