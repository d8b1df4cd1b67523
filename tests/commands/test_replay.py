"""What would break if raw objects could not be sent through ingestion again: most of all, once lrdb is lost."""

from __future__ import annotations

import os
from collections.abc import Iterator

import dagster as dg
import duckdb
import pytest

from lakerunner_dagster.commands import backfill
from lakerunner_dagster.lake.lrdb import profiles
from lakerunner_dagster.lake.lrdb.profiles import PrefixMapping
from lakerunner_dagster.lake.model import HOUR_MS, RawState
from lakerunner_dagster.lake.runs import rebuild as rebuilding
from lakerunner_dagster.lake.runs.context import Lake
from lakerunner_dagster.lake.runs.drain import drain
from lakerunner_dagster.lake.runs.hours import Task
from lakerunner_dagster.lake.runs.report import Failure, OnStep, Step
from lakerunner_dagster.lake.signals import SIGNALS, Signal
from lakerunner_dagster.lake.stages import ingest_stage
from lakerunner_dagster.lake.store import BucketConfiguration
from tests.command_line import done, lakerunner, refused
from tests.commands.daemon import daemon_at_work
from tests.conftest import TestDatabases
from tests.lake.maintenance.turns import AT_ONCE, turn
from tests.lake.requests import expected, gauges, logs, minutes
from tests.lake.world import BUCKET, COLLECTOR, DAY, NOON_MS, ORGANIZATION, Place, World, now_ms
from tests.lake_environment import environment
from tests.waiting import eventually

RANGE = ("--from", "2026-02-01", "--to", "2026-02-03")
DAY_MS = 24 * HOUR_MS
TEN = NOON_MS - 2 * HOUR_MS
ELEVEN = NOON_MS - HOUR_MS


def write(world: World, key: str, data: bytes, stored_ms: int = NOON_MS) -> str:
    """A raw object that was stored at a time, of which nobody is told; its key."""
    path = world.place.bucket / key
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    os.utime(path, (stored_ms / 1000, stored_ms / 1000))
    return key


def raw_key(collector: str, signal: Signal, name: str) -> str:
    return f"otel-raw/{ORGANIZATION}/{collector}/{signal}/{name}"


def rows(out: str) -> list[list[str]]:
    """The rows of a table of sources, by their cells' words."""
    return [line.split() for line in out.splitlines() if line.strip().startswith("acme/")]


def replayed() -> str:
    """What a replay prints that succeeds; Dagster's log goes elsewhere."""
    ended = lakerunner("replay", "raw", *RANGE, "--yes")
    assert ended.code == 0
    return ended.out


def whole_rows(world: World, signal: Signal, frequency_ms: int | None = None) -> list[str]:
    """Every row that readers see, with every column that it has a value in, by DuckDB from the segments' files."""
    ids = {segment_id for _, segment_id, _ in world.published(signal, frequency_ms)}
    files = [str(path) for path in world.segment_files() if int(path.stem.removeprefix("tbl_")) in ids]
    assert len(files) == len(ids)
    found = duckdb.execute(f"SELECT * FROM read_parquet({files!r}, union_by_name = true)")
    names = [column[0] for column in found.description or ()]
    return sorted(
        repr(sorted((name, value) for name, value in zip(names, row, strict=True) if value is not None))
        for row in found.fetchall()
    )


def everything(world: World) -> dict[tuple[Signal, int], list[str]]:
    """The rows of each tier of each signal."""
    return {
        (signal, frequency_ms): whole_rows(world, signal, frequency_ms or None)
        for signal in (Signal.LOGS, Signal.METRICS)
        for frequency_ms in SIGNALS[signal].tiers_ms
    }


def two_days(world: World) -> None:
    """Logs of two days, of a mapped prefix and of a second collector; metrics with all their tiers."""
    first = write(world, raw_key(COLLECTOR, Signal.LOGS, "a"), logs("a", minutes(TEN, 90)))
    told = [
        write(world, raw_key(COLLECTOR, Signal.LOGS, "b"), logs("b", minutes(TEN + 20 * 60_000, 50))),
        write(world, raw_key("core", Signal.LOGS, "c"), logs("c", [TEN, ELEVEN])),
        write(world, "old/d", logs("d", [ELEVEN])),
        write(world, raw_key(COLLECTOR, Signal.METRICS, "m"), gauges("queue", [TEN + n * 5000 for n in range(300)])),
    ]
    yesterday = write(world, raw_key(COLLECTOR, Signal.LOGS, "e"), logs("e", [TEN - DAY_MS, TEN]), NOON_MS - DAY_MS)
    map_old(world)
    world.notify(yesterday, event_time_ms=NOON_MS - DAY_MS)
    world.notify(first)
    world.box(Signal.LOGS)
    drain_all(world, Signal.LOGS)
    world.notify(*told)
    for signal in (Signal.LOGS, Signal.METRICS):
        world.box(signal)
        drain_all(world, signal)
    world.roll_up()


def map_old(world: World) -> None:
    with world.lake.lrdb.transaction() as conn:
        profiles.put_prefix_mapping(conn, PrefixMapping(BUCKET, "old/", Signal.LOGS, ORGANIZATION, COLLECTOR))


def drain_all(world: World, signal: Signal) -> None:
    """Ingest whatever waits, of every source."""
    with world.lake.lrdb.connection() as conn:
        sources = profiles.sources(conn)
    for source in sources:
        for dateint in (DAY - 1, DAY):
            drain(world.lake, ingest_stage(signal), source, dateint, run_id="run", on_step=lambda _step: None)


@pytest.fixture
def lost(
    world: World, postgres: TestDatabases, migrated_template: str, monkeypatch: pytest.MonkeyPatch
) -> Iterator[World]:
    """The same bucket and Kafka under an lrdb of its own, to which only the profiles were added again."""
    url = postgres.create_database(template=migrated_template)
    place = Place(url, world.place.bootstrap, world.place.bucket, world.place.prefix)
    lake = place.open()
    with lake.lrdb.transaction() as conn:
        profiles.add_organization(conn, "acme", ORGANIZATION)
        profiles.put_bucket(conn, BucketConfiguration(BUCKET, "file", endpoint=str(place.bucket)))
    for name, value in environment(place).items():
        monkeypatch.setenv(name, value)
    found = World(place, lake)
    map_old(found)
    yield found
    found.close()
    postgres.server.drop_database(url.rpartition("/")[2])


def counts(world: World) -> list[tuple[int, ...]]:
    """Everything that a replay could write to lrdb."""
    tables = ("organization_buckets", "raw_objects", "boxes", "lineage", "ledger", "log_seg", "metric_seg", "outbox")
    return [world.query(f"SELECT count(*) FROM {table}")[0] for table in (*tables, "dead_letters", "dirty_slots")]


def test_once_lrdb_is_lost_every_record_comes_back_exactly_once_and_again_changes_nothing(
    world: World, lost: World, instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    two_days(world)
    before, objects = everything(world), world.query("SELECT key, etag, identity FROM raw_objects ORDER BY key")
    assert before[Signal.LOGS, 0]
    assert all(before.values())
    world.notify(raw_key(COLLECTOR, Signal.LOGS, "a"))  # and nobody reads it any more
    ran = daemon_at_work(monkeypatch)

    out = replayed()
    assert "new: it will be registered in lake" in out
    assert [row[:6] for row in rows(out)[:4]] == [
        ["acme/core", "logs", "2026-02-03", "0", "1", "0"],
        ["acme/edge", "logs", "2026-02-02", "0", "1", "0"],
        ["acme/edge", "logs", "2026-02-03", "0", "3", "0"],
        ["acme/edge", "metrics", "2026-02-03", "0", "1", "0"],
    ]
    lost.roll_up()
    assert everything(lost) == before
    assert lost.query("SELECT key, etag, identity FROM raw_objects ORDER BY key") == objects
    assert set(lost.objects().values()) == {RawState.INGESTED}
    assert lost.breaches() == []
    assert sorted(instance.get_dynamic_partitions("sources")) == ["acme/core", "acme/edge"]

    published = {signal: lost.published(signal) for signal in (Signal.LOGS, Signal.METRICS)}
    files = {path: path.read_bytes() for path in lost.segment_files()}
    again = replayed()
    assert [row[3:6] for row in rows(again)[:4]] == [["1", "0", "0"], ["1", "0", "0"], ["3", "0", "0"], ["1", "0", "0"]]
    assert len(set(ran)) == 2
    lost.roll_up()
    assert {signal: lost.published(signal) for signal in published} == published
    assert {path: path.read_bytes() for path in lost.segment_files()} == files
    assert everything(lost) == before
    assert lost.breaches() == []

    # What nobody had read in Kafka names the collector by its number of before, and tells of nothing new.
    eventually(lambda: lost.box(Signal.LOGS).dead == 1, "the notification from before is heard")
    assert done("deadletter", "replay", "--reason", "unknown_source") == "1 dead letters were passed on\n"
    lost.box(Signal.LOGS)
    drain_all(lost, Signal.LOGS)
    assert done("deadletter", "list") == "no dead letter waits\n"
    assert everything(lost) == before
    # Segments of the lrdb that was lost are nobody's: they go, and readers see the same.
    swept = turn(lost.lake, "orphans", now_ms=now_ms() + DAY_MS * 400, policy=AT_ONCE)
    assert swept.counts["deleted"] > 0
    assert everything(lost) == before


def test_a_dry_run_writes_nothing_to_lrdb_and_nothing_to_dagster(
    world: World, lost: World, instance: dg.DagsterInstance
) -> None:
    two_days(world)
    before = counts(lost)
    out = done("replay", "raw", *RANGE, "--dry-run")
    assert len(rows(out)) == 4
    assert rows(out)[-1][-4:] == ["1m", "5m", "20m", "1h"]
    assert "nothing is registered or launched" in out
    assert counts(lost) == before
    assert list(instance.get_backfills()) == []
    assert list(instance.get_dynamic_partitions("sources")) == []


def test_what_is_replaced_is_told_first(world: World) -> None:
    two_days(world)
    (core,) = rows(done("replay", "raw", *RANGE, "--dry-run", "--source", "acme/core"))
    seen = "SELECT count(*), sum(records) FROM log_seg WHERE published AND instance_num = 2"
    ((segments, records),) = world.query(seen)
    assert core[:6] == ["acme/core", "logs", "2026-02-03", "1", "0", "0"]
    assert core[7:9] == [str(segments), str(records)]


@pytest.mark.usefixtures("instance")
def test_records_that_arrive_while_their_day_is_replayed_are_there_once(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.send(Signal.LOGS, "a", logs("a", minutes(TEN, 20)))
    world.ingest(Signal.LOGS)
    world.put(Signal.LOGS, "silent", logs("silent", [TEN]))
    daemon_at_work(monkeypatch)
    replaced = rebuilding._replace_hours

    def late(lake: Lake, task: Task, on_step: OnStep) -> tuple[list[Step], list[Failure]]:
        world.send(Signal.LOGS, "late", logs("late", [TEN, ELEVEN]))
        world.put(Signal.LOGS, "unheard", logs("unheard", [TEN]))
        world.ingest(Signal.LOGS)
        return replaced(lake, task, on_step)

    monkeypatch.setattr(rebuilding, "_replace_hours", late)
    replayed()
    assert world.messages() == expected(a=20, silent=1, late=2)
    monkeypatch.setattr(rebuilding, "_replace_hours", replaced)
    replayed()
    assert world.messages() == expected(a=20, silent=1, late=2, unheard=1)
    assert world.breaches() == []


@pytest.mark.usefixtures("instance")
def test_an_object_that_is_gone_is_named_before_and_its_hour_stays_as_it_is(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    gone = world.send(Signal.LOGS, "gone", logs("gone", [TEN]))
    world.send(Signal.LOGS, "stays", logs("stays", [TEN, ELEVEN]))
    world.ingest(Signal.LOGS)
    before = world.published(Signal.LOGS)
    (world.place.bucket / gone).unlink()
    daemon_at_work(monkeypatch)
    ended = lakerunner("replay", "raw", *RANGE, "--yes")
    assert ended.code == 1
    assert rows(ended.out)[0][3:6] == ["2", "0", "1"]
    assert f"missing: lake/{gone}: the hours of acme/edge on it stay as they are" in ended.out
    assert "20260203 10h: ObjectMissing" in ended.out
    assert world.messages() == expected(gone=1, stays=2)
    assert set(world.published(Signal.LOGS)) & set(before)
    assert world.breaches() == []


def test_the_same_replay_called_again_goes_on_with_its_backfill(
    world: World, instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.put(Signal.LOGS, "a", logs("a", [TEN]))

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(backfill, "_watch", interrupted)
    assert "launched backfill" in lakerunner("replay", "raw", *RANGE, "--yes").out
    assert "goes on with backfill" in lakerunner("replay", "raw", *RANGE, "--yes").out
    (launched,) = instance.get_backfills()
    assert launched.title == "replay of raw objects 2026-02-01 to 2026-02-03"


def test_on_a_terminal_nothing_is_done_without_a_yes(
    lost: World, world: World, instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.put(Signal.LOGS, "a", logs("a", [TEN]))
    before = counts(lost)
    asked: list[str] = []

    def no(question: str, **_: object) -> None:
        asked.append(question)
        raise SystemExit(1)

    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    monkeypatch.setattr("typer.confirm", no)
    assert lakerunner("replay", "raw", *RANGE).code == 1
    assert len(asked) == 1
    assert counts(lost) == before
    assert list(instance.get_backfills()) == []


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--from", "2026-02-03", "--to", "2026-02-01"), "is before"),
        ((*RANGE, "--source", "nobody/edge"), "no organization 'nobody'"),
        ((*RANGE, "--source", "acme"), "names no source"),
        ((*RANGE, "--source", "acme/a/b"), "names no source"),
    ],
)
@pytest.mark.usefixtures("world")
def test_what_cannot_be_replayed_is_refused_with_what_can(arguments: tuple[str, ...], said: str) -> None:
    assert said in refused("replay", "raw", *arguments)


def test_days_without_a_raw_object_start_nothing(world: World, instance: dg.DagsterInstance) -> None:
    world.put(Signal.LOGS, "a", logs("a", [TEN]))
    assert "nothing to replay" in done("replay", "raw", "--from", "2026-01-01", "--to", "2026-01-31", "--yes")
    assert "nothing to replay" in done("replay", "raw", *RANGE, "--signal", "traces", "--yes")
    assert list(instance.get_backfills()) == []
