"""Objects that no row knows go once they are old; what is no segment's stays; a lost object is told of."""

from __future__ import annotations

from typing import Any
from uuid import UUID

import pytest

from lakerunner_dagster.lake.errors import StoreUnavailable, WorkIncomplete
from lakerunner_dagster.lake.lrdb import faults, publish
from lakerunner_dagster.lake.lrdb.connection import Conn
from lakerunner_dagster.lake.maintenance.report import Report
from lakerunner_dagster.lake.model import HOUR_MS
from lakerunner_dagster.lake.signals import Signal
from tests.lake.maintenance.turns import (
    DAY_MS,
    LATER_MS,
    add_source,
    everything,
    keys_of,
    old_object,
    rebuild_day,
    subjects,
    turn,
)
from tests.lake.requests import expected, gauges, logs
from tests.lake.world import DAY, NOON_MS, ORGANIZATION, World, now_ms

PLACE = f"db/{ORGANIZATION}/edge"
ORPHAN = f"{PLACE}/{DAY}/logs/12/tbl_77.parquet"


def ingested(world: World) -> None:
    world.send(Signal.LOGS, "a", logs("a", [NOON_MS, NOON_MS - HOUR_MS]))
    world.send(Signal.METRICS, "m", gauges("queue.length", [NOON_MS]))
    world.ingest(Signal.LOGS)
    world.ingest(Signal.METRICS)


def test_an_orphan_goes_and_what_rows_know_stays(world: World) -> None:
    ingested(world)
    for path in world.segment_files():
        old_object(world, str(path.relative_to(world.place.bucket)), path.read_bytes())
    known = world.segment_files()
    orphans = {ORPHAN, f"{PLACE}/{DAY}/metrics/12/tbl_78.parquet", f"{PLACE}/20200101/traces/00/tbl_79.parquet"}
    for key in orphans:
        old_object(world, key)
    report = turn(world.lake, "orphans")
    assert set(subjects(report, "deleted")) == orphans
    assert report.counts == {"deleted": 3}
    assert world.segment_files() == known
    assert world.messages() == expected(a=2)
    assert turn(world.lake, "orphans").counts == {}


def test_an_object_that_may_be_somebodys_work_is_left_alone(world: World) -> None:
    old_object(world, ORPHAN, modified_ms=LATER_MS - DAY_MS + 1000)
    assert turn(world.lake, "orphans").counts == {"too young to be judged": 1}
    assert turn(world.lake, "orphans", now_ms=LATER_MS + 2000).counts == {"deleted": 1}


def test_a_superseded_segments_object_is_no_orphan(world: World) -> None:
    ingested(world)
    rebuild_day(world)
    for path in world.segment_files():
        old_object(world, str(path.relative_to(world.place.bucket)), path.read_bytes())
    assert turn(world.lake, "orphans").counts == {}


def test_a_box_whose_first_attempt_left_an_orphan_writes_it_anew(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.send(Signal.LOGS, "a", logs("a", [NOON_MS]))
    world.box(Signal.LOGS)
    with monkeypatch.context() as broken:
        broken.setattr(publish, "publish_ingest", _refuse)
        with pytest.raises(WorkIncomplete):
            world.drain(Signal.LOGS)
    (left,) = world.segment_files()
    assert turn(world.lake, "orphans", now_ms=now_ms() + 2 * DAY_MS).counts == {"deleted": 1}
    assert not left.exists()
    world.drain(Signal.LOGS)
    assert world.segment_files() == [left]
    assert world.messages() == expected(a=1)


def _refuse(*_: Any, **__: Any) -> None:
    raise StoreUnavailable("the attempt ends before it has published")


def test_an_attempt_whose_objects_are_deleted_before_it_publishes_does_so_at_its_next(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.send(Signal.LOGS, "a", logs("a", [NOON_MS]))
    world.box(Signal.LOGS)
    publish_ingest = publish.publish_ingest
    swept: list[Report] = []

    def sweep_first(conn: Conn, *arguments: Any, **rest: Any) -> None:
        if not swept:  # by a clock that is two days ahead
            swept.append(turn(world.lake, "orphans", now_ms=now_ms() + 2 * DAY_MS))
        publish_ingest(conn, *arguments, **rest)

    monkeypatch.setattr(publish, "publish_ingest", sweep_first)
    with pytest.raises(WorkIncomplete, match="SwapConflict"):
        world.drain(Signal.LOGS)  # it goes on to the next attempt by itself
    assert swept[0].counts == {"deleted": 1}
    assert world.query("SELECT attempts FROM boxes") == [(2,)]
    assert world.messages() == expected(a=1)
    assert world.breaches() == []


@pytest.mark.parametrize(
    "name",
    [
        f"{DAY}/logs/12/tbl_077.parquet",
        f"{DAY}/logs/12/tbl_77.parquet.tmp",
        f"{DAY}/logs/12/notes/tbl_77.parquet",
        f"{DAY}/profiles/12/tbl_77.parquet",
        f"{DAY}/logs/1/tbl_77.parquet",
        "20261350/logs/12/tbl_77.parquet",
        f"{DAY}/logs/12/tbl_{2**63}.parquet",
        "README",
    ],
)
def test_what_is_no_segments_key_is_told_of_and_never_touched(world: World, name: str) -> None:
    path = old_object(world, f"{PLACE}/{name}")
    report = turn(world.lake, "orphans")
    assert subjects(report, "no segment's key") == [f"{PLACE}/{name}"]
    assert path.exists()


def test_no_tenant_and_no_collector_loses_what_is_anothers(world: World) -> None:
    """Names that begin alike, of organizations and of collectors: only what stands below a source's own path is its."""
    near = UUID(str(ORGANIZATION)[:-1] + "2")
    other, longer = add_source(world, "acme1", near, "edge"), add_source(world, "acme", ORGANIZATION, "edge1")
    mine = old_object(world, ORPHAN)
    strangers = [
        old_object(world, f"db/{ORGANIZATION}0/edge/{DAY}/logs/12/tbl_77.parquet"),
        old_object(world, f"db/{ORGANIZATION}/edge12/{DAY}/logs/12/tbl_77.parquet"),
        old_object(world, f"db/{ORGANIZATION}/edg/{DAY}/logs/12/tbl_77.parquet"),
    ]
    theirs = [
        old_object(world, f"db/{source.organization_id}/{source.collector}/{DAY}/logs/12/tbl_77.parquet", modified_ms=m)
        for source, m in ((other, LATER_MS), (longer, LATER_MS))
    ]
    report = turn(world.lake, "orphans")
    assert subjects(report, "deleted") == [ORPHAN]
    assert report.counts == {"deleted": 1, "too young to be judged": 2}
    assert not mine.exists()
    assert all(path.exists() for path in strangers + theirs)


def test_a_published_segment_whose_object_is_gone_is_told_of_until_it_is_back_or_mended(world: World) -> None:
    ingested(world)
    lost = next(path for path in world.segment_files() if "/11/" in str(path))
    data, key = lost.read_bytes(), str(lost.relative_to(world.place.bucket))
    lost.unlink()
    report = turn(world.lake, "orphans")
    assert subjects(report, "published without its object") == [key]
    with world.lake.lrdb.connection() as conn:
        (fault,) = faults.faults(conn, ORGANIZATION)
    assert (fault.key, fault.error_class) == (key, "object_missing")
    lost.write_bytes(data)
    assert subjects(turn(world.lake, "orphans"), "can be read again") == [key]
    lost.unlink()
    turn(world.lake, "orphans")
    rebuild_day(world)
    with world.lake.lrdb.connection() as conn:
        assert faults.faults(conn, ORGANIZATION) == []
    assert world.messages() == expected(a=2)


def test_a_day_of_which_every_object_is_gone_is_told_of(world: World) -> None:
    ingested(world)
    for path in world.segment_files():
        path.unlink()
    assert turn(world.lake, "orphans").counts == {"published without its object": 3}


def test_a_dry_run_tells_of_all_and_changes_nothing(world: World) -> None:
    ingested(world)
    lost = world.segment_files()[0]
    lost.unlink()
    old_object(world, ORPHAN)
    untouched = everything(world)
    report = turn(world.lake, "orphans", dry_run=True)
    assert subjects(report, "deleted") == [ORPHAN]
    assert set(subjects(report, "published without its object")) == keys_of([lost], world)
    assert everything(world) == untouched
