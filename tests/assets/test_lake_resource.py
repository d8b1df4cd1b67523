"""The lake of a process: its connections serve every run, and what has changed since is seen by the next one."""

from __future__ import annotations

from pathlib import Path

import pytest

from lakerunner_dagster.lake.lrdb import profiles
from lakerunner_dagster.lake.store import BucketConfiguration
from lakerunner_dagster.resources.lake import LakeResource, close_kept_lake, kept_lake
from tests.lake.world import BUCKET, World


@pytest.mark.usefixtures("world")
def test_runs_of_a_process_share_its_connections() -> None:
    with LakeResource().open() as first:
        lrdb, bus = first.lrdb, first.bus
    with LakeResource().open() as second:
        assert (second.lrdb, second.bus) == (lrdb, bus)
        second.lrdb.clock()  # ending a run has closed nothing


@pytest.mark.usefixtures("world")
def test_other_settings_open_another_lake(monkeypatch: pytest.MonkeyPatch) -> None:
    before = kept_lake()
    monkeypatch.setenv("LAKERUNNER_BOX_AGE_SECONDS", "7")
    assert kept_lake() is not before
    assert kept_lake().policy.age_seconds == 7
    kept_lake().lrdb.clock()


@pytest.mark.usefixtures("world")
def test_after_it_was_closed_it_opens_again() -> None:
    kept_lake()
    close_kept_lake()
    with LakeResource().open() as lake:
        lake.lrdb.clock()


def test_a_bucket_that_has_moved_between_two_runs_is_found_where_it_is_now(world: World, tmp_path: Path) -> None:
    with LakeResource().open() as lake:
        lake.stores.of(BUCKET).put("an/object", b"before")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    with world.lake.lrdb.transaction() as conn:
        profiles.put_bucket(conn, BucketConfiguration(BUCKET, "file", endpoint=str(elsewhere)))
    with LakeResource().open() as lake:
        lake.stores.of(BUCKET).put("an/object", b"after")
    assert (world.place.bucket / "an/object").read_bytes() == b"before"
    assert (elsewhere / "an/object").read_bytes() == b"after"
