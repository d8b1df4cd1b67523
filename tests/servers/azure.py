"""Azure's blobs and queues by azurite, which npm has."""

from __future__ import annotations

import base64
import hashlib
import hmac
import urllib.request
from datetime import UTC, datetime
from email.utils import format_datetime
from pathlib import Path

from lakerunner_dagster.local.postgres import free_port
from tests.servers.cache import cached, needed
from tests.servers.process import ServerProcess

VERSION = "3.37.0"

ACCOUNT = "devstoreaccount1"
KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="
"""The account and key that azurite's documentation gives to everybody: no secret."""

CREDENTIALS = {"AZURE_STORAGE_ACCOUNT_KEY": KEY}
"""Where store and adapter look for the key."""

API_VERSION = "2021-08-06"
NO_HEADERS = "\n" * 12
"""Where the standard headers would stand in what is signed."""


class Azure:
    """azurite with its data in ``directory``, which a later ``start`` finds again. It emulates no Event Grid."""

    def __init__(self, directory: Path) -> None:
        needed("node", "npm")
        install = ["npm", "install", "--silent", "--no-audit", "--no-fund", f"azurite@{VERSION}", "--prefix"]
        program = cached(f"azurite-{VERSION}", lambda into: [*install, str(into)]) / "node_modules" / ".bin" / "azurite"
        blobs, queues, tables = free_port(), free_port(), free_port()
        options = ["--silent", "--skipApiVersionCheck", "--disableTelemetry", "--location", str(directory / "data")]
        ports = ["--blobHost", "127.0.0.1", "--blobPort", str(blobs)]
        ports += ["--queueHost", "127.0.0.1", "--queuePort", str(queues)]
        ports += ["--tableHost", "127.0.0.1", "--tablePort", str(tables)]
        self._process = ServerProcess([str(program), *options, *ports], queues, directory / "azurite.log")
        self.blob_endpoint = f"http://127.0.0.1:{blobs}/{ACCOUNT}"
        self.queue_endpoint = f"http://127.0.0.1:{queues}/{ACCOUNT}"

    def start(self) -> None:
        self._process.start()

    def stop(self) -> None:
        self._process.stop()

    def create_container(self, name: str) -> None:
        """Make a container, by a request that is signed as Azure's Shared Key scheme has it."""
        date = format_datetime(datetime.now(UTC), usegmt=True)
        headers = {"x-ms-date": date, "x-ms-version": API_VERSION}
        canonical = "".join(f"{header}:{value}\n" for header, value in sorted(headers.items()))
        text = f"PUT{NO_HEADERS}{canonical}/{ACCOUNT}/{ACCOUNT}/{name}\nrestype:container"
        digest = hmac.new(base64.b64decode(KEY), text.encode(), hashlib.sha256).digest()
        headers["Authorization"] = f"SharedKey {ACCOUNT}:{base64.b64encode(digest).decode()}"
        headers["Content-Length"] = "0"
        url = f"{self.blob_endpoint}/{name}?restype=container"
        urllib.request.urlopen(urllib.request.Request(url, None, headers, method="PUT"), timeout=10).close()  # noqa: S310
