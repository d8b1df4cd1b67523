"""``lakerunner dev``: what a person sees of a running platform, and when a run ``--once`` counts as whole.

What belongs here: the loop that feeds, watches and shows. What does not: starting and stopping (``local.dev``).
"""

from __future__ import annotations

import signal
import threading
import time
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Group
from rich.live import Live
from rich.text import Text

from lakerunner_dagster.commands.session import console, say
from lakerunner_dagster.commands.status import status_table
from lakerunner_dagster.lake.errors import WorkIncomplete
from lakerunner_dagster.lake.settings import Settings
from lakerunner_dagster.local.demo import ORGANIZATIONS
from lakerunner_dagster.local.dev import DemoFeed, platform
from lakerunner_dagster.local.errors import AlreadyRunning, ServiceFailed

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import FrameType

    from rich.console import RenderableType

    from lakerunner_dagster.local.demo import DemoFile
    from lakerunner_dagster.local.dev import Platform

LOOK_SECONDS = 1.0
ONCE_FILES = 3
"""So many files of each signal and organization are fed by ``--once``: more than one, so that boxes hold several."""


def dev(
    once: Annotated[bool, typer.Option("--once", help="Feed a little, wait until it is queryable, and end.")] = False,
    port: Annotated[int, typer.Option(help="Port of Dagster's UI; a free one if it is taken.")] = 3000,
    every: Annotated[
        float, typer.Option(help="Seconds between a source's files of demo traffic; 0: none.", min=0)
    ] = 60.0,
    timeout: Annotated[float, typer.Option(help="With --once: the longest wait, in seconds.", min=1)] = 300.0,
) -> None:
    """Run everything on this machine, with demo traffic, until Ctrl-C."""
    ending = _Ending()
    try:
        with platform(Settings(), port, lambda what: say(f"{what} …")) as running:
            ending.work_begins()
            if once:
                _once(running, ending.asked, timeout)
            else:
                _until_stopped(running, ending.asked, every)
            say("stopping …")
    except AlreadyRunning as error:
        raise AlreadyRunning(f"{error} (Ctrl-C where `lakerunner dev` runs, or `lakerunner services down`)") from None
    except KeyboardInterrupt:
        raise WorkIncomplete("stopped before everything was up; nothing is left running") from None


class _Ending:
    """Being told to end: at once while things start, in an orderly way once they work."""

    def __init__(self) -> None:
        self.asked = threading.Event()
        self._starting = True
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, self._ask)

    def work_begins(self) -> None:
        """From here on the work looks for itself whether it is asked to end."""
        self._starting = False

    def _ask(self, _number: int, _frame: FrameType | None) -> None:
        first = not self.asked.is_set()
        self.asked.set()
        if self._starting and first:  # a second one must not disturb the stopping
            raise KeyboardInterrupt


def _until_stopped(running: Platform, stop: threading.Event, every: float) -> None:
    if not console.is_terminal:
        console.print(_view(running))  # once: a file keeps all that is drawn anew
        _feed_until_stopped(running, stop, every, lambda: None)
        return
    with Live(console=console, auto_refresh=False, transient=False) as live:
        _feed_until_stopped(running, stop, every, lambda: live.update(_view(running), refresh=True))


def _feed_until_stopped(running: Platform, stop: threading.Event, every: float, show: Callable[[], None]) -> None:
    feed = DemoFeed(running.store, _now_ms() - int(every * 1000))
    next_feed = time.monotonic()
    while not stop.is_set():
        if every and time.monotonic() >= next_feed:
            # One source at a time: what a person drops does not queue behind the runs of all of them.
            feed.feed_next(_now_ms())
            next_feed += every / feed.sources
        _require_running(running)
        show()
        stop.wait(LOOK_SECONDS)


def _once(running: Platform, stop: threading.Event, timeout: float) -> None:
    now_ms = _now_ms()
    feed = DemoFeed(running.store, now_ms - ONCE_FILES * 10_000)
    fed: list[DemoFile] = []
    for file in range(ONCE_FILES):
        fed += feed.feed(now_ms - (ONCE_FILES - 1 - file) * 10_000)
    say(f"fed {len(fed)} files with {sum(file.records for file in fed):,} records; Dagster: {running.ui_url}")
    deadline = time.monotonic() + timeout
    while unfinished := running.unfinished(fed):
        _require_running(running)
        if stop.is_set() or time.monotonic() > deadline:
            console.print(status_table(running.status()))
            why = "stopped" if stop.is_set() else f"not queryable after {timeout:g} s"
            raise WorkIncomplete("\n".join([f"{why}: {len(unfinished)} of {len(fed)} files", *unfinished]))
        stop.wait(LOOK_SECONDS)
    console.print(status_table(running.status()))
    say(f"all {len(fed)} files are queryable")


def _view(running: Platform) -> RenderableType:
    example = ORGANIZATIONS[0]
    return Group(
        Text.from_markup(f"Dagster's UI    [bold]{running.ui_url}[/]"),
        Text.from_markup(f"notifications   [bold]{running.http_url}[/]  (POST object-created events)"),
        Text(f"drop files in   {running.bucket_directory}/otel-raw/{example.organization_id}/edge/logs/"),
        status_table(running.status()),
        Text("Ctrl-C stops everything; what is there stays.", style="dim"),
    )


def _require_running(running: Platform) -> None:
    failure = running.failure()
    if failure is not None:
        raise ServiceFailed(failure)
    if running.code_server.mend():
        say("the code server had ended (killed, perhaps where memory was short) and was started anew")


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
