"""A lake to which all hostile input was sent at once, among good files, in one box of each signal."""

from __future__ import annotations

import http.client
import json
import threading
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import md5
from typing import Any
from urllib.parse import quote_plus, urlsplit

import pytest

from lakerunner_dagster.lake.model import rfc3339
from lakerunner_dagster.lake.notifications.http import HttpAdapter
from lakerunner_dagster.lake.runs.report import Step
from lakerunner_dagster.lake.signals import Signal
from tests.conftest import TestDatabases
from tests.lake.gathering import gather
from tests.lake.hostile.inputs import DEAD, LIMITS, RAW, Dead, Raw
from tests.lake.world import BUCKET, NOON_MS, World, world_in
from tests.lake_environment import environment

ONE_BOX = {"LAKERUNNER_BOX_BYTES": 2**40}


@dataclass(frozen=True)
class Answer:
    """What the HTTP adapter said."""

    status: int
    text: str


class Sender:
    """Whoever posts events to the lake's HTTP adapter."""

    def __init__(self, adapter: HttpAdapter) -> None:
        self._adapter = adapter

    def post(self, body: bytes) -> Answer:
        client = http.client.HTTPConnection(urlsplit(self._adapter.url).netloc, timeout=60)
        try:
            client.request("POST", "/", body=body)
            response = client.getresponse()
            return Answer(response.status, response.read().decode())
        finally:
            client.close()

    def notify(self, objects: Sequence[tuple[str, bytes | None]]) -> Answer:
        """Tell of objects as S3 does, in one event."""
        return self.post(json.dumps({"Records": [_s3_record(key, data or b"") for key, data in objects]}).encode())


def _s3_record(key: str, data: bytes) -> dict[str, Any]:
    stored = {"key": quote_plus(key, safe="/"), "size": len(data), "eTag": md5(data, usedforsecurity=False).hexdigest()}
    return {
        "eventSource": "aws:s3",
        "eventName": "ObjectCreated:Put",
        "eventTime": rfc3339(NOON_MS),
        "s3": {"bucket": {"name": BUCKET}, "object": stored},
    }


@contextmanager
def sending(world: World) -> Iterator[Sender]:
    adapter = HttpAdapter(world.intake, world.lake.settings)
    thread = threading.Thread(target=adapter.run)
    thread.start()
    try:
        yield Sender(adapter)
    finally:
        adapter.stop()
        thread.join(60)


@dataclass(frozen=True)
class Aftermath:
    """The lake after all of it: what was answered, and what the one drain of each signal did."""

    world: World
    sender: Sender
    answer: Answer
    steps: dict[Signal, list[Step]]


@pytest.fixture(scope="module")
def aftermath(
    postgres: TestDatabases, migrated_template: str, kafka_bootstrap: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Aftermath]:
    url = postgres.create_database(template=migrated_template)
    directory = tmp_path_factory.mktemp("hostile")
    prefix = f"test-{uuid.uuid4().hex[:12]}."
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(directory)
        for name, value in (LIMITS | ONE_BOX).items():
            patch.setenv(name, str(value))
        with world_in(url, kafka_bootstrap, directory, prefix, http_port=0) as world, sending(world) as sender:
            for name, text in environment(world.place).items():
                patch.setenv(name, text)
            sent: list[Raw | Dead] = [*RAW, *DEAD]
            everything = [(each.key, each.data) for each in sent]
            for key, data in everything:
                if data is not None:
                    path = world.place.bucket / key
                    path.parent.mkdir(parents=True, exist_ok=True)
                    path.write_bytes(data)
            answer = sender.notify(everything)
            for signal in Signal:
                gather(world, signal, sum(raw.signal is signal for raw in RAW))
            steps = {signal: world.ingest(signal) for signal in Signal}
            yield Aftermath(world, sender, answer, steps)
