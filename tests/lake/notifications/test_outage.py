"""What would break if Kafka were away for a minute, and all went on sending: lost, doubled, or piled up in memory.

The adapters are processes of their own, as they are in production, so that what they hold is theirs to be measured.
A message may come twice, and its notification be in Kafka twice: what counts are the raw objects that lrdb knows after
the ingest boxer's intake.
"""

from __future__ import annotations

import http.client
import json
import re
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from tests.kafka.mock import FaultyCluster
from tests.lake.notifications.test_killed_adapter import ROOT, Door, check_each_once, event, opened
from tests.lake.world import World, world_in
from tests.lake_environment import environment
from tests.servers.aws import CREDENTIALS, REGION, Aws
from tests.waiting import DEADLINE_SECONDS, eventually

AWAY_SECONDS = 60.0

PROGRAM = """
from lakerunner_dagster.cli import main
from lakerunner_dagster.lake.notifications import intake
intake.PRODUCE_SECONDS = 1.0
main()
"""
"""An adapter that waits less long for Kafka, so that a minute has some thirty answers to each sender, and not three."""

SENDERS, ANSWERS = 40, 20
"""And how often each is told to come again, at least."""

BODY_BYTES = 256 * 1024

MORE_BYTES, MORE_THREADS = 16 * SENDERS * BODY_BYTES, 12
"""What an adapter may take while Kafka is away, beyond what it took before.

The bodies in hand are there two or three times, and an allocator keeps more than as much again; all those that were
answered are more than this. Clients of Kafka that were given up and stay have more threads than these.
"""

QUEUE = {"queue_receivers": 2, "queue_batch": 10, "queue_wait_seconds": 1, "queue_lease_seconds": 5}
PAUSE_SECONDS = 0.2
"""Between two messages to the queue: moto takes a second to find one among a thousand."""


@dataclass(frozen=True)
class Adapter:
    """An adapter in a process of its own."""

    url: str
    process_id: int

    def asked(self, path: str, body: bytes = b"") -> tuple[int, str]:
        """The status and text of an answer; a body is posted."""
        client = http.client.HTTPConnection(urlsplit(self.url).netloc, timeout=DEADLINE_SECONDS)
        try:
            client.request("POST" if body else "GET", path, body=body or None)
            answer = client.getresponse()
            return answer.status, answer.read().decode()
        finally:
            client.close()

    def ready(self) -> tuple[int, Any]:
        status, text = self.asked("/readyz")
        return status, json.loads(text)

    def number(self, metric: str) -> int:
        """A metric, of all its reasons together."""
        found = re.findall(rf"^lakerunner_notifications_{metric}{{.*}} (\d+)$", self.asked("/metrics")[1], re.MULTILINE)
        return sum(map(int, found))

    def peak_bytes(self) -> int:
        return self._status("VmHWM") * 1024

    def threads(self) -> int:
        return self._status("Threads")

    def _status(self, name: str) -> int:
        text = Path(f"/proc/{self.process_id}/status").read_text()
        [value] = re.findall(rf"^{name}:\s+(\d+)", text, re.MULTILINE)
        return int(value)


class Senders:
    """Everybody who sends, until told to end: what was not taken is sent again, and only then something new."""

    def __init__(self, listening: Adapter, door: Door) -> None:
        self._listening = listening
        self._door = door
        self._ending = threading.Event()
        self._failed = threading.Event()
        self.refused = [0] * SENDERS
        self.taken: list[str] = []

    @contextmanager
    def sending(self) -> Iterator[None]:
        """They send for the length of the block; at its end each brings its last body home."""
        with ThreadPoolExecutor(SENDERS + 1) as pool:
            running = [pool.submit(self._post_until_the_end, number) for number in range(SENDERS)]
            running.append(pool.submit(self._queue_until_the_end))
            try:
                yield
            except BaseException:
                self._failed.set()
                raise
            finally:
                self._ending.set()
            self.taken = [name for ended in running for name in ended.result()]

    def answers(self) -> int:
        """How often every sender was told to come again, at least."""
        return min(self.refused)

    def _post_until_the_end(self, sender: int) -> list[str]:
        names: list[str] = []
        while not self._ending.is_set():
            names.append(f"http-{sender}-{len(names)}")
            body = json.dumps(event(names[-1])).encode().ljust(BODY_BYTES)
            while (status := self._listening.asked("/", body)[0]) != http.client.OK and not self._failed.is_set():
                assert status == http.client.SERVICE_UNAVAILABLE
                self.refused[sender] += 1
        return names

    def _queue_until_the_end(self) -> list[str]:
        names: list[str] = []
        while not self._ending.wait(PAUSE_SECONDS):
            names.append(f"sqs-{len(names)}")
            self._door.send(names[-1:])
        return names


@pytest.fixture
def cluster() -> Iterator[FaultyCluster]:
    cluster = FaultyCluster()
    yield cluster
    cluster.close()


@pytest.fixture
def world(lrdb_url: str, cluster: FaultyCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    with world_in(lrdb_url, cluster.bootstrap_servers, tmp_path, f"test-{uuid.uuid4().hex[:12]}.") as world:
        settings = {f"LAKERUNNER_{name.upper()}": str(value) for name, value in {**QUEUE, "http_port": 0}.items()}
        for name, value in {**environment(world.place), **CREDENTIALS, **settings, "PYTHONPATH": str(ROOT)}.items():
            monkeypatch.setenv(name, value)
        yield world


@contextmanager
def adapter(log: Path, *command: str) -> Iterator[Adapter]:
    """``lakerunner notify`` for the length of the block; told to end, it must, and well."""
    with (
        log.open("wb") as stderr,
        subprocess.Popen(
            [sys.executable, "-c", PROGRAM, "notify", *command],
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
        ) as process,
    ):
        try:
            assert process.stdout is not None
            yield Adapter(process.stdout.readline().split()[-1], process.pid)
            process.terminate()
            assert process.wait(DEADLINE_SECONDS) == 0, log.read_text()[-2000:]
        finally:
            process.kill()


def test_kafka_is_away_for_a_minute_under_load(world: World, cluster: FaultyCluster, aws: Aws, tmp_path: Path) -> None:
    door = opened(aws)
    pull = ("sqs", door.url, "--region", REGION, "--endpoint", door.endpoint)
    with adapter(tmp_path / "http.log", "http") as listening, adapter(tmp_path / "sqs.log", *pull) as pulling:
        both = (listening, pulling)
        senders = Senders(listening, door)
        with senders.sending():
            for each in both:
                eventually(partial(produced, each, 10), "both pass on")
                assert each.ready() == (200, {"troubles": []})
            cluster.down()
            stay_away(senders, both)
            assert not door.empty()
            cluster.up()
            before = [each.number("produced_total") for each in both]
            for each, number in zip(both, before, strict=True):
                eventually(partial(is_ready, each), "it is ready again")
                eventually(partial(produced, each, number + 10), "both pass on again")
        eventually(door.empty, "the queue's backlog is passed on")
        eventually(lambda: pulling.number("in_hand") == 0, "and acknowledged")
    check_each_once(world, senders.taken)


def stay_away(senders: Senders, adapters: Sequence[Adapter]) -> None:
    """Kafka stays away while everybody sends: nobody is ready, and none takes much more than before."""
    deadline = time.monotonic() + AWAY_SECONDS
    needed = [(each.peak_bytes(), each.threads()) for each in adapters]
    while time.monotonic() < deadline or senders.answers() < ANSWERS:
        assert time.monotonic() < deadline + 2 * DEADLINE_SECONDS, f"senders have had {senders.answers()} answers"
        for each in adapters:
            assert each.ready() == (503, {"troubles": ["kafka"]})
        assert sum(each.number("in_hand") for each in adapters) <= QUEUE["queue_receivers"] * QUEUE["queue_batch"]
    for each, (peak_bytes, threads) in zip(adapters, needed, strict=True):
        assert each.number("failed_total") > 0
        assert each.peak_bytes() < peak_bytes + MORE_BYTES
        assert each.threads() < threads + MORE_THREADS


def produced(adapter: Adapter, number: int) -> bool:
    return adapter.number("produced_total") >= number


def is_ready(adapter: Adapter) -> bool:
    return adapter.ready()[0] == http.client.OK
