"""What a rollup must never do: lose, double or make up a value, or depend on how the rows came to lie in segments."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from lakerunner_dagster.lake.model import HOUR_MS, Contribution
from lakerunner_dagster.lake.segments import budget, parquet
from lakerunner_dagster.lake.segments import rollup as rollup_module
from lakerunner_dagster.lake.segments.merge import MergeInput
from tests.lake.segments.merging import read
from tests.lake.segments.plain_rollup import in_order, rolled_rows
from tests.lake.segments.rolling import MINUTE, TIERS, compacted, ingested, overlapping, rolled, rows_of, tier
from tests.lake.segments.streams import shop
from tests.lake.segments.tables import HOUR


@pytest.mark.parametrize("seed", range(4))
def test_every_tier_is_what_the_plain_loop_makes_of_the_finer_one(seed: int, tmp_path: Path) -> None:
    finer = ingested(shop(seed), tmp_path)
    for frequency_ms in TIERS[1:]:
        coarser = tier(finer, tmp_path, frequency_ms)
        assert in_order(rows_of(coarser)) == rolled_rows(rows_of(finer), frequency_ms)
        finer = coarser


@pytest.fixture(scope="module")
def finest(tmp_path_factory: pytest.TempPathFactory) -> list[MergeInput]:
    """Segments of the 10 s tier."""
    return ingested(shop(11), tmp_path_factory.mktemp("finest"))


def made(
    inputs: Sequence[MergeInput], directory: Path, name: str, frequencies: Sequence[int], *, compacting: bool = False
) -> list[MergeInput]:
    """The tiers of these frequencies, each of the one before, compacted or as it is; the last one's segments."""
    for frequency_ms in frequencies:
        below = directory / f"{name}-{frequency_ms}"
        below.mkdir()
        inputs = tier(compacted(inputs, below) if compacting else inputs, below, frequency_ms)
    return list(inputs)


def rows_by_slot(inputs: Sequence[MergeInput]) -> list[dict[str, Any]]:
    return in_order(rows_of(inputs))


def test_tiers_made_of_one_another_are_what_the_plain_loop_makes_of_the_finest_rows(
    finest: list[MergeInput], tmp_path: Path
) -> None:
    rows = rows_of(finest)
    for number, frequency_ms in enumerate(TIERS[1:], 1):
        chained = made(finest, tmp_path, f"to-{number}", TIERS[1 : number + 1])
        assert rows_by_slot(chained) == rolled_rows(rows, frequency_ms)


def test_slots_computed_one_by_one_are_the_hour_computed_at_once(finest: list[MergeInput], tmp_path: Path) -> None:
    outcomes = []
    for slot_ms, memory_bytes in ((10 * MINUTE, 1 << 30), (30 * MINUTE, 1), (HOUR_MS, 1 << 30)):
        directory = tmp_path / str(slot_ms)
        directory.mkdir()
        made_of = tier(finest, directory, MINUTE, slot_ms=slot_ms, memory_bytes=memory_bytes)
        outcomes.append(rows_by_slot(made_of))
    assert outcomes == [outcomes[0]] * 3


def test_compacting_the_finer_tier_first_changes_no_byte_of_a_row(finest: list[MergeInput], tmp_path: Path) -> None:
    assert len(compacted(finest, tmp_path)) < len(finest)
    for number, frequency_ms in enumerate(TIERS[1:3], 1):
        one, other = (
            made(finest, tmp_path, f"{compacting}-{number}", TIERS[1 : number + 1], compacting=compacting)
            for compacting in (False, True)
        )
        tables = [[read(each.path) for each in tier_of] for tier_of in (one, other)]
        assert len(tables[0]) == len(tables[1]) > 0, frequency_ms
        for apart, together in zip(*tables, strict=True):
            assert apart.equals(together)


def test_neither_the_order_of_the_inputs_nor_memory_changes_a_byte(finest: list[MergeInput], tmp_path: Path) -> None:
    inputs = overlapping(finest, HOUR, HOUR + HOUR_MS)
    outcomes = []
    for number, (order, memory) in enumerate([(inputs, 1 << 30), (inputs[::-1], 1 << 30), (inputs, 1)]):
        directory = tmp_path / str(number)
        directory.mkdir()
        outputs = rolled(order, directory, MINUTE, HOUR, HOUR + HOUR_MS, memory_bytes=memory)
        outcomes.append([(one.output, one.path.read_bytes()) for one in outputs])
    assert outcomes[0] == outcomes[1] == outcomes[2]
    assert outcomes[0]


def test_rows_of_an_input_outside_the_range_are_never_counted(finest: list[MergeInput], tmp_path: Path) -> None:
    [whole] = compacted(overlapping(finest, HOUR, HOUR + HOUR_MS), tmp_path)
    total = 0
    for start in range(HOUR, HOUR + HOUR_MS, 10 * MINUTE):
        end = start + 10 * MINUTE
        times = [row["chq_timestamp"] for row in rows_of([whole])]
        points = [row["chq_points"] for row in rows_of([whole])]
        expected = sum(count for time, count in zip(times, points, strict=True) if start <= time < end)
        [one] = rolled([whole], tmp_path, MINUTE, start, end)
        segment = one.output.segment
        assert start <= segment.start_ms < segment.end_ms <= end
        assert segment.records == expected
        assert one.output.inputs == (Contribution(whole.segment.segment_id, expected),)
        total += expected
    assert total == whole.segment.records


def test_a_slot_without_rows_gives_no_segment(finest: list[MergeInput], tmp_path: Path) -> None:
    [whole] = compacted(overlapping(finest, HOUR, HOUR + HOUR_MS), tmp_path)
    [early] = rolled([whole], tmp_path, MINUTE, HOUR, HOUR + MINUTE)
    early_input = MergeInput(early.output.segment, early.path)
    assert rolled([early_input], tmp_path, 5 * MINUTE, HOUR + 30 * MINUTE, HOUR + 40 * MINUTE) == []
    assert list(tmp_path.glob("rollup-*")) == []


def test_the_same_work_has_the_same_ids_and_other_work_others(finest: list[MergeInput], tmp_path: Path) -> None:
    [whole] = compacted(overlapping(finest, HOUR, HOUR + HOUR_MS), tmp_path)

    def ids(start_ms: int = HOUR, end_ms: int = HOUR + 10 * MINUTE, **other: Any) -> list[int]:
        outputs = rolled([whole], tmp_path, MINUTE, start_ms, end_ms, **other)
        return [one.output.segment.segment_id for one in outputs]

    different = [
        ids(),
        ids(HOUR, HOUR + 20 * MINUTE),
        ids(HOUR + 10 * MINUTE, HOUR + 20 * MINUTE),
        ids(preceding_ids={5}),
        ids(horizon_ms=HOUR),
        ids(operation="rebuild"),
    ]
    assert ids() == different[0]
    assert len({segment_id for each in different for segment_id in each}) == len(different)


def test_rows_held_at_once_do_not_grow_with_the_hour(
    finest: list[MergeInput], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module, name in ((budget, "LEAST_AHEAD"), (budget, "MOST_AHEAD"), (budget, "AT_ONCE_TOGETHER")):
        monkeypatch.setattr(module, name, 16, raising=False)
    monkeypatch.setattr(parquet, "ROW_GROUP_ROWS", 16)
    sizes: list[int] = []
    streams = budget.merged_streams

    def sized(*given: Any, **options: Any) -> Iterator[pa.Table]:
        for table in streams(*given, **options):
            sizes.append(table.num_rows)
            yield table

    monkeypatch.setattr(rollup_module, "merged_streams", sized)
    rows = rows_of(overlapping(finest, HOUR, HOUR + HOUR_MS))
    of_series = Counter((row["metric_name"], row["chq_tid"]) for row in rows)
    rolled(overlapping(finest, HOUR, HOUR + HOUR_MS), tmp_path, MINUTE, HOUR, HOUR + HOUR_MS)
    assert len(sizes) > 1
    assert sum(sizes) == len(rows)
    assert max(sizes) <= max(of_series.values()) + 16
