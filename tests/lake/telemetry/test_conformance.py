"""One stream in several encodings gives the same rows: the conformance ``.pb`` files hold what their JSON says."""

from __future__ import annotations

import base64
import json
import re
from datetime import date
from pathlib import Path
from typing import Any

import pytest
from google.protobuf import json_format
from google.protobuf.message import Message

from lakerunner_dagster.lake.segments.shared import spread
from lakerunner_dagster.lake.settings import Limits
from lakerunner_dagster.lake.signals import Signal
from lakerunner_dagster.lake.telemetry.decode import decode
from lakerunner_dagster.lake.telemetry.wire import REQUESTS
from tests.lake.telemetry.otlp import ORGANIZATION, payload

EARLY = Limits.model_construct(first_date=date(2000, 1, 1))
"""The specification's examples are of 2018."""

HEX_ID = re.compile("[0-9A-Fa-f]{16}|[0-9A-Fa-f]{32}")


def with_base64_ids(node: Any) -> Any:
    """OTLP's JSON has ids in hexadecimal, protobuf's own mapping has base64; the files have one or the other."""
    if isinstance(node, list):
        return [with_base64_ids(one) for one in node]
    if not isinstance(node, dict):
        return node
    return {
        name: base64.b64encode(bytes.fromhex(value)).decode()
        if name in {"traceId", "spanId", "parentSpanId"} and HEX_ID.fullmatch(value)
        else with_base64_ids(value)
        for name, value in node.items()
    }


def from_json(signal: Signal, documents: list[str]) -> Message:
    merged = REQUESTS[signal]()
    for document in documents:
        merged.MergeFrom(json_format.ParseDict(with_base64_ids(json.loads(document)), REQUESTS[signal]()))
    return merged


def rows(signal: Signal, data: bytes) -> list[dict[str, Any]]:
    decoded = decode(signal, [payload(data)], ORGANIZATION, EARLY)
    assert not decoded.failures
    assert decoded.rejected == ({},)
    found: list[dict[str, Any]] = spread(decoded.table).to_pylist()
    return found


@pytest.mark.parametrize(
    ("signal", "pb", "text", "records"),
    [
        (Signal.LOGS, "logs.pb", "logs.jsonl", 81),
        (Signal.TRACES, "traces.pb", "traces.jsonl", 19),
        (Signal.TRACES, "trace.pb", "trace.json", 2),
    ],
)
def test_the_protobuf_of_a_stream_gives_the_rows_of_its_json(
    real_data: Path, signal: Signal, pb: str, text: str, records: int
) -> None:
    folder = real_data / "conformance"
    written = (folder / text).read_text()
    documents = written.splitlines() if text.endswith("l") else [written]
    found = rows(signal, (folder / pb).read_bytes())
    assert found == rows(signal, from_json(signal, documents).SerializeToString())
    assert len(found) == records


def test_the_specifications_own_log_example_becomes_the_row_it_describes(real_data: Path) -> None:
    example = (real_data / "conformance" / "otel-proto-example-logs.json").read_text()
    (row,) = rows(Signal.LOGS, from_json(Signal.LOGS, [example]).SerializeToString())
    fingerprint = row.pop("chq_fingerprint")
    assert isinstance(fingerprint, int)
    assert row == {
        "chq_id": "000000000000000000000001-00000000",
        "chq_customer_id": str(ORGANIZATION),
        "chq_telemetry_type": "logs",
        "chq_timestamp": 1544712660300,
        "chq_tsns": 1544712660300000000,
        "log_level": "INFORMATION",
        "log_message": "Example log record",
        "metric_name": "log_events",
        "scope_name": "my.library",
        "scope_version": "1.0.0",
        "trace_id": "5b8efff798038103d269b633813fc60c",
        "span_id": "eee19b7ec3c1b174",
        "chq_severity_number": 10,
        "chq_observed_tsns": 1544712660300000000,
        "chq_flags": 0,
        "chq_event_name": None,
        "resource_service_name": "my.service",
        "scope_my_scope_attribute": "some scope attribute",
        "attr_array_attribute": '["many","values"]',
        "attr_boolean_attribute": "true",
        "attr_double_attribute": "637.704",
        "attr_int_attribute": "10",
        "attr_map_attribute": '{"some.map.key":"some value"}',
        "attr_string_attribute": "some string",
        "chq_overflow": None,
        "_file": 0,
    }


def test_the_specifications_own_span_example_becomes_the_row_it_describes(real_data: Path) -> None:
    example = (real_data / "conformance" / "otel-proto-example-trace.json").read_text()
    (row,) = rows(Signal.TRACES, from_json(Signal.TRACES, [example]).SerializeToString())
    fingerprint = row.pop("chq_fingerprint")
    assert isinstance(fingerprint, int)
    assert row == {
        "chq_customer_id": str(ORGANIZATION),
        "chq_telemetry_type": "traces",
        "chq_id": "000000000000000000000001-00000000",
        "chq_timestamp": 1544712660000,
        "chq_tsns": 1544712660000000000,
        "span_trace_id": "5b8efff798038103d269b633813fc60c",
        "span_id": "eee19b7ec3c1b174",
        "span_parent_span_id": "eee19b7ec3c1b173",
        "span_name": "I'm a server span",
        "span_kind": "SPAN_KIND_SERVER",
        "span_status_code": "STATUS_CODE_UNSET",
        "span_status_message": None,
        "span_end_timestamp": 1544712661000,
        "span_duration": 1000,
        "chq_duration_ns": 1000000000,
        "scope_name": "my.library",
        "scope_version": "1.0.0",
        "span_events": None,
        "span_links": None,
        "span_trace_state": None,
        "resource_service_name": "my.service",
        "scope_my_scope_attribute": "some scope attribute",
        "attr_my_span_attr": "some value",
        "chq_overflow": None,
        "_file": 0,
    }
