"""What a run asks of Dagster's PostgreSQL: its connections and CPU, with dagster-postgres as it is, and on our pool.

What belongs here: the same platform and files twice, with either storage, each in a process of its own. What does not:
where a run's time goes (``bench.dagster_overhead``).

Run it with ``python -m bench.dagster_storage [sources]``, on a machine with nothing else to do.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psycopg
import yaml  # type: ignore[import-untyped]
from rich.console import Console
from rich.table import Table

from bench.dagster_overhead import IDLE_SECONDS, cpu_seconds, feed, finished_runs
from lakerunner_dagster.lake.settings import Settings
from lakerunner_dagster.local.dev import DAGSTER_YAML, Platform, platform

SOURCES = 12

STORAGES = {
    "dagster-postgres": {"postgres": {"postgres_url": {"env": "LAKERUNNER_DAGSTER_DATABASE_URL"}}},
    "pool": yaml.safe_load(DAGSTER_YAML.read_text())["storage"],
}


def main(arguments: list[str]) -> None:
    """Measure both, and print a table; with a storage's name, that one, as JSON."""
    if arguments and arguments[0] in STORAGES:
        print(json.dumps(_measured(arguments[0], int(arguments[1]))))
        return
    sources = arguments[0] if arguments else str(SOURCES)
    figures = {name: _in_a_process(name, sources) for name in STORAGES}
    stock, pool = figures.values()
    table = Table("measure", *STORAGES, "ratio", title=f"{sources} runs, one source each")
    for measure, value in stock.items():
        table.add_row(measure, f"{value:.2f}", f"{pool[measure]:.2f}", f"{value / pool[measure]:.1f}")
    Console().print(table)


def _in_a_process(name: str, sources: str) -> dict[str, float]:
    done = subprocess.run(
        [sys.executable, "-m", "bench.dagster_storage", name, sources], check=True, stdout=subprocess.PIPE, text=True
    )
    figures: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return figures


def _measured(name: str, sources: int) -> dict[str, float]:
    with tempfile.TemporaryDirectory(prefix="lakerunner-bench-") as directory:
        Path(directory).chmod(0o711)
        os.environ["PYTHONPATH"] = str(Path(__file__).parents[1])
        os.chdir(directory)
        configuration = yaml.safe_load(DAGSTER_YAML.read_text()) | {"storage": STORAGES[name]}
        Path("dagster.yaml").write_text(yaml.safe_dump(configuration))
        with platform(Settings(), 0, lambda _: None, Path("dagster.yaml")) as running:
            return _figures(running, sources)


def _figures(running: Platform, sources: int) -> dict[str, float]:
    """Of the runs, what an idle platform needs meanwhile taken off."""
    began, connections, cpu = time.time(), _connections(), cpu_seconds()
    time.sleep(IDLE_SECONDS)
    idle_seconds = time.time() - began
    idle_connections = (_connections() - connections) / idle_seconds
    idle_cpu = (cpu_seconds() - cpu) / idle_seconds
    began, connections, cpu = time.time(), _connections(), cpu_seconds()
    feed(running, sources)
    runs = finished_runs(running, sources)
    seconds = time.time() - began
    span = max(run["endTime"] for run in runs) - min(run["creationTime"] for run in runs)
    return {
        "connections a run": (_connections() - connections - idle_connections * seconds) / len(runs),
        "connections a second of an idle Dagster": idle_connections,
        "CPU a run (daemon, code server, run), s": (cpu_seconds() - cpu - idle_cpu * seconds) / len(runs),
        "CPU of an idle Dagster, cores": idle_cpu,
        "runs a minute": len(runs) / span * 60,
    }


def _connections() -> int:
    """How many connections to Dagster's database there have been."""
    url = os.environ["LAKERUNNER_DAGSTER_DATABASE_URL"].replace("postgresql+psycopg2:", "postgresql:")
    with psycopg.connect(url.rpartition("/")[0] + "/postgres") as conn:
        row = conn.execute("SELECT sessions FROM pg_stat_database WHERE datname = %s", (url.rpartition("/")[2],))
        (sessions,) = row.fetchone() or (0,)
    return int(sessions)


if __name__ == "__main__":
    main(sys.argv[1:])
