"""``lakerunner profile``: the storage profiles, that is the buckets, how each is reached, and whose its keys are.

What belongs here: the commands. What does not: storage profiles as such (``lake.lrdb.profiles``), the stores
(``lake.store``), and credentials, which come from the environment.
"""

from __future__ import annotations

from dataclasses import asdict
from enum import StrEnum
from typing import Annotated

import typer
from rich.box import SIMPLE_HEAD
from rich.table import Table

from lakerunner_dagster.commands.organization import organization_of
from lakerunner_dagster.commands.session import console, lrdb_connection, lrdb_snapshot, lrdb_transaction, say, shown
from lakerunner_dagster.lake.errors import WorkIncomplete
from lakerunner_dagster.lake.lrdb import profiles
from lakerunner_dagster.lake.lrdb.profiles import PrefixMapping
from lakerunner_dagster.lake.model import check_collector
from lakerunner_dagster.lake.probe import probe
from lakerunner_dagster.lake.signals import Signal
from lakerunner_dagster.lake.store import BucketConfiguration, Store

app = typer.Typer(no_args_is_help=True, help="Storage profiles: the buckets of the lake, and whose their keys are.")

BUCKET = Annotated[str, typer.Argument(help="Name of a registered bucket.")]


class Provider(StrEnum):
    """Whose object store it is."""

    AWS = "aws"
    GCP = "gcp"
    AZURE = "azure"
    FILE = "file"


@app.command()
def add(
    name: Annotated[str, typer.Argument(help="Name of the bucket, as its notifications call it.")],
    *,
    provider: Annotated[Provider, typer.Option(help="Whose object store it is.")],
    region: Annotated[str | None, typer.Option(help="Its region, with aws.")] = None,
    endpoint: Annotated[
        str | None, typer.Option(help="A URL where it is not the cloud's own; with file: the directory's full path.")
    ] = None,
    role: Annotated[str | None, typer.Option(help="ARN of a role to assume, with aws.")] = None,
    path_style: Annotated[bool, typer.Option("--path-style", help="Requests name the bucket in the path.")] = False,
) -> None:
    """Register a bucket, or change how it is reached. Credentials come from the environment, and are not kept."""
    bucket = BucketConfiguration(name, str(provider), region, endpoint, role, use_path_style=path_style)
    Store.open(bucket)  # what cannot be opened is not kept
    with lrdb_transaction() as conn:
        profiles.put_bucket(conn, bucket)
    say((name, "bold"), f" is registered; `lakerunner profile test {name}` tries it out")


@app.command("list")
def list_buckets() -> None:
    """The buckets, and how they are reached."""
    table = Table("bucket", "provider", "region", "endpoint", "role", "style", box=SIMPLE_HEAD, pad_edge=False)
    with lrdb_snapshot() as conn:
        for bucket in profiles.buckets(conn):
            table.add_row(
                shown(bucket.bucket_name),
                bucket.cloud_provider,
                shown(bucket.region or ""),
                shown(bucket.endpoint or ""),
                shown(bucket.role or ""),
                "path" if bucket.use_path_style else "",
            )
    if table.row_count:
        console.print(table)
    else:
        say("no bucket yet: `lakerunner profile add NAME --provider …` registers one")


@app.command()
def show(bucket: BUCKET) -> None:
    """How a bucket is reached, what stands in it, and whose it is."""
    with lrdb_connection() as conn:
        configuration = profiles.bucket_configuration(conn, bucket)
        use = profiles.bucket_use(conn, bucket)
    for name, value in asdict(configuration).items():
        if value not in (None, False):
            say((f"{name:<16}", "dim"), str(value))
    say(("holds           ", "dim"), f"{use.raw_objects:,} raw objects and {use.segments:,} published segments")
    for source in use.sources:
        say(("home of         ", "dim"), source.key)
    for mapping in use.mappings:
        owner = f"{mapping.organization_id}/{mapping.collector}"
        say(("maps            ", "dim"), f"{mapping.path_prefix}… to {mapping.signal} of {owner}")


@app.command()
def remove(bucket: BUCKET) -> None:
    """Forget a bucket that nothing is in any more, and its prefix mappings."""
    with lrdb_transaction() as conn:
        profiles.remove_bucket(conn, bucket)
    say((bucket, "bold"), " is no bucket of the lake any more; what is in it is untouched")


@app.command("test")
def test_bucket(bucket: BUCKET) -> None:
    """Write, describe, read, list and delete an object of the test's own, and say what is missing."""
    with lrdb_snapshot() as conn:
        configuration = profiles.bucket_configuration(conn, bucket)
    failed = []
    for step in probe(Store.open(configuration), configuration.cloud_provider):
        well = step.trouble is None
        say((" well " if well else " ill  ", "green" if well else "bold red"), f"{step.name} {step.trouble or ''}")
        failed += [] if well else [step.name]
    if failed:
        raise WorkIncomplete(f"bucket {bucket} does not allow: {', '.join(failed)}")


@app.command("map")
def map_prefix(
    bucket: BUCKET,
    prefix: Annotated[str, typer.Argument(help="Beginning of the keys, from the bucket's root.")],
    signal: Annotated[Signal, typer.Argument(help="What is in the objects.")],
    organization: Annotated[str, typer.Argument(help="Name of the tenant that they belong to.")],
    collector: Annotated[str, typer.Argument(help="Name of the collector that they count as.")],
) -> None:
    """Say whose keys are that do not begin with otel-raw/{organization id}/{collector}/."""
    check_collector(collector)
    with lrdb_transaction() as conn:
        profiles.bucket_configuration(conn, bucket)
        owner = organization_of(conn, organization)
        profiles.put_prefix_mapping(conn, PrefixMapping(bucket, prefix, signal, owner.organization_id, collector))
    say(f"{bucket}/{prefix}… holds {signal} of {owner.name}/{collector}")
