"""A lake of hundreds of sources and days in Dagster's UI: how long an asset's page and a backfill take.

What belongs here: a history of one materialisation for each partition, and the time of what a person waits for. What
does not: runs (``bench.dagster_overhead``), the load of files (``bench.scale``).

Run it with ``python -m bench.partitions [--sources 500] [--days 200]``. It needs Chromium.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import dagster as dg
import psycopg
from playwright.sync_api import sync_playwright
from rich.console import Console
from rich.table import Table

from lakerunner_dagster.local.dev import free_port
from lakerunner_dagster.local.postgres import PostgresServer

ROOT = Path(__file__).parents[1]
ASSET = "log_segments"
BACKFILL_DAYS = 10
START_SECONDS = 120.0
CHROMIUM = "/usr/bin/chromium"
ARGUMENTS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--disable-background-networking", "--disable-sync"]

_LAUNCH = """
    mutation ($params: LaunchBackfillParams!) {
        launchPartitionBackfill(backfillParams: $params) {
            __typename
            ... on LaunchBackfillSuccess { backfillId }
            ... on PythonError { message }
        }
    }
"""


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sources", type=int, default=500)
    parser.add_argument("--days", type=int, default=200)
    options = parser.parse_args()
    today = datetime.now(UTC).date()
    days = [today - timedelta(days=back) for back in range(options.days - 1, -1, -1)]
    with tempfile.TemporaryDirectory(prefix="lakerunner-bench-") as directory:
        Path(directory).chmod(0o711)
        server = PostgresServer(Path(directory) / "postgres", durable=False)
        server.start()
        try:
            url = server.create_database("dagster")
            os.environ |= {
                "LAKERUNNER_FIRST_DATE": days[0].isoformat(),
                "LAKERUNNER_DAGSTER_DATABASE_URL": url.replace("postgresql:", "postgresql+psycopg2:", 1),
                "LAKERUNNER_DATABASE_URL": server.create_database("lrdb"),
                "LAKERUNNER_KAFKA_BOOTSTRAP_SERVERS": "127.0.0.1:9",
                "DAGSTER_HOME": directory,
                "PYTHONPATH": str(ROOT),
            }
            (Path(directory) / "dagster.yaml").symlink_to(ROOT / "dagster.yaml")
            _remember(url, [f"acme/c{number:04d}" for number in range(options.sources)], days)
            with _webserver() as base:
                Console().print(_table(base, days, options))
        finally:
            server.stop()


def _remember(url: str, sources: list[str], days: list[date]) -> None:
    """The history of an asset that was materialised once for each day of each source."""
    with dg.DagsterInstance.get() as instance:
        instance.add_dynamic_partitions("sources", sources)
        first = f"{days[0].isoformat()}|{sources[0]}"
        instance.report_runless_asset_event(dg.AssetMaterialization(ASSET, partition=first))
    with psycopg.connect(url) as conn:
        conn.execute(
            """
            INSERT INTO event_logs (run_id, event, dagster_event_type, timestamp, step_key, asset_key, partition)
            SELECT run_id, replace(event, %(first)s, d || '|' || s), dagster_event_type, timestamp, step_key, asset_key,
                   d || '|' || s
            FROM event_logs, unnest(%(days)s::text[]) d, unnest(%(sources)s::text[]) s
            WHERE partition = %(first)s AND d || '|' || s <> %(first)s
            """,
            {"first": first, "days": [day.isoformat() for day in days], "sources": sources},
        )


@contextmanager
def _webserver() -> Iterator[str]:
    """Dagster's webserver with the lake's definitions; its address."""
    port = free_port(0)
    command = ["dagster_webserver", "-m", "lakerunner_dagster.definitions", "-h", "127.0.0.1", "-p", str(port)]
    process = subprocess.Popen([sys.executable, "-m", *command], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    base, deadline = f"http://127.0.0.1:{port}", time.monotonic() + START_SECONDS
    try:
        while True:
            try:
                urllib.request.urlopen(f"{base}/server_info", timeout=5).close()  # noqa: S310  # loopback, ours
                break
            except OSError:
                assert process.poll() is None, "the webserver has ended"
                assert time.monotonic() < deadline, "the webserver does not answer"
                time.sleep(0.2)
        yield base
    finally:
        process.terminate()
        process.wait()


def _table(base: str, days: list[date], options: argparse.Namespace) -> Table:
    partitions = options.sources * options.days
    table = Table(
        "what a person waits for", "seconds", title=f"{options.sources} sources, {options.days} days: {partitions:,}"
    )
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        page = browser.new_page(viewport={"width": 1500, "height": 950})
        page.set_default_timeout(120_000)
        for which in ("first", "second"):
            began = time.monotonic()
            page.goto(f"{base}/assets/{ASSET}?view=partitions")
            page.get_by_text(f"Materialized ({partitions})").wait_for()
            table.add_row(f"the asset's partitions, {which} time", f"{time.monotonic() - began:.1f}")
        browser.close()
    began = time.monotonic()
    _launch(base, days[-BACKFILL_DAYS:], options.sources)
    table.add_row(f"launching a backfill of {BACKFILL_DAYS} days of every source", f"{time.monotonic() - began:.1f}")
    return table


def _launch(base: str, days: list[date], sources: int) -> None:
    """What the dialog's button does: one range a source."""
    ranges = [
        {"start": f"{days[0].isoformat()}|acme/c{number:04d}", "end": f"{days[-1].isoformat()}|acme/c{number:04d}"}
        for number in range(sources)
    ]
    params = {"partitionsByAssets": [{"assetKey": {"path": [ASSET]}, "partitions": {"ranges": ranges}}]}
    launched = _ask(base, _LAUNCH, {"params": params})["launchPartitionBackfill"]
    assert launched["__typename"] == "LaunchBackfillSuccess", launched


def _ask(base: str, query: str, variables: dict[str, Any]) -> dict[str, Any]:
    request = urllib.request.Request(  # noqa: S310  # a loopback address of ours
        f"{base}/graphql",
        json.dumps({"query": query, "variables": variables}).encode(),
        {"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=300) as response:  # noqa: S310
        data: dict[str, Any] = json.load(response)["data"]
    return data


if __name__ == "__main__":
    main()
