"""Inputs that cannot roll up: a spoiled one is named, strangers are refused, and what gets lost is noticed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from lakerunner_dagster.lake.errors import ConservationBreach, ContractBreach, SegmentUnusable
from lakerunner_dagster.lake.model import HOUR_MS, CreatedBy, InputKind
from lakerunner_dagster.lake.segments import budget
from lakerunner_dagster.lake.segments import rollup as rollup_module
from lakerunner_dagster.lake.segments.merge import MergeInput
from lakerunner_dagster.lake.signals import Signal
from lakerunner_dagster.lake.telemetry.metric_rows import added_count
from tests.lake.segments.merging import merged, read
from tests.lake.segments.rolling import MINUTE, ingested, overlapping, rolled
from tests.lake.segments.streams import shop
from tests.lake.segments.tables import HOUR
from tests.lake.segments.test_merge_faults import FAULTS, rewrite


@pytest.fixture
def inputs(tmp_path: Path) -> list[MergeInput]:
    return overlapping(ingested(shop(3, hours=1, files=4), tmp_path), HOUR, HOUR + HOUR_MS)


def _bad_sketches(one: MergeInput) -> MergeInput:
    table = read(one.path)
    at = table.schema.get_field_index("chq_sketch")
    return rewrite(one, table.set_column(at, "chq_sketch", pa.array([b"\x02nonsense"] * table.num_rows)))


SPOILED: dict[str, tuple[Callable[[MergeInput], MergeInput], set[str]]] = {
    name: FAULTS[name] for name in ("empty", "cut off", "with fewer rows", "out of order", "of another organization")
} | {"with sketches of another lake": (_bad_sketches, {"corrupt_sketch"})}


@pytest.mark.parametrize("fault", SPOILED)
def test_a_segment_is_named_that_is(fault: str, inputs: list[MergeInput], tmp_path: Path) -> None:
    spoil, reasons = SPOILED[fault]
    spoiled = [*inputs[:2], spoil(inputs[2]), *inputs[3:]]
    directory = tmp_path / "work"
    directory.mkdir()
    with pytest.raises(SegmentUnusable, match=r"rebuild its day .* of metric_segments") as raised:
        rolled(spoiled, directory, MINUTE, HOUR, HOUR + HOUR_MS)
    assert raised.value.segment.segment_id == inputs[2].segment.segment_id
    assert raised.value.reason in reasons
    assert list(directory.iterdir()) == []
    rest = [one for one in spoiled if one.segment.segment_id != raised.value.segment.segment_id]
    [one] = rolled(rest, directory, MINUTE, HOUR, HOUR + HOUR_MS)
    assert one.output.segment.records == sum(each.segment.records for each in rest)


@pytest.mark.parametrize(
    "changes",
    [
        {"instance_num": 9},
        {"collector": "other"},
        {"start_ms": HOUR + HOUR_MS},
        {"frequency_ms": MINUTE},
        {"signal": Signal.LOGS},
    ],
)
def test_segments_that_do_not_belong_together_do_not_roll_up(
    changes: dict[str, Any], inputs: list[MergeInput], tmp_path: Path
) -> None:
    stranger = MergeInput(replace(inputs[0].segment, **changes), inputs[0].path)
    with pytest.raises(ContractBreach):
        rolled([stranger, *inputs[1:]], tmp_path, MINUTE, HOUR, HOUR + HOUR_MS)


@pytest.mark.parametrize(
    ("frequency_ms", "start_ms", "end_ms"),
    [
        (MINUTE, HOUR + 1, HOUR + HOUR_MS),
        (MINUTE, HOUR, HOUR + 30_000),
        (MINUTE, HOUR, HOUR + HOUR_MS + MINUTE),
        (MINUTE, HOUR, HOUR),
        (15_000, HOUR, HOUR + MINUTE),
        (10_000, HOUR, HOUR + MINUTE),
    ],
)
def test_a_range_that_is_no_slot_is_refused(
    frequency_ms: int, start_ms: int, end_ms: int, inputs: list[MergeInput], tmp_path: Path
) -> None:
    with pytest.raises(ContractBreach):
        rolled(inputs, tmp_path, frequency_ms, start_ms, end_ms)


def test_a_segment_named_twice_is_not_counted_twice(inputs: list[MergeInput], tmp_path: Path) -> None:
    with pytest.raises(ContractBreach):
        rolled([*inputs, inputs[0]], tmp_path, MINUTE, HOUR, HOUR + HOUR_MS)


@pytest.mark.parametrize("losing", [lambda table: table.slice(1), lambda table: pa.concat_tables([table, table[:1]])])
def test_rows_that_a_rollup_loses_or_doubles_are_noticed(
    losing: Callable[[pa.Table], pa.Table], inputs: list[MergeInput], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    streams = budget.merged_streams
    monkeypatch.setattr(
        rollup_module, "merged_streams", lambda *given, **options: map(losing, streams(*given, **options))
    )
    with pytest.raises(ConservationBreach):
        rolled(inputs, tmp_path, MINUTE, HOUR, HOUR + HOUR_MS)


def test_counts_that_a_rollup_changes_are_noticed(
    inputs: list[MergeInput], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rollup_module, "added_count", lambda table: added_count(table) + 1)
    with pytest.raises(ConservationBreach, match="counts"):
        rolled(inputs, tmp_path, MINUTE, HOUR, HOUR + HOUR_MS)


def test_the_index_row_says_how_it_came_to_be_and_a_merge_carries_it_forward(
    inputs: list[MergeInput], tmp_path: Path
) -> None:
    dated = [
        MergeInput(replace(one.segment, ingest_dateint=20260105 + number), one.path)
        for number, one in enumerate(inputs)
    ]
    halves = [
        rolled(dated, tmp_path, MINUTE, start, start + HOUR_MS // 2, reach_ms=reach)[0]
        for start, reach in ((HOUR, HOUR - 50_000), (HOUR + HOUR_MS // 2, None))
    ]
    segment = halves[0].output.segment
    assert (segment.created_by, segment.compacted, segment.rolledup) == (CreatedBy.ROLLUP, False, False)
    assert (segment.frequency_ms, segment.ingest_dateint, segment.reach_ms) == (MINUTE, 20260105, HOUR - 50_000)
    assert halves[1].output.segment.reach_ms is None
    assert halves[0].output.input_kind is InputKind.SEGMENT
    [one] = merged([MergeInput(half.output.segment, half.path) for half in halves], tmp_path)
    assert one.output.segment.reach_ms == HOUR - 50_000


def test_a_row_of_an_hour_ends_with_the_hour(inputs: list[MergeInput], tmp_path: Path) -> None:
    [one] = rolled(inputs, tmp_path, HOUR_MS, HOUR, HOUR + HOUR_MS)
    assert (one.output.segment.start_ms, one.output.segment.end_ms) == (HOUR, HOUR + HOUR_MS)
