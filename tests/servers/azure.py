"""Azure's blobs and queues by azurite, which npm has."""

from __future__ import annotations

from pathlib import Path

from lakerunner_dagster.local.postgres import free_port
from tests.servers.cache import cached, needed
from tests.servers.process import ServerProcess

VERSION = "3.37.0"

ACCOUNT = "devstoreaccount1"
KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="
"""The account and key that azurite's documentation gives to everybody: no secret."""


class Azure:
    """azurite with its data in ``directory``, which a later ``start`` finds again. It emulates no Event Grid."""

    def __init__(self, directory: Path) -> None:
        needed("node", "npm")
        install = ["npm", "install", "--silent", "--no-audit", "--no-fund", f"azurite@{VERSION}", "--prefix"]
        program = cached(f"azurite-{VERSION}", lambda into: [*install, str(into)]) / "node_modules" / ".bin" / "azurite"
        blobs, queues = free_port(), free_port()
        options = ["--silent", "--skipApiVersionCheck", "--disableTelemetry", "--location", str(directory / "data")]
        ports = ["--blobHost", "127.0.0.1", "--blobPort", str(blobs)]
        ports += ["--queueHost", "127.0.0.1", "--queuePort", str(queues)]
        self._process = ServerProcess([str(program), *options, *ports], queues, directory / "azurite.log")
        self.blob_endpoint = f"http://127.0.0.1:{blobs}/{ACCOUNT}"
        self.queue_endpoint = f"http://127.0.0.1:{queues}/{ACCOUNT}"

    def start(self) -> None:
        self._process.start()

    def stop(self) -> None:
        self._process.stop()
