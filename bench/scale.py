"""Many sources at a steady load on one machine: how soon a file is queryable, and what all of it costs, by launcher.

What belongs here: the load, and what is told of a platform under it. What does not: what one run costs
(``bench.dagster_overhead``), the speed of the work (``bench.ingest``).

Run it with ``python -m bench.scale [--sources 200] [--every 60] [--minutes 10] [--launcher fork stock]``, on a machine
with nothing else to do; ``--sources 0`` is an idle platform. ``--full`` gives each source full boxes of traces instead,
``--boxes`` of them at once, ``--every`` seconds after the source before it.

``--launcher loop`` is no launcher, but the same lake without Dagster (``bench.loop``). What a platform needs more than
that is what Dagster costs: beside the loop, the table tells it.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import threading
import time
from collections import Counter
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import yaml  # type: ignore[import-untyped]
from rich.console import Console
from rich.table import Table

from bench.grow import grown_files
from bench.ingest import boxes_of
from bench.loop import looped_lake
from lakerunner_dagster.lake.settings import BoxPolicy, Settings
from lakerunner_dagster.lake.signals import Signal
from lakerunner_dagster.local.demo import ORGANIZATIONS, DemoOrganization, DemoTraffic
from lakerunner_dagster.local.dev import DAGSTER_YAML, LocalLake, platform

SAMPLE_SECONDS = 1.0
"""How often PostgreSQL's connections are counted."""

WARM_SOURCES = 3
"""Sources that come first and are not counted: as many as runs go at once (``max_concurrent_runs``)."""

WARM_SECONDS = 20.0
"""How long a trickle goes before it is measured: until the zygote has loaded, and what it has given is ingested."""

IDLE_SECONDS = 30.0
"""How long an idle platform is watched before it gets full boxes."""

STOCK = {"run_launcher": {"module": "dagster.core.launcher", "class": "DefaultRunLauncher"}}
"""What dagster.yaml says instead where Dagster's own launcher is measured."""

ZYGOTE = "lakerunner_dagster.launcher.zygote"

ROLES = {
    "dagster._daemon": "daemon",
    "dagster_webserver": "webserver",
    "notify": "adapters",
    "local.kafka": "Kafka",
    "bench.loop": "the loop",
    ZYGOTE: "zygote",
    "postgres": "PostgreSQL",
}
"""What a word in a command line says a process is."""

CODE_SERVER = "code server"
"""What all other processes below `dagster dev` are, and the runs below it that have not ended."""


LOOP = "loop"
"""What stands for a launcher where there is no Dagster."""


@dataclass(frozen=True, slots=True)
class Column:
    """A column of the table, and the CPU by which columns are compared: per box and without idling, or per second."""

    rows: dict[str, str]
    cpu: float


def _cpu() -> Counter[str]:
    """CPU ms so far by role, of all processes below this one and PostgreSQL's; children that have ended are in it."""
    used: Counter[str] = Counter()
    for process in _processes():
        try:
            times, role = process.cpu_times(), _role(process)
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
        used[role] += int((times.user + times.system) * 1000)
        # Only runs come and go below the code server and the zygote.
        used["runs" if role in {CODE_SERVER, "zygote"} else role] += int(
            (times.children_user + times.children_system) * 1000
        )
    return used


def _processes() -> list[psutil.Process]:
    (started,) = Path.cwd().glob(".lakerunner/postgres/data/postmaster.pid")
    postmaster = psutil.Process(int(started.read_text().splitlines()[0]))
    below = psutil.Process().children(recursive=True)
    return list({process.pid: process for process in (*below, postmaster, *postmaster.children())}.values())


def _role(process: psutil.Process) -> str:
    command = process.cmdline()
    parent = process.parent()
    if parent is not None and parent.cmdline() == command and ZYGOTE in command:
        return "runs"  # forked, and free for the next run
    return next((role for word, role in ROLES.items() if word in " ".join(command)), CODE_SERVER)


def main() -> None:
    """Measure each launcher, and print a table of them side by side."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sources", type=int, default=200)
    parser.add_argument("--every", type=float, default=60.0, help="seconds between two files of a source and signal")
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--launcher", nargs="+", choices=("fork", "stock", LOOP), default=["fork", "stock"])
    parser.add_argument("--full", action="store_true", help="full boxes of traces for each source")
    parser.add_argument("--boxes", type=int, default=1, help="how many boxes a source gets at once")
    options = parser.parse_args()
    console = Console()
    columns = {launcher: _measured(launcher, options, console) for launcher in options.launcher}
    fed = f"full boxes ({options.boxes})" if options.full else "a file"
    table = Table("measure", *columns, title=f"{options.sources} sources, {fed} each {options.every:g} s")
    for measure in {measure: None for column in columns.values() for measure in column.rows}:
        table.add_row(measure, *(column.rows.get(measure, "") for column in columns.values()))
    if LOOP in columns:
        table.add_row(
            "of it Dagster, by the loop's",
            *(f"{1 - columns[LOOP].cpu / column.cpu:.0%}" for column in columns.values()),
        )
    console.print(table)


def _measured(launcher: str, options: argparse.Namespace, console: Console) -> Column:
    with tempfile.TemporaryDirectory(prefix="lakerunner-bench-") as directory:
        Path(directory).chmod(0o711)
        os.environ["PYTHONPATH"] = str(Path(__file__).parents[1])
        os.environ["LAKERUNNER_SOURCES_PER_ORGANIZATION"] = "10000"
        before, here = dict(os.environ), Path.cwd()
        os.chdir(directory)
        try:
            with _running(launcher, Path(directory), console) as running:
                return _full_boxes(running, options) if options.full else _under_load(running, options)
        finally:
            os.chdir(here)
            os.environ.clear()
            os.environ.update(before)


def _running(launcher: str, directory: Path, console: Console) -> AbstractContextManager[LocalLake]:
    if launcher == LOOP:
        return looped_lake(Settings(), console.print)
    return platform(Settings(), 0, console.print, _dagster_yaml(launcher, directory))


def _dagster_yaml(launcher: str, directory: Path) -> Path:
    """dagster.yaml as it stands, or with Dagster's own launcher in it."""
    path = directory / f"{launcher}.yaml"
    configuration = yaml.safe_load(DAGSTER_YAML.read_text())
    path.write_text(yaml.safe_dump(configuration | (STOCK if launcher == "stock" else {})))
    return path


def _under_load(running: LocalLake, options: argparse.Namespace) -> Column:
    if options.sources:
        _feed(running, "before", WARM_SOURCES, WARM_SECONDS, WARM_SECONDS)
    _, runs = _worked(running)
    connections: list[int] = []
    ended = threading.Event()
    watch = threading.Thread(target=_count_connections, args=(running, connections, ended))
    watch.start()
    before, began = _cpu(), time.monotonic()
    try:
        _feed(running, "scale", options.sources, options.every, options.minutes * 60)
    finally:
        ended.set()
        watch.join()
    cpu, seconds = _cpu() - before, time.monotonic() - began
    return _told(running, cpu, seconds, max(connections), _worked(running)[1] - runs)


def _full_boxes(running: LocalLake, options: argparse.Namespace) -> Column:
    """Each source gets its boxes; the CPU of all until everything is ingested, by box.

    Some sources come before all others and are not counted, so that every process has done everything once.
    """
    box = next(boxes_of(grown_files(Signal.TRACES), BoxPolicy().bytes))
    for number in range(WARM_SOURCES):
        _put_boxes(running, box, number, 1)
    _await_ingested(running, WARM_SOURCES * len(box))
    worked = _worked(running)
    before = _cpu()
    time.sleep(IDLE_SECONDS)
    idle = (_cpu() - before).total() / 1000 / IDLE_SECONDS
    before, began = _cpu(), time.monotonic()
    for number in range(options.sources):
        time.sleep(max(began + number * options.every - time.monotonic(), 0.0))
        _put_boxes(running, box, WARM_SOURCES + number, options.boxes)
    fed = options.sources * options.boxes
    _await_ingested(running, (WARM_SOURCES + fed) * len(box))
    cpu, seconds = _cpu() - before, time.monotonic() - began
    boxes, runs = (now - earlier for now, earlier in zip(_worked(running), worked, strict=True))
    idled = idle * seconds / fed
    net = cpu.total() / 1000 / fed - idled
    rows = {
        "sources / boxes / runs": f"{options.sources} / {boxes} / {runs}",
        "boxes a minute": f"{fed / seconds * 60:.1f}",
        "CPU s of a full box in all": f"{net + idled:.2f}",
        **{f"- {role}": f"{used / 1000 / fed:.3f}" for role, used in sorted(cpu.items())},
        "what an idle one uses meanwhile": f"{idled:.2f}",
        "CPU s of a full box without that": f"{net:.2f}",
    }
    return Column(rows, net)


def _worked(running: LocalLake) -> tuple[int, int]:
    """Boxes that are done, and runs that have done any."""
    boxes, runs = _row(running, "SELECT count(DISTINCT box_id), count(DISTINCT run_id) FROM ledger")
    return boxes, runs


def _put_boxes(running: LocalLake, box: list[bytes], number: int, boxes: int) -> None:
    for name, data in enumerate(box * boxes):
        key = f"otel-raw/{ORGANIZATIONS[0].organization_id}/scale-{number:04d}/traces/{name}.binpb.gz"
        running.store.put(key, data)


def _await_ingested(running: LocalLake, files: int) -> None:
    while _row(running, "SELECT count(ended_at) FROM raw_objects")[0] < files:
        failure = running.failure()
        assert failure is None, failure
        time.sleep(SAMPLE_SECONDS)


def _count_connections(running: LocalLake, counts: list[int], ended: threading.Event) -> None:
    while not ended.wait(SAMPLE_SECONDS):
        counts.extend(_row(running, "SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend'"))


def _feed(running: LocalLake, prefix: str, sources: int, every: float, seconds: float) -> None:
    """Files of each source in turn, evenly over the time."""
    names = tuple(f"{prefix}-{number:04d}" for number in range(sources))
    first, now_ms = ORGANIZATIONS[0], time.time_ns() // 1_000_000
    organization = DemoOrganization(first.organization_id, first.name, names)
    traffic = [DemoTraffic(organization, name, seed=1) for name in names]
    fed_ms = [now_ms - int(every * 1000)] * sources
    began = time.monotonic()
    for turn in range(int(seconds / every * sources)):
        delay = began + turn * every / sources - time.monotonic()
        if delay > 0:
            time.sleep(delay)
        failure = running.failure()
        assert failure is None, failure
        number, now_ms = turn % sources, time.time_ns() // 1_000_000
        for file in traffic[number].files(fed_ms[number], now_ms):
            running.store.put(file.key, file.data)
        fed_ms[number] = now_ms
    time.sleep(max(began + seconds - time.monotonic(), 0.0))


def _told(running: LocalLake, cpu: Counter[str], seconds: float, connections: int, runs: int) -> Column:
    objects, ingested, *latencies = _row(
        running,
        """
        SELECT count(*), count(ended_at),
               percentile_cont(ARRAY[0.5, 0.95, 0.99]) WITHIN GROUP (
                   ORDER BY extract(epoch FROM coalesce(ended_at, now()) - notified_at)::float)
        FROM raw_objects WHERE collector LIKE 'scale-%%'
        """,
    )
    total = cpu.total() / 1000
    rows = {
        "files notified / queryable at the end": f"{objects:,} / {ingested:,}",
        "notification → queryable p50 / p95 / p99, s": " / ".join(f"{one:.1f}" for one in latencies[0] or ()),
        "runs that did work, a minute": f"{runs / seconds * 60:.1f}",
        "CPU in all, cores": f"{total / seconds:.3f}",
        **{f"- {role}": f"{used / 1000 / seconds:.3f}" for role, used in sorted(cpu.items())},
        "most connections to PostgreSQL at once": str(connections),
    }
    return Column(rows, total / seconds)


def _row(running: LocalLake, query: str) -> tuple[Any, ...]:
    with running.lrdb.connection() as conn:
        row = conn.execute(query.encode()).fetchone()
    assert row is not None
    return row


if __name__ == "__main__":
    main()
