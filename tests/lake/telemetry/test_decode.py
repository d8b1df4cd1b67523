"""What is bad is set aside alone and counted by its reason; what is good does not depend on its neighbours."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from google.protobuf.message import DecodeError
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, InstrumentationScope, KeyValue
from opentelemetry.proto.logs.v1.logs_pb2 import LogRecord, ResourceLogs, ScopeLogs
from opentelemetry.proto.resource.v1.resource_pb2 import Resource
from opentelemetry.proto.trace.v1.trace_pb2 import ResourceSpans, ScopeSpans, Span

from lakerunner_dagster.lake.errors import InputError
from lakerunner_dagster.lake.segments.columns import conform
from lakerunner_dagster.lake.segments.shared import spread
from lakerunner_dagster.lake.settings import Limits
from lakerunner_dagster.lake.signals import Signal
from lakerunner_dagster.lake.telemetry import decode as decode_module
from lakerunner_dagster.lake.telemetry.decode import Decoded, decode
from lakerunner_dagster.lake.telemetry.raw import RawPayload
from lakerunner_dagster.lake.telemetry.wire import reader
from tests.lake.telemetry.otlp import EVENT_TIME_MS, FIRST_DATE_NS, LATEST_NS, ORGANIZATION, delimited, payload

NOW_NS = EVENT_TIME_MS * 1_000_000
LIMITS = Limits.model_construct()


def attribute(key: str, text: str = "x") -> KeyValue:
    return KeyValue(key=key, value=AnyValue(string_value=text))


def logs(*records: LogRecord, resource: Resource | None = None, scope: InstrumentationScope | None = None) -> bytes:
    lists = ScopeLogs(scope=scope, log_records=records)
    return ExportLogsServiceRequest(
        resource_logs=[ResourceLogs(resource=resource, scope_logs=[lists])]
    ).SerializeToString()


def log(message: str = "hello", time: int = NOW_NS, **fields: Any) -> LogRecord:
    return LogRecord(time_unix_nano=time, body=AnyValue(string_value=message), **fields)


def spans(*records: Span, resource: Resource | None = None) -> bytes:
    return ExportTraceServiceRequest(
        resource_spans=[ResourceSpans(resource=resource, scope_spans=[ScopeSpans(spans=records)])]
    ).SerializeToString()


def span(start: int = NOW_NS, **fields: Any) -> Span:
    return Span(start_time_unix_nano=start, **fields)


def decoded_logs(*data: bytes, limits: Limits = LIMITS) -> Decoded:
    return decode(Signal.LOGS, [payload(one, n) for n, one in enumerate(data, start=1)], ORGANIZATION, limits)


def decoded_spans(*data: bytes, limits: Limits = LIMITS) -> Decoded:
    return decode(Signal.TRACES, [payload(one, n) for n, one in enumerate(data, start=1)], ORGANIZATION, limits)


def column(decoded: Decoded, name: str) -> list[Any]:
    values: list[Any] = spread(decoded.table)[name].to_pylist()
    return values


BAD = {
    "random bytes": bytes(range(7, 90)),
    "truncated": logs(log("whole"))[:-3],
    "text": b"not a protobuf",
    "bad utf-8 in the body": logs(log("abc")).replace(b"abc", b"a\xffc"),
    "bad utf-8 in an attribute": logs(log(attributes=[attribute("key", "val")])).replace(b"val", b"v\xffl"),
    "bad utf-8 in an attribute of the resource": logs(log(), resource=Resource(attributes=[attribute("rrr")])).replace(
        b"rrr", b"r\xffr"
    ),
    "a length of 2^64-1": b"\x0a" + b"\xff" * 9 + b"\x01",
    "another signal's wire type": b"\x0a\x03\x0a\x01\x08",
}


@pytest.mark.parametrize("bad", BAD.values(), ids=BAD.keys())
def test_one_bad_payload_of_many_is_set_aside_alone(bad: bytes) -> None:
    good = [logs(log(f"message {n}"), log("more")) for n in range(3)]
    decoded = decoded_logs(good[0], bad, good[1], bad, good[2])
    assert sorted(decoded.failures) == [1, 3]
    failure = decoded.failures[1]
    assert failure.reason == "corrupt_protobuf"
    assert "otel-raw/file-2" in str(failure)
    assert decoded.records_read == (2, 0, 2, 0, 2)
    assert column(decoded, "_file") == [0, 0, 2, 2, 4, 4]
    assert column(decoded, "log_message")[::2] == ["message 0", "message 1", "message 2"]


def test_a_payload_that_only_the_fast_reader_refuses_is_set_aside_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    handler = reader(ExportLogsServiceRequest)._handler

    class Choosy:
        def array_to_record_batch(self, encoded: pa.BinaryArray) -> pa.RecordBatch:
            if any(b"poison" in one for one in encoded.to_pylist()):
                raise ValueError("failed to decode")
            return handler.array_to_record_batch(encoded)

    monkeypatch.setattr(reader(ExportLogsServiceRequest), "_handler", Choosy())
    decoded = decoded_logs(logs(log("a")), logs(log("poison")), logs(log("b")))
    assert {ordinal: error.reason for ordinal, error in decoded.failures.items()} == {1: "unreadable_protobuf"}
    assert column(decoded, "log_message") == ["a", "b"]
    assert column(decoded, "_file") == [0, 2]


def test_a_panic_of_the_fast_reader_is_an_input_error(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(InputError) as caught:
        reader(ExportLogsServiceRequest).read(pa.array([BAD["a length of 2^64-1"]], pa.binary()))
    assert caught.value.reason == "unreadable_protobuf"
    assert "panicked" in capfd.readouterr().err


@pytest.mark.parametrize("signal", [Signal.LOGS, Signal.TRACES])
def test_nothing_at_all_is_an_empty_table_that_can_be_written(signal: Signal) -> None:
    for payloads in ([], [payload(b"")], [payload(b"\xff")]):
        decoded = decode(signal, payloads, ORGANIZATION, LIMITS)
        assert decoded.table.num_rows == 0
        assert conform(decoded.table.drop_columns(["_file"]), signal).num_rows == 0


def log_of_nested_arrays(depth: int, key: str | None = None) -> bytes:
    """A request whose one record has an array of an array of … a string, as its body or as an attribute."""
    value = AnyValue(string_value="core").SerializeToString()
    for _ in range(depth):
        value = delimited(5, delimited(1, value))
    record = log("").SerializeToString() + (
        delimited(5, value) if key is None else delimited(6, delimited(1, key.encode()) + delimited(2, value))
    )
    return delimited(1, delimited(2, delimited(2, record)))


def test_nesting_is_taken_as_deep_as_upb_takes_it_and_refused_beyond() -> None:
    def upb_takes(request: bytes) -> bool:
        try:
            ExportLogsServiceRequest.FromString(request)
        except DecodeError:
            return False
        return True

    for key, name in ((None, "log_message"), ("deep", "attr_deep")):
        deepest = max(depth for depth in range(60) if upb_takes(log_of_nested_arrays(depth, key)))
        decoded = decoded_logs(*(log_of_nested_arrays(depth, key) for depth in (deepest, deepest + 1, 5000)))
        assert column(decoded, name) == ["[" * deepest + '"core"' + "]" * deepest]
        assert [decoded.failures[n].reason for n in (1, 2)] == ["corrupt_protobuf"] * 2


def test_records_with_too_many_attributes_are_refused_with_the_reason() -> None:
    many = [attribute(f"key.{n}") for n in range(10_000)]
    decoded = decoded_logs(
        logs(log("a"), log("b", attributes=many), log("c")),
        logs(log("d"), log("e"), resource=Resource(attributes=many)),
        logs(log("f"), scope=InstrumentationScope(attributes=many)),
    )
    assert column(decoded, "log_message") == ["a", "c"]
    assert decoded.rejected == ({"too_many_attributes": 1}, {"too_many_attributes": 2}, {"too_many_attributes": 1})
    assert decoded.records_read == (3, 2, 1)
    assert not [name for name in spread(decoded.table).column_names if "key" in name]


@pytest.mark.parametrize(
    "large",
    [
        logs(log(attributes=[attribute("huge", "x" * 5_000_000)])),
        logs(log(attributes=[attribute("k" * 5_000_000)])),
        logs(log("x" * 5_000_000)),
        logs(log(), resource=Resource(attributes=[attribute("huge", "x" * 5_000_000)])),
        logs(LogRecord(time_unix_nano=NOW_NS, body=AnyValue(bytes_value=bytes(1_000_000)))),
    ],
    ids=["attribute", "key", "body", "resource", "bytes that grow in base64"],
)
def test_a_value_that_is_too_large_refuses_its_record(large: bytes) -> None:
    decoded = decoded_logs(logs(log("small")), large)
    assert column(decoded, "log_message") == ["small"]
    assert decoded.rejected == ({}, {"value_too_large": 1})


def test_events_and_links_are_bounded_as_attributes_are() -> None:
    many = [attribute(f"key.{n}") for n in range(5000)]
    huge = [attribute("huge", "x" * 2_000_000)]
    decoded = decoded_spans(
        spans(
            span(name="a", events=[Span.Event(attributes=many)]),
            span(name="b", links=[Span.Link(), Span.Link(attributes=huge)]),
            span(name="c", events=[Span.Event(name="e")], links=[Span.Link(trace_id=b"\xab")]),
        )
    )
    assert decoded.rejected == ({"too_many_attributes": 1, "value_too_large": 1},)
    assert column(decoded, "span_name") == ["c"]
    assert json.loads(column(decoded, "span_links")[0])[0]["trace_id"] == "ab"


def test_times_outside_the_lake_are_refused_and_never_moved() -> None:
    times = [FIRST_DATE_NS - 1, FIRST_DATE_NS, LATEST_NS, LATEST_NS + 1, 2**63, 2**64 - 1]
    decoded = decoded_logs(logs(*(log(time=time) for time in times)))
    assert column(decoded, "chq_tsns") == [FIRST_DATE_NS, LATEST_NS]
    assert decoded.rejected == ({"time_before_first_date": 1, "time_ahead": 3},)
    assert decoded_spans(spans(*(span(time) for time in times))).rejected == decoded.rejected


def test_a_log_without_a_time_has_the_observed_one_or_its_objects() -> None:
    observed = NOW_NS - 5
    decoded = decoded_logs(logs(log(time=0, observed_time_unix_nano=observed), log(time=0), log(time=NOW_NS - 9)))
    assert column(decoded, "chq_tsns") == [observed, NOW_NS, NOW_NS - 9]
    assert column(decoded, "chq_timestamp") == [EVENT_TIME_MS - 1, EVENT_TIME_MS, EVENT_TIME_MS - 1]


def test_an_odd_observed_time_or_end_is_no_reason_to_refuse() -> None:
    decoded = decoded_logs(logs(*(log(observed_time_unix_nano=time) for time in (0, 1, 2**63, 2**64 - 1))))
    assert column(decoded, "chq_observed_tsns") == [None, 1, None, None]
    ends = decoded_spans(spans(*(span(end_time_unix_nano=end) for end in (0, 1, NOW_NS + 1_999_999, 2**64 - 1))))
    assert column(ends, "span_end_timestamp") == [None, 0, EVENT_TIME_MS + 1, (2**64 - 1) // 1_000_000]
    assert column(ends, "span_duration") == [None, -((NOW_NS - 1) // 1_000_000), 1, None]
    assert column(ends, "chq_duration_ns") == [None, 1 - NOW_NS, 1_999_999, None]


def test_a_span_without_a_start_is_refused_as_having_no_time() -> None:
    decoded = decoded_spans(spans(span(0, end_time_unix_nano=NOW_NS), span()))
    assert decoded.rejected == ({"no_time": 1},)
    assert decoded.table.num_rows == 1


def test_a_span_without_ids_is_kept_with_empty_ones() -> None:
    decoded = decoded_spans(spans(span(), span(trace_id=b"\x01\xff", span_id=b"\0", parent_span_id=b"\x0a")))
    assert column(decoded, "span_trace_id") == ["", "01ff"]
    assert column(decoded, "span_id") == ["", "00"]
    assert column(decoded, "span_parent_span_id") == ["", "0a"]


def test_enum_numbers_that_have_no_name_keep_their_number() -> None:
    decoded = decoded_spans(spans(span(kind=99), span(kind=3, status={"code": -7}), span(status={"code": 2})))
    assert column(decoded, "span_kind") == ["SPAN_KIND_99", "SPAN_KIND_CLIENT", "SPAN_KIND_UNSPECIFIED"]
    assert column(decoded, "span_status_code") == ["STATUS_CODE_UNSET", "STATUS_CODE_-7", "STATUS_CODE_ERROR"]


def test_levels_come_from_the_text_else_from_the_number() -> None:
    told = [("warn", 0), ("", 1), ("", 4), ("", 9), ("", 24), ("", 25), ("", 0), ("Straße", 9)]
    decoded = decoded_logs(logs(*(log(severity_text=text, severity_number=number) for text, number in told)))
    assert column(decoded, "log_level") == ["WARN", "TRACE", "TRACE", "INFO", "FATAL", None, None, "STRASSE"]
    assert column(decoded, "chq_severity_number") == [None, 1, 4, 9, 24, 25, None, 9]


def test_a_record_keeps_its_id_and_rows_whichever_files_are_beside_it() -> None:
    files = [payload(logs(log(f"{n} a"), log("late", time=1), log(f"{n} b")), n) for n in range(1, 6)]
    together = decode(Signal.LOGS, files, ORGANIZATION, LIMITS)
    alone = [decode(Signal.LOGS, [file], ORGANIZATION, LIMITS).table.drop_columns(["_file"]) for file in files]
    rows = [row for table in alone for row in spread(table).to_pylist()]
    assert spread(together.table.drop_columns(["_file"])).to_pylist() == rows
    assert column(together, "chq_id")[:2] == [f"{1:024x}-00000000", f"{1:024x}-00000002"]
    assert len(set(column(together, "chq_id"))) == len(rows)


@pytest.mark.parametrize("signal", [Signal.LOGS, Signal.TRACES])
def test_the_same_payloads_give_the_same_table(real_data: Path, signal: Signal) -> None:
    files = sorted((real_data / signal).glob("*.gz"))

    def table() -> Decoded:
        payloads = [payload(gzip.decompress(path.read_bytes()), n) for n, path in enumerate(files)]
        return decode(signal, payloads, ORGANIZATION, LIMITS)

    first, second = table(), table()
    assert first.table.equals(second.table)
    assert first.original_keys == second.original_keys


def test_every_signal_of_the_table_has_a_decoder_that_takes_nothing() -> None:
    for signal in decode_module._DECODERS:
        assert decode(signal, [], ORGANIZATION, LIMITS).records_read == ()


def test_an_identity_of_another_length_is_a_bug_that_is_told() -> None:
    with pytest.raises(ValueError, match="24 hex digits"):
        RawPayload(1, "key", "abc", 0, b"")
