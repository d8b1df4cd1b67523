"""What would break if an adapter's death, or a second adapter, lost an object or doubled one.

A message may come twice, and its notification be in Kafka twice: what counts are the raw objects that lrdb knows after
the ingest boxer's intake.
"""

from __future__ import annotations

import json
import os
import random
import re
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from hashlib import md5
from pathlib import Path
from typing import Any, cast
from urllib.request import urlopen

import boto3  # type: ignore[import-untyped]
import pytest

from lakerunner_dagster.lake.notifications.directory import DirectoryAdapter
from lakerunner_dagster.lake.notifications.intake import Intake
from lakerunner_dagster.lake.notifications.pulling import PullingAdapter, Queue, QueueMessage
from lakerunner_dagster.lake.notifications.sqs import SqsQueue
from lakerunner_dagster.lake.runs.context import Lake
from lakerunner_dagster.lake.settings import Settings
from lakerunner_dagster.lake.signals import Signal
from tests.lake.killing import Boundaries, Watched, kill_everywhere
from tests.lake.notifications.pulled import counted, pulling
from tests.lake.notifications.test_http import post, serving
from tests.lake.world import BUCKET, COLLECTOR, ORGANIZATION, World, world_in
from tests.lake_environment import environment
from tests.servers.aws import CREDENTIALS, REGION, Aws
from tests.waiting import DEADLINE_SECONDS, eventually

ROOT = Path(__file__).parents[3]

QUEUES, OBJECTS, ROUNDS, ADAPTERS = 5, 200, 5, 2
"""Queues one after the other, the objects that each tells of, and how often so many adapters are killed on it.

Not one of all: moto takes a second to find a message among a thousand.
"""

MOST_IN_A_LIFE = 25
"""An adapter is killed once it has passed on up to so many, or has lived too long for it."""

LONGEST_LIFE_SECONDS = 5.0

Q_SETTINGS = {"queue_receivers": 1, "queue_batch": 2, "queue_wait_seconds": 1, "queue_lease_seconds": 1}


@dataclass(frozen=True)
class Door:
    """A queue of the test's own."""

    client: Any
    url: str
    endpoint: str

    def queue(self, settings: Settings) -> SqsQueue:
        return SqsQueue(self.url, settings, region=REGION, endpoint=self.endpoint)

    def send(self, names: Sequence[str]) -> None:
        for start in range(0, len(names), 10):
            entries = [
                {"Id": str(n), "MessageBody": json.dumps(event(name))}
                for n, name in enumerate(names[start : start + 10])
            ]
            assert len(self.client.send_message_batch(QueueUrl=self.url, Entries=entries)["Successful"]) == len(entries)

    def empty(self) -> bool:
        names = ["ApproximateNumberOfMessages", "ApproximateNumberOfMessagesNotVisible"]
        answer = self.client.get_queue_attributes(QueueUrl=self.url, AttributeNames=names)
        return not any(int(answer["Attributes"][name]) for name in names)


class LastQueue(Watched):
    """SQS, each step of it watched, that tells its adapter to end once it is empty."""

    def __init__(self, door: Door, settings: Settings, boundaries: Boundaries, stop: threading.Event) -> None:
        super().__init__(door.queue(settings), boundaries)
        self._door = door
        self._stop = stop

    def receive(self, limit: int, stop: threading.Event) -> list[QueueMessage]:
        messages: list[QueueMessage] = self._inner.receive(limit, stop)
        self._boundaries.passed("after messages are received")
        if not messages and self._door.empty():
            self._stop.set()
        return messages

    def acknowledge(self, messages: Sequence[QueueMessage]) -> Sequence[QueueMessage]:
        self._boundaries.passed("before messages are acknowledged")
        left: Sequence[QueueMessage] = self._inner.acknowledge(messages)
        self._boundaries.passed("after messages are acknowledged")
        return left


@dataclass(frozen=True)
class Emptying:
    """What a child does: an adapter runs until its queue is empty."""

    url: str
    endpoint: str

    def __call__(self, lake: Lake, deadly: int) -> None:
        del deadly
        os.environ.update(CREDENTIALS)  # the server that forks us may be older than the test's environment
        stop = threading.Event()
        door = Door(aws_client(self.endpoint), self.url, self.endpoint)
        boundaries = cast("Watched", lake.bus)._boundaries
        settings = lake.settings.model_copy(update=Q_SETTINGS)
        queue = LastQueue(door, settings, boundaries, stop)
        PullingAdapter(cast("Queue", queue), Intake(lake.lrdb, lake.bus, settings), settings).run(stop)


def aws_client(endpoint: str) -> Any:
    return boto3.client("sqs", endpoint_url=endpoint, region_name=REGION)


def event(name: str) -> dict[str, Any]:
    """What S3 says of an object whose content is its name."""
    described = {"key": key_of(name), "size": len(name), "eTag": md5(name.encode(), usedforsecurity=False).hexdigest()}
    return {"Records": [{"eventName": "ObjectCreated:Put", "s3": {"bucket": {"name": BUCKET}, "object": described}}]}


def key_of(name: str) -> str:
    return f"otel-raw/{ORGANIZATION}/{COLLECTOR}/logs/{name}"


@pytest.fixture
def world(lrdb_url: str, kafka_bootstrap: str, tmp_path: Path) -> Iterator[World]:
    with world_in(lrdb_url, kafka_bootstrap, tmp_path, f"test-{uuid.uuid4().hex[:12]}.") as world:
        yield world


@pytest.fixture
def door(aws: Aws, monkeypatch: pytest.MonkeyPatch) -> Door:
    for name, value in CREDENTIALS.items():
        monkeypatch.setenv(name, value)
    return opened(aws)


def opened(aws: Aws) -> Door:
    client = aws.client("sqs")
    url = client.create_queue(QueueName=f"queue-{uuid.uuid4().hex[:8]}")["QueueUrl"]
    return Door(client, url, aws.endpoint)


def check_each_once(world: World, names: Sequence[str]) -> None:
    """After the boxer's intake lrdb has a raw object for each name, and none besides."""
    world.box(Signal.LOGS)
    rows = world.query("SELECT key FROM raw_objects ORDER BY key")
    assert [key for (key,) in rows] == sorted(map(key_of, names))
    assert world.breaches() == []


def test_killed_between_any_two_steps_nothing_is_lost_or_doubled(world: World, door: Door) -> None:
    names: list[str] = []

    def before(deadly: int) -> None:
        settings = world.lake.settings.model_copy(update=Q_SETTINGS)
        with pulling(door.queue(settings), world.intake, settings):
            eventually(door.empty, "what the dead one left is done")
        new = [f"{deadly}-{number}" for number in range(Q_SETTINGS["queue_batch"])]
        door.send(new)
        names.extend(new)

    boundaries = kill_everywhere(world.place, Emptying(door.url, door.endpoint), before)
    check_each_once(world, names)
    assert set(boundaries) >= {
        "after messages are received",
        "before messages are sent",
        "after messages are sent",
        "before messages are acknowledged",
        "after messages are acknowledged",
    }


def test_a_thousand_objects_through_fifty_killed_adapters(
    world: World, aws: Aws, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {**environment(world.place), **CREDENTIALS}.items():
        monkeypatch.setenv(name, value)
    for name, number in {**Q_SETTINGS, "queue_batch": 10}.items():
        monkeypatch.setenv(f"LAKERUNNER_{name.upper()}", str(number))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    rng = random.Random(20260203)
    names = [f"{number:04}" for number in range(QUEUES * OBJECTS)]
    passed_on: list[int] = []
    for number in range(QUEUES):
        door = opened(aws)
        # All of them first: moto may forget a message that is sent while it deletes another one.
        door.send(names[number * OBJECTS :][:OBJECTS])
        for _ in range(ROUNDS):
            passed_on += killed([started(door) for _ in range(ADAPTERS)], rng)
        settings = world.lake.settings.model_copy(update={**Q_SETTINGS, "queue_batch": OBJECTS})
        with pulling(door.queue(settings), world.intake, settings):
            eventually(partial(knows, world, (number + 1) * OBJECTS), "what the dead ones left is done")
    assert sum(map(bool, passed_on)) > len(passed_on) / 4, "they were killed while they had work"
    check_each_once(world, names)


def killed(adapters: list[subprocess.Popen[str]], rng: random.Random) -> list[int]:
    """Kill each at some point of its work; how many messages each has passed on."""
    passed_on: list[int] = []
    for adapter in adapters:
        passed_on.append(lived(begun(adapter), rng.randint(0, MOST_IN_A_LIFE)))
        adapter.kill()
        adapter.communicate(timeout=DEADLINE_SECONDS)
        assert adapter.returncode == -signal.SIGKILL
    return passed_on


def started(door: Door) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "lakerunner_dagster.cli", "notify", "sqs", door.url]
    return subprocess.Popen(
        [*command, "--region", REGION, "--endpoint", door.endpoint],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def begun(adapter: subprocess.Popen[str]) -> str:
    """Return once it has begun; the URL of its monitor."""
    assert adapter.stdout is not None
    line = adapter.stdout.readline()
    assert line.startswith("monitor on ")
    return line.removeprefix("monitor on ").strip()


def lived(monitor: str, messages: int) -> int:
    """Return once the adapter has passed on so many messages, or lives for too long; how many it has."""
    deadline = time.monotonic() + LONGEST_LIFE_SECONDS
    while True:
        with urlopen(f"{monitor}/metrics", timeout=DEADLINE_SECONDS) as answer:  # noqa: S310  # an address of ours
            [produced] = re.findall(rb'_produced_total{adapter="sqs"} (\d+)', answer.read())
        if int(produced) >= messages or time.monotonic() >= deadline:
            return int(produced)
        time.sleep(0.01)


def knows(world: World, count: int) -> bool:
    """Whether lrdb knows so many raw objects, after the boxer's intake."""
    world.box(Signal.LOGS)
    return world.query("SELECT count(*) FROM raw_objects") == [(count,)]


def test_several_adapters_of_one_bucket_give_each_object_once(world: World, door: Door) -> None:
    names = [str(number) for number in range(20)]
    settings = world.lake.settings.model_copy(update={"directory_settle_seconds": 0.0, **Q_SETTINGS, "http_port": 0})
    for name in names:
        world.put(Signal.LOGS, name, name.encode())
    door.send(names)
    door.send(names[:5])
    watching = DirectoryAdapter(world.lake.stores.of(BUCKET), world.intake, settings)
    with (
        pulling(door.queue(settings), world.intake, settings) as adapter,
        serving(world.intake, settings) as listening,
    ):
        assert watching.look() == len(names)
        assert {post(listening, event(name))[0] for name in names} == {200}
        counted(adapter, "produced", len(names) + 5)
    check_each_once(world, names)
