"""What would break if a process did not start, say where it is, do its work, or end when it is told to."""

from __future__ import annotations

import http.client
import json
import signal
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import urlopen

import pytest

from lakerunner_dagster.lake.signals import Signal
from lakerunner_dagster.local import services
from tests.command_line import done, refused
from tests.lake.requests import expected, logs
from tests.lake.world import BUCKET, NOON_MS, World
from tests.servers.aws import CREDENTIALS, REGION, Aws
from tests.waiting import DEADLINE_SECONDS, eventually

LAKERUNNER = [sys.executable, "-m", "lakerunner_dagster.cli"]


@contextmanager
def running(*arguments: str) -> Iterator[subprocess.Popen[str]]:
    """A command in a process of its own, killed at the end if it is still there."""
    process = subprocess.Popen(
        [*LAKERUNNER, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, bufsize=1
    )
    with process:
        try:
            yield process
        finally:
            process.kill()


def ended(*arguments: str) -> subprocess.CompletedProcess[str]:
    """A command that ends by itself."""
    return subprocess.run(
        [*LAKERUNNER, *arguments], capture_output=True, text=True, timeout=DEADLINE_SECONDS, check=False
    )


def first_line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline()


def asked(url: str) -> str:
    """What a monitor answers, whose status must be 200."""
    with urlopen(url, timeout=DEADLINE_SECONDS) as answer:  # noqa: S310  # an address of ours
        return str(answer.read().decode())


def end(process: subprocess.Popen[str], number: signal.Signals) -> None:
    """Tell the process to end: it must, without complaint."""
    process.send_signal(number)
    _, complaints = process.communicate(timeout=DEADLINE_SECONDS)
    assert process.returncode == 0, complaints
    assert "Traceback" not in complaints


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_http_adapter_takes_an_event_and_ends_when_told(
    world: World, number: signal.Signals, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LAKERUNNER_HTTP_PORT", "0")
    key = world.put(Signal.LOGS, "a", logs("a", [NOON_MS]))
    record = {"eventName": "ObjectCreated:Put", "s3": {"bucket": {"name": BUCKET}, "object": {"key": key}}}
    with running("notify", "http") as process:
        url = first_line(process).removeprefix("listening on ").strip()
        client = http.client.HTTPConnection(urlsplit(url).netloc, timeout=DEADLINE_SECONDS)
        client.request("POST", "/", body=json.dumps({"Records": [record]}))
        assert json.load(client.getresponse())["produced"] == 1
        client.close()
        end(process, number)
    world.ingest(Signal.LOGS)
    assert world.messages() == expected(a=1)


def test_the_directory_adapter_finds_a_file_and_ends_when_told(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LAKERUNNER_DIRECTORY_POLL_SECONDS", "0.05")
    monkeypatch.setenv("LAKERUNNER_DIRECTORY_SETTLE_SECONDS", "0")
    world.put(Signal.LOGS, "a", logs("a", [NOON_MS]))
    with running("notify", "directory", BUCKET) as process:
        assert first_line(process) == f"watching bucket {BUCKET}\n"
        monitor = first_line(process).removeprefix("monitor on ").strip()
        eventually(lambda: bool(world.ingest(Signal.LOGS)), "the file is notified")
        assert asked(f"{monitor}/healthz") == '{"status":"alive"}'
        assert asked(f"{monitor}/readyz") == '{"troubles":[]}'
        assert 'lakerunner_notifications_produced_total{adapter="directory"} 1' in asked(f"{monitor}/metrics")
        end(process, signal.SIGTERM)
    assert world.messages() == expected(a=1)


def test_a_queue_s_adapter_takes_an_event_is_looked_at_and_ends_when_told(
    world: World, aws: Aws, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {**CREDENTIALS, "LAKERUNNER_QUEUE_WAIT_SECONDS": "1", "LAKERUNNER_LOG_FORMAT": "json"}.items():
        monkeypatch.setenv(name, value)
    client = aws.client("sqs")
    url = client.create_queue(QueueName=f"queue-{uuid.uuid4().hex[:8]}")["QueueUrl"]
    key = world.put(Signal.LOGS, "a", logs("a", [NOON_MS]))
    record = {"eventName": "ObjectCreated:Put", "s3": {"bucket": {"name": BUCKET}, "object": {"key": key}}}
    for body in (json.dumps({"Records": [record]}), "no json"):
        client.send_message(QueueUrl=url, MessageBody=body)
    with running("notify", "sqs", url, "--region", REGION, "--endpoint", aws.endpoint) as process:
        monitor = first_line(process).removeprefix("monitor on ").strip()
        eventually(lambda: bool(world.ingest(Signal.LOGS)), "the object is notified")
        assert asked(f"{monitor}/healthz") == '{"status":"alive"}'
        assert asked(f"{monitor}/readyz") == '{"troubles":[]}'
        said = 'lakerunner_notifications_failed_total{adapter="sqs",reason="not_json"} 1'
        eventually(lambda: said in asked(f"{monitor}/metrics"), "the other one is refused")
        process.send_signal(signal.SIGTERM)
        _, log = process.communicate(timeout=DEADLINE_SECONDS)
    assert process.returncode == 0
    lines = [json.loads(line) for line in log.splitlines()]
    advice, refusal = (line["message"] for line in lines if line["level"] == "WARNING")
    assert "RedrivePolicy" in advice
    assert "it begins b'no json'" in refusal


def test_a_cloud_whose_libraries_are_not_there_is_told_which_to_install(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    adapters = "lakerunner_dagster.lake.notifications"
    for extra, library, module in (
        ("gcp", "google.cloud.pubsub_v1", f"{adapters}.pubsub"),
        ("azure", "azure.storage.queue", f"{adapters}.azure_queue"),
    ):
        monkeypatch.setitem(sys.modules, library, None)
        monkeypatch.delitem(sys.modules, module, raising=False)
        assert f"pip install 'lakerunner-dagster[{extra}]'" in refused("notify", extra, "projects/p/subscriptions/s")
    assert world.breaches() == []


def test_an_adapter_that_cannot_start_says_why(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    unknown = ended("notify", "directory", "nope")
    assert (unknown.returncode, unknown.stdout) == (1, "")
    assert "no storage profile knows the bucket 'nope'" in unknown.stderr
    monkeypatch.setenv("LAKERUNNER_HTTP_HOST", "0.0.0.0")  # noqa: S104  # is to be refused
    open_to_all = ended("notify", "http")
    assert open_to_all.returncode == 1
    assert "set LAKERUNNER_HTTP_TOKEN" in open_to_all.stderr
    assert world.breaches() == []


@pytest.fixture
def project(bare: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A project's directory, in which services may be started: others than its owner reach it."""
    with tempfile.TemporaryDirectory(prefix="lakerunner-test-") as name:
        Path(name).chmod(0o755)
        monkeypatch.chdir(name)
        yield Path(name)
        services.down(Path(".lakerunner"))
        monkeypatch.chdir(bare)


def test_services_come_tell_where_they_are_and_go(project: Path) -> None:
    assert "they do not run" in done("services", "status")
    up = ended("services", "up")
    assert (up.returncode, up.stderr) == (0, "")
    assert f"bucket      {project / '.lakerunner' / 'bucket'}" in up.stdout
    status = done("services", "status")
    assert status in up.stdout
    for word in ("running, held by process", "PostgreSQL  127.0.0.1:", "Kafka       127.0.0.1:"):
        assert word in status
    password = services.status(Path(".lakerunner")).env["LAKERUNNER_DATABASE_URL"].partition("@")[0].rpartition(":")[2]
    assert len(password) > 20
    assert password not in up.stdout

    done("doctor")
    assert "acme" in done("organization", "list")
    assert "already run under" in refused("services", "up")
    dev = ended("dev", "--once")
    assert (dev.returncode, "is already running under" in dev.stderr) == (1, True)

    assert ended("services", "down").stdout == "stopped\n"
    assert not (project / ".env").exists()
    assert done("services", "down") == "they do not run\n"
    refused("status")


@pytest.mark.usefixtures("project")
def test_dev_twice_at_once_says_so_and_the_first_ends_when_told() -> None:
    with running("dev") as first:
        assert first_line(first) == "starting PostgreSQL and Kafka …\n"
        assert first_line(first) == "migrating lrdb …\n"
        second = ended("dev")
        assert second.returncode == 1
        assert f"(process {first.pid})" in second.stderr
        assert "Ctrl-C where `lakerunner dev` runs" in second.stderr
        first.send_signal(signal.SIGINT)
        out, complaints = first.communicate(timeout=DEADLINE_SECONDS)
        assert (first.returncode, "stopping …" in out) in ((0, True), (1, False)), complaints
        assert "Traceback" not in complaints
    assert services.status(Path(".lakerunner")).process_id is None
    assert not Path(".env").exists()
