"""``lakerunner notify``: the adapters, each a process that runs until it is told to end.

What belongs here: starting and ending one. What does not: what an adapter does (``lake.notifications``).
"""

from __future__ import annotations

import signal
import threading
from contextlib import closing
from importlib import import_module
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lakerunner_dagster.commands.log_lines import log_to_stderr
from lakerunner_dagster.commands.session import opened_lake, say
from lakerunner_dagster.lake.errors import ConfigurationError
from lakerunner_dagster.lake.notifications.directory import DirectoryAdapter
from lakerunner_dagster.lake.notifications.http import HttpAdapter
from lakerunner_dagster.lake.notifications.intake import Intake
from lakerunner_dagster.lake.notifications.monitoring import Monitor
from lakerunner_dagster.lake.notifications.pulling import PullingAdapter
from lakerunner_dagster.lake.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Callable

    from lakerunner_dagster.lake.notifications.pulling import Queue

app = typer.Typer(no_args_is_help=True, help="Adapters: from a bucket's notifications to Kafka.")


@app.callback()
def _log() -> None:
    log_to_stderr(Settings().log_format)


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
        intake = Intake(lake.lrdb, lake.bus, lake.settings)
        adapter = DirectoryAdapter(lake.stores.of(bucket), intake, lake.settings)
        with Monitor(adapter.metrics, intake.troubles, adapter.pulse, lake.settings) as monitor:
            say(f"watching bucket {bucket}")
            say(f"monitor on {monitor.url}")
            adapter.run(stop)


@app.command()
def sqs(
    queue_url: Annotated[str, typer.Argument(help="URL of the queue.")],
    region: Annotated[str | None, typer.Option(help="Region, where the URL does not tell it.")] = None,
    endpoint: Annotated[str | None, typer.Option(help="URL of SQS, where it is not the region's own.")] = None,
    role: Annotated[str | None, typer.Option(help="ARN of a role to assume.")] = None,
) -> None:
    """Take object-created events from a queue of Amazon SQS."""
    sqs = import_module("lakerunner_dagster.lake.notifications.sqs")
    _pull(lambda settings: sqs.SqsQueue(queue_url, settings, region=region, endpoint=endpoint, role=role))


@app.command()
def gcp(subscription: Annotated[str, typer.Argument(help="projects/PROJECT/subscriptions/NAME")]) -> None:
    """Take object-created events from a subscription of Google Cloud Pub/Sub."""
    pubsub = _extra("gcp", "lakerunner_dagster.lake.notifications.pubsub")
    _pull(lambda settings: pubsub.PubSubQueue(subscription, settings))


@app.command()
def azure(queue_url: Annotated[str, typer.Argument(help="URL of the queue.")]) -> None:
    """Take object-created events from a queue of Azure Storage."""
    azure_queue = _extra("azure", "lakerunner_dagster.lake.notifications.azure_queue")
    _pull(lambda settings: azure_queue.AzureQueue(queue_url, settings))


def _extra(extra: str, module: str) -> Any:  # noqa: ANN401 - a module
    """The module of a cloud, whose libraries are an extra of this package."""
    try:
        return import_module(module)
    except ImportError as error:
        raise ConfigurationError(
            f"this needs a library that is not there ({error}): pip install 'lakerunner-dagster[{extra}]'"
        ) from error


def _pull(opened: Callable[[Settings], Queue]) -> None:
    stop = threading.Event()
    _on_end(stop.set)
    with opened_lake() as lake, closing(opened(lake.settings)) as queue:
        adapter = PullingAdapter(queue, Intake(lake.lrdb, lake.bus, lake.settings), lake.settings)
        with Monitor(adapter.metrics, adapter.troubles, adapter.pulse, lake.settings) as monitor:
            say(f"monitor on {monitor.url}")
            adapter.run(stop)


def _on_end(stop: Callable[[], None]) -> None:
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda _number, _frame: stop())
