"""What would break if an index row said something else than its file: queries that miss rows, or find none there."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
import pytest

from lakerunner_dagster.lake.segments import index, parquet
from lakerunner_dagster.lake.signals import Signal


def content(signal: Signal, **columns: list[Any]) -> index.ContentFields:
    return index.CONTENT_FIELDS[signal](parquet.encode(pa.table(columns)))


def test_a_record_lasts_a_millisecond_and_a_bucket_its_frequency() -> None:
    table = pa.table({"chq_timestamp": [30_000, 10_000, 20_000]})
    assert index.time_range(table, 0) == (10_000, 30_001)
    assert index.time_range(table, 10_000) == (10_000, 40_000)


def test_metrics_count_points_and_other_signals_rows() -> None:
    assert index.records(pa.table({"chq_points": [3, 4]})) == 7
    assert index.records(pa.table({"chq_id": ["a", "b"]})) == 2


def test_labels_are_the_attribute_columns_that_hold_a_value() -> None:
    table = pa.table(
        {
            "chq_timestamp": [1],
            "scope_name": ["s"],
            "attr_b": ["1"],
            "attr_a": ["2"],
            "attr_empty": pa.nulls(1, "string"),
        }
    )
    contents = index.Contents(Signal.TRACES, 0)
    contents.add(table)
    keys = {"attr_b": "B", "attr_a": "a.ä", "attr_gone": "gone", "attr_empty": "empty"}
    assert list(contents.labels(keys).items()) == [("attr_a", "a.ä"), ("attr_b", "B")]


@pytest.mark.parametrize(
    ("domains", "services", "expected"),
    [
        (["b", "a", "b"], ["x", "y", "z"], (("a", "b"), "resource_customer_domain")),
        (["b", None, None], ["x", "y", "z"], (("b",), "resource_customer_domain")),
        ([None, None, None], ["x", "y", "x"], (("x", "y"), "resource_service_name")),
        (["", None, ""], ["x", "", "x"], (("x",), "resource_service_name")),
        ([None, None, None], [None, None, None], None),
        (None, ["x", "x", "x"], (("x",), "resource_service_name")),
        (["b", "a", "b"], None, (("a", "b"), "resource_customer_domain")),
        (None, None, None),
    ],
)
def test_streams_are_domains_where_there_are_any_else_services(
    domains: list[str | None] | None, services: list[str | None] | None, expected: tuple[tuple[str, ...], str] | None
) -> None:
    columns = {"resource_customer_domain": domains, "resource_service_name": services}
    fields = content(Signal.LOGS, chq_id=["1", "2", "3"], **{n: v for n, v in columns.items() if v is not None})
    if expected is None:
        assert fields == {}
    else:
        assert (fields["stream_ids"], fields["stream_id_field"]) == expected


@pytest.mark.parametrize(
    ("name", "listed"),
    [("a\0b", "a\ufffdb"), ("x" * 5000, "x" * 2048), ("x" + "é" * 5000, "x" + "é" * 1023)],
    ids=["NUL", "long", "cut within a character"],
)
def test_names_that_postgresql_cannot_hold_do_not_stop_a_box(name: str, listed: str) -> None:
    assert content(Signal.LOGS, resource_service_name=[name])["stream_ids"] == (listed,)
    metrics = content(Signal.METRICS, metric_name=[name], chq_point_type=["sum"], chq_rollup_count=[1.0])
    assert (metrics["metric_names"], metrics["metric_types"]) == ((listed,), (2,))


def test_metric_names_are_sorted_and_types_go_with_them() -> None:
    fields = content(
        Signal.METRICS,
        metric_name=["z", "a", "m", "a", "é", "m"],
        chq_point_type=["gauge", "sum", "exponential_histogram", "sum", "summary", "exponential_histogram"],
        chq_rollup_count=[1.0, 2.0, 3.5, None, 0.0, 1.0],
    )
    assert fields == {
        "rollup_count": 7.5,
        "metric_names": ("a", "m", "z", "é"),
        "metric_types": (2, 4, 1, 5),
    }


def test_a_name_of_two_types_is_listed_once_in_whatever_order_rows_come() -> None:
    kinds = ["summary", "histogram", "sum"]
    for order in (kinds, kinds[::-1]):
        fields = content(Signal.METRICS, metric_name=["m"] * 3, chq_point_type=order, chq_rollup_count=[1.0] * 3)
        assert (fields["metric_names"], fields["metric_types"]) == (("m",), (2,))


def test_spans_have_no_fields_of_their_own() -> None:
    assert content(Signal.TRACES, span_name=["GET"]) == {}
