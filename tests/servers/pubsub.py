"""Google's own emulator of Pub/Sub, where the machine has the Cloud SDK's."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from lakerunner_dagster.local.postgres import free_port
from tests.servers.cache import needed
from tests.servers.process import ServerProcess

PROJECT = "lake-test"


def _emulator() -> Path:
    """The emulator beside ``gcloud``; the test is skipped where there is none."""
    gcloud = shutil.which("gcloud")
    homes = [Path("/usr/lib/google-cloud-sdk"), *([Path(gcloud).resolve().parent.parent] if gcloud else [])]
    homes += [Path(root) for name in ("CLOUDSDK_ROOT_DIR",) if (root := os.environ.get(name))]
    for home in homes:
        program = home / "platform" / "pubsub-emulator" / "bin" / "cloud-pubsub-emulator"
        if program.exists():
            return program
    pytest.skip("needs the Pub/Sub emulator of the Google Cloud SDK")


class PubSub:
    """The emulator, in memory: topics and subscriptions of the project ``PROJECT``."""

    def __init__(self, log: Path) -> None:
        needed("java")
        port = free_port()
        self.address = f"127.0.0.1:{port}"
        self._process = ServerProcess([str(_emulator()), "--host=127.0.0.1", f"--port={port}"], port, log)

    def start(self) -> None:
        self._process.start()

    def stop(self) -> None:
        self._process.stop()
