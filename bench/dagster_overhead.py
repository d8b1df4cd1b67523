"""What a run costs beside its work: from the dispatcher's tick to the asset's first line, runs a minute, CPU a run.

What belongs here: a real platform, one small file for each of so many sources, and the times that Dagster itself has
noted. What does not: the speed of ingest (``bench.ingest``).

Run it with ``python -m bench.dagster_overhead [sources]``, on a machine with nothing else to do.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import tempfile
import time
import urllib.request
from pathlib import Path
from typing import Any

import psutil
from rich.console import Console
from rich.table import Table

from lakerunner_dagster.lake.settings import Settings
from lakerunner_dagster.lake.signals import Signal
from lakerunner_dagster.local.demo import ORGANIZATIONS, DemoOrganization, DemoTraffic
from lakerunner_dagster.local.dev import Platform, platform

SOURCES = 24
IDLE_SECONDS = 20.0
PATIENCE_SECONDS = 900.0

_RUNS = """
    query {
        runsOrError(filter: {tags: [{key: "lakerunner/trigger", value: "dispatcher"}]}, limit: 1000) {
            ... on Runs { results {
                runId status creationTime startTime endTime
                stepStats { startTime }
            } }
        }
    }
"""
_TICKS = """
    query ($repository: RepositorySelector!) {
        sensorsOrError(repositorySelector: $repository) { ... on Sensors { results {
            sensorState { ticks(limit: 500, statuses: [SUCCESS]) { timestamp runIds } }
        } } }
    }
"""
_ERRORS = """
    query ($run: ID!) {
        logsForRun(runId: $run) { ... on EventConnection { events {
            ... on MessageEvent { message }
            ... on ErrorEvent { error { message } }
        } } }
    }
"""
_LOCATIONS = "query { workspaceOrError { ... on Workspace { locationEntries { name } } } }"


def main() -> None:
    """Measure, and print a table."""
    sources = int(sys.argv[1]) if len(sys.argv) > 1 else SOURCES
    console = Console()
    with tempfile.TemporaryDirectory(prefix="lakerunner-bench-") as directory:
        Path(directory).chmod(0o711)
        os.environ["PYTHONPATH"] = str(Path(__file__).parents[1])
        os.chdir(directory)
        with platform(Settings(), 0, console.print) as running:
            console.print(_measured(running, sources))


def _measured(running: Platform, sources: int) -> Table:
    idle = cpu_seconds()
    time.sleep(IDLE_SECONDS)
    idle_rate = (cpu_seconds() - idle) / IDLE_SECONDS
    before, began = cpu_seconds(), time.time()
    feed(running, sources)
    runs = finished_runs(running, sources)
    seconds = max(run["endTime"] for run in runs) - min(run["creationTime"] for run in runs)
    cpu = cpu_seconds() - before - idle_rate * (time.time() - began)
    ticks = {run: tick["timestamp"] for tick in _ticks(running) for run in tick["runIds"]}
    table = Table("measure", "fastest", "median", "slowest", title=f"{len(runs)} runs, one source each")
    for name, values in {
        "tick begins → run created, s": [run["creationTime"] - ticks[run["runId"]] for run in runs],
        "run created → run started (queue, process, imports), s": [
            run["startTime"] - run["creationTime"] for run in runs
        ],
        "run started → asset's first line, s": [run["stepStats"][0]["startTime"] - run["startTime"] for run in runs],
        "asset's first line → run finished, s": [run["endTime"] - run["stepStats"][0]["startTime"] for run in runs],
    }.items():
        table.add_row(name, *(f"{value:.2f}" for value in (min(values), statistics.median(values), max(values))))
    table.add_row("runs a minute", "", f"{len(runs) / seconds * 60:.1f}")
    table.add_row("CPU a run (daemon, code server, run), s", "", f"{cpu / len(runs):.2f}")
    table.add_row("CPU of an idle Dagster, cores", "", f"{idle_rate:.2f}")
    return table


def feed(running: Platform, sources: int) -> None:
    """One file of log records for each of so many new sources."""
    now_ms = time.time_ns() // 1_000_000
    first = ORGANIZATIONS[0]
    names = tuple(f"bench-{number:03d}" for number in range(sources))
    organization = DemoOrganization(first.organization_id, first.name, names)
    for name in names:
        for file in DemoTraffic(organization, name, seed=1).files(now_ms - 10_000, now_ms):
            if file.signal is Signal.LOGS:
                running.store.put(file.key, file.data)


def finished_runs(running: Platform, count: int) -> list[dict[str, Any]]:
    """The dispatchers' runs, once there are so many and all have succeeded."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while time.monotonic() < deadline:
        runs = _ask(running, _RUNS, {})["runsOrError"]["results"]
        if len(runs) >= count and all(run["endTime"] for run in runs):
            failed = [_why(running, run["runId"]) for run in runs if run["status"] != "SUCCESS"]
            assert not failed, "\n".join(failed)
            return list(runs)
        time.sleep(1)
    raise TimeoutError(f"{count} runs did not finish within {PATIENCE_SECONDS:g} s")


def _why(running: Platform, run_id: str) -> str:
    """What Dagster's log of a run says of its failure."""
    found = _ask(running, _ERRORS, {"run": run_id})["logsForRun"]["events"]
    return f"run {run_id} failed: " + " | ".join(
        f"{event['message']} {(event.get('error') or {}).get('message', '')}" for event in found if "message" in event
    )


def _ticks(running: Platform) -> list[dict[str, Any]]:
    (location,) = _ask(running, _LOCATIONS, {})["workspaceOrError"]["locationEntries"]
    repository = {"repositoryLocationName": location["name"], "repositoryName": "__repository__"}
    sensors = _ask(running, _TICKS, {"repository": repository})["sensorsOrError"]["results"]
    return [tick for sensor in sensors for tick in sensor["sensorState"]["ticks"]]


def _ask(running: Platform, query: str, variables: dict[str, Any]) -> dict[str, Any]:
    request = urllib.request.Request(  # noqa: S310  # a loopback address of ours
        f"{running.ui_url}/graphql",
        json.dumps({"query": query, "variables": variables}).encode(),
        {"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=60) as response:  # noqa: S310
        data: dict[str, Any] = json.load(response)["data"]
    return data


def cpu_seconds() -> float:
    """CPU time of Dagster's processes so far, those that have ended and were waited for included."""
    total = 0.0
    for process in _dagster_processes():
        try:
            times = process.cpu_times()
        except psutil.NoSuchProcess:
            continue
        total += times.user + times.system + times.children_user + times.children_system
    return total


def _dagster_processes() -> list[psutil.Process]:
    (dagster,) = [child for child in psutil.Process().children() if "dagster" in child.cmdline()]
    return [dagster, *dagster.children(recursive=True)]


if __name__ == "__main__":
    main()
