"""A directory without settings, and a lake that the environment names."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

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


@pytest.fixture
def world(bare: Path, lrdb_url: str, kafka_bootstrap: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    """An empty lake, which commands find by the environment."""
    with world_in(lrdb_url, kafka_bootstrap, bare, f"test-{uuid.uuid4().hex[:12]}.") as world:
        for name, value in environment(world.place).items():
            monkeypatch.setenv(name, value)
        yield world
