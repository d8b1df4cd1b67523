"""The fast decoder says what the plain loop says: on real files, on the conformance streams, on generated requests."""

from __future__ import annotations

import gzip
from pathlib import Path
from random import Random
from typing import Any

import pytest
from google.protobuf.message import DecodeError, Message
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bench.plain_loop import decode_rows
from lakerunner_dagster.lake.segments.columns import FIXED_COLUMNS
from lakerunner_dagster.lake.segments.shared import spread
from lakerunner_dagster.lake.settings import Limits
from lakerunner_dagster.lake.signals import Signal
from lakerunner_dagster.lake.telemetry.decode import decode
from lakerunner_dagster.lake.telemetry.raw import RawPayload
from tests.lake.telemetry.otlp import ORGANIZATION, REQUESTS, mutated, payload, tangled

SIGNALS = [Signal.LOGS, Signal.TRACES]
TIGHT = Limits.model_construct(attributes=5, value_bytes=40, columns=4)
RECORDS = {
    "logs/logs_122666952": 1775,
    "logs/logs_201988403": 1434,
    "logs/otel-logs": 525,
    "traces/otel-traces": 246,
    "traces/traces_244872953": 257,
}

fuzz = settings(
    max_examples=80, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large]
)


def without_nulls(row: dict[str, Any]) -> dict[str, Any]:
    return {column: value for column, value in row.items() if value is not None}


def assert_decoded_as_by_the_plain_loop(signal: Signal, raw: RawPayload, limits: Limits) -> None:
    decoded = decode(signal, [raw], ORGANIZATION, limits)
    try:
        rows, rejected = decode_rows(signal, raw, ORGANIZATION, limits)
    except DecodeError:
        assert decoded.failures[0].reason == "corrupt_protobuf"
        assert decoded.table.num_rows == decoded.records_read[0] == 0
        return
    assert not decoded.failures
    table = spread(decoded.table.drop_columns(["_file"]))
    assert [without_nulls(row) for row in table.to_pylist()] == [without_nulls(row) for row in rows]
    assert decoded.rejected == (rejected,)
    assert decoded.records_read == (len(rows) + rejected.total(),)
    assert table.column_names[: len(FIXED_COLUMNS[signal])] == FIXED_COLUMNS[signal].names
    table.validate(full=True)


@pytest.mark.parametrize(("name", "records"), RECORDS.items())
def test_a_real_file_decodes_cell_by_cell_as_the_plain_loop_says(
    real_data: Path, limits: Limits, name: str, records: int
) -> None:
    signal = Signal(name.partition("/")[0])
    raw = payload(gzip.decompress((real_data / f"{name}.binpb.gz").read_bytes()))
    assert_decoded_as_by_the_plain_loop(signal, raw, limits)
    assert decode(signal, [raw], ORGANIZATION, limits).table.num_rows == records


@pytest.mark.parametrize(("name", "signal"), [("logs", "logs"), ("traces", "traces"), ("trace", "traces")])
def test_a_conformance_stream_decodes_as_the_plain_loop_says(
    real_data: Path, limits: Limits, name: str, signal: str
) -> None:
    raw = payload((real_data / "conformance" / f"{name}.pb").read_bytes())
    assert_decoded_as_by_the_plain_loop(Signal(signal), raw, limits)


@pytest.mark.parametrize("signal", SIGNALS)
@pytest.mark.parametrize("bounds", [Limits.model_construct(), TIGHT], ids=["default", "tight"])
@fuzz
@given(data=st.data())
def test_whatever_a_request_holds_it_decodes_as_the_plain_loop_says(
    signal: Signal, bounds: Limits, data: st.DataObject
) -> None:
    request = data.draw(REQUESTS[signal])
    assert_decoded_as_by_the_plain_loop(signal, payload(request.SerializeToString()), bounds)


@pytest.mark.parametrize("signal", SIGNALS)
@fuzz
@given(data=st.data(), seed=st.integers(0, 2**32))
def test_messages_in_pieces_and_overridden_oneofs_mean_what_upb_says(
    signal: Signal, data: st.DataObject, seed: int
) -> None:
    request = data.draw(REQUESTS[signal])
    assert_decoded_as_by_the_plain_loop(signal, payload(tangled(request, Random(seed))), Limits.model_construct())


@pytest.mark.parametrize("signal", SIGNALS)
@fuzz
@given(data=st.data(), seed=st.integers(0, 2**32))
def test_a_damaged_request_is_taken_or_refused_exactly_as_upb_does(
    signal: Signal, data: st.DataObject, seed: int
) -> None:
    request: Message = data.draw(REQUESTS[signal])
    damaged = mutated(request.SerializeToString(), Random(seed))
    assert_decoded_as_by_the_plain_loop(signal, payload(damaged), Limits.model_construct())
