"""What would break if a segment's object were replaced under its readers, or a leftover stood in the way of a run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from lakerunner_dagster.lake.errors import StoreUnavailable, WorkIncomplete
from lakerunner_dagster.lake.lrdb import faults, publish, segments
from lakerunner_dagster.lake.runs import attempt, hours
from lakerunner_dagster.lake.runs.full_rollup import roll_up_day
from lakerunner_dagster.lake.runs.rebuild import rebuild
from lakerunner_dagster.lake.runs.transform import build_segment
from lakerunner_dagster.lake.segments.build import Built
from lakerunner_dagster.lake.signals import Signal
from lakerunner_dagster.lake.tiers import TIERS
from tests.lake.requests import expected, gauges, logs
from tests.lake.world import DAY, NOON_MS, World


def files(world: World) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in world.segment_files()}


def in_other_bytes(*arguments: Any) -> Built:
    """A segment as another version of a library might write it."""
    built = build_segment(*arguments)
    return replace(built, data=pa.py_buffer(built.data.to_pybytes() + b"PAR1"))


def test_a_rebuild_by_another_library_leaves_the_bytes_that_readers_see(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.send(Signal.LOGS, "a", logs("a", [NOON_MS] * 5))
    world.ingest(Signal.LOGS)
    rebuild(world.lake, Signal.LOGS, world.source, DAY, run_id="first", on_step=lambda _: None)
    before = files(world)
    monkeypatch.setattr(hours, "build_segment", in_other_bytes)
    rebuild(world.lake, Signal.LOGS, world.source, DAY, run_id="second", on_step=lambda _: None)
    assert files(world) == before
    assert world.messages() == expected(a=5)
    assert world.breaches() == []


def rotten(data: bytes) -> bytes:
    """A file with a flipped bit in its first page: its size and its footer are as they were."""
    at = data.index(b"\x28\xb5\x2f\xfd") + 8  # behind the magic number of its Zstandard frame
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


@pytest.mark.parametrize("spoilt", [rotten, lambda data: data[: len(data) // 2], lambda _: b""])
def test_a_corrupt_object_is_written_anew_by_a_rebuild_that_computes_its_id_again(
    world: World, spoilt: Callable[[bytes], bytes]
) -> None:
    world.send(Signal.LOGS, "a", logs("a", [NOON_MS] * 5))
    world.ingest(Signal.LOGS)
    rebuild(world.lake, Signal.LOGS, world.source, DAY, run_id="first", on_step=lambda _: None)
    (published,) = world.published(Signal.LOGS)
    (path,) = (path for path in world.segment_files() if path.stem == f"tbl_{published[1]}")
    before = path.read_bytes()
    path.write_bytes(spoilt(before))
    rebuild(world.lake, Signal.LOGS, world.source, DAY, run_id="mending", on_step=lambda _: None)
    assert path.read_bytes() == before
    assert world.published(Signal.LOGS) == [published]
    assert world.query("SELECT file_size::int FROM log_seg WHERE published") == [(len(before),)]
    assert world.messages() == expected(a=5)
    assert world.breaches() == []


def test_what_was_set_aside_is_written_anew_before_it_is_forgotten(world: World) -> None:
    world.send(Signal.LOGS, "a", logs("a", [NOON_MS] * 5))
    world.ingest(Signal.LOGS)
    rebuild(world.lake, Signal.LOGS, world.source, DAY, run_id="first", on_step=lambda _: None)
    ((_, segment_id, _),) = world.published(Signal.LOGS)
    (path,) = (path for path in world.segment_files() if path.stem == f"tbl_{segment_id}")
    before = path.read_bytes()
    path.write_bytes(before + b"PAR1")  # nothing that reading it would tell
    with world.lake.lrdb.transaction() as conn:
        (segment,) = segments.published_segments(conn, world.source, Signal.LOGS, DAY, frequency_ms=0)
        faults.mark(conn, segment, "other_times", "it was found so", 600.0)
    rebuild(world.lake, Signal.LOGS, world.source, DAY, run_id="second", on_step=lambda _: None)
    assert path.read_bytes() == before
    assert world.query("SELECT count(*) FROM segment_faults") == [(0,)]


def test_a_corrupt_segment_of_a_tier_is_mended_by_computing_its_day_anew(world: World) -> None:
    world.send(Signal.METRICS, "m", gauges("queue.length", [NOON_MS]))
    world.ingest(Signal.METRICS)
    world.roll_up()
    roll_up_day(world.lake, TIERS[60_000], world.source, DAY, run_id="first", on_step=lambda _: None)
    ((_, segment_id, _),) = world.published(Signal.METRICS, 60_000)
    (path,) = (path for path in world.segment_files() if path.stem == f"tbl_{segment_id}")
    path.write_bytes(path.read_bytes()[:-100])
    roll_up_day(world.lake, TIERS[60_000], world.source, DAY, run_id="mending", on_step=lambda _: None)
    assert world.select(Signal.METRICS, "sum(chq_points)::int", 60_000) == [(1,)]
    assert world.breaches() == []


def test_what_a_run_left_that_did_not_publish_is_replaced_for_nobody_sees_it(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.send(Signal.LOGS, "a", logs("a", [NOON_MS] * 5))
    world.box(Signal.LOGS)

    def fail(*_: Any, **__: Any) -> None:
        raise StoreUnavailable("the power is cut")

    with monkeypatch.context() as cut:
        cut.setattr(attempt, "build_segment", in_other_bytes)
        cut.setattr(publish, "publish_ingest", fail)
        with pytest.raises(WorkIncomplete, match="the power is cut"):
            world.drain(Signal.LOGS)
    (left,) = files(world).values()
    world.drain(Signal.LOGS)
    (standing,) = files(world).values()
    assert left == standing + b"PAR1"
    assert world.messages() == expected(a=5)
