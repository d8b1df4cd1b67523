"""What would break if a segment's object were replaced under its readers, or a leftover stood in the way of a run."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from lakerunner_dagster.lake.errors import StoreUnavailable, WorkIncomplete
from lakerunner_dagster.lake.lrdb import publish
from lakerunner_dagster.lake.runs import attempt, hours
from lakerunner_dagster.lake.runs.rebuild import rebuild
from lakerunner_dagster.lake.runs.transform import build_segment
from lakerunner_dagster.lake.segments.build import Built
from lakerunner_dagster.lake.signals import Signal
from tests.lake.requests import expected, logs
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
