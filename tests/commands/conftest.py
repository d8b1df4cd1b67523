"""A directory without settings, and a lake that the environment names."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from pathlib import Path

import dagster as dg
import psycopg
import pytest
from psycopg import sql

from tests.conftest import TestDatabases
from tests.lake.lrdb.conftest import FILLED, disconnect
from tests.lake.world import World, world_in
from tests.lake_environment import environment

ROOT = Path(__file__).parents[2]


@pytest.fixture
def bare(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty current directory, and no setting in the environment."""
    for name in [name for name in os.environ if name.startswith("LAKERUNNER_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="session")
def commands_url(postgres: TestDatabases, migrated_template: str) -> str:
    """URL of the one database that these tests use in turn: making one takes longer than most of them."""
    return postgres.create_database(template=migrated_template)


@pytest.fixture
def world(bare: Path, commands_url: str, kafka_bootstrap: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    """An empty lake, which commands find by the environment; what is numbered in it begins with 1."""
    disconnect(commands_url)
    with psycopg.connect(commands_url) as conn:
        tables = sql.SQL(", ").join(map(sql.Identifier, FILLED))
        conn.execute(sql.SQL("TRUNCATE {} RESTART IDENTITY").format(tables))
    with world_in(commands_url, kafka_bootstrap, bare, f"test-{uuid.uuid4().hex[:12]}.") as world:
        for name, value in environment(world.place).items():
            monkeypatch.setenv(name, value)
        yield world


@pytest.fixture
def instance(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[dg.DagsterInstance]:
    """A Dagster of its own, which has no daemon."""
    home = tmp_path / "dagster"
    home.mkdir()
    (home / "dagster.yaml").write_text("telemetry: {enabled: false}\n")
    monkeypatch.setenv("DAGSTER_HOME", str(home))
    with dg.DagsterInstance.get() as found:
        yield found
