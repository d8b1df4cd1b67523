"""A world for each test, which the environment names."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import dagster as dg
import pytest

from tests.lake.world import World
from tests.lake_environment import world_in_environment


@pytest.fixture
def world(lrdb_url: str, kafka_bootstrap: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    """An empty lake of the test's own."""
    with world_in_environment(lrdb_url, kafka_bootstrap, tmp_path, monkeypatch) as world:
        yield world


@pytest.fixture
def instance() -> Iterator[dg.DagsterInstance]:
    """A Dagster instance in memory."""
    with dg.DagsterInstance.ephemeral() as instance:
        yield instance
