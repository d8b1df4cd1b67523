"""A world's settings in the environment: how Dagster's resources and sensors find it."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from lakerunner_dagster.resources.lake import close_kept_lake
from tests.lake.world import Place, World, world_in


def environment(place: Place) -> dict[str, str]:
    """The variables that lead to a world: boxes close at once, compaction waits for nothing, nor does a retry."""
    return {
        "LAKERUNNER_DATABASE_URL": place.url,
        "LAKERUNNER_KAFKA_BOOTSTRAP_SERVERS": place.bootstrap,
        "LAKERUNNER_KAFKA_TOPIC_PREFIX": place.prefix,
        "LAKERUNNER_BOX_AGE_SECONDS": "0",
        "LAKERUNNER_COMPACTION_SETTLE_SECONDS": "0",
        "LAKERUNNER_COMPACTION_GATHER_SECONDS": "0",
        "LAKERUNNER_RETRY_BACKOFF_SECONDS": "0",
    }


@contextmanager
def world_in_environment(
    lrdb_url: str, kafka_bootstrap: str, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[World]:
    """A new world that the environment names, closed at the end with what a sensor has kept of it."""
    with world_in(lrdb_url, kafka_bootstrap, directory, f"test-{uuid.uuid4().hex[:12]}.") as world:
        for name, value in environment(world.place).items():
            monkeypatch.setenv(name, value)
        try:
            yield world
        finally:
            close_kept_lake()
