"""A tick that listens looks when there is something to see: when a message comes, and when time brings it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from math import inf
from typing import Any

import pytest

from lakerunner_dagster.lake.lrdb.connection import Conn
from lakerunner_dagster.lake.settings import BoxPolicy
from lakerunner_dagster.lake.signals import Signal
from lakerunner_dagster.lake.stages import ingest_stage
from lakerunner_dagster.lake.ticks.boxer import BoxerTick
from lakerunner_dagster.lake.ticks.dispatcher import BLOCKED_SECONDS, DispatcherTick
from lakerunner_dagster.lake.ticks.listening import FIRST_SECONDS, LOOK_SECONDS, NEXT_SECONDS, Listener
from tests.lake.requests import logs
from tests.lake.world import DAY, NOON_MS, World, now_ms, soon

DAWN = 1000.0
"""When the tests' clock begins: a time of ``time.monotonic()``."""


class Silence:
    """Kafka, and a clock that only its polls move: nothing comes, but for messages at these times."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, world: World, *messages_at: float) -> None:
        self.now = DAWN
        self.waits: list[float] = []
        self._messages_at = list(messages_at)
        self.listener = Listener(world.lake, "nobody", "nothing")
        monkeypatch.setattr("lakerunner_dagster.lake.ticks.listening.time.monotonic", lambda: self.now)
        monkeypatch.setattr(self.listener, "_receive", self._receive)

    def _receive(self, timeout_seconds: float) -> list[Any]:
        self.waits.append(round(timeout_seconds, 6))
        end = self.now + timeout_seconds
        if self._messages_at and self._messages_at[0] <= end:
            self.now = self._messages_at.pop(0)
            return ["a message"]
        self.now = end
        return []


def test_an_empty_tick_looks_at_its_beginning_now_and_then_and_at_its_end(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    silence = Silence(monkeypatch, world)
    batches = list(silence.listener.batches(DAWN + 60.0, 12.0))
    assert batches == [[]] * 4
    assert silence.waits == [FIRST_SECONDS, LOOK_SECONDS, LOOK_SECONDS, 12.0 - FIRST_SECONDS - 2 * LOOK_SECONDS]


def test_no_tick_listens_beyond_its_deadline(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    silence = Silence(monkeypatch, world)
    list(silence.listener.batches(DAWN + 3.0, 12.0))
    assert silence.now == DAWN + 3.0


def test_what_time_brings_is_looked_for_when_it_is_due(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    silence = Silence(monkeypatch, world, DAWN + 2.0)
    due = [inf]
    looked_at = []
    for received in silence.listener.batches(DAWN + 60.0, 12.0, lambda: due[-1] - silence.now):
        looked_at.append(silence.now - DAWN)
        if received:
            due.append(silence.now + 3.0)
        elif silence.now >= due[-1]:
            due.append(inf)
    assert looked_at == pytest.approx([0.25, 2.0, 2.0 + NEXT_SECONDS, 5.0, 10.0, 12.0])


class Heard:
    """In place of a listener: empty batches; what its tick says of what is due stands in ``due`` after each."""

    trouble = None

    def __init__(self) -> None:
        self.due: list[float] = []

    def batches(self, _deadline: float, _listen_seconds: float, until_due: Any) -> Iterator[list[Any]]:
        for _ in range(3):
            yield []
            self.due.append(until_due())

    def record(self, conn: Conn) -> None:
        """Nothing was received."""

    def commit(self) -> None:
        """Nothing was received."""


def test_a_boxer_says_when_its_next_box_comes_of_age(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.notify(world.put(Signal.LOGS, "a", logs("a", [NOON_MS])))
    lake = replace(world.lake, policy=BoxPolicy(age_seconds=1000.0))
    boxer, heard = BoxerTick(lake, ingest_stage(Signal.LOGS)), Heard()
    assert boxer.run(now_ms(), soon()).new == 1
    monkeypatch.setattr(boxer, "_listener", heard)
    boxer.run(now_ms(), soon())
    assert all(0 < due <= 1000.0 for due in heard.due)
    later = now_ms() + 1_000_000
    assert boxer.run(later, soon()).boxes == 1
    assert heard.due[-3:] == [inf] * 3


def test_a_partition_whose_run_ends_is_dispatched_by_the_tick_that_waited_for_it(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.send(Signal.LOGS, "a", logs("a", [NOON_MS]))
    world.box(Signal.LOGS)
    looks = iter([["acme/edge"], ["acme/edge"], []])
    dispatcher, heard = DispatcherTick(world.lake, ingest_stage(Signal.LOGS)), Heard()
    monkeypatch.setattr(dispatcher, "_listener", heard)
    (dispatch,) = dispatcher.run(lambda: next(looks), 4, now_ms(), soon())
    assert (dispatch.source.key, dispatch.dateint) == ("acme/edge", DAY)
    assert heard.due == [BLOCKED_SECONDS] * 2


def test_dagster_is_not_asked_for_runs_where_nothing_waits(world: World) -> None:
    def unasked() -> list[str]:
        raise AssertionError("a look costs Dagster a query")

    assert DispatcherTick(world.lake, ingest_stage(Signal.LOGS)).run(unasked, 4, now_ms(), soon()) == []
