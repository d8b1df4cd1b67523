"""What may happen to an ingest run, and must not cost a record, tell one twice, or stop the others."""

from __future__ import annotations

import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from math import inf
from typing import Any, cast

import pytest

from lakerunner_dagster.lake.bus import Bus
from lakerunner_dagster.lake.errors import (
    BucketMissing,
    BusUnavailable,
    LakeError,
    LeaseLost,
    StoreDenied,
    StoreUnavailable,
    WorkIncomplete,
)
from lakerunner_dagster.lake.lrdb import boxes, quarantine
from lakerunner_dagster.lake.model import HOUR_MS, RawState
from lakerunner_dagster.lake.runs import contents, transform
from lakerunner_dagster.lake.runs.context import Lake, Stores
from lakerunner_dagster.lake.runs.drain import drain
from lakerunner_dagster.lake.runs.leasing import Heartbeat
from lakerunner_dagster.lake.runs.report import Step
from lakerunner_dagster.lake.signals import SIGNALS, Signal
from lakerunner_dagster.lake.stages import ingest_stage
from lakerunner_dagster.lake.store import Store
from tests.lake.requests import expected, gauges, logs, minutes
from tests.lake.world import DAY, NOON_MS, World, denying
from tests.waiting import eventually

TEN = NOON_MS - 2 * HOUR_MS


def drained(world: World, lake: Lake | None = None, run_id: str = "run", seconds: float = inf) -> list[Step]:
    """The steps of a drain of the day."""
    steps: list[Step] = []
    drain(
        lake or world.lake,
        ingest_stage(Signal.LOGS),
        world.source,
        DAY,
        run_id=run_id,
        on_step=steps.append,
        seconds=seconds,
    )
    return steps


class StoresWith(Stores):
    """Buckets in which ``before`` is called with the name of each read and put, and may do anything."""

    def __init__(self, inner: Stores, before: Callable[[str, str], None]) -> None:
        self._inner = inner
        self._before = before

    def of(self, bucket: str) -> Store:
        inner, before = self._inner.of(bucket), self._before

        class Disturbed:
            def read(self, key: str, max_bytes: int) -> Any:
                before("read", key)
                return inner.read(key, max_bytes)

            def create(self, key: str, data: Any) -> bool:
                before("create", key)
                return inner.create(key, data)

        return cast("Store", Disturbed())


def disturbed(world: World, before: Callable[[str, str], None]) -> Lake:
    return replace(world.lake, stores=StoresWith(world.lake.stores, before))


def test_a_corrupt_and_a_missing_object_are_set_aside_alone(world: World) -> None:
    good = logs("good", minutes(TEN, 100))
    keys = [
        world.put(Signal.LOGS, name, data)
        for name, data in (
            ("good", good),
            ("truncated", good[:-20]),
            ("random", bytes(range(256)) * 20),
            ("empty", b""),
            ("gone", good),
            ("also-good", logs("also", [TEN])),
        )
    ]
    world.notify(*keys)
    (world.place.bucket / keys[4]).unlink()
    (step,) = world.ingest(Signal.LOGS)

    assert world.messages() == expected(good=100, also=1)
    assert world.objects() == {
        "good": RawState.INGESTED,
        "truncated": RawState.QUARANTINED,
        "random": RawState.QUARANTINED,
        "empty": RawState.QUARANTINED,
        "gone": RawState.MISSING,
        "also-good": RawState.INGESTED,
    }
    told = {aside.raw.key.rpartition("/")[2]: (aside.state, aside.error_class) for aside in step.set_aside}
    assert told == {
        "truncated": (RawState.QUARANTINED, "truncated_gzip"),
        "random": (RawState.QUARANTINED, "corrupt_protobuf"),
        "empty": (RawState.QUARANTINED, "empty_object"),
        "gone": (RawState.MISSING, "object_missing"),
    }
    kept = world.query("SELECT error_text FROM raw_objects WHERE state <> 'ingested' ORDER BY key")
    assert all("otel-raw" in text for (text,) in kept), "the error does not name its object"
    assert world.breaches() == []


def test_an_object_that_the_store_denies_is_set_aside_alone_and_comes_in_once_it_is_given(world: World) -> None:
    keys = [world.put(Signal.LOGS, name, logs(name, [TEN])) for name in ("a", "denied", "z")]
    world.notify(*keys)
    world.box(Signal.LOGS)
    with denying(keys[1]):
        (step,) = drained(world)
    assert [(aside.raw.key, aside.state, aside.error_class) for aside in step.set_aside] == [
        (keys[1], RawState.QUARANTINED, "object_denied")
    ]
    assert world.messages() == expected(a=1, z=1)
    assert world.breaches() == []
    with world.lake.lrdb.transaction() as conn:
        quarantine.retry(conn, [f"raw:{step.set_aside[0].raw.raw_object_id}"])
    world.ingest(Signal.LOGS)
    assert world.messages() == expected(a=1, denied=1, z=1)
    assert world.breaches() == []


def test_a_bucket_that_denies_every_object_sets_none_aside(world: World) -> None:
    gone = world.put(Signal.LOGS, "gone", logs("gone", [TEN]))
    keys = [world.put(Signal.LOGS, name, logs(name, [TEN])) for name in ("a", "z")]
    world.notify(gone, *keys)
    (world.place.bucket / gone).unlink()
    world.box(Signal.LOGS)
    with denying(*keys), pytest.raises(WorkIncomplete, match="StoreDenied"):
        drained(world)
    assert set(world.objects().values()) == {RawState.BOXED}
    drained(world)
    assert world.messages() == expected(a=1, z=1)
    assert world.breaches() == []


def test_a_bucket_that_is_not_there_sets_nothing_aside(world: World) -> None:
    world.notify(*(world.put(Signal.LOGS, name, logs(name, [TEN])) for name in ("a", "z")))
    world.box(Signal.LOGS)

    def not_there(operation: str, key: str) -> None:
        if operation == "read" and key.endswith("z"):
            raise BucketMissing("there is no such bucket")

    with pytest.raises(WorkIncomplete, match="BucketMissing"):
        drained(world, disturbed(world, not_there))
    assert set(world.objects().values()) == {RawState.BOXED}


def test_a_box_with_nothing_usable_in_it_is_done(world: World) -> None:
    world.send(Signal.LOGS, "broken", b"\x1f\x8b")
    (step,) = world.ingest(Signal.LOGS)
    assert (step.segments, step.objects, len(step.set_aside)) == ((), 0, 1)
    assert world.query("SELECT state FROM boxes") == [("done",)]
    assert world.breaches() == []


def test_records_of_other_hours_and_days_go_to_their_own_segments(world: World) -> None:
    midnight = NOON_MS - 12 * HOUR_MS
    world.send(Signal.LOGS, "a", logs("a", [midnight - 1, midnight, TEN, TEN + HOUR_MS]))
    (step,) = world.ingest(Signal.LOGS)
    assert step.days == (20260202, DAY)
    assert [(segment.dateint, segment.hour, segment.records) for segment in step.segments] == [
        (20260202, 23, 1),
        (DAY, 0, 1),
        (DAY, 10, 1),
        (DAY, 11, 1),
    ]
    assert {path.parts[-5:-1] for path in world.segment_files()} == {
        ("edge", str(segment.dateint), "logs", f"{segment.hour:02d}") for segment in step.segments
    }
    assert world.breaches() == []


def test_rejected_records_are_counted_by_reason_and_the_rest_is_kept(world: World) -> None:
    before_first_date = NOON_MS - 800 * 24 * HOUR_MS
    too_far_ahead = NOON_MS + 2 * HOUR_MS
    world.send(Signal.LOGS, "a", logs("a", [before_first_date, TEN, too_far_ahead, too_far_ahead]))
    (step,) = world.ingest(Signal.LOGS)
    assert step.rejected == {"time_before_first_date": 1, "time_ahead": 2}
    assert (step.records_read, step.records_written) == (4, 1)
    assert world.query("SELECT records_read, records_rejected, rejected FROM raw_objects") == [(4, 3, step.rejected)]
    assert world.query("SELECT records_read, records_written, records_rejected FROM ledger") == [(4, 1, 3)]


def test_a_box_larger_than_a_chunk_is_written_in_several_segments(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(contents, "CHUNK_BYTES", 3000)
    keys = [world.put(Signal.LOGS, f"f{number}", logs(f"f{number}", minutes(TEN, 30))) for number in range(6)]
    world.notify(*keys)
    (step,) = world.ingest(Signal.LOGS)
    assert len(step.segments) > 1
    assert world.messages() == expected(**{f"f{number}": 30 for number in range(6)})
    assert world.breaches() == []


@pytest.mark.parametrize("failure", [StoreUnavailable, StoreDenied])
def test_a_store_that_fails_gives_the_box_back_and_spares_the_boxes_behind_it(
    world: World, failure: type[LakeError]
) -> None:
    for name in ("a", "b", "c"):
        world.send(Signal.LOGS, name, logs(name, [TEN]))
        world.box(Signal.LOGS)
    failures = 2

    def fails(operation: str, key: str) -> None:
        nonlocal failures
        if operation == "create" and failures:
            failures -= 1
            raise failure(f"{key}: 503 Slow Down")

    lake = disturbed(world, fails)
    for _ in range(2):
        with pytest.raises(WorkIncomplete, match=rf"box 1: {failure.__name__}: .*503 Slow Down"):
            drained(world, lake)
    assert world.query("SELECT attempts, error_class FROM boxes ORDER BY box_id") == [
        (2, failure.__name__),
        (0, None),
        (0, None),
    ]
    drained(world, lake)
    assert world.messages() == expected(a=1, b=1, c=1)
    assert world.breaches() == []


def test_a_box_that_fails_by_itself_does_not_keep_the_others_from_being_done(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a", "poison", "c"):
        world.send(Signal.LOGS, name, logs(name, [TEN]))
        world.box(Signal.LOGS)
    decode = transform.decode  # type: ignore[attr-defined]

    def chokes(signal: Signal, payloads: Any, *arguments: Any) -> Any:
        if any("poison" in payload.key for payload in payloads):
            raise ZeroDivisionError("a fault of ours")
        return decode(signal, payloads, *arguments)

    monkeypatch.setattr(transform, "decode", chokes)
    waiting = replace(world.lake, settings=world.lake.settings.model_copy(update={"retry_backoff_seconds": 60.0}))
    steps: list[Step] = []
    with pytest.raises(WorkIncomplete, match=r"1 steps .*\n- box 2: ZeroDivisionError: a fault of ours"):
        drain(waiting, ingest_stage(Signal.LOGS), world.source, DAY, run_id="run", on_step=steps.append)
    assert [step.box_id for step in steps] == [1, 3]
    assert world.messages() == expected(a=1, c=1)
    assert drained(world) == [], "a box is claimed again before its back-off has passed"
    states = world.query("SELECT state, error_class, error_text FROM boxes WHERE box_id = 2")
    allowed = waiting.settings.box_attempts
    assert states == [("open", "ZeroDivisionError", f"attempt 1 of {allowed}: a fault of ours")]
    assert world.breaches() == []


def test_a_run_that_is_stopped_gives_its_box_back_at_once(world: World) -> None:
    world.send(Signal.LOGS, "a", logs("a", [TEN]))
    world.box(Signal.LOGS)

    def stop(_operation: str, _key: str) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        drained(world, disturbed(world, stop))
    drained(world)
    assert world.messages() == expected(a=1)


def test_a_stalled_run_whose_box_another_has_done_publishes_nothing(world: World) -> None:
    world.send(Signal.LOGS, "a", logs("a", [TEN, TEN + HOUR_MS]))
    world.box(Signal.LOGS)
    others: list[Step] = []

    def stall(operation: str, _key: str) -> None:
        if operation == "create" and not others:
            world.expire_leases()
            others.extend(drained(world, run_id="faster"))

    with pytest.raises(WorkIncomplete, match=LeaseLost.__name__):
        drained(world, disturbed(world, stall), run_id="stalled")
    assert len(others) == 1
    assert world.messages() == expected(a=2)
    assert world.query("SELECT run_id FROM ledger") == [("faster",)]
    assert world.breaches() == []


def test_a_run_notices_while_it_works_that_its_lease_was_lost(world: World) -> None:
    world.send(Signal.LOGS, "a", logs("a", [TEN]))
    world.box(Signal.LOGS)
    hasty = world.lake.settings.model_copy(update={"lease_seconds": 0.3})
    with world.lake.lrdb.transaction() as conn:
        box = boxes.claim(conn, "logs.ingest", world.source, DAY, run_id="slow", settings=hasty)
    assert box is not None
    with Heartbeat(world.lake.lrdb, box.lease, lease_seconds=0.3) as heartbeat:
        claimed = "SELECT lease_until > claimed_at + interval '0.4 s' FROM boxes"
        eventually(lambda: world.query(claimed) == [(True,)], "the lease is renewed")
        heartbeat.check()
        with world.lake.lrdb.transaction() as conn:
            conn.execute("UPDATE boxes SET lease_token = gen_random_uuid()")

        def lost() -> bool:
            try:
                heartbeat.check()
            except LeaseLost:
                return True
            return False

        eventually(lost, "the heartbeat says that the lease is lost")


def test_a_run_whose_time_is_over_leaves_the_other_boxes_to_one_that_is_dispatched_at_once(world: World) -> None:
    for name in ("a", "b", "c"):
        world.send(Signal.LOGS, name, logs(name, [TEN]))
        world.box(Signal.LOGS)
    assert len(world.dispatch(Signal.LOGS)) == 1
    world.query("UPDATE boxes SET dispatches = 9 RETURNING box_id")  # a backlog of many runs
    waiting: list[tuple[int, ...]] = []
    for number in range(3):
        assert len(drained(world, seconds=0.0)) == 1, f"run {number}"
        waiting += [dispatch.box_ids for dispatch in world.dispatch(Signal.LOGS)]
    assert waiting == [(2, 3), (3,)]
    assert world.messages() == expected(a=1, b=1, c=1)


def test_a_run_whose_time_is_over_in_an_outage_asks_for_no_other(world: World) -> None:
    for name in ("a", "b"):
        world.send(Signal.LOGS, name, logs(name, [TEN]))
        world.box(Signal.LOGS)
    assert len(world.dispatch(Signal.LOGS)) == 1
    world.query("UPDATE boxes SET dispatches = 9 RETURNING box_id")

    def away(_what: str, _key: str) -> None:
        raise StoreUnavailable("no answer")

    patient = replace(
        disturbed(world, away), settings=world.lake.settings.model_copy(update={"retry_backoff_seconds": 60.0})
    )
    with pytest.raises(WorkIncomplete):
        drained(world, patient, seconds=0.0)
    assert world.dispatch(Signal.LOGS) == [], "the boxes behind would spend their attempts, run by run"


def test_two_runs_that_drain_one_partition_at_once_share_its_boxes(world: World) -> None:
    names = [f"f{number}" for number in range(8)]
    for name in names:
        world.send(Signal.LOGS, name, logs(name, [TEN, TEN + HOUR_MS]))
        world.box(Signal.LOGS)
    second = world.place.open()
    try:
        with ThreadPoolExecutor(2) as pool:
            runs = [pool.submit(drained, world, lake) for lake in (world.lake, second)]
            done = [step.box_id for run in runs for step in run.result()]
    finally:
        second.close()
    assert sorted(box_id for box_id in done if box_id is not None) == list(range(1, 9))
    assert world.messages() == expected(**dict.fromkeys(names, 2))
    assert world.breaches() == []


def test_an_object_notified_without_its_etag_is_the_one_that_is_read(world: World) -> None:
    key = world.put(Signal.LOGS, "a", logs("a", [TEN]))
    world.intake.accept([world.event(key, etag="")], "test")
    world.ingest(Signal.LOGS)
    world.notify(key)
    world.intake.accept([world.event(key, etag="")], "test")
    world.ingest(Signal.LOGS)
    assert world.query("SELECT etag, state FROM raw_objects") == [(world.event(key).etag, "ingested")]
    assert world.messages() == expected(a=1)
    assert world.breaches() == []


def test_an_object_that_was_overwritten_before_it_was_read_is_ingested_as_it_is_now(world: World) -> None:
    world.send(Signal.LOGS, "a", logs("first", [TEN]))
    world.box(Signal.LOGS)
    world.put(Signal.LOGS, "a", logs("second", [TEN]))
    (step,) = world.drain(Signal.LOGS)
    assert [(aside.state, aside.error_class) for aside in step.set_aside] == [(RawState.MISSING, "overwritten")]
    world.ingest(Signal.LOGS)
    assert world.messages() == expected(second=1)
    assert world.breaches() == []


def heard(world: World, topic: str) -> list[dict[str, Any]]:
    """The bodies of a topic's messages."""
    consumer = world.lake.bus.consumer("test", [topic])
    consumer.assign({})
    try:
        return [json.loads(message.body) for message in consumer.poll(100, 5.0)]
    finally:
        consumer.close()


def test_compaction_and_rollup_hear_of_each_new_segment(world: World) -> None:
    world.send(Signal.METRICS, "m", gauges("queue.length", [TEN, TEN + 1000]))
    world.send(Signal.LOGS, "l", logs("l", [TEN]))
    (metrics,) = world.ingest(Signal.METRICS)
    (of_logs,) = world.ingest(Signal.LOGS)

    def common(step: Step) -> dict[str, Any]:
        (segment,) = step.segments
        return {
            "v": 1,
            "o": str(segment.organization_id),
            "d": DAY,
            "s": segment.segment_id,
            "i": 1,
            "rc": segment.record_count,
            "fs": segment.file_size,
        }

    (compact,) = heard(world, SIGNALS[Signal.METRICS].compaction_topic)
    (rollup,) = heard(world, "boxer.metrics.rollup")
    (logs_compact,) = heard(world, SIGNALS[Signal.LOGS].compaction_topic)
    queued = compact.pop("t")
    assert queued == rollup.pop("t")
    assert queued.endswith("Z")
    assert compact == common(metrics) | {"f": 10_000}
    assert rollup == common(metrics) | {"sf": 10_000, "tf": 60_000, "st": "2026-02-03T10:00:00.000Z"}
    del logs_compact["t"]
    assert logs_compact == common(of_logs) | {"st": TEN, "et": TEN + 1}


def test_a_run_is_done_though_kafka_is_away_and_its_messages_wait(world: World) -> None:
    world.send(Signal.LOGS, "a", logs("a", [TEN]))
    world.box(Signal.LOGS)

    class Away:
        def connect(self) -> None:
            """Nobody answers, and nobody is asked."""

        def produce(self, *_: Any) -> None:
            raise BusUnavailable("no broker answers")

    drained(world, replace(world.lake, bus=cast("Any", Away())))
    assert world.messages() == expected(a=1)
    assert world.query("SELECT topic FROM outbox") == [("boxer.logs.compact",)]
    world.box(Signal.LOGS)
    assert world.query("SELECT topic FROM outbox") == []


def test_a_run_connects_to_kafka_before_it_works_so_that_what_it_announces_need_not_wait(world: World) -> None:
    world.send(Signal.LOGS, "a", logs("a", [TEN]))
    world.box(Signal.LOGS)
    happened: list[str] = []

    class Told:
        """The bus, telling when it is used."""

        def connect(self) -> None:
            happened.append("connect")
            world.lake.bus.connect()

        def produce(self, *arguments: Any) -> None:
            happened.append("produce")
            world.lake.bus.produce(*arguments)

    lake = disturbed(world, lambda what, _key: happened.append(what))
    assert drained(world, replace(lake, bus=cast("Bus", Told())))
    assert happened == ["connect", "read", "create", "produce"]
