"""Columns that share codes say in every row what the columns that they stand for say, and are found by their names."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

from lakerunner_dagster.lake.segments.order import row_order
from lakerunner_dagster.lake.segments.shared import found, is_shared, shared, spread

TEXTS = st.sampled_from([None, "", "a", "b"])


def column(*texts: str | None) -> pa.DictionaryArray:
    return pa.array(texts, pa.string()).dictionary_encode()


@given(
    parents=st.lists(st.tuples(TEXTS, TEXTS), min_size=1, max_size=5),
    picks=st.lists(st.integers(0, 4), max_size=12),
)
def test_spread_columns_have_the_value_of_each_row_in_the_place_of_the_shared_one(
    parents: list[tuple[str | None, str | None]], picks: list[int]
) -> None:
    places = np.array([pick % len(parents) for pick in picks], np.int64)
    columns = {"attr_x": column(*(x for x, _ in parents)), "attr_y": column(*(y for _, y in parents))}
    table = pa.table({"first": np.arange(len(places)), "attr": shared(places, columns), "last": places})

    wide = spread(table)

    wide.validate(full=True)
    assert wide.column_names == ["first", "attr_x", "attr_y", "last"]
    assert not any(is_shared(kind) for kind in wide.schema.types)
    assert list(zip(*(wide[name].to_pylist() for name in ("attr_x", "attr_y")), strict=True)) == [
        parents[place] for place in places
    ]


def test_a_column_is_found_by_name_shared_or_not_and_an_absent_one_is_not() -> None:
    table = pa.table({"own": ["1", "2"], "attr": shared(np.array([1, 0]), {"attr_x": column("a", None)})})
    shown = {name: found(table, name) for name in ("own", "attr_x", "attr_y")}
    assert {name: None if values is None else values.to_pylist() for name, values in shown.items()} == {
        "own": ["1", "2"],
        "attr_x": [None, "a"],
        "attr_y": None,
    }


def test_rows_are_ordered_by_shared_keys_and_ties_are_broken_by_shared_columns() -> None:
    services = {"resource_service_name": column("b", "a"), "resource_zone": column("1", "2")}
    own = {"attr_x": column("q", None, "p")}
    table = pa.table(
        {
            "resource": shared(np.array([0, 1, 1, 1]), services),
            "attr": shared(np.array([0, 0, 1, 2]), own),
        }
    )
    assert row_order(table, ["resource_service_name"]).tolist() == [3, 1, 2, 0]
    assert row_order(spread(table), ["resource_service_name"]).tolist() == [3, 1, 2, 0]
