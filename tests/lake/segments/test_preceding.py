"""What a slot must never miss: the last row before it of a series that goes on, wherever it lies."""

from __future__ import annotations

from pathlib import Path

import pytest
from opentelemetry.proto.metrics.v1.metrics_pb2 import NumberDataPoint

from bench.plain_loop.metrics import merged_rows
from lakerunner_dagster.lake.errors import SegmentUnusable
from lakerunner_dagster.lake.model import HOUR_MS
from lakerunner_dagster.lake.segments.merge import MergeInput
from lakerunner_dagster.lake.segments.preceding import ANY_TIME, Sought
from tests.lake.segments.plain_rollup import DERIVED, Row, is_latest
from tests.lake.segments.rolling import before, ingested, overlapping, request, rows_of, slots
from tests.lake.segments.streams import DELTA, HOUR_NS, SECOND_NS, attributes, shop, summed
from tests.lake.segments.tables import HOUR

SUB_SERIES = ("metric_name", "chq_tid", "chq_metric_type", "metric_is_monotonic", "chq_start_tsns")
MINUTE_S = 60


def point(second: int, value: float, *, start: int | None = -7200, series: int = 0) -> NumberDataPoint:
    """A point so many seconds after the hour began, of a process that started at ``start``."""
    return NumberDataPoint(
        attributes=attributes(series),
        time_unix_nano=HOUR_NS + second * SECOND_NS,
        start_time_unix_nano=0 if start is None else HOUR_NS + start * SECOND_NS,
        as_double=value,
    )


def files(directory: Path, *points: NumberDataPoint) -> list[MergeInput]:
    """A segment of each point."""
    return ingested([request([summed([one])]) for one in points], directory)


def resolved(sought: Sought) -> bool:
    """Whether nothing is left to be found."""
    return not sought.unresolved


def brute_force(rows: list[Row], start_ms: int, end_ms: int) -> list[Row]:
    """The last rows before a slot of the sub-series in it."""
    latest = merged_rows([row for row in rows if is_latest(row)])
    there = {tuple(row[name] for name in SUB_SERIES) for row in latest if start_ms <= row["chq_timestamp"] < end_ms}
    last: dict[tuple[object, ...], Row] = {}
    for row in sorted(latest, key=lambda one: int(one["chq_timestamp"])):
        if row["chq_timestamp"] < start_ms:
            last[tuple(row[name] for name in SUB_SERIES)] = row
    return [row for key, row in last.items() if key in there]


def comparable(rows: list[Row]) -> list[str]:
    kept = [{name: row[name] for name in sorted(row) if name.startswith(("chq_", "metric_"))} for row in rows]
    return sorted(repr({name: value for name, value in row.items() if name not in DERIVED}) for row in kept)


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("slot_ms", [600_000, HOUR_MS])
def test_what_is_found_is_the_last_row_of_every_sub_series_that_has_one(
    seed: int, slot_ms: int, tmp_path: Path
) -> None:
    inputs = ingested(shop(seed), tmp_path)
    rows = [{**row, "chq_overflow": None} for row in rows_of(inputs)]
    seen = 0
    for start_ms, end_ms in slots(inputs, slot_ms):
        found = before(inputs, start_ms, end_ms).found()
        expected = brute_force(rows, start_ms, end_ms)
        given = [] if found is None else [{**row, "chq_overflow": None} for row in found.to_pylist()]
        names = set(given[0]) if given else set()
        assert comparable(given) == comparable([{name: row[name] for name in row if name in names} for row in expected])
        seen += len(expected)
    assert seen


def test_a_bucket_in_several_segments_is_one_row_the_later_and_both_gave_it(tmp_path: Path) -> None:
    *earlier, slot = files(tmp_path, point(1, 5.0), point(4, 6.0), point(-3000, 1.0), point(700, 9.0))
    sought = Sought.of([slot], HOUR + 600_000, HOUR + 1_200_000)
    assert sought.unresolved
    sought.look_into(earlier)
    found = sought.found()
    assert found is not None
    assert found.column("chq_last").to_pylist() == [6.0]
    assert found.column("chq_points").to_pylist() == [2]
    assert sought.segment_ids == {one.segment.segment_id for one in earlier[:2]}
    assert resolved(sought)
    assert sought.reach_ms(0) == HOUR


def test_windows_are_looked_into_backwards_until_all_is_found(tmp_path: Path) -> None:
    near, far, slot, other = files(
        tmp_path,
        point(-100, 5.0),
        point(-4000, 3.0, series=1),
        point(5, 9.0),
        point(5, 4.0, series=1),
    )
    sought = Sought.of([slot, other], HOUR, HOUR + HOUR_MS)
    sought.look_into([near])
    assert sought.unresolved
    assert sought.since_ms == HOUR - 7_200_000
    assert sought.reach_ms(HOUR - 3_600_000) == HOUR - 3_600_000, "what may still be found counts to the horizon"
    sought.look_into([far])
    assert resolved(sought)
    assert sought.since_ms == HOUR
    assert sought.segment_ids == {near.segment.segment_id, far.segment.segment_id}
    assert sought.reach_ms(0) == HOUR - 4_000_000


def test_rows_before_the_window_wait_for_the_window_that_they_are_in(tmp_path: Path) -> None:
    early, late, slot = files(tmp_path, point(10, 5.0), point(250, 6.0), point(700, 9.0))
    sought = Sought.of([slot], HOUR + 600_000, HOUR + 1_200_000)
    sought.look_into([early], since_ms=HOUR + 300_000)
    assert sought.unresolved
    sought.look_into([early, late])
    found = sought.found()
    assert found is not None
    assert found.column("chq_last").to_pylist() == [6.0]


def test_without_a_start_a_row_may_lie_at_any_time_before(tmp_path: Path) -> None:
    inputs = files(tmp_path, point(700, 9.0, start=None))
    sought = Sought.of(inputs, HOUR + 600_000, HOUR + 1_200_000)
    assert sought.since_ms == ANY_TIME
    assert sought.reach_ms(HOUR - 86_400_000) == HOUR - 86_400_000
    assert sought.found() is None


def test_nothing_is_sought_for_a_process_that_started_in_the_slot_or_a_row_that_adds(tmp_path: Path) -> None:
    started = files(tmp_path, point(700, 9.0, start=600))
    adding = ingested([request([summed([point(700, 9.0)], temporality=DELTA)])], tmp_path)
    sought = Sought.of([*started, *adding], HOUR + 600_000, HOUR + 1_200_000)
    assert resolved(sought)
    assert sought.reach_ms(0) == HOUR + 600_000


def test_a_bucket_that_the_process_started_in_counts_though_it_began_before_the_start(tmp_path: Path) -> None:
    inputs = files(tmp_path, point(700, 9.0, start=595))
    sought = Sought.of(inputs, HOUR + 600_000, HOUR + 1_200_000)
    assert sought.since_ms == HOUR + 590_000
    assert sought.reach_ms(0) == HOUR + 590_000


def test_rows_of_the_slot_s_own_segments_before_it_are_found_too(tmp_path: Path) -> None:
    [both] = ingested([request([summed([point(10, 5.0), point(700, 9.0)])])], tmp_path)
    sought = Sought.of([both], HOUR + 600_000, HOUR + 1_200_000)
    sought.look_into(overlapping([both], HOUR, HOUR + 600_000))
    assert sought.segment_ids == {both.segment.segment_id}


def test_segments_without_the_metric_are_not_opened_and_a_spoiled_one_is_named(tmp_path: Path) -> None:
    [slot] = files(tmp_path, point(700, 9.0))
    [other] = ingested([request([summed([point(10, 5.0)], name="others")])], tmp_path)
    [spoiled] = files(tmp_path, point(10, 5.0))
    sought = Sought.of([slot], HOUR + 600_000, HOUR + 1_200_000)
    other.path.unlink()
    sought.look_into([other])
    assert sought.unresolved
    spoiled.path.write_bytes(b"")
    with pytest.raises(SegmentUnusable) as raised:
        sought.look_into([spoiled])
    assert raised.value.segment.segment_id == spoiled.segment.segment_id
