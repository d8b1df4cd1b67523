"""A month of rollups done anew as a backfill: what Dagster costs beside the work, and that twice changes nothing.

What belongs here: thirty days of a source with a thousand series, ingested and rolled up; the same rollups as a
backfill of a real platform, twice. What does not: the speed of rollup (``bench.rollup``), of one run
(``bench.dagster_overhead``).

Run it with ``python -m bench.month [days]``, on a machine with nothing else to do.
"""

from __future__ import annotations

import gzip
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue
from opentelemetry.proto.metrics.v1.metrics_pb2 import Gauge, Metric, NumberDataPoint, ResourceMetrics, ScopeMetrics
from opentelemetry.proto.resource.v1.resource_pb2 import Resource
from rich.console import Console
from rich.table import Table

from bench.dagster_overhead import IDLE_SECONDS, cpu_seconds
from lakerunner_dagster.lake.lrdb import profiles
from lakerunner_dagster.lake.model import Source, dateint_of, day_start_ms
from lakerunner_dagster.lake.runs.context import Lake, open_lake
from lakerunner_dagster.lake.runs.full_rollup import roll_up_day
from lakerunner_dagster.lake.runs.rebuild import rebuild
from lakerunner_dagster.lake.settings import Settings
from lakerunner_dagster.lake.signals import Signal
from lakerunner_dagster.lake.tiers import TIERS
from lakerunner_dagster.local.demo import ORGANIZATIONS
from lakerunner_dagster.local.dev import DEMO_BUCKET, Platform, platform, prepare_lrdb
from lakerunner_dagster.local.services import LocalServices

DAYS = 30
METRICS, SERIES_OF_ONE = 10, 100
POINT_SECONDS = 300
COLLECTOR = "month"

QUIET = {"LAKERUNNER_COMPACTION_SETTLE_SECONDS": "1e9"}
"""Compaction of a month that was written at once would be all that is measured."""


@dataclass(frozen=True, slots=True)
class _Backfill:
    """A backfill as it went: seconds, CPU seconds of Dagster's processes, and what readers saw after it."""

    seconds: float
    cpu: float
    published: list[tuple[int, int]]


def main() -> None:
    """Measure, and print a table."""
    days = int(sys.argv[1]) if len(sys.argv) > 1 else DAYS
    console = Console()
    with tempfile.TemporaryDirectory(prefix="lakerunner-bench-") as directory:
        Path(directory).chmod(0o711)
        os.environ.update(QUIET)
        os.environ["PYTHONPATH"] = str(Path(__file__).parents[1])
        os.chdir(directory)
        today = datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
        dateints = [dateint_of(int((today - timedelta(days=back)).timestamp() * 1000)) for back in range(days, 0, -1)]
        with _lake() as lake:
            points = _ingested(lake, dateints, console)
            work = _rolled_up(lake, dateints)
        with platform(Settings(), 0, console.print) as running:
            first, second = (_backfilled(running, dateints) for _ in range(2))
        console.print(_table(points, work, first, second, days))


@contextmanager
def _lake() -> Iterator[Lake]:
    """The lake of the embedded services, without Dagster."""
    services = LocalServices(Settings())
    running = services.start()
    os.environ.update(running.env)
    try:
        prepare_lrdb(Settings(), running.bucket)
        lake = open_lake(Settings())
        yield lake
        lake.close()
    finally:
        services.stop()
        for name in running.env:  # the platform's own services are elsewhere
            del os.environ[name]


def _ingested(lake: Lake, dateints: list[int], console: Console) -> int:
    """Put a file of metrics for each day, and ingest them; the points."""
    source = _source(lake)
    store = lake.stores.of(DEMO_BUCKET)
    points = 0
    for dateint in dateints:
        data, count = _day(day_start_ms(dateint))
        store.put(f"otel-raw/{source.organization_id}/{COLLECTOR}/metrics/{dateint}.binpb.gz", data)
        points += count
    today = dateint_of(time.time_ns() // 1_000_000)  # that of the files, which a rebuild finds by itself
    rebuild(lake, Signal.METRICS, source, today, run_id="bench", on_step=lambda _: None)
    console.print(f"{points:,} points ingested")
    return points


def _source(lake: Lake) -> Source:
    with lake.lrdb.transaction() as conn:
        return profiles.register_source(conn, ORGANIZATIONS[0].organization_id, COLLECTOR, DEMO_BUCKET, limit=100)


def _day(start_ms: int) -> tuple[bytes, int]:
    """A day of gauges, as one file, and its points."""
    times = [(start_ms + second * 1000) * 1_000_000 for second in range(0, 86_400, POINT_SECONDS)]
    metrics = []
    for number in range(METRICS):
        points = [
            NumberDataPoint(
                time_unix_nano=time_ns,
                as_double=float((time_ns // 1_000_000_000 * 7919 + series * 104_729 + number) % 10_007),
                attributes=[KeyValue(key="pod", value=AnyValue(string_value=f"pod-{series:03d}"))],
            )
            for series in range(SERIES_OF_ONE)
            for time_ns in times
        ]
        metrics.append(Metric(name=f"bench.gauge.{number}", gauge=Gauge(data_points=points)))
    resource = Resource(attributes=[KeyValue(key="service.name", value=AnyValue(string_value="bench"))])
    request = ExportMetricsServiceRequest(
        resource_metrics=[ResourceMetrics(resource=resource, scope_metrics=[ScopeMetrics(metrics=metrics)])]
    )
    return gzip.compress(request.SerializeToString(), 1), METRICS * SERIES_OF_ONE * len(times)


def _rolled_up(lake: Lake, dateints: list[int]) -> float:
    """CPU seconds of the work alone, in this process: every tier of every day, the second time, as a backfill does."""
    source = _source(lake)
    for attempt in range(2):
        began = time.process_time()
        for tier in TIERS.values():
            for dateint in dateints:
                roll_up_day(lake, tier, source, dateint, run_id=f"bench-{attempt}", on_step=lambda _: None)
    return time.process_time() - began


def _backfilled(running: Platform, dateints: list[int]) -> _Backfill:
    """Run the command that a person would, to its end."""
    idle = cpu_seconds()
    time.sleep(IDLE_SECONDS)
    idle_rate = (cpu_seconds() - idle) / IDLE_SECONDS
    before, began = cpu_seconds(), time.monotonic()
    first, last = (
        f"{dateint // 10_000}-{dateint // 100 % 100:02d}-{dateint % 100:02d}" for dateint in (dateints[0], dateints[-1])
    )
    source = f"{ORGANIZATIONS[0].name}/{COLLECTOR}"
    command = ["backfill", "rollups", "--from", first, "--to", last, "--source", source]
    environment = os.environ | {"DAGSTER_HOME": str(Settings().home.absolute() / "dagster")}
    subprocess.run([sys.executable, "-m", "lakerunner_dagster.cli", *command], check=True, env=environment)
    seconds = time.monotonic() - began
    with running.lrdb.snapshot() as conn:
        published = conn.execute(
            "SELECT frequency_ms, segment_id FROM metric_seg WHERE published AND frequency_ms > 10000 ORDER BY 1, 2"
        ).fetchall()
    return _Backfill(seconds, cpu_seconds() - before - idle_rate * seconds, published)


def _table(points: int, work: float, first: _Backfill, second: _Backfill, days: int) -> Table:
    table = Table("measure", "", title=f"{days} days, {METRICS * SERIES_OF_ONE:,} series, {points:,} points")
    beside = 1 - work / first.cpu
    for name, value in {
        "CPU of the work alone, s": f"{work:.1f}",
        "CPU of the backfill (daemon, code server, run), s": f"{first.cpu:.1f}",
        "of it Dagster itself": f"{beside:.1%} (goal ≤ 20 %)",
        "seconds from the command to its end": f"{first.seconds:.0f}",
        "the second backfill, CPU s": f"{second.cpu:.1f}",
        "segments that the second one changed": str(len(set(first.published) ^ set(second.published))),
        "segments": f"{len(second.published):,}",
    }.items():
        table.add_row(name, value)
    return table


if __name__ == "__main__":
    main()
