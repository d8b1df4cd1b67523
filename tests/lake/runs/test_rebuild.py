"""What a rebuild must never do: lose a record, tell one twice, or end differently the second time."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import date
from typing import Any, cast
from uuid import UUID

import pyarrow as pa
import pyarrow.compute as pc
import pytest

from lakerunner_dagster.lake.errors import SwapConflict, WorkIncomplete
from lakerunner_dagster.lake.model import HOUR_MS, RawState, day_start_ms
from lakerunner_dagster.lake.runs import hours, transform
from lakerunner_dagster.lake.runs.context import Lake, Stores
from lakerunner_dagster.lake.runs.rebuild import rebuild
from lakerunner_dagster.lake.runs.report import Step
from lakerunner_dagster.lake.settings import Limits
from lakerunner_dagster.lake.signals import Signal
from lakerunner_dagster.lake.store import Store
from lakerunner_dagster.lake.telemetry.decode import Decoded, decode
from lakerunner_dagster.lake.telemetry.raw import RawPayload
from tests.lake.requests import expected, gauges, logs, minutes
from tests.lake.world import DAY, NOON_MS, World, denying

TEN = NOON_MS - 2 * HOUR_MS
ELEVEN = NOON_MS - HOUR_MS


def rebuilt(world: World, *, dateint: int = DAY, signal: Signal = Signal.LOGS, lake: Lake | None = None) -> list[Step]:
    """The steps of a rebuild, boxes and hours."""
    steps: list[Step] = []
    rebuild(lake or world.lake, signal, world.source, dateint, run_id="rebuild", on_step=steps.append)
    return steps


def test_a_rebuild_changes_no_record_and_a_second_one_changes_nothing_at_all(world: World) -> None:
    for name, start in (("a", TEN), ("b", TEN + 40 * 60_000), ("c", ELEVEN)):
        world.send(Signal.LOGS, name, logs(name, minutes(start, 50)))
        world.ingest(Signal.LOGS)
    rows = sorted(world.select(Signal.LOGS, "chq_id, chq_tsns, log_message"))
    ingested = world.published(Signal.LOGS)

    first = rebuilt(world)
    once = world.published(Signal.LOGS)
    assert [step.hour for step in first] == [10, 11]
    assert sum(step.superseded for step in first) == len(ingested)
    assert all(
        step.records_read == step.records_written + step.elsewhere + sum(step.rejected.values()) for step in first
    )
    assert sorted(world.select(Signal.LOGS, "chq_id, chq_tsns, log_message")) == rows

    files = {path: path.read_bytes() for path in world.segment_files()}
    second = rebuilt(world)
    assert world.published(Signal.LOGS) == once
    assert {path: path.read_bytes() for path in world.segment_files()} == files
    assert [step.superseded for step in second] == [0, 0]
    assert world.breaches() == []


def test_metrics_rebuilt_from_several_boxes_count_the_same_points(world: World) -> None:
    for name in ("a", "b", "c"):
        world.send(Signal.METRICS, name, gauges("queue.length", [TEN + number * 1000 for number in range(60)]))
        world.ingest(Signal.METRICS)
    sums = "sum(chq_points)::bigint, sum(chq_rollup_count), sum(chq_rollup_sum)"
    before = world.select(Signal.METRICS, sums)
    rebuilt(world, signal=Signal.METRICS)
    assert len(world.published(Signal.METRICS)) == 1
    assert world.select(Signal.METRICS, sums) == before
    assert world.select(Signal.METRICS, "count(*)") == [(6,)]
    assert world.breaches() == []


def test_a_rebuild_finds_what_was_never_notified_and_tries_again_what_was_set_aside(world: World) -> None:
    world.send(Signal.LOGS, "known", logs("known", [TEN]))
    broken = world.send(Signal.LOGS, "broken", logs("broken", [TEN])[:-5])
    absent = world.put(Signal.LOGS, "absent", logs("absent", [TEN]))
    world.notify(absent)
    (world.place.bucket / absent).unlink()
    world.ingest(Signal.LOGS)
    assert world.objects() == {
        "known": RawState.INGESTED,
        "broken": RawState.QUARANTINED,
        "absent": RawState.MISSING,
    }

    world.put(Signal.LOGS, "absent", logs("absent", [TEN]))
    world.put(Signal.LOGS, "silent", logs("silent", [TEN, ELEVEN]))
    rebuilt(world)
    assert world.messages() == expected(known=1, absent=1, silent=2)
    assert world.objects()["broken"] is RawState.QUARANTINED

    world.put(Signal.LOGS, "broken", logs("broken", [TEN]))
    rebuilt(world)
    assert world.messages() == expected(known=1, absent=1, silent=2, broken=1)
    states = world.query("SELECT state, error_class FROM raw_objects WHERE key = %s ORDER BY raw_object_id", broken)
    assert states == [("missing", "overwritten"), ("ingested", None)]
    assert world.breaches() == []


def test_a_rebuild_takes_up_failed_boxes(world: World) -> None:
    world.send(Signal.LOGS, "a", logs("a", [TEN]))
    world.box(Signal.LOGS)
    bucket = world.place.bucket
    bucket.rename(bucket.with_name("unplugged"))
    for _ in range(world.lake.settings.box_attempts):
        with pytest.raises(WorkIncomplete):
            world.drain(Signal.LOGS)
    bucket.with_name("unplugged").rename(bucket)
    assert world.query("SELECT state FROM boxes") == [("failed",)]
    rebuilt(world)
    assert world.messages() == expected(a=1)
    assert world.breaches() == []


@pytest.mark.parametrize("loss", ["deleted", "overwritten"])
def test_an_hour_keeps_the_records_of_a_raw_object_that_cannot_be_read_any_more(world: World, loss: str) -> None:
    gone = world.send(Signal.LOGS, "gone", logs("gone", minutes(TEN, 3)))
    world.send(Signal.LOGS, "stays", logs("stays", [TEN, ELEVEN]))
    world.ingest(Signal.LOGS)
    before = world.published(Signal.LOGS)
    if loss == "deleted":
        (world.place.bucket / gone).unlink()
    else:
        world.put(Signal.LOGS, "gone", logs("other", [ELEVEN]))

    steps: list[Step] = []
    with pytest.raises(WorkIncomplete, match=rf"20260203 10h: ObjectMissing: .*{gone}"):
        rebuild(world.lake, Signal.LOGS, world.source, DAY, run_id="rebuild", on_step=steps.append)

    assert [step.hour for step in steps if step.hour is not None] == [11]
    assert set(world.published(Signal.LOGS)) & set(before)
    new = expected(other=1) if loss == "overwritten" else Counter[str]()
    assert world.messages() == expected(gone=3, stays=2) + new
    assert world.breaches() == []


def test_an_object_that_the_store_denies_keeps_no_other_hour_from_being_rebuilt(world: World) -> None:
    denied = world.send(Signal.LOGS, "denied", logs("denied", [TEN, day_start_ms(DAY - 1)]))
    world.send(Signal.LOGS, "stays", logs("stays", [TEN, ELEVEN]))
    world.ingest(Signal.LOGS)
    steps: list[Step] = []
    with denying(denied), pytest.raises(WorkIncomplete, match=f"20260203 10h: StoreDenied: {denied}"):
        rebuild(world.lake, Signal.LOGS, world.source, DAY, run_id="rebuild", on_step=steps.append)
    assert [step.hour for step in steps] == [11]
    assert world.messages() == expected(denied=2, stays=2)
    assert world.breaches() == []


def test_a_denied_object_of_which_records_were_rejected_is_named(world: World) -> None:
    denied = world.send(Signal.LOGS, "denied", logs("denied", [day_start_ms(20240229)]))
    world.send(Signal.LOGS, "stays", logs("stays", [TEN]))
    world.ingest(Signal.LOGS)
    steps: list[Step] = []
    with denying(denied), pytest.raises(WorkIncomplete, match=f"{denied}: StoreDenied: "):
        rebuild(world.lake, Signal.LOGS, world.source, DAY, run_id="rebuild", on_step=steps.append)
    assert [step.hour for step in steps] == [10]


def test_records_that_were_rejected_come_in_when_the_limits_let_them(world: World) -> None:
    long_ago = day_start_ms(20240229) + HOUR_MS
    world.send(Signal.LOGS, "old", logs("old", [long_ago, long_ago + HOUR_MS]))
    world.send(Signal.LOGS, "mixed", logs("mixed", [long_ago, TEN]))
    world.ingest(Signal.LOGS)
    assert world.messages() == Counter({"mixed 1": 1})

    wider = replace(world.lake, limits=Limits(LAKERUNNER_FIRST_DATE=date(2024, 1, 1)))  # type: ignore[call-arg]
    rebuilt(world, lake=wider)
    assert world.messages() == expected(old=2, mixed=2)
    assert world.query("SELECT sum(records_rejected)::int FROM raw_objects") == [(0,)]
    assert world.breaches() == []

    rebuilt(world)
    assert world.messages() == Counter({"mixed 1": 1})
    assert world.breaches() == []


def test_a_decoder_that_puts_records_into_other_hours_moves_them_whole(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    midnight = day_start_ms(DAY)
    world.send(Signal.LOGS, "a", logs("a", [midnight, TEN, ELEVEN]))
    world.send(Signal.LOGS, "b", logs("b", [TEN, TEN]))
    world.send(Signal.LOGS, "yesterday", logs("yesterday", [midnight - 1]))
    world.ingest(Signal.LOGS)

    def an_hour_earlier(signal: Signal, payloads: Sequence[RawPayload], organization: UUID, limits: Limits) -> Decoded:
        decoded = decode(signal, payloads, organization, limits)
        at = decoded.table.schema.get_field_index("chq_timestamp")
        earlier = pc.subtract(decoded.table.column(at), pa.scalar(HOUR_MS))
        return replace(decoded, table=decoded.table.set_column(at, "chq_timestamp", earlier))

    monkeypatch.setattr(transform, "decode", an_hour_earlier)
    rebuilt(world)
    at = {"a 0": midnight, "a 1": TEN, "a 2": ELEVEN, "b 0": TEN, "b 1": TEN, "yesterday 0": midnight - 1}
    seen = dict(world.select(Signal.LOGS, "log_message, chq_timestamp"))
    assert seen == {message: time - HOUR_MS for message, time in at.items()}
    assert world.breaches() == []
    moved = world.published(Signal.LOGS)
    rebuilt(world)
    assert world.published(Signal.LOGS) == moved


class Interrupted(Stores):
    """Buckets in which something happens just before a segment is written."""

    def __init__(self, inner: Stores, happens: Callable[[], None], times: int) -> None:
        self._inner = inner
        self._happens = happens
        self._left = times

    def of(self, bucket: str) -> Store:
        store = self._inner.of(bucket)
        outer = self

        class Writing:
            def __getattr__(self, name: str) -> Any:
                return getattr(store, name)

            def create(self, key: str, data: Any) -> bool:
                if outer._left:
                    outer._left -= 1
                    outer._happens()
                return store.create(key, data)

        return cast("Store", Writing())


def test_an_hour_into_which_others_publish_meanwhile_is_computed_again(world: World) -> None:
    world.send(Signal.LOGS, "a", logs("a", [TEN]))
    world.ingest(Signal.LOGS)

    def late() -> None:
        world.send(Signal.LOGS, "late", logs("late", [TEN]))
        world.ingest(Signal.LOGS)

    rebuilt(world, lake=replace(world.lake, stores=Interrupted(world.lake.stores, late, times=1)))
    assert world.messages() == expected(a=1, late=1)
    assert len(world.published(Signal.LOGS)) == 1
    assert world.breaches() == []


def test_an_hour_that_is_never_quiet_is_left_as_it_is(world: World) -> None:
    world.send(Signal.LOGS, "a", logs("a", [TEN]))
    world.ingest(Signal.LOGS)
    numbers = iter(range(100))

    def late() -> None:
        number = next(numbers)
        world.send(Signal.LOGS, f"late{number}", logs(f"late{number}", [TEN]))
        world.ingest(Signal.LOGS)

    busy = replace(world.lake, stores=Interrupted(world.lake.stores, late, times=100))
    with pytest.raises(WorkIncomplete, match=SwapConflict.__name__):
        rebuilt(world, lake=busy)
    assert world.messages() == expected(a=1, **{f"late{number}": 1 for number in range(hours.TRIES)})
    assert world.breaches() == []


def test_two_rebuilds_of_one_day_at_once_end_as_one(world: World) -> None:
    for name in ("a", "b"):
        world.send(Signal.LOGS, name, logs(name, [TEN, ELEVEN]))
        world.ingest(Signal.LOGS)
    with ThreadPoolExecutor(2) as pool:
        for done in [pool.submit(rebuilt, world) for _ in range(2)]:
            done.result()
    assert world.messages() == expected(a=2, b=2)
    assert len(world.published(Signal.LOGS)) == 2
    assert world.breaches() == []
