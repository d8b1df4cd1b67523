"""What would break if rows were cut wrongly: readers compute a segment's day and hour from its first row."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pyarrow as pa
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from lakerunner_dagster.lake.errors import ContractBreach
from lakerunner_dagster.lake.segments.split import split_by_hour

MIDNIGHT = round(datetime(2025, 12, 31, tzinfo=UTC).timestamp() * 1000) + 86_400_000


@settings(max_examples=100, deadline=None)
@given(times=st.lists(st.integers(MIDNIGHT - 10_000_000, MIDNIGHT + 10_000_000), max_size=40))
@example(times=[])
@example(times=[MIDNIGHT, MIDNIGHT - 1, MIDNIGHT + 3_599_999, MIDNIGHT + 3_600_000])
def test_each_row_is_once_in_its_own_hour_and_rows_keep_their_order(times: list[int]) -> None:
    table = pa.table({"chq_timestamp": pa.array(times, pa.int64()), "row": pa.array(range(len(times)), pa.int64())})
    expected: dict[tuple[int, int], list[int]] = {}
    for row, time_ms in enumerate(times):
        moment = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(milliseconds=time_ms)
        expected.setdefault((int(moment.strftime("%Y%m%d")), moment.hour), []).append(row)

    found = split_by_hour(table)

    assert [(dateint, hour, rows["row"].to_pylist()) for dateint, hour, rows in found] == [
        (*key, rows) for key, rows in sorted(expected.items())
    ]


def test_a_row_without_a_time_is_refused_rather_than_lost() -> None:
    with pytest.raises(ContractBreach, match="1 rows have no chq_timestamp"):
        split_by_hour(pa.table({"chq_timestamp": pa.array([MIDNIGHT, None], pa.int64())}))
