"""What would break if a person could not see what maintenance does, would do, or could not do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from lakerunner_dagster.lake.signals import SIGNALS, Signal
from tests.command_line import done, lakerunner, refused
from tests.conftest import TestDatabases
from tests.instance.past import LOGS, past_at
from tests.lake.requests import expected, logs, minutes
from tests.lake.world import NOON_MS, World

TABLES = (
    "raw_objects",
    "boxes",
    "lineage",
    "supersessions",
    "deletions",
    "segment_faults",
    "unsettled_hours",
    "dirty_slots",
    "outbox",
    *(spec.segment_table for spec in SIGNALS.values()),
)


def everything(world: World) -> tuple[dict[str, list[Any]], dict[str, bytes]]:
    """All rows that maintenance may touch, and all objects."""
    rows = {table: world.query(f"SELECT t::text FROM {table} t ORDER BY 1") for table in TABLES}
    objects = {str(path): path.read_bytes() for path in world.place.bucket.rglob("*") if path.is_file()}
    return rows, objects


def merged_day(world: World) -> None:
    """A day whose segments were merged an hour and more ago, with an orphan and a file nobody told of beside."""
    for name in ("a", "b"):
        world.send(Signal.LOGS, name, logs(name, minutes(NOON_MS, 3)))
        world.ingest(Signal.LOGS)
    world.compact(Signal.LOGS)
    world.query("UPDATE supersessions SET superseded_at = now() - interval '2 hours' RETURNING segment_id")


def test_a_dry_run_of_all_says_what_would_go_and_changes_nothing(world: World) -> None:
    merged_day(world)
    done("organization", "retention", "acme", "logs", "1")
    before = everything(world)
    out = done("maintain", "all", "--dry-run")
    assert "superseded, dry run: nothing is changed: 2 deleted" in out
    assert "retention, dry run: nothing is changed: 1 expired" in out
    assert "sources" not in out
    assert everything(world) == before


def test_superseded_segments_go_and_readers_see_what_they_saw(world: World) -> None:
    merged_day(world)
    assert len(world.segment_files()) == 3
    assert "2 deleted" in done("maintain", "superseded")
    assert len(world.segment_files()) == 1
    assert world.messages() == expected(a=3, b=3)
    assert world.breaches() == []
    assert "nothing to do" in done("maintain", "superseded")


def test_what_could_not_be_done_is_told_with_exit_code_1(world: World) -> None:
    merged_day(world)
    for path in world.segment_files():
        if "tbl" in path.name and str(world.published(Signal.LOGS)[0][1]) not in path.name:
            path.unlink()
            path.mkdir()
            (path / "in-the-way").touch()
    ended = lakerunner("maintain", "superseded")
    assert (ended.code, ended.out.count("failed")) == (1, 3)
    assert world.query("SELECT count(*) FROM log_seg WHERE NOT published") == [(2,)]


def test_expired_days_go_in_two_turns_and_raw_objects_stay(world: World) -> None:
    merged_day(world)
    done("organization", "retention", "acme", "logs", "1")
    assert "1 expired" in done("maintain", "retention")
    assert world.published(Signal.LOGS) == []
    world.query("UPDATE supersessions SET superseded_at = now() - interval '2 hours' RETURNING segment_id")
    done("maintain", "superseded")
    assert world.segment_files() == []
    assert "1 leaf dropped" in done("maintain", "retention")
    assert len(list(world.place.bucket.glob("otel-raw/**/*"))) > 0
    assert world.breaches() == []


def test_the_sources_of_dagster_need_to_know_which_dagster(world: World) -> None:
    assert world.objects() == {}
    assert "DAGSTER_HOME" in refused("maintain", "sources")


def test_a_tier_that_is_not_there_cannot_be_kept(world: World) -> None:
    assert world.objects() == {}
    assert "have no tier of 7 s" in refused("organization", "retention", "acme", "metrics", "1", "--frequency", "7")
    assert "for ever" in done("organization", "retention", "acme", "metrics", "0", "--frequency", "10")


def test_the_history_of_dagster_goes_by_a_command_of_its_own(
    bare: Path, postgres: TestDatabases, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = postgres.create_database()
    monkeypatch.setenv("LAKERUNNER_DAGSTER_DATABASE_URL", url.replace("postgresql:", "postgresql+psycopg2:"))
    with past_at(url, bare / "home") as past:
        for _ in range(2):
            past.run(LOGS, "2026-01-05")
        past.age(30)
        assert done("maintain", "history", "--dry-run").startswith("history, dry run: nothing is changed: ")
        assert past.rows()["runs"] == 2
        assert done("maintain", "history").startswith("history: ")
        assert past.rows()["runs"] == 1
        assert "nothing to do" in done("maintain", "history")
