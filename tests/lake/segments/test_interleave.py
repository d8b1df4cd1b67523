"""What would break if rows that merge were parted, lost or taken out of turn while many files are read at once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lakerunner_dagster.lake.segments.interleave import Run, gathered

Row = tuple[str | None, int]

KEYS = ("name", "id")
RUNS = st.lists(st.lists(st.tuples(st.sampled_from(["a", "b", "c", None]), st.integers(0, 3)), max_size=30), min_size=1)


class UnsortedError(Exception):
    """Raised for a run that is not in order."""


def in_order(rows: Sequence[Row]) -> list[Row]:
    """NULL after every value."""
    return sorted(rows, key=lambda row: (row[0] is None, row[0] or "", row[1]))


def run(rows: Sequence[Row], number: int, piece: int, ahead: int) -> Run:
    """A run whose rows come so many at a time, and know where they are from."""
    names, ids = zip(*rows, strict=True) if rows else ((), ())
    table = pa.table(
        {
            "name": pa.array(names, pa.string()).dictionary_encode(),
            "id": pa.array(ids, pa.int64()),
            "from": [number] * len(rows),
            "nth": range(len(rows)),
        }
    )
    tables: Iterator[pa.Table] = (table.slice(begin, piece) for begin in range(0, len(rows), piece))
    return Run(tables, len(rows), ahead, UnsortedError)


@given(RUNS, st.integers(1, 5), st.integers(1, 8), st.integers(1, 10))
def test_rows_of_equal_keys_come_in_one_table_and_in_turn(
    given_runs: list[list[Row]], piece: int, ahead: int, most: int
) -> None:
    dealt = [in_order(rows) for rows in given_runs]
    tables = list(gathered([run(rows, number, piece, ahead) for number, rows in enumerate(dealt)], KEYS, most))
    keys = [in_order(list(zip(*(table.column(name).to_pylist() for name in KEYS), strict=True))) for table in tables]
    assert [row for table in keys for row in table] == in_order([row for rows in dealt for row in rows])
    assert not any(before[-1] == after[0] for before, after in pairwise(keys))
    for number, rows in enumerate(dealt):
        came = [row for table in tables for row in table.to_pylist() if row["from"] == number]
        assert [row["nth"] for row in came] == list(range(len(rows)))
        assert [(row["name"], row["id"]) for row in came] == rows
    assert all(table.num_rows >= most for table in tables[:-1])


@given(st.integers(1, 40))
def test_tables_are_as_large_as_was_asked_where_keys_differ(most: int) -> None:
    runs = [run([("a", number) for number in range(start, 200, 3)], start, 7, 50) for start in range(3)]
    sizes = [table.num_rows for table in gathered(runs, KEYS, most)]
    assert sum(sizes) == 200
    assert set(sizes[:-1]) <= {most}
    assert sizes[-1] <= most


@pytest.mark.parametrize("rows", [[("b", 1), ("a", 1)], [("a", 2), ("a", 1)], [(None, 1), ("a", 1)]])
def test_a_run_out_of_order_is_told(rows: list[Row]) -> None:
    with pytest.raises(UnsortedError):
        list(gathered([run([("a", 1)], 0, 1, 1), run(rows, 1, 1, 4)], KEYS, 10))
