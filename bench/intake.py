"""What it costs to take an object in, with ten thousand and with a million rows of raw objects before it.

What belongs here: a lrdb of so many objects that are done, of several organizations, sources and days, and the work of
a boxer's tick on top of them: rows for what is notified, half of it new and half known, and the plan of what waits.
What does not: Kafka and the way there (``bench.notify``).

Run it with ``python -m bench.intake``. Others may have the cores, too: costs are CPU, of this process and of the
server's that serves it.
"""

from __future__ import annotations

import os
import random
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from uuid import UUID

from bench.cpu import Clock
from lakerunner_dagster.lake.lrdb import boxes, intake, profiles
from lakerunner_dagster.lake.lrdb.connection import Conn, Lrdb
from lakerunner_dagster.lake.lrdb.intake import Notification
from lakerunner_dagster.lake.lrdb.migrate import migrate
from lakerunner_dagster.lake.model import day_start_ms
from lakerunner_dagster.lake.planning.boxer import plan
from lakerunner_dagster.lake.settings import BoxPolicy
from lakerunner_dagster.lake.signals import Signal
from lakerunner_dagster.lake.store import BucketConfiguration
from lakerunner_dagster.lake.ticks.ingesting import PENDING
from lakerunner_dagster.lake.ticks.listening import BATCH
from lakerunner_dagster.local.postgres import PostgresServer

SIZES = (10_000, 100_000, 1_000_000)
ORGANIZATIONS = [UUID(int=number) for number in range(1, 6)]
COLLECTORS = 4
BUCKET = "lake"
FIRST_DAY = 20261001
DAYS = 30
DAY_MS = 86_400_000
ROUNDS = 15
WARM_UP_ROUNDS = 3
GOAL = 1.2

RECENT = 2 / DAYS
"""The share of the table that is told of again: what was stored in the last 48 h, as a reconciliation lists it."""

FILL = """
    INSERT INTO raw_objects (organization_id, instance_num, collector, signal, bucket, key, etag, identity, size,
                             event_time_ms, event_dateint, adapter, state, ended_at, records_read,
                             records_rejected)
    SELECT o, i, 'edge-' || i, 'logs', %(bucket)s,
           format('otel-raw/%%s/edge-%%s/logs/2026/10/%%s/logs_%%s.gz', o, i, lpad(d::text, 2, '0'), md5(n::text)),
           md5('e' || n), substr(md5('i' || n), 1, 20), 100000 + n %% 1000, %(first_ms)s + d * %(day_ms)s::bigint,
           %(first_day)s + d, 'bench', 'ingested', now(), 100, (n %% 100 = 7)::int
    FROM (
        SELECT n, (%(organizations)s::uuid[])[1 + n %% %(organization_count)s] AS o,
               1 + n / %(organization_count)s %% %(collectors)s AS i, n * %(days)s::bigint / %(upto)s AS d
        FROM generate_series(%(from)s, %(upto)s - 1) AS n
    ) AS numbered
"""
"""In the order of time, as rows come; names within a day are in no order. One in a hundred had a record rejected."""


@dataclass(frozen=True, slots=True)
class Costs:
    """CPU microseconds an object: of its row, and of its plan and box."""

    row: float
    box: float


def fill(conn: Conn, before: int, upto: int) -> None:
    """Grow the table from ``before`` rows to ``upto``, and leave it as a server does that has had time to tidy up."""
    conn.execute(
        FILL,
        {
            "bucket": BUCKET,
            "first_ms": day_start_ms(FIRST_DAY),
            "first_day": FIRST_DAY,
            "day_ms": DAY_MS,
            "days": DAYS,
            "organizations": ORGANIZATIONS,
            "organization_count": len(ORGANIZATIONS),
            "collectors": COLLECTORS,
            "from": before,
            "upto": upto,
        },
    )
    conn.execute("VACUUM ANALYZE raw_objects")
    conn.execute("CHECKPOINT")


def known(conn: Conn, count: int, rows: int, rng: random.Random) -> list[Notification]:
    """Notifications of recent objects that have a row."""
    recent = max(int(rows * RECENT), count)
    ids = rng.sample(range(rows - recent + 1, rows + 1), count)
    found = conn.execute(
        """
        SELECT organization_id, instance_num, collector, key, size, event_time_ms, etag
        FROM raw_objects WHERE raw_object_id = ANY(%s)
        """,
        (ids,),
    )
    return [
        _notification(tuple(source), key, size=size, time_ms=at, etag=etag) for *source, key, size, at, etag in found
    ]


def new(count: int, label: str) -> Iterator[Notification]:
    """Notifications of as many new objects of the last day, of every source in turn."""
    for number in range(count):
        organization = ORGANIZATIONS[number % len(ORGANIZATIONS)]
        instance = 1 + number // len(ORGANIZATIONS) % COLLECTORS
        key = f"otel-raw/{organization}/edge-{instance}/logs/2026/10/{DAYS - 1}/logs_{label}-{number}.gz"
        time_ms = day_start_ms(FIRST_DAY) + (DAYS - 1) * DAY_MS + number
        source = (organization, instance, f"edge-{instance}")
        yield _notification(source, key, size=100_000, time_ms=time_ms, etag=f"{number:032x}")


def _notification(source: tuple[UUID, int, str], key: str, *, size: int, time_ms: int, etag: str) -> Notification:
    organization_id, instance_num, collector = source
    return Notification(
        signal=Signal.LOGS,
        organization_id=organization_id,
        instance_num=instance_num,
        bucket=BUCKET,
        key=key,
        size=size,
        queued="",
        event_time_ms=time_ms,
        etag=etag,
        collector=collector,
        adapter="bench",
    )


def tick(conn: Conn, notifications: list[Notification], clock: Clock) -> Costs:
    """What a boxer's tick does in its transaction, undone at the end."""
    now_ms = time.time_ns() // 1_000_000
    policy = BoxPolicy(age_seconds=0.0)
    with conn.transaction(force_rollback=True):
        begun = clock.seconds()
        upserted = intake.upsert_raw_objects(conn, notifications)
        rows = clock.seconds()
        waiting = intake.pending(conn, Signal.LOGS, PENDING, policy.window_seconds)
        present_ms = max(now_ms, *(item.waiting_since_ms for item in waiting))
        for planned in plan(waiting, policy, present_ms):
            boxes.open_boxes(conn, Signal.LOGS, planned, present_ms)
        ended = clock.seconds()
    if (upserted.new, len(waiting)) != (BATCH // 2, BATCH // 2):
        raise SystemExit(f"{upserted.new} rows are new and {len(waiting)} wait, of {BATCH // 2} new objects")
    return Costs((rows - begun) / len(notifications) * 1e6, (ended - rows) / len(waiting) * 1e6)


def measured(conn: Conn, rows: int) -> Costs:
    """The medians of some ticks on a table of so many rows."""
    clock, rng = Clock([conn.info.backend_pid]), random.Random(rows)
    costs = []
    for number in range(WARM_UP_ROUNDS + ROUNDS):
        notifications = [*known(conn, BATCH // 2, rows, rng), *new(BATCH // 2, f"{rows}-{number}")]
        rng.shuffle(notifications)
        costs.append(tick(conn, notifications, clock))
        conn.execute("VACUUM raw_objects, boxes, outbox")
    return Costs(median(c.row for c in costs[WARM_UP_ROUNDS:]), median(c.box for c in costs[WARM_UP_ROUNDS:]))


@contextmanager
def empty_lrdb() -> Iterator[Conn]:
    """A connection to a lrdb of organizations and sources without objects."""
    with tempfile.TemporaryDirectory(prefix="lakerunner-bench-") as name:
        directory = Path(name)
        directory.chmod(0o711)  # root's server runs as another user, who must get through
        server = PostgresServer(directory / "postgres")
        server.start()
        try:
            url = server.create_database("lake")
            migrate(url)
            with Lrdb(url) as lrdb, lrdb.connection() as conn:
                profiles.put_bucket(conn, BucketConfiguration(BUCKET, "file", endpoint=str(directory)))
                for organization in ORGANIZATIONS:
                    profiles.add_organization(conn, f"bench-{organization.int}", organization)
                    for instance in range(1, COLLECTORS + 1):
                        profiles.register_source(conn, organization, f"edge-{instance}", BUCKET, COLLECTORS)
                yield conn
        finally:
            server.stop()


def main() -> None:
    """Measure, and print a table."""
    print(
        f"CPU of taking an object in, median of {ROUNDS} ticks of {BATCH} notifications, half of them known; "
        f"load {os.getloadavg()[0]:.1f}\n"
    )
    print("| rows | a notification's row, µs | ratio | an object's box, µs | ratio | goal |\n|---|---|---|---|---|---|")
    with empty_lrdb() as conn:
        first: Costs | None = None
        before = 0
        for rows in SIZES:
            fill(conn, before, rows)
            costs = measured(conn, rows)
            first, before = first or costs, rows
            print(
                f"| {rows:,} | {costs.row:.0f} | {costs.row / first.row:.2f} | {costs.box:.0f} | "
                f"{costs.box / first.box:.2f} | ≤ {GOAL} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
