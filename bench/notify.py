"""Notifications a second through the HTTP adapter on one core, a body for each event, acknowledged by Kafka.

What belongs here: a real PostgreSQL, the embedded Kafka, ``lakerunner notify http`` as its users start it but held to
one core, and senders in a process on the other core that post over connections which they keep. What does not: what
becomes of notifications (``bench.intake``).

Run it with ``python -m bench.notify [--seconds 10] [--connections 64]``. Others may have the cores, too: what the
adapter could do alone on its core is one by its CPU seconds a notification.
"""

from __future__ import annotations

import argparse
import json
import os
import selectors
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from statistics import quantiles
from urllib.parse import quote_plus, urlsplit
from uuid import UUID

import psutil

from lakerunner_dagster.lake.lrdb import profiles
from lakerunner_dagster.lake.lrdb.connection import Lrdb
from lakerunner_dagster.lake.lrdb.migrate import migrate
from lakerunner_dagster.lake.signals import Signal
from lakerunner_dagster.lake.store import BucketConfiguration
from lakerunner_dagster.local.kafka import KafkaServer
from lakerunner_dagster.local.postgres import PostgresServer

ADAPTER_CORE, OTHERS_CORE = 0, 1
BUCKET = "lake"
ORGANIZATIONS = [UUID(int=number) for number in range(1, 5)]
COLLECTORS = 5
WARM_UP = 500
"""Notifications that are not counted: every source is registered, every code path is warm."""
GOAL = 5_000
ANSWER_SECONDS = 30.0


@dataclass(frozen=True, slots=True)
class Sent:
    """What senders saw: seconds from a request's first byte to its answer's last, and the seconds that all took."""

    latencies: list[float]
    seconds: float


@dataclass(slots=True)
class Sender:
    """A connection that is kept, and when its last request went out."""

    connection: socket.socket
    sent_at: float = 0.0

    def send(self, request: bytes) -> None:
        """Write a request."""
        self.sent_at = time.perf_counter()
        self.connection.sendall(request)

    def answered(self) -> float:
        """Seconds that the answer took; it is read whole. SystemExit when it is not 200."""
        head, _, body = self.connection.recv(65_536).partition(b"\r\n\r\n")
        length = next(int(line[15:]) for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:"))
        while len(body) < length:
            body += self.connection.recv(65_536)
        if not head.startswith(b"HTTP/1.1 200"):
            raise SystemExit(f"answered {head[:60]!r} {body[:200]!r}")
        return time.perf_counter() - self.sent_at


def requests() -> Iterator[bytes]:
    """``POST`` of one S3 event each, of a new object of one source after the other, without end."""
    number = 0
    while True:
        number += 1
        organization = ORGANIZATIONS[number % len(ORGANIZATIONS)]
        signal = list(Signal)[number % len(Signal)]
        collector = f"edge-{number % COLLECTORS}"
        yield _request(f"otel-raw/{organization}/{collector}/2026/11/03/12/{signal}_{number}.binpb.gz", number)


def _request(key: str, number: int) -> bytes:
    record = {
        "eventVersion": "2.1",
        "eventSource": "aws:s3",
        "awsRegion": "eu-central-1",
        "eventTime": "2026-11-03T12:37:59.125Z",
        "eventName": "ObjectCreated:Put",
        "userIdentity": {"principalId": "AWS:EXAMPLE"},
        "requestParameters": {"sourceIPAddress": "127.0.0.1"},
        "responseElements": {"x-amz-request-id": "EXAMPLE123456789", "x-amz-id-2": "EXAMPLE123/5678abcdefghijklambda"},
        "s3": {
            "s3SchemaVersion": "1.0",
            "configurationId": "lake",
            "bucket": {"name": BUCKET, "ownerIdentity": {"principalId": "E"}, "arn": f"arn:aws:s3:::{BUCKET}"},
            "object": {
                "key": quote_plus(key, safe="/"),
                "size": 4711 + number,
                "eTag": f"{number:032x}",
                "sequencer": f"{number:016X}",
            },
        },
    }
    body = json.dumps({"Records": [record]}).encode()
    head = f"POST / HTTP/1.1\r\nHost: bench\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    return head.encode() + body


def send(address: tuple[str, int], connections: int, seconds: float, most: int) -> tuple[Sent, Sent]:
    """Keep every connection busy: a few requests to warm up, then for so long, or so many."""
    os.sched_setaffinity(0, {OTHERS_CORE})
    senders = [Sender(socket.create_connection(address, timeout=ANSWER_SECONDS)) for _ in range(connections)]
    posts = requests()
    warm_up = _sent(senders, posts, ANSWER_SECONDS, WARM_UP)
    return warm_up, _sent(senders, posts, seconds, most)


def _sent(senders: list[Sender], posts: Iterator[bytes], seconds: float, most: int) -> Sent:
    latencies: list[float] = []
    begun = time.perf_counter()
    with selectors.DefaultSelector() as ready:
        for sender in senders:
            ready.register(sender.connection, selectors.EVENT_READ, sender)
            sender.send(next(posts))
        under_way = sent = len(senders)
        while under_way:
            answers = ready.select(ANSWER_SECONDS)
            if not answers:
                raise SystemExit(f"no answer within {ANSWER_SECONDS:g} s")
            for answer, _ in answers:
                latencies.append(answer.data.answered())
                if sent < most and time.perf_counter() - begun < seconds:
                    answer.data.send(next(posts))
                    sent += 1
                else:
                    under_way -= 1
    return Sent(latencies, time.perf_counter() - begun)


@contextmanager
def adapter(database_url: str, bootstrap: str, directory: Path) -> Iterator[tuple[psutil.Process, str]]:
    """``lakerunner notify http`` on its core: its process and its URL."""
    settings = {
        "LAKERUNNER_DATABASE_URL": database_url,
        "LAKERUNNER_KAFKA_BOOTSTRAP_SERVERS": bootstrap,
        "LAKERUNNER_KAFKA_REPLICATION": "1",
        "LAKERUNNER_HTTP_PORT": "0",
    }
    root = str(Path(__file__).parents[1])
    with (directory / "adapter.log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-c", "from lakerunner_dagster.cli import app; app()", "notify", "http"],
            env={**os.environ, **settings, "PYTHONPATH": root},
            cwd=directory,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
        )
    os.sched_setaffinity(process.pid, {ADAPTER_CORE})
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        if "listening on " not in line:
            raise SystemExit(f"the adapter did not start:\n{(directory / 'adapter.log').read_text()}")
        yield psutil.Process(process.pid), line.partition("listening on ")[2].strip()
    finally:
        process.terminate()
        process.wait(60)


def fill(url: str, directory: Path) -> None:
    """The schema, the organizations and their bucket."""
    migrate(url)
    with Lrdb(url) as lrdb, lrdb.transaction() as conn:
        profiles.put_bucket(conn, BucketConfiguration(BUCKET, "file", endpoint=str(directory)))
        for organization in ORGANIZATIONS:
            profiles.add_organization(conn, f"bench-{organization.int}", organization)


def produced(url: str) -> int:
    """Notifications that Kafka has acknowledged, by the adapter's own count."""
    with urllib.request.urlopen(f"{url}/metrics", timeout=ANSWER_SECONDS) as answer:  # noqa: S310  # our own
        lines = answer.read().decode().splitlines()
    name = "lakerunner_notifications_produced_total"
    return int(next(line.rsplit(" ", 1)[1] for line in lines if line.startswith(name)))


def measured(url: str, process: psutil.Process, options: argparse.Namespace) -> tuple[Sent, float]:
    """What the senders saw, and the adapter's CPU seconds over all notifications, warm-up included."""
    place = urlsplit(url)
    before = _cpu_seconds(process)
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as client:
        address = (str(place.hostname), int(place.port or 0))
        warm_up, sent = client.submit(send, address, options.connections, options.seconds, options.most).result()
    count = len(warm_up.latencies) + len(sent.latencies)
    if produced(url) != count:
        raise SystemExit(f"{count} notifications were answered 200, and {produced(url)} acknowledged by Kafka")
    return sent, (_cpu_seconds(process) - before) / count


def _cpu_seconds(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--connections", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--most", type=int, default=90_000)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="lakerunner-bench-") as name:
        directory = Path(name)
        directory.chmod(0o711)  # root's server runs as another user, who must get through
        server = PostgresServer(directory / "postgres")
        kafka = KafkaServer([], directory / "kafka.log")
        try:
            server.start()
            kafka.start()
            url = server.create_database("lake")
            fill(url, directory)
            with adapter(url, kafka.bootstrap_servers, directory) as (process, address):
                sent, cpu = measured(address, process, options)
        finally:
            kafka.stop()
            server.stop()
    report(sent, cpu, options.connections)


def report(sent: Sent, cpu: float, connections: int) -> None:
    """Print the table."""
    cuts = quantiles(sent.latencies, n=100)
    print(
        f"HTTP adapter on one core, one event a body, {connections} connections; load {os.getloadavg()[0]:.1f}\n\n"
        "| notifications/s | goal | a CPU second | CPU µs each | p50 ms | p95 ms | p99 ms |\n"
        "|---|---|---|---|---|---|---|\n"
        f"| {len(sent.latencies) / sent.seconds:,.0f} | ≥ {GOAL:,} | {1 / cpu:,.0f} | {cpu * 1e6:.0f} | "
        f"{cuts[49] * 1000:.1f} | {cuts[94] * 1000:.1f} | {cuts[98] * 1000:.1f} |"
    )


if __name__ == "__main__":
    main()
