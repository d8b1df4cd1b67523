"""Debian's redis-server: a broker of Celery that keeps nothing.

What belongs here: starting it. What does not: who sends what through it.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from lakerunner_dagster.local.postgres import free_port
from tests.servers.process import ServerProcess


class Redis(ServerProcess):
    """Redis on loopback, in ``directory``; the test is skipped where it is not installed."""

    def __init__(self, directory: Path) -> None:
        binary = shutil.which("redis-server")
        if binary is None:
            pytest.skip("needs redis-server, of Debian's package of that name")
        port = free_port()
        nothing_kept = ["--save", "", "--appendonly", "no", "--dir", str(directory)]
        super().__init__([binary, "--bind", "127.0.0.1", "--port", str(port), *nothing_kept], port, directory / "log")

    @property
    def url(self) -> str:
        """Its URL, for a broker."""
        return f"redis://127.0.0.1:{self.port}/0"
