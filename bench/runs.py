"""What starting a run costs: the same runs by Dagster's default launcher, and forked from a warm process.

What belongs here: launching, and the times and CPU seconds that it takes. What does not: sensors and queue
(``bench.dagster_overhead``), and the speed of ingest (``bench.ingest``).

Run it with ``python -m bench.runs [runs]``. Both launchers have a Dagster on PostgreSQL of their own and a running code
server, and have executed one run before it is measured. So many runs are kept going as there are cores.
"""

from __future__ import annotations

import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path

import dagster as dg
import psutil
from dagster._core.workspace.load_target import ModuleTarget
from rich.console import Console
from rich.table import Table

from lakerunner_dagster.checks import conservation
from lakerunner_dagster.instance.lanes import TRIGGER_TAG, Trigger
from lakerunner_dagster.lake.lrdb.migrate import migrate
from lakerunner_dagster.lake.signals import Signal
from lakerunner_dagster.lake.stages import ingest_stage
from lakerunner_dagster.local.kafka import KafkaServer
from lakerunner_dagster.local.postgres import PostgresServer
from lakerunner_dagster.partitions import PARTITION_TAG, SOURCES_NAME, DaySource
from tests.lake.requests import logs, minutes
from tests.lake.world import COLLECTOR, NOON_MS, World, world_in
from tests.lake_environment import environment
from tests.launcher import platform
from tests.launcher.platform import NAME, Launching, launching

RUNS = 24
POLL_SECONDS = 0.05
DAY_MS = 86_400_000
RECORDS = 50

LAUNCHERS = {
    "default": {"module": "dagster", "class": "DefaultRunLauncher"},
    "fork": platform.forking(),
}


@dataclass(frozen=True, slots=True)
class Cost:
    """What so many runs took: seconds from launch to the asset's first line, and CPU seconds by who spent them."""

    runs: int
    seconds: float
    first_line: list[float]
    of_runs: float
    of_server: float
    of_daemon: float

    @property
    def runs_a_minute(self) -> float:
        """From the first launch to the last end."""
        return self.runs / self.seconds * 60

    @property
    def cpu_a_run(self) -> float:
        """All CPU seconds, by run."""
        return (self.of_runs + self.of_server + self.of_daemon) / self.runs


def main() -> None:
    """Measure, and print a table for each kind of run."""
    runs = int(sys.argv[1]) if len(sys.argv) > 1 else RUNS
    console = Console()
    os.environ["PYTHONPATH"] = str(Path(__file__).parents[1])
    with tempfile.TemporaryDirectory(prefix="lakerunner-bench-") as name, _services(Path(name)) as services:
        for what, measured in (("a no-op asset", _noop), ("a small ingest", _ingest)):
            costs = {launcher: measured(services, launcher, runs) for launcher in LAUNCHERS}
            console.print(_table(what, costs))


@dataclass(frozen=True, slots=True)
class _Services:
    postgres: PostgresServer
    bootstrap: str
    directory: Path

    def place(self, launcher: str, name: str) -> platform.Place:
        directory = self.directory / name
        directory.mkdir()
        url = self.postgres.create_database(f"dagster_{name}")
        return platform.place_in(directory, url, LAUNCHERS[launcher])


@contextmanager
def _services(directory: Path) -> Iterator[_Services]:
    directory.chmod(0o711)  # root's server runs as another user, who must get through
    postgres = PostgresServer(directory / "postgres")
    kafka = KafkaServer([], directory / "kafka.log")
    postgres.start()
    try:
        kafka.start()
        try:
            yield _Services(postgres, kafka.bootstrap_servers, directory)
        finally:
            kafka.stop()
    finally:
        postgres.stop()


def _noop(services: _Services, launcher: str, runs: int) -> Cost:
    place = services.place(launcher, f"noop_{launcher}")
    with launching(place, platform.code_of(place)) as running:
        return _measured(running, [partial(running.create, "simple")] * (runs + 1))


def _ingest(services: _Services, launcher: str, runs: int) -> Cost:
    """Each run ingests one small file of log records, the only one of its day."""
    name = f"ingest_{launcher}"
    place = services.place(launcher, name)
    stage = ingest_stage(Signal.LOGS)
    with _world(services, name) as world:
        noon = datetime.fromtimestamp(NOON_MS / 1000, UTC)
        days = [
            DaySource(int((noon - timedelta(days=number)).strftime("%Y%m%d")), f"acme/{COLLECTOR}")
            for number in range(runs + 1)
        ]
        for number in range(runs + 1):
            at = NOON_MS - number * DAY_MS
            world.send(Signal.LOGS, f"{number}.binpb.gz", logs(f"file {number}", minutes(at, RECORDS)), at)
        world.box(Signal.LOGS)
        with launching(place, ModuleTarget("lakerunner_dagster.definitions", "defs", None, NAME)) as running:
            running.instance.add_dynamic_partitions(SOURCES_NAME, [days[0].source_key])
            tags = [{TRIGGER_TAG: str(Trigger.DISPATCHER), PARTITION_TAG: str(day.key)} for day in days]
            name, job = stage.assets[0].name, str(stage.job)
            checks = frozenset({dg.AssetCheckKey(dg.AssetKey(name), conservation.NAME)})  # as the dispatcher asks
            cost = _measured(running, [partial(running.create, name, job, of, checks) for of in tags])
        assert world.records(Signal.LOGS) == RECORDS * (runs + 1)
        return cost


@contextmanager
def _world(services: _Services, name: str) -> Iterator[World]:
    url = services.postgres.create_database(f"lrdb_{name}")
    migrate(url)
    with world_in(url, services.bootstrap, services.directory / name, f"bench-{name}.") as world:
        os.environ.update(environment(world.place))
        yield world


def _measured(running: Launching, create: list[Callable[[], str]]) -> Cost:
    warm, *runs = [one() for one in create]
    _launched(running, warm)
    server = _server(running)
    before, of_runs = server.cpu_times(), _cpu_of_runs(server)
    began = time.time()
    with ThreadPoolExecutor(os.cpu_count()) as threads:
        launched = list(threads.map(lambda run: _launched(running, run), runs))
    seconds = time.time() - began
    after = server.cpu_times()
    return Cost(
        runs=len(runs),
        seconds=seconds,
        first_line=[began - at for (at, _), began in zip(launched, map(running.first_line, runs), strict=True)],
        of_runs=_cpu_of_runs(server) - of_runs,
        of_server=after.user + after.system - before.user - before.system,
        of_daemon=sum(cpu for _, cpu in launched),
    )


def _launched(running: Launching, run: str) -> tuple[float, float]:
    """Launch a run and wait for its end; when it was launched (epoch s), and the CPU seconds of launching."""
    at, cpu = time.time(), time.thread_time()
    running.launch(run)
    cpu = time.thread_time() - cpu
    while (status := running.status(run)) not in platform.FINISHED:
        time.sleep(POLL_SECONDS)
    assert status is dg.DagsterRunStatus.SUCCESS, running.messages(run)
    return at, cpu


def _server(running: Launching) -> psutil.Process:
    """Whose children the runs are: the zygote, or the code server."""
    zygotes = running.zygotes()
    if zygotes:
        return zygotes[0]
    (server,) = [one for one in psutil.Process().children() if "grpc" in one.cmdline()]
    return server


def _cpu_of_runs(server: psutil.Process) -> float:
    """CPU seconds so far of its children: of those that have ended, and of those that go or wait for another run."""
    ended = server.cpu_times()
    going = [child.cpu_times() for child in server.children()]
    return ended.children_user + ended.children_system + sum(one.user + one.system for one in going)


def _table(what: str, costs: dict[str, Cost]) -> Table:
    default, fork = costs["default"], costs["fork"]
    table = Table(
        "measure", "default", "fork", "ratio", title=f"{default.runs} runs of {what}, {os.cpu_count()} at a time"
    )

    def row(name: str, value: Callable[[Cost], float], digits: int = 2) -> None:
        values = [value(default), value(fork)]
        table.add_row(name, *(f"{one:.{digits}f}" for one in values), f"{values[1] / values[0]:.2f}")

    row("runs a minute", lambda cost: cost.runs_a_minute, 1)
    row("CPU s a run", lambda cost: cost.cpu_a_run)
    row("  the run's processes", lambda cost: cost.of_runs / cost.runs)
    row("  code server or zygote", lambda cost: cost.of_server / cost.runs)
    row("  launching it", lambda cost: cost.of_daemon / cost.runs, 3)
    row("launch to the asset's first line, s: median", lambda cost: statistics.median(cost.first_line))
    row("launch to the asset's first line, s: p95", lambda cost: _p95(cost.first_line))
    return table


def _p95(values: list[float]) -> float:
    return statistics.quantiles(values, n=20, method="inclusive")[-1]


if __name__ == "__main__":
    main()
