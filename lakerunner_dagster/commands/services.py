"""``lakerunner services``: the embedded PostgreSQL, Kafka and bucket, for `dagster dev` and for trying things out.

What belongs here: the commands. What does not: the services (``local.services``).
"""

from __future__ import annotations

import typer

from lakerunner_dagster.commands.session import console
from lakerunner_dagster.lake.settings import Settings
from lakerunner_dagster.local import services
from lakerunner_dagster.local.dev import prepare_lrdb

app = typer.Typer(no_args_is_help=True, help="The embedded PostgreSQL, Kafka and bucket.")


@app.command()
def up() -> None:
    """Start them in the background, with lrdb migrated and the demo's organizations in it, and write .env."""
    running = services.up(Settings().home)
    prepare_lrdb(Settings(), running.bucket)
    console.print(f"bucket: {running.bucket}")
    console.print("`dagster dev` and `lakerunner` find them by .env; `lakerunner services down` stops them")


@app.command()
def down() -> None:
    """Stop them; what is in PostgreSQL and in the bucket stays."""
    console.print("stopped" if services.down(Settings().home) else "they do not run")


@app.command()
def status() -> None:
    """Whether they run, and where."""
    found = services.status(Settings().home)
    if found.process_id is None:
        console.print("they do not run: start them with `lakerunner services up`")
        return
    console.print(f"running, held by process {found.process_id}")
    console.print(f"Kafka: {found.env.get('LAKERUNNER_KAFKA_BOOTSTRAP_SERVERS', 'configured elsewhere')}")
