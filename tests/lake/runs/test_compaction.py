"""What compaction must never do: lose a record, tell one twice, forget an hour, or stop for one bad segment."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest

from lakerunner_dagster.lake.bus import Bus
from lakerunner_dagster.lake.errors import StoreUnavailable, SwapConflict, WorkIncomplete
from lakerunner_dagster.lake.lrdb import faults, lineage, merging
from lakerunner_dagster.lake.model import HOUR_MS
from lakerunner_dagster.lake.runs import compaction
from lakerunner_dagster.lake.runs.context import Lake, Stores
from lakerunner_dagster.lake.runs.drain import drain
from lakerunner_dagster.lake.runs.full_compaction import compact_day
from lakerunner_dagster.lake.runs.rebuild import rebuild
from lakerunner_dagster.lake.runs.report import Step
from lakerunner_dagster.lake.settings import CompactionPolicy
from lakerunner_dagster.lake.signals import Signal
from lakerunner_dagster.lake.stages import compaction_stage
from lakerunner_dagster.lake.store import Store
from lakerunner_dagster.lake.ticks.boxer import BoxerTick
from tests.lake.killing import kill_everywhere
from tests.lake.requests import expected, gauges, logs, minutes
from tests.lake.runs.test_killed_run import source_in
from tests.lake.world import DAY, NOON_MS, World, now_ms, soon

TEN = NOON_MS - 2 * HOUR_MS
ELEVEN = NOON_MS - HOUR_MS
LOGS = compaction_stage(Signal.LOGS)


def ingest(world: World, count: int, start_ms: int = TEN, prefix: str = "f") -> Counter[str]:
    """So many segments of ten records in an hour; their messages."""
    for number in range(count):
        name = f"{prefix}{number}"
        world.send(Signal.LOGS, name, logs(name, minutes(start_ms + number, 10)), event_time_ms=start_ms)
        world.ingest(Signal.LOGS)
    return expected(**{f"{prefix}{number}": 10 for number in range(count)})


def by_hand(world: World, signal: Signal = Signal.LOGS) -> list[Step]:
    steps: list[Step] = []
    compact_day(world.lake, signal, world.source, DAY, run_id="hand", on_step=steps.append)
    return steps


def rebuilt(world: World) -> None:
    rebuild(world.lake, Signal.LOGS, world.source, DAY, run_id="rebuild", on_step=lambda _: None)


def unsettled(world: World) -> list[tuple[Any, ...]]:
    return world.query("SELECT signal, frequency_ms, hour, box_id IS NULL FROM unsettled_hours ORDER BY 1, 2, 3")


def test_the_small_segments_of_a_cold_hour_become_one_and_the_hour_is_left(world: World) -> None:
    sent = ingest(world, 5) + ingest(world, 2, ELEVEN, "g")
    steps = world.compact(Signal.LOGS)
    assert [(step.hour, step.superseded, step.records_written) for step in steps] == [(10, 5, 50), (11, 2, 20)]
    assert len(world.published(Signal.LOGS)) == 2
    assert world.messages() == sent
    assert world.select(Signal.LOGS, "count(DISTINCT chq_id)") == [(70,)]
    assert world.query("SELECT compacted, created_by FROM log_seg WHERE published") == [(True, 2)] * 2
    assert world.breaches() == []

    assert world.compact(Signal.LOGS) == []
    assert unsettled(world) == []
    assert world.query("SELECT count(*) FROM boxes WHERE stage = 'logs.compact' AND state <> 'done'") == [(0,)]


def test_metrics_of_several_segments_count_the_same_points_in_fewer_rows(world: World) -> None:
    for name in ("a", "b", "c"):
        world.send(Signal.METRICS, name, gauges("queue.length", [TEN + number * 1000 for number in range(60)]))
        world.ingest(Signal.METRICS)
    sums = "sum(chq_points)::bigint, sum(chq_rollup_count), sum(chq_rollup_sum)"
    before = world.select(Signal.METRICS, sums)
    (step,) = world.compact(Signal.METRICS)
    assert (step.records_read, step.records_written, step.superseded) == (180, 180, 3)
    assert world.select(Signal.METRICS, sums) == before
    assert world.select(Signal.METRICS, "count(*)") == [(6,)]
    assert world.breaches() == []


def test_a_straggler_in_a_settled_hour_is_found_again(world: World) -> None:
    sent = ingest(world, 3)
    world.compact(Signal.LOGS)
    world.compact(Signal.LOGS)
    assert unsettled(world) == []
    sent += ingest(world, 1, TEN, "late")
    (step,) = world.compact(Signal.LOGS)
    assert (step.superseded, step.records_written) == (2, 40)
    assert world.messages() == sent
    assert world.breaches() == []


def test_compaction_needs_no_message_at_all(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lakerunner_dagster.lake.bus.REQUEST_SECONDS", 0.5)
    sent = ingest(world, 4)
    away = replace(world.lake, bus=Bus("127.0.0.1:1", prefix=world.place.prefix))
    assert BoxerTick(away, LOGS).run(now_ms(), soon()).boxes == 1
    world.drain_stage(LOGS)
    assert len(world.published(Signal.LOGS)) == 1
    assert world.messages() == sent


def test_raw_objects_are_found_from_merged_segments_and_the_other_way_round(world: World) -> None:
    ingest(world, 3)
    world.compact(Signal.LOGS)
    with world.lake.lrdb.connection() as conn:
        (_, merged, _) = world.published(Signal.LOGS)[0]
        links = lineage.raw_of_segment(conn, merged)
        assert {link.known.raw.key.rpartition("/")[2] for link in links} == {"f0", "f1", "f2"}
        forward = lineage.segments_of_raw(conn, links[0].known.raw.key)
    assert [link.segment.published for link in forward].count(True) == 1


def test_a_day_is_rebuilt_from_compacted_segments_with_the_same_result_each_time(world: World) -> None:
    sent = ingest(world, 3)
    rebuilt(world)
    first = world.published(Signal.LOGS)
    world.compact(Signal.LOGS)
    sent += ingest(world, 1, TEN, "late")
    world.compact(Signal.LOGS)
    compacted = world.published(Signal.LOGS)
    rebuilt(world)
    once = world.published(Signal.LOGS)
    rebuilt(world)
    assert world.published(Signal.LOGS) == once != first
    assert world.messages() == sent
    by_hand(world)
    assert [records for *_, records in world.published(Signal.LOGS)] == [40]
    assert len(compacted) == 1
    assert world.breaches() == []


def test_compacting_a_day_by_hand_twice_changes_nothing_the_second_time(world: World) -> None:
    sent = ingest(world, 4) + ingest(world, 3, ELEVEN, "g")
    assert len(by_hand(world)) == 2
    published = world.published(Signal.LOGS)
    files = {path: path.read_bytes() for path in world.segment_files()}
    assert by_hand(world) == []
    assert world.published(Signal.LOGS) == published
    assert {path: path.read_bytes() for path in world.segment_files()} == files
    assert world.messages() == sent


def test_two_that_merge_one_hour_leave_one_copy(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    sent = ingest(world, 4)
    meanwhile(monkeypatch, lambda: by_hand(world))
    world.compact(Signal.LOGS)
    assert len(world.published(Signal.LOGS)) == 1
    assert world.messages() == sent
    assert world.breaches() == []


def test_a_rebuild_during_a_merge_loses_and_doubles_nothing(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    sent = ingest(world, 4)
    meanwhile(monkeypatch, lambda: rebuilt(world))
    world.compact(Signal.LOGS)
    assert world.messages() == sent
    assert world.breaches() == []
    assert world.query("SELECT state, attempts FROM boxes WHERE stage = 'logs.compact'") == [("done", 1)]


def test_what_is_ingested_during_a_merge_stays_and_its_hour_is_looked_at_again(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent = ingest(world, 4)
    late: Counter[str] = Counter()
    meanwhile(monkeypatch, lambda: late.update(ingest(world, 1, TEN, "late")))
    world.compact(Signal.LOGS)
    world.compact(Signal.LOGS)
    assert world.messages() == sent + late
    assert len(world.published(Signal.LOGS)) == 1
    assert world.breaches() == []


def meanwhile(monkeypatch: pytest.MonkeyPatch, does: Callable[[], object]) -> None:
    """Let something else happen once, between a merge's upload and its swap."""
    done: list[bool] = []
    written = compaction._written

    def wrote(*arguments: Any) -> Any:
        outputs = written(*arguments)
        if not done:
            done.append(True)
            does()
        return outputs

    monkeypatch.setattr(compaction, "_written", wrote)


def test_others_that_never_stop_replacing_the_inputs_end_the_attempt_and_lose_nothing(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent = ingest(world, 3)

    def refused(*_: Any, **__: Any) -> Any:
        raise SwapConflict("another was faster")

    with monkeypatch.context() as patched:
        patched.setattr(merging, "publish_merge", refused)
        world.box_stage(LOGS)
        patient = replace(world.lake, settings=world.lake.settings.model_copy(update={"retry_backoff_seconds": 3600.0}))
        with pytest.raises(WorkIncomplete, match="another was faster"):
            drain(patient, LOGS, world.source, DAY, run_id="run", on_step=lambda _: None)
    assert world.messages() == sent
    world.query("UPDATE boxes SET next_attempt_at = now() RETURNING box_id")
    world.drain_stage(LOGS)
    assert len(world.published(Signal.LOGS)) == 1


@pytest.mark.parametrize("ill", ["gone", "truncated", "of another segment"])
def test_one_bad_segment_is_set_aside_and_the_others_are_merged(world: World, ill: str) -> None:
    ingest(world, 4)
    bad, other = (segment_id for _, segment_id, _ in world.published(Signal.LOGS)[:2])
    path, beside = (_file(world, segment_id) for segment_id in (bad, other))
    data = path.read_bytes()
    if ill == "gone":
        path.unlink()
    else:
        path.write_bytes(data[: len(data) // 2] if ill == "truncated" else beside.read_bytes())

    (step,) = world.compact(Signal.LOGS)
    assert step.superseded == 3
    with world.lake.lrdb.connection() as conn:
        (fault,) = faults.faults(conn, world.source.organization_id)
    assert fault.segment_id == bad
    assert world.compact(Signal.LOGS) == [], "a segment that was set aside is tried again at once"
    assert [hour for _, _, hour, _ in unsettled(world)] == [10], "the hour is forgotten, and the segment with it"

    path.write_bytes(data)
    (step,) = by_hand(world)
    assert step.superseded == 2
    assert len(world.published(Signal.LOGS)) == 1
    assert sum(world.messages().values()) == 40
    assert world.query("SELECT count(*) FROM segment_faults") == [(0,)]
    assert world.breaches() == []


def test_a_bad_segment_is_mended_by_a_rebuild_of_its_day(world: World) -> None:
    sent = ingest(world, 3)
    _file(world, world.published(Signal.LOGS)[0][1]).unlink()
    world.compact(Signal.LOGS)
    rebuilt(world)
    assert world.messages() == sent
    world.compact(Signal.LOGS)
    assert unsettled(world) == []
    assert world.breaches() == []


def _file(world: World, segment_id: int) -> Path:
    (path,) = world.place.bucket.glob(f"db/**/tbl_{segment_id}.parquet")
    return path


def test_a_store_that_is_away_costs_no_segment_and_the_box_waits(world: World) -> None:
    sent = ingest(world, 3)
    world.box_stage(LOGS)
    away = replace(world.lake, stores=cast("Stores", _AwayStores()))
    with pytest.raises(WorkIncomplete, match="StoreUnavailable"):
        drain(away, LOGS, world.source, DAY, run_id="run", on_step=lambda _: None)
    assert world.query("SELECT count(*) FROM segment_faults") == [(0,)]
    assert world.query("SELECT state, attempts FROM boxes WHERE stage = 'logs.compact'") == [("open", 1)]
    world.drain_stage(LOGS)
    assert world.messages() == sent


class _AwayStore:
    def download(self, key: str, path: Path) -> None:
        raise StoreUnavailable(f"{key} for {path} does not come")


class _AwayStores:
    def of(self, bucket: str) -> Store:
        assert bucket
        return cast("Store", _AwayStore())


def test_a_hot_hour_is_merged_only_when_a_tier_is_crowded(world: World) -> None:
    hot = replace(world.lake, compaction=CompactionPolicy(fanout=4, cold_seconds=1e9, gather_seconds=0.0))
    sent = ingest(world, 3)
    assert BoxerTick(hot, LOGS).run(now_ms(), soon()).boxes == 0
    sent += ingest(world, 1, TEN, "more")
    assert BoxerTick(hot, LOGS).run(now_ms(), soon()).boxes == 1
    drain(hot, LOGS, world.source, DAY, run_id="run", on_step=lambda _: None)
    assert len(world.published(Signal.LOGS)) == 1
    assert world.messages() == sent


HOURS = 14
"""Hours that are made ready: more than a run has boundaries, each of which is tried in an hour of its own."""


def compact_number(lake: Lake, number: int) -> None:
    """Claim boxes until one is that of the hour; the hours come in order, one at a time."""
    drain(lake, LOGS, source_in(lake), DAY, run_id=f"killed-{number}", on_step=lambda _: None)


def test_a_compaction_killed_at_each_boundary_and_run_again_leaves_one_copy(world: World) -> None:
    midnight = NOON_MS - 12 * HOUR_MS
    sent: Counter[str] = Counter()
    for hour in range(HOURS):
        sent += ingest(world, 2, midnight + hour * HOUR_MS, f"h{hour}-")
    world.box_stage(LOGS)

    boundaries = kill_everywhere(world.place, compact_number)

    assert {
        "after a download",
        "after an upload",
        "before a commit",
        "after a commit",
        "before messages are sent",
        "after messages are sent",
    } <= set(boundaries)
    world.expire_leases()
    world.drain_stage(LOGS)
    world.compact(Signal.LOGS)
    assert world.messages() == sent
    assert len(world.published(Signal.LOGS)) == HOURS
    assert world.query("SELECT count(*) FROM outbox") == [(0,)]
    assert unsettled(world) == []
    assert world.breaches() == []


def _tick(lake: Lake, _: int) -> None:
    BoxerTick(lake, LOGS).run(now_ms(), soon())


def test_a_boxer_killed_at_each_boundary_boxes_each_hour_once(world: World) -> None:
    sent = ingest(world, 2) + ingest(world, 2, ELEVEN, "g")
    boundaries = kill_everywhere(world.place, _tick)
    assert "before a commit" in boundaries
    world.compact(Signal.LOGS)
    assert world.query("SELECT count(*) FROM boxes WHERE stage = 'logs.compact'") == [(2,)]
    assert world.messages() == sent
