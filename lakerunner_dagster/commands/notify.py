"""``lakerunner notify``: the adapters, each a process that runs until it is told to end.

What belongs here: starting and ending one. What does not: what an adapter does (``lake.notifications``).
"""

from __future__ import annotations

import logging
import signal
import threading
from typing import TYPE_CHECKING, Annotated

import typer

from lakerunner_dagster.commands.session import opened_lake, say
from lakerunner_dagster.lake.notifications.directory import DirectoryAdapter
from lakerunner_dagster.lake.notifications.http import HttpAdapter
from lakerunner_dagster.lake.notifications.intake import Intake

if TYPE_CHECKING:
    from collections.abc import Callable

app = typer.Typer(no_args_is_help=True, help="Adapters: from a bucket's notifications to Kafka.")


@app.callback()
def _log() -> None:
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s")


@app.command()
def http() -> None:
    """Take object-created events by HTTP POST, in any cloud's format."""
    with opened_lake() as lake:
        adapter = HttpAdapter(Intake(lake.lrdb, lake.bus, lake.settings), lake.settings)
        _on_end(adapter.stop)  # also after run, whose server sends itself the signal again that ended it
        say(f"listening on {adapter.url}")
        adapter.run()


@app.command()
def directory(bucket: Annotated[str, typer.Argument(help="Name of a bucket that is a local directory.")]) -> None:
    """Watch a local bucket, and notify what appears in it."""
    stop = threading.Event()
    _on_end(stop.set)
    with opened_lake() as lake:
        adapter = DirectoryAdapter(lake.stores.of(bucket), Intake(lake.lrdb, lake.bus, lake.settings), lake.settings)
        say(f"watching bucket {bucket}")
        adapter.run(stop)


def _on_end(stop: Callable[[], None]) -> None:
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda _number, _frame: stop())
