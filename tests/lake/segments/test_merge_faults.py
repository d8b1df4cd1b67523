"""Inputs that are not what their index rows say: each is named, to be set aside alone, and nothing comes out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lakerunner_dagster.lake.errors import ConservationBreach, ContractBreach, SegmentUnusable
from lakerunner_dagster.lake.model import HOUR_MS
from lakerunner_dagster.lake.segments import budget
from lakerunner_dagster.lake.segments import merge as merging_module
from lakerunner_dagster.lake.segments.merge import MergeInput
from lakerunner_dagster.lake.signals import Signal
from tests.lake.segments.merging import given, merged, parted, read
from tests.lake.segments.tables import HOUR, log_rows, span_rows


def rewrite(one: MergeInput, table: pa.Table, **metadata: str) -> MergeInput:
    """The input with other rows in its file, under the footer that it had."""
    footer = {key.decode(): value.decode() for key, value in pq.read_metadata(one.path).metadata.items()}
    with pq.ParquetWriter(one.path, table.schema, store_schema=False) as writer:
        writer.write_table(table)
        writer.add_key_value_metadata(footer | metadata)
    return one


def _truncated(one: MergeInput) -> MergeInput:
    one.path.write_bytes(one.path.read_bytes()[:-100])
    return one


def _scrambled(one: MergeInput) -> MergeInput:
    data = bytearray(one.path.read_bytes())
    middle = len(data) // 3
    data[middle : middle + 200] = b"\xff" * 200
    one.path.write_bytes(data)
    return one


def _nothing(one: MergeInput) -> MergeInput:
    one.path.write_bytes(b"")
    return one


def _changed(**changes: Any) -> Callable[[MergeInput], MergeInput]:
    return lambda one: MergeInput(replace(one.segment, **changes), one.path)


def _column(name: str, values: Callable[[pa.Table], pa.Array]) -> Callable[[MergeInput], MergeInput]:
    def with_column(one: MergeInput) -> MergeInput:
        table = read(one.path)
        return rewrite(one, table.set_column(table.schema.get_field_index(name), name, values(table)))

    return with_column


FAULTS: dict[str, tuple[Callable[[MergeInput], MergeInput], set[str]]] = {
    "empty": (_nothing, {"not_parquet"}),
    "cut off": (_truncated, {"not_parquet"}),
    "scrambled": (_scrambled, {"corrupt_data"}),
    "with fewer rows": (lambda one: rewrite(one, read(one.path).slice(1)), {"other_rows"}),
    "with rows twice": (lambda one: rewrite(one, pa.concat_tables([read(one.path)] * 2)), {"other_rows"}),
    "out of order": (
        lambda one: rewrite(one, read(one.path).take(list(range(one.segment.record_count))[::-1])),
        {"unsorted"},
    ),
    "of another organization": (
        lambda one: rewrite(one, read(one.path), **{"lakerunner.organization": "another"}),
        {"other_metadata"},
    ),
    "of another signal": (
        lambda one: rewrite(one, read(one.path), **{"lakerunner.signal": "metrics"}),
        {"other_metadata"},
    ),
    "with strange keys": (
        lambda one: rewrite(one, read(one.path), **{"lakerunner.columns": "[1]"}),
        {"other_metadata"},
    ),
    "of other times": (
        _column("chq_timestamp", lambda table: pa.array([HOUR_MS] * table.num_rows, pa.int64())),
        {"other_times", "unsorted"},
    ),
    "without ids": (_column("chq_id", lambda table: pa.nulls(table.num_rows, pa.string())), {"missing_values"}),
    "with a strange column": (
        lambda one: rewrite(one, read(one.path).append_column("stranger", pa.array([1] * one.segment.record_count))),
        {"strange_columns"},
    ),
    "with text for a number": (
        _column("chq_tsns", lambda table: pa.array(["x"] * table.num_rows)),
        {"strange_columns"},
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("signal", [Signal.LOGS, Signal.TRACES])
def test_a_segment_is_named_that_is(signal: Signal, fault: str, tmp_path: Path) -> None:
    spoil, reasons = FAULTS[fault]
    rows = log_rows(200) if signal is Signal.LOGS else span_rows(200)
    inputs = given(signal, parted(rows, 4), tmp_path)
    spoiled = [*inputs[:2], spoil(inputs[2]), inputs[3]]
    with pytest.raises(SegmentUnusable, match="rebuild its day") as raised:
        merged(spoiled, tmp_path)
    assert raised.value.segment.segment_id == inputs[2].segment.segment_id
    assert raised.value.reason in reasons
    rest = [one for one in spoiled if one.segment.segment_id != raised.value.segment.segment_id]
    [one] = merged(rest, tmp_path)
    assert one.output.segment.records == sum(each.segment.records for each in rest)


@pytest.mark.parametrize(
    "changes",
    [
        {"rolledup": True},
        {"instance_num": 9},
        {"collector": "other"},
        {"start_ms": HOUR + HOUR_MS},
        {"frequency_ms": 60_000},
    ],
)
def test_segments_that_do_not_belong_together_are_not_merged(changes: dict[str, Any], tmp_path: Path) -> None:
    first, second = given(Signal.LOGS, parted(log_rows(20), 2), tmp_path)
    with pytest.raises(ContractBreach):
        merged([first, _changed(**changes)(second)], tmp_path)


def test_a_segment_named_twice_is_not_merged_with_itself(tmp_path: Path) -> None:
    first, second = given(Signal.LOGS, parted(log_rows(20), 2), tmp_path)
    with pytest.raises(ContractBreach):
        merged([first, second, first], tmp_path)


def test_rows_that_a_merge_loses_are_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = given(Signal.LOGS, parted(log_rows(100), 3), tmp_path)
    streams = budget.merged_streams

    def losing(*arguments: Any, **options: Any) -> Any:
        return (table.slice(1) for table in streams(*arguments, **options))

    monkeypatch.setattr(merging_module, "merged_streams", losing)
    with pytest.raises(ConservationBreach, match="lost records"):
        merged(inputs, tmp_path)


def test_what_was_being_written_when_an_input_failed_is_removed(tmp_path: Path) -> None:
    inputs = given(Signal.LOGS, parted(log_rows(200), 3), tmp_path)
    spoiled = [*inputs[:2], _column("chq_id", lambda table: pa.nulls(table.num_rows, pa.string()))(inputs[2])]
    directory = tmp_path / "work"
    directory.mkdir()
    with pytest.raises(SegmentUnusable):
        merged(spoiled, directory)
    assert list(directory.iterdir()) == []
