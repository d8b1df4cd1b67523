"""Storage of Dagster: one line where there are no services, PostgreSQL where there are, a password nowhere else."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import dagster as dg
import pytest
from dagster._core.instance.ref import InstanceRef
from dagster._serdes import serialize_value

from lakerunner_dagster.instance.storage import NoDagsterStorage
from tests.conftest import TestDatabases

ROOT = Path(__file__).parents[2]
DEAD_URL = "postgresql+psycopg2://nobody:secret@127.0.0.1:9/none"


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory with the project's dagster.yaml and no .env."""
    (tmp_path / "dagster.yaml").symlink_to(ROOT / "dagster.yaml")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("LAKERUNNER_DAGSTER_DATABASE_URL", raising=False)
    return tmp_path


def _dagster(*arguments: str, cwd: Path, url: str | None = None) -> subprocess.CompletedProcess[str]:
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith(("LAKERUNNER_", "DAGSTER_"))
    }
    environment |= {"PYTHONPATH": str(ROOT)} | ({"LAKERUNNER_DAGSTER_DATABASE_URL": url} if url else {})
    return subprocess.run(
        [sys.executable, "-m", "dagster", *arguments],
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_dagster_dev_without_services_says_in_one_line_what_to_do(home: Path) -> None:
    done = _dagster("dev", "--empty-workspace", cwd=home)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("Error")]
    assert "lakerunner services up" in line
    assert "LAKERUNNER_DATABASE_URL" in line


def test_definitions_are_valid_without_services(home: Path) -> None:
    done = _dagster("definitions", "validate", "-m", "lakerunner_dagster.definitions", cwd=home)
    assert done.returncode == 0, done.stdout


def test_a_server_that_is_gone_is_told_of_without_its_password(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LAKERUNNER_DAGSTER_DATABASE_URL", DEAD_URL)
    monkeypatch.setattr("dagster_postgres.utils.time.sleep", lambda _seconds: None)  # it tries six times in 12 s
    with pytest.raises(NoDagsterStorage, match="does not answer") as caught:
        dg.DagsterInstance.from_ref(InstanceRef.from_dir(str(home)))
    assert "secret" not in str(caught.value)


def test_the_instance_reference_that_processes_show_holds_no_password(
    home: Path, monkeypatch: pytest.MonkeyPatch, postgres: TestDatabases
) -> None:
    url = postgres.create_database().replace("postgresql:", "postgresql+psycopg2:")
    monkeypatch.setenv("LAKERUNNER_DAGSTER_DATABASE_URL", url)
    with dg.DagsterInstance.from_ref(InstanceRef.from_dir(str(home))) as instance:
        instance.add_dynamic_partitions("sources", ["acme/web"])
        password = url.split(":")[2].split("@")[0]
        assert password not in serialize_value(instance.get_ref())
    with dg.DagsterInstance.from_ref(InstanceRef.from_dir(str(home))) as again:
        assert again.get_dynamic_partitions("sources") == ["acme/web"]
