"""Where attributes go: names, collisions, the bound on columns, and the overflow that loses nothing."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue

from lakerunner_dagster.lake.segments.shared import spread
from lakerunner_dagster.lake.settings import Limits
from lakerunner_dagster.lake.telemetry.attributes import (
    AttributeGroup,
    Attributes,
    normalised,
    pivot,
    read_attributes,
    read_distinct_attributes,
)
from lakerunner_dagster.lake.telemetry.wire import Place


def encoded(*parents: dict[str, Any] | list[tuple[str, Any]]) -> pa.ListArray:
    lists = [
        [
            KeyValue(key=key, value=value(given)).SerializeToString()
            for key, given in (parent.items() if isinstance(parent, dict) else parent)
        ]
        for parent in parents
    ]
    return pa.array(lists, pa.list_(pa.binary()))


def attributes(*parents: dict[str, Any] | list[tuple[str, Any]]) -> Attributes:
    return read_attributes(encoded(*parents), Limits.model_construct())


def value(given: Any) -> AnyValue:
    match given:
        case bool():
            return AnyValue(bool_value=given)
        case int():
            return AnyValue(int_value=given)
        case None:
            return AnyValue()
        case _:
            return AnyValue(string_value=given)


def rows(*groups: AttributeGroup, limit: int = 250, **options: Any) -> list[dict[str, Any]]:
    found = pivot(groups, limit=limit, **options)
    table = spread(pa.table({**found.columns, "chq_overflow": found.overflow}))
    assert list(found.original_keys) == table.column_names[:-1]
    shown = [{name: cell for name, cell in row.items() if cell is not None} for row in table.to_pylist()]
    return [row | ({"chq_overflow": json.loads(row["chq_overflow"])} if "chq_overflow" in row else {}) for row in shown]


@pytest.mark.parametrize(
    ("key", "name"),
    [("http.Method", "http_method"), ("a-b_c d", "a_b_c_d"), ("é", "__"), ("😀1", "____1"), ("İ", "__"), ("", "")],
)
def test_a_key_is_normalised_byte_by_byte(key: str, name: str) -> None:
    assert normalised(key) == name


def test_of_keys_that_normalise_alike_the_first_in_order_has_the_name_and_none_is_lost() -> None:
    group = AttributeGroup("attr", attributes({"a_b": "under", "a.b": "dot"}, {"a_b": "alone"}, {"A.B": "upper"}))
    assert rows(group) == [
        {"chq_overflow": {"attr": {"a_b": "under", "a.b": "dot"}}},
        {"chq_overflow": {"attr": {"a_b": "alone"}}},
        {"attr_a_b": "upper"},
    ]


def test_keys_that_may_name_no_column_overflow() -> None:
    odd = {"_private": "1", "nul\0": "2", "k" * 257: "3"}
    assert rows(AttributeGroup("attr", attributes(odd | {"k" * 256: "4"}))) == [
        {f"attr_{'k' * 256}": "4", "chq_overflow": {"attr": odd}}
    ]


def test_reserved_names_are_not_taken_and_only_eligible_ones_are() -> None:
    scope = AttributeGroup("scope", attributes({"name": "n", "other": "o"}))
    resource = AttributeGroup("resource", attributes({"app": "a", "host": "h"}), eligible=frozenset({"resource_app"}))
    assert rows(resource, scope, reserved={"scope_name"}) == [
        {
            "resource_app": "a",
            "scope_other": "o",
            "chq_overflow": {"resource": {"host": "h"}, "scope": {"name": "n"}},
        }
    ]


def test_the_rarest_keys_overflow_and_rows_count_not_parents() -> None:
    resource = AttributeGroup("resource", attributes({"r": "1"}, {"rare": "2"}), rows=np.array([0, 0, 0, 1]))
    own = AttributeGroup("attr", attributes({"a": "1", "b": "1"}, {"b": "2"}, {"c": "1"}, {}))
    assert rows(resource, own, limit=2) == [
        {"resource_r": "1", "attr_b": "1", "chq_overflow": {"attr": {"a": "1"}}},
        {"resource_r": "1", "attr_b": "2"},
        {"resource_r": "1", "chq_overflow": {"attr": {"c": "1"}}},
        {"chq_overflow": {"resource": {"rare": "2"}}},
    ]
    assert rows(resource, own, limit=2, pinned={"resource_rare"})[3] == {"resource_rare": "2"}


def test_three_hundred_keys_give_250_columns_and_nothing_is_lost() -> None:
    given = {f"key.{n:03}": str(n) for n in range(300)}
    (row,) = rows(AttributeGroup("attr", attributes(given)))
    overflow = row.pop("chq_overflow")["attr"]
    assert len(row) == 250
    assert len(overflow) == 50
    assert {name.removeprefix("attr_").replace("_", "."): text for name, text in row.items()} | overflow == given


def test_of_a_key_given_twice_the_first_told_value_is_in_the_column_and_the_others_in_the_overflow() -> None:
    parents = attributes(
        [("k", ""), ("k", "1"), ("k", 2)],
        [("k", None), ("k", True)],
        [("k", "1"), ("_k", "a"), ("k", "1"), ("k", "3"), ("_k", "b")],
    )
    assert rows(AttributeGroup("attr", parents)) == [
        {"attr_k": "1", "chq_overflow": {"attr": {"k": "2"}}},
        {"attr_k": "true"},
        {"attr_k": "1", "chq_overflow": {"attr": {"_k": ["a", "b"], "k": ["1", "3"]}}},
    ]


def test_a_number_and_its_text_are_one_value_of_a_column() -> None:
    found = pivot([AttributeGroup("attr", attributes({"k": 1}, {"k": "1"}, {"k": "2"}))], limit=250)
    assert found.columns["attr_k"].to_pylist() == ["1", "1", "2"]
    assert found.columns["attr_k"].dictionary.to_pylist() == ["1", "2"]


def test_parents_without_rows_have_no_say_in_the_columns() -> None:
    group = AttributeGroup("attr", attributes({"gone": "1", "_gone": "1"}, {"here": "2"}), rows=np.array([1, 1]))
    assert rows(group) == [{"attr_here": "2"}, {"attr_here": "2"}]


def test_a_key_is_found_whether_it_is_a_column_or_not() -> None:
    found = attributes({"_k": "1"}, {}, {"_k": "2"})
    assert found.pairs_of("_k").tolist() == [0, -1, 1]
    assert found.pairs_of("_k", np.array([2, 2, 0])).tolist() == [1, 1, 0]
    assert found.pairs_of("absent").tolist() == [-1, -1, -1]


def test_equal_lists_are_one_parent_and_lists_that_only_have_the_same_bytes_are_not() -> None:
    key, text = KeyValue(key="k").SerializeToString(), KeyValue(value=value("v")).SerializeToString()
    cut_differently = pa.array([[key + text], [key, text], []], pa.list_(pa.binary()))
    lists = pa.chunked_array([encoded({"k": "v"}, {"k": "w", "l": "x"}, {"k": "v"}), cut_differently])
    found, parent = read_distinct_attributes(lists, Limits.model_construct(), Place.POINT)
    assert parent.tolist() == [0, 1, 0, 0, 2, 3]
    assert rows(AttributeGroup("attr", found, rows=parent)) == [
        {"attr_k": "v"},
        {"attr_k": "w", "attr_l": "x"},
        {"attr_k": "v"},
        {"attr_k": "v"},
        {"attr_": "v"},
        {},
    ]
