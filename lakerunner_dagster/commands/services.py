"""``lakerunner services``: the embedded PostgreSQL, Kafka and bucket, for `dagster dev` and for trying things out.

What belongs here: the commands. What does not: the services (``local.services``).
"""

from __future__ import annotations

import typer
from psycopg.conninfo import conninfo_to_dict

from lakerunner_dagster.commands.session import say
from lakerunner_dagster.lake.settings import Settings
from lakerunner_dagster.local import services
from lakerunner_dagster.local.dev import prepare_lrdb

app = typer.Typer(no_args_is_help=True, help="The embedded PostgreSQL, Kafka and bucket.")


@app.command()
def up() -> None:
    """Start them in the background, with lrdb migrated and the demo's organizations in it, and write .env."""
    running = services.up(Settings().home)
    prepare_lrdb(Settings(), running.bucket)
    status()
    say("`dagster dev` and `lakerunner` find them by .env in this directory; `lakerunner services down` stops them")


@app.command()
def down() -> None:
    """Stop them; what is in PostgreSQL and in the bucket stays."""
    say("stopped" if services.down(Settings().home) else "they do not run")


@app.command()
def status() -> None:
    """Whether they run, and where."""
    home = Settings().home.absolute()
    found = services.status(home)
    if found.process_id is None:
        say("they do not run: start them with `lakerunner services up`")
        return
    say(f"running, held by process {found.process_id}")
    say(f"PostgreSQL  {_place(found.env.get('LAKERUNNER_DATABASE_URL'))}")
    say(f"Kafka       {found.env.get('LAKERUNNER_KAFKA_BOOTSTRAP_SERVERS', ELSEWHERE)}")
    say(f"bucket      {home / 'bucket'}")


ELSEWHERE = "configured elsewhere"


def _place(url: str | None) -> str:
    """Where a database is, without its password."""
    if url is None:
        return ELSEWHERE
    parts = conninfo_to_dict(url)
    return f"{parts.get('host')}:{parts.get('port')}, database {parts.get('dbname')}"
