"""What would break if a replay overlooked an object, promised one that no rebuild finds, or wrote anything."""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import replace
from pathlib import Path
from uuid import uuid4

import pytest

from lakerunner_dagster.lake.errors import InputError, StoreUnavailable
from lakerunner_dagster.lake.lrdb import backfill, profiles
from lakerunner_dagster.lake.lrdb.backfill import DayWork, Span, Target
from lakerunner_dagster.lake.model import HOUR_MS, dateint_of
from lakerunner_dagster.lake.runs import raw_replay
from lakerunner_dagster.lake.runs.raw_replay import (
    Collector,
    ReplayPlan,
    Scope,
    notify_elsewhere,
    plan_replay,
    register,
)
from lakerunner_dagster.lake.runs.rebuild import rebuild
from lakerunner_dagster.lake.signals import Signal
from lakerunner_dagster.lake.stages import ingest_stage
from lakerunner_dagster.lake.store import BucketConfiguration
from tests.lake.maintenance.turns import old_object, turn
from tests.lake.requests import expected, gauges, logs
from tests.lake.world import BUCKET, COLLECTOR, DAY, NOON_MS, ORGANIZATION, World, now_ms

DAY_MS = 24 * HOUR_MS
SPAN = Span(DAY - 1, DAY)
ALL = Scope(SPAN, list(Signal))
EDGE = f"otel-raw/{ORGANIZATION}/{COLLECTOR}"


def told(plan: ReplayPlan) -> list[tuple[str, str, int, int, int]]:
    """Source, signal, day, and how many objects are known and found."""
    return [(one.source_key, one.day.signal, one.day.dateint, one.work.known, one.work.found) for one in plan.days]


def second_bucket(world: World, name: str = "second") -> Path:
    directory = world.place.bucket.with_name(name)
    directory.mkdir()
    with world.lake.lrdb.transaction() as conn:
        profiles.put_bucket(conn, BucketConfiguration(name, "file", endpoint=str(directory)))
    return directory


def test_what_lrdb_knows_and_what_it_does_not_are_told_apart_day_by_day(world: World) -> None:
    world.send(Signal.LOGS, "known", logs("known", [NOON_MS]))
    world.send(Signal.LOGS, "broken", b"x")
    world.ingest(Signal.LOGS)
    world.put(Signal.LOGS, "silent", logs("silent", [NOON_MS]))
    old_object(world, f"{EDGE}/metrics/m", gauges("g", [NOON_MS]), NOON_MS - DAY_MS)
    old_object(world, f"{EDGE}/logs/before", b"x", NOON_MS - 2 * DAY_MS)
    old_object(world, f"{EDGE}/logs/after", b"x", NOON_MS + DAY_MS)
    old_object(world, f"{EDGE}/logs/.partial", b"x")
    plan = plan_replay(world.lake, ALL)
    assert told(plan) == [("acme/edge", "logs", DAY, 2, 1), ("acme/edge", "metrics", DAY - 1, 0, 1)]
    assert [list(one.tiers) for one in plan.days] == [[], ["1m", "5m", "20m", "1h"]]
    assert (plan.days[0].seen.segments, plan.days[0].seen.records) == (1, 1)
    assert (plan.unregistered, plan.left_out) == ({}, Counter())


@pytest.mark.parametrize("name", ["found", ".partial"])
def test_a_rebuild_finds_what_the_plan_has_found_and_no_more(world: World, name: str) -> None:
    old_object(world, f"{EDGE}/logs/{name}", logs("found", [NOON_MS]))
    planned = sum(one.work.found for one in plan_replay(world.lake, ALL).days)
    rebuild(world.lake, Signal.LOGS, world.source, DAY, run_id="rebuild", on_step=lambda _step: None)
    assert sum(world.messages().values()) == planned


def test_a_day_is_that_of_the_event_and_not_of_the_file(world: World) -> None:
    key = world.send(Signal.LOGS, "a", logs("a", [NOON_MS]))
    world.ingest(Signal.LOGS)
    os.utime(world.place.bucket / key, (now_ms() / 1000, now_ms() / 1000))
    today = dateint_of(now_ms())
    assert told(plan_replay(world.lake, ALL)) == [("acme/edge", "logs", DAY, 1, 0)]
    assert told(plan_replay(world.lake, Scope(Span(today, today), list(Signal)))) == []
    assert [one.missing for one in plan_replay(world.lake, ALL).days] == [()]


def test_what_was_overwritten_is_missing_and_what_is_there_instead_is_found(world: World) -> None:
    key = world.send(Signal.LOGS, "a", logs("a", [NOON_MS]))
    world.send(Signal.LOGS, "b", logs("b", [NOON_MS]))
    world.ingest(Signal.LOGS)
    world.put(Signal.LOGS, "a", logs("other", [NOON_MS]))
    plan = plan_replay(world.lake, ALL)
    assert told(plan) == [("acme/edge", "logs", DAY, 2, 1)]
    assert [raw.key for raw in plan.days[0].missing] == [key]


def test_what_another_system_sent_by_number_alone_is_not_taken_for_missing(world: World) -> None:
    world.send(Signal.LOGS, "a", logs("a", [NOON_MS]))
    world.ingest(Signal.LOGS)
    (world.place.bucket / f"{EDGE}/logs/a").rename(old_object(world, "anywhere/a"))
    with world.lake.lrdb.transaction() as conn:
        conn.execute("UPDATE raw_objects SET key = 'anywhere/a'")
    (only,) = plan_replay(world.lake, ALL).days
    assert (only.work.known, only.work.unsighted, list(only.missing)) == (1, 1, [])


def test_only_the_sources_and_signals_that_are_asked_for_are_planned(world: World) -> None:
    for collector in (COLLECTOR, "core"):
        for signal in (Signal.LOGS, Signal.TRACES):
            old_object(world, f"otel-raw/{ORGANIZATION}/{collector}/{signal}/a")
    scope = Scope(SPAN, [Signal.TRACES], [Collector(ORGANIZATION, "core")])
    plan = plan_replay(world.lake, scope)
    assert told(plan) == [("acme/core", "traces", DAY, 0, 1)]
    assert plan.unregistered == {Collector(ORGANIZATION, "core"): BUCKET}
    with world.lake.lrdb.connection() as conn:
        assert [source.collector for source in profiles.sources(conn)] == [COLLECTOR]
    register(world.lake, plan.unregistered)
    assert plan_replay(world.lake, scope).unregistered == {}


def test_what_leads_nowhere_or_has_expired_is_left_out_and_counted(world: World) -> None:
    old_object(world, f"otel-raw/{uuid4()}/edge/logs/a")
    old_object(world, f"{EDGE}/notes.txt")
    old_object(world, f"{EDGE}/logs/a", b"x", NOON_MS - 3000 * DAY_MS)
    world.put(Signal.LOGS, "a", b"x")
    with world.lake.lrdb.transaction() as conn:
        profiles.set_retention(conn, ORGANIZATION, Signal.LOGS, 1)
    plan = plan_replay(world.lake, ALL)
    assert told(plan) == []
    assert plan.left_out == {
        "objects that lead nowhere (unknown_organization)": 1,
        "objects that lead nowhere (no_signal)": 1,
        "days past their retention": 1,
    }
    long_ago = dateint_of(NOON_MS - 3000 * DAY_MS)
    old_object(world, f"{EDGE}/traces/a", b"x", NOON_MS - 3000 * DAY_MS)
    before = plan_replay(world.lake, Scope(Span(long_ago, long_ago), [Signal.TRACES]))
    assert before.left_out == {"days before the first of the lake, or to come": 1}


def test_a_day_that_a_wrong_rule_took_is_planned_once_the_rule_is_lifted(world: World) -> None:
    key = world.send(Signal.LOGS, "a", logs("a", [NOON_MS]))
    world.ingest(Signal.LOGS)
    for days in (1, 0):
        with world.lake.lrdb.transaction() as conn:
            profiles.set_retention(conn, ORGANIZATION, Signal.LOGS, days)
        turn(world.lake, "retention")
    assert world.messages() == expected()
    (day,) = plan_replay(world.lake, ALL).days
    size = len((world.place.bucket / key).read_bytes())
    assert (day.work.known, day.work.bytes, day.seen.segments) == (1, size, 0)
    with world.lake.lrdb.connection() as conn:
        target = Target(ingest_stage(Signal.LOGS), ingest_stage(Signal.LOGS).assets[0], world.source)
        assert backfill.work(conn, target, SPAN, now_ms()) == [DayWork(DAY, 1, size)]
    rebuild(world.lake, Signal.LOGS, world.source, DAY, run_id="replay", on_step=lambda _: None)
    assert world.messages() == expected(a=1)
    assert world.breaches() == []


def test_objects_of_a_source_in_another_bucket_come_through_the_front_door(world: World) -> None:
    directory = second_bucket(world)
    world.put(Signal.LOGS, "home", logs("home", [NOON_MS]))
    path = directory / f"{EDGE}/logs/away"
    path.parent.mkdir(parents=True)
    path.write_bytes(logs("away", [NOON_MS]))
    os.utime(path, (NOON_MS / 1000, NOON_MS / 1000))
    (only,) = plan_replay(world.lake, ALL).days
    assert (only.work.found, only.work.elsewhere) == (1, 1)
    rebuild(world.lake, Signal.LOGS, world.source, DAY, run_id="rebuild", on_step=lambda _step: None)
    assert world.messages() == expected(home=1)
    assert notify_elsewhere(world.lake, ALL) == 1
    world.ingest(Signal.LOGS)
    assert world.messages() == expected(home=1, away=1)
    assert notify_elsewhere(world.lake, ALL) == 0
    assert world.breaches() == []


def test_a_bucket_that_cannot_be_read_ends_the_plan_instead_of_being_passed_over(world: World) -> None:
    second_bucket(world).rmdir()
    with pytest.raises(StoreUnavailable):
        plan_replay(world.lake, ALL)


def test_one_collector_too_many_is_foreseen(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(raw_replay, "BATCH", 1)
    for number in range(10):
        old_object(world, f"otel-raw/{ORGANIZATION}/c{number}/logs/a")
    small = replace(world.lake, settings=world.lake.settings.model_copy(update={"sources_per_organization": 5}))
    plan = plan_replay(small, ALL)
    assert (len(plan.days), plan.left_out.total()) == (4, 6)
    register(small, plan.unregistered)
    with pytest.raises(InputError):
        register(small, {Collector(ORGANIZATION, "c9"): BUCKET})
