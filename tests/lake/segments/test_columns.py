"""What would break if columns strayed: readers name them, and a NULL that counts as a value fills the index."""

from __future__ import annotations

import pyarrow as pa
import pytest

from lakerunner_dagster.lake.errors import ContractBreach
from lakerunner_dagster.lake.segments.columns import FIXED_COLUMNS, OVERFLOW, conform
from lakerunner_dagster.lake.signals import SIGNALS, Signal
from tests.lake.segments.tables import log_rows


@pytest.mark.parametrize("signal", Signal)
def test_a_segment_has_every_fixed_column_and_its_sort_keys(signal: Signal) -> None:
    table = conform(pa.table({"chq_timestamp": [1]}), signal)
    assert table.schema.equals(pa.schema([*FIXED_COLUMNS[signal], pa.field(OVERFLOW, pa.string())]))
    attributes = {"resource_service_name"}  # the one sort key that a record may lack
    assert set(SIGNALS[signal].sort_keys) - attributes <= set(table.column_names)


def test_columns_stand_in_the_order_of_the_spec_whatever_order_they_come_in() -> None:
    table = log_rows(20).drop_columns(["_file"])
    table = table.select(list(reversed(table.column_names)))
    assert conform(table, Signal.LOGS).column_names == [
        *FIXED_COLUMNS[Signal.LOGS].names,
        "resource_k8s_cluster_name",
        "resource_service_name",
        "scope_build",
        "attr_http_status",
        "attr_request_id",
        OVERFLOW,
    ]


@pytest.mark.parametrize(
    "empty",
    [
        pa.nulls(2),
        pa.nulls(2, pa.string()),
        pa.DictionaryArray.from_arrays(pa.array([0, 0], pa.int32()), pa.array([None], pa.string())),
        pa.DictionaryArray.from_arrays(pa.array([None, None], pa.int32()), pa.array(["unused"])),
    ],
    ids=["null type", "strings", "codes that mean NULL", "no codes"],
)
def test_an_attribute_without_a_value_is_no_column(empty: pa.Array) -> None:
    table = pa.table({"chq_timestamp": [1, 2], "attr_empty": empty})
    assert "attr_empty" not in conform(table, Signal.LOGS).column_names


def test_narrower_and_dictionary_types_are_brought_to_the_declared_ones() -> None:
    table = conform(
        pa.table(
            {
                "chq_severity_number": pa.array([9], pa.int64()),
                "log_message": pa.array(["m"], pa.large_string()),
                "log_level": pa.array(["INFO"], pa.large_string()).dictionary_encode(),
                "scope_name": pa.nulls(1),
            }
        ),
        Signal.LOGS,
    )
    assert table.schema.field("chq_severity_number").type == pa.int32()
    assert table.schema.field("log_message").type == pa.string()
    assert table["log_level"].to_pylist() == ["INFO"]
    assert table.schema.field("scope_name").type == pa.string()


def test_a_column_that_no_segment_has_is_refused() -> None:
    with pytest.raises(ContractBreach, match=r"\['_file', 'mystery'\] have no place in a logs segment"):
        conform(pa.table({"chq_timestamp": [1], "mystery": [1], "_file": [0]}), Signal.LOGS)


def test_values_that_do_not_fit_their_type_are_refused() -> None:
    with pytest.raises(ContractBreach, match=r"chq_timestamp is double"):
        conform(pa.table({"chq_timestamp": [1.5]}), Signal.LOGS)
