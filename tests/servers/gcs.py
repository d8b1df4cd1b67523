"""Google Cloud Storage by fake-gcs-server, which the Go module proxy has, behind a front that speaks what it lacks."""

from __future__ import annotations

import json
import os
import urllib.request
from pathlib import Path

from lakerunner_dagster.local.postgres import free_port
from tests.servers.cache import cached, needed
from tests.servers.gcs_front import GcsFront
from tests.servers.process import ServerProcess
from tests.servers.pubsub import PROJECT, PubSub

MODULE = "github.com/fsouza/fake-gcs-server"
VERSION = "v1.56.1"

CREDENTIALS = {
    "GOOGLE_SERVICE_ACCOUNT_KEY": json.dumps(
        {"disable_oauth": True, "client_email": "", "private_key": "", "private_key_id": "", "gcs_base_url": ""}
    )
}
"""A service account's key that asks for no token: this server checks none."""


class Gcs:
    """fake-gcs-server, in memory. With ``pubsub`` each new object is told to ``topic`` of the project ``PROJECT``."""

    def __init__(self, log: Path, pubsub: PubSub | None = None, topic: str = "") -> None:
        needed("go")
        directory = cached(f"fake-gcs-server-{VERSION}", _install)
        self._port = free_port()
        options = ["-backend", "memory", "-scheme", "http", "-host", "127.0.0.1", "-port", str(self._port)]
        options += ["-public-host", f"127.0.0.1:{self._port}"]
        environment = {}
        if pubsub is not None:
            options += [
                "-event.pubsub-project-id",
                PROJECT,
                "-event.pubsub-topic",
                topic,
                "-event.list",
                "finalize,delete",
            ]
            environment = {"PUBSUB_EMULATOR_HOST": pubsub.address}
        self._process = ServerProcess([str(directory / "fake-gcs-server"), *options], self._port, log, environment)
        self._front = GcsFront(self._port)
        self.endpoint = self._front.url

    def start(self) -> None:
        self._process.start()
        self._front.start()

    def stop(self) -> None:
        self._front.stop()
        self._process.stop()

    def create_bucket(self, name: str) -> None:
        request = urllib.request.Request(
            f"http://127.0.0.1:{self._port}/storage/v1/b?project={PROJECT}",
            json.dumps({"name": name}).encode(),
            {"Content-Type": "application/json"},
        )
        urllib.request.urlopen(request, timeout=10).close()  # noqa: S310


def _install(into: Path) -> list[str]:
    return ["env", f"GOBIN={into}", f"HOME={os.environ.get('HOME', '/root')}", "go", "install", f"{MODULE}@{VERSION}"]
