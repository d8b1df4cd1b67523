"""The code server of `dagster dev`: killed, it is started anew; a mistake in the code is left to whoever made it."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from lakerunner_dagster.local.code_server import CodeServer
from lakerunner_dagster.local.dev import free_port
from lakerunner_dagster.local.errors import ServiceFailed
from lakerunner_dagster.local.processes import Children
from tests.waiting import eventually

CODE = "import dagster as dg\n\n@dg.asset\ndef one() -> None: ...\n\ndefs = dg.Definitions([one])\n"


@dataclass(frozen=True)
class Dev:
    """A running `dagster dev`, and the file with its definitions."""

    process: psutil.Process
    code: Path
    code_server: CodeServer

    def server(self) -> psutil.Process | None:
        """The process that holds the definitions."""
        for one in self.process.children(recursive=True):
            with suppress(psutil.NoSuchProcess):
                if {"api", "grpc"} <= set(one.cmdline()):
                    return one
        return None

    def loads(self) -> bool:
        """Whether the webserver says that the definitions are loaded."""
        try:
            self.code_server.require_loaded()
        except (OSError, ServiceFailed):
            return False
        return True


@pytest.fixture(scope="module")
def dev(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Dev]:
    port, directory = free_port(0), tmp_path_factory.mktemp("dev")
    code, home = directory / "code.py", directory / "home"
    code.write_text(CODE)
    home.mkdir()
    (home / "dagster.yaml").write_text("telemetry: {enabled: false}\n")
    children = Children(directory / "output", {"DAGSTER_HOME": str(home), "PYTHONPATH": ""})
    command = [sys.executable, "-m", "dagster", "dev", "-f", str(code), "-h", "127.0.0.1", "-p", str(port)]
    try:
        child = children.start("dagster", command)
        started = Dev(psutil.Process(child.process.pid), code, CodeServer(f"http://127.0.0.1:{port}", 0.0))
        eventually(started.loads, f"dagster dev loads {code}")
        yield started
    finally:
        children.stop()


def test_a_code_server_that_was_killed_is_started_anew(dev: Dev) -> None:
    killed = dev.server()
    assert killed is not None
    assert not dev.code_server.mend()
    killed.kill()
    eventually(dev.code_server.mend, "what is dead is noticed")
    eventually(dev.loads, "the code is there again")
    assert dev.server() not in (None, killed)
    assert not dev.code_server.mend()


def test_code_that_cannot_be_loaded_is_left_to_whoever_changes_it(dev: Dev) -> None:
    dev.code.write_text("raise ValueError")
    dev.code_server.reload(dev.code.name)
    eventually(lambda: not dev.loads(), "the mistake is noticed")
    with pytest.raises(ServiceFailed, match="Error occurred during the loading of Dagster definitions"):
        dev.code_server.require_loaded()
    assert not dev.code_server.mend()
    dev.code.write_text(CODE)
    dev.code_server.reload(dev.code.name)
    eventually(dev.loads, "it is mended")
