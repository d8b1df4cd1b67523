"""A world for each test of a job."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.lake.world import World, world_in


@pytest.fixture
def world(lrdb_url: str, kafka_bootstrap: str, tmp_path: Path) -> Iterator[World]:
    """An empty lake of the test's own."""
    with world_in(lrdb_url, kafka_bootstrap, tmp_path, f"test-{uuid.uuid4().hex[:12]}.") as world:
        yield world
