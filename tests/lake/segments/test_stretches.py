"""What would break if rows were taken for alike that are not: series and buckets would flow into one another."""

from __future__ import annotations

import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

from lakerunner_dagster.lake.segments.stretches import stretch_starts

ROWS = st.lists(
    st.tuples(
        st.sampled_from([None, "a", "b"]),
        st.sampled_from([None, 0, 1, -(2**63), 2**63 - 1]),
        st.sampled_from([None, True, False]),
        st.sampled_from([None, "x"]),
        st.none(),
    ),
    min_size=1,
    max_size=12,
)


@given(ROWS)
def test_a_stretch_ends_where_any_column_changes(rows: list[tuple[object, ...]]) -> None:
    kinds = (pa.string(), pa.int64(), pa.bool_(), pa.string(), pa.string())
    columns = [pa.array(values, kind) for values, kind in zip(zip(*rows, strict=True), kinds, strict=True)]
    columns[0] = columns[0].dictionary_encode()
    expected = [row for row in range(len(rows)) if row == 0 or rows[row] != rows[row - 1]]
    assert stretch_starts(columns).tolist() == expected
    sliced = [pa.concat_arrays([column.slice(0, 1), column]).slice(1) for column in columns]
    assert stretch_starts(sliced).tolist() == expected
