"""Compaction in virtual time: the real boxer, dispatcher and runs, with merges that write no rows.

What belongs here: one look of compaction, and what it took. What does not: what arrives (``traffic``).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, cast
from unittest.mock import patch

from bench.cpu import Clock, backends
from bench.week.cost import Cost
from lakerunner_dagster.lake.lrdb import boxes
from lakerunner_dagster.lake.model import Contribution, CreatedBy, InputKind, Output, Segment, Source
from lakerunner_dagster.lake.runs import compaction
from lakerunner_dagster.lake.segments.ids import segment_id
from lakerunner_dagster.lake.segments.merge import MergedSegment, MergeInput
from lakerunner_dagster.lake.signals import COMPACTION_CODE_VERSION, Signal
from lakerunner_dagster.lake.stages import compaction_stage
from lakerunner_dagster.lake.ticks.compacting import CompactionBoxing

if TYPE_CHECKING:
    from lakerunner_dagster.lake.runs.context import Lake, Stores
    from lakerunner_dagster.lake.runs.report import Step

SHRINK = 0.9
"""A file that was not merged yet shrinks to so much of its bytes."""


@dataclass(slots=True)
class Took:
    """CPU seconds, ours and PostgreSQL's, one for each tick, look for waiting partitions, and box."""

    ticks: list[float] = field(default_factory=list)
    looks: list[float] = field(default_factory=list)
    boxes: list[float] = field(default_factory=list)


@dataclass(slots=True)
class Compaction:
    """Every signal's compaction of a lake."""

    lake: Lake
    cost: Cost
    merges: int = 0
    now_ms: int = 0

    def look(self, now_ms: int) -> Took:
        """Box what is due, and work off every box."""
        took, self.now_ms = Took(), now_ms
        with self.lake.lrdb.connection() as conn:
            clock = Clock(backends(conn))
        with _merging_no_rows():
            for signal in Signal:
                self._look(signal, took, clock)
        return took

    def _look(self, signal: Signal, took: Took, clock: Clock) -> None:
        stage = compaction_stage(signal)
        with _timed(took.ticks, clock), self.lake.lrdb.transaction() as conn:
            CompactionBoxing(self.lake, signal).close_boxes(conn, self.now_ms)
        with _timed(took.looks, clock), self.lake.lrdb.transaction() as conn:
            waiting = boxes.waiting_partitions(conn, stage.name)
        for partition in waiting:
            for _ in partition.box_ids:
                with _timed(took.boxes, clock):
                    self._work_off(stage.name, partition.source, partition.dateint)

    def _work_off(self, stage: str, source: Source, dateint: int) -> None:
        with self.lake.lrdb.transaction() as conn:
            box = boxes.claim(conn, stage, source, dateint, run_id="simulation", settings=self.lake.settings)
        assert box is not None, "a box that waits can be claimed"
        compaction.compact_box(self.lake, box, self._count)

    def _count(self, step: Step) -> None:
        self.merges += 1
        self.cost.merged(step, self.now_ms)


@contextmanager
def _timed(seconds: list[float], clock: Clock) -> Iterator[None]:
    began = clock.seconds()
    yield
    seconds.append(clock.seconds() - began)


@contextmanager
def _merging_no_rows() -> Iterator[None]:
    with patch.object(compaction, "merge", _merge):
        yield


class NoStores:
    """Buckets that hold nothing and take everything."""

    def of(self, bucket: str) -> NoStores:
        """The bucket."""
        assert bucket
        return self

    def download(self, key: str, path: Path) -> None:
        """An object that is never read."""

    def create(self, key: str, data: object) -> bool:
        """An object that is never written."""
        return bool(key) and data is not None


def _merge(
    inputs: Sequence[MergeInput], *, source: Source, target_bytes: int, operation: str, directory: Path
) -> Iterator[MergedSegment]:
    """What the inputs come to: of their size, cut at the target, without a row in it."""
    segments = [one.segment for one in inputs]
    size = sum(int(one.file_size * (1 if one.compacted else SHRINK)) or 1 for one in segments)
    count = max(-(-size // target_bytes), 1)
    path = directory / "output"
    for ordinal in range(count):
        low, high = (min(part * target_bytes, size) for part in (ordinal, ordinal + 1))
        given = {one.segment_id: one.records * high // size - one.records * low // size for one in segments}
        path.write_bytes(b"-")
        output = _output(source, segments, given, operation=operation, ordinal=ordinal, size=high - low)
        yield MergedSegment(output, path)


def _output(
    source: Source, inputs: Sequence[Segment], given: dict[int, int], *, operation: str, ordinal: int, size: int
) -> Output:
    first = inputs[0]
    records = sum(given.values())
    merged = replace(
        first,
        segment_id=segment_id(
            organization_id=source.organization_id,
            instance_num=source.instance_num,
            signal=first.signal,
            frequency_ms=first.frequency_ms,
            dateint=first.dateint,
            hour=first.hour,
            inputs=[str(one.segment_id) for one in inputs],
            operation=operation,
            code_version=COMPACTION_CODE_VERSION,
            ordinal=ordinal,
        ),
        start_ms=min(one.start_ms for one in inputs),
        end_ms=max(one.end_ms for one in inputs),
        record_count=records,
        records=records,
        rollup_count=float(records) if first.frequency_ms else 0.0,
        file_size=size,
        created_by=CreatedBy.COMPACTION,
        compacted=True,
    )
    contributions = tuple(Contribution(id_, count) for id_, count in given.items() if count)
    return Output(merged, contributions, InputKind.SEGMENT)


def stores() -> Stores:
    """Stores for a lake whose segments have no rows."""
    return cast("Stores", NoStores())
