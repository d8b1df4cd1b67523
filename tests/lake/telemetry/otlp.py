"""Export requests for the tests: generated ones, odd in every way that OTLP allows, and the same on a tangled wire."""

from __future__ import annotations

from random import Random
from typing import TYPE_CHECKING, Any
from uuid import UUID

from google.protobuf.message import Message
from hypothesis import strategies as st
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import (
    AnyValue,
    ArrayValue,
    InstrumentationScope,
    KeyValue,
    KeyValueList,
)
from opentelemetry.proto.logs.v1.logs_pb2 import LogRecord, ResourceLogs, ScopeLogs
from opentelemetry.proto.resource.v1.resource_pb2 import Resource
from opentelemetry.proto.trace.v1.trace_pb2 import ResourceSpans, ScopeSpans, Span, Status

from lakerunner_dagster.lake.signals import Signal
from lakerunner_dagster.lake.telemetry.raw import RawPayload

if TYPE_CHECKING:
    from hypothesis.strategies import SearchStrategy

ORGANIZATION = UUID("00000000-0000-0000-0000-00000000000a")
EVENT_TIME_MS = 1_766_578_007_004
FIRST_DATE_NS = 1_735_689_600_000_000_000
LATEST_NS = (EVENT_TIME_MS + 3_600_000) * 1_000_000


def payload(data: bytes, number: int = 1, event_time_ms: int = EVENT_TIME_MS) -> RawPayload:
    """A raw payload with an identity of its own."""
    return RawPayload(number, f"otel-raw/file-{number}", f"{number:024x}", event_time_ms, data)


_texts = st.text(max_size=12) | st.sampled_from(['"', "\\", "\0", "\n", "é", "😀", "user 17 of [1, 2, 3]", "x" * 50])
_keys = (
    st.sampled_from(
        [
            *("", "a.b", "a_b", "A.B", "a-b", "_a", "_", "é", "è", "😀", "1", "nul\0", "k" * 256, "k" * 257),
            *("name", "version", "service.name", "k8s.cluster.name", "http.method", "http.request.method"),
            *("http.route", "db.system", "db.name", "messaging.system", "messaging.operation"),
        ]
    )
    | _texts
)
_doubles = st.floats() | st.sampled_from(
    [0.0, -0.0, 1.0, 1e10, 12345678901.5, 1e20, 1e21, 1e-5, 1e-6, 1e-7, 5e-324, 1.5e300]
)
_values: SearchStrategy[AnyValue] = st.recursive(
    st.builds(AnyValue)
    | st.builds(AnyValue, string_value=_texts)
    | st.builds(AnyValue, bool_value=st.booleans())
    | st.builds(AnyValue, int_value=st.integers(-(2**63), 2**63 - 1) | st.sampled_from([0, 1]))
    | st.builds(AnyValue, double_value=_doubles)
    | st.builds(AnyValue, bytes_value=st.binary(max_size=8))
    | st.builds(AnyValue, string_value_strindex=st.integers(0, 3)),
    lambda inner: (
        st.builds(AnyValue, array_value=st.builds(ArrayValue, values=st.lists(inner, max_size=3)))
        | st.builds(
            AnyValue,
            kvlist_value=st.builds(
                KeyValueList, values=st.lists(st.builds(KeyValue, key=_keys, value=inner), max_size=3)
            ),
        )
    ),
    max_leaves=6,
)
_attributes = st.lists(st.builds(KeyValue, key=_keys, value=st.none() | _values), max_size=8)
_times = st.sampled_from(
    [0, 1, FIRST_DATE_NS - 1, FIRST_DATE_NS, LATEST_NS, LATEST_NS + 1, 2**63 - 1, 2**63, 2**64 - 1]
) | st.integers(LATEST_NS - 10**15, LATEST_NS)
_ids = st.sampled_from([b"", b"\0" * 16, b"\1\xff"]) | st.binary(max_size=16)
_numbers = st.integers(0, 2**32 - 1)
_enums = st.integers(-3, 30)
_resources = st.none() | st.builds(Resource, attributes=_attributes)
_scopes = st.none() | st.builds(InstrumentationScope, name=_texts, version=_texts, attributes=_attributes)

_log_records = st.builds(
    LogRecord,
    time_unix_nano=_times,
    observed_time_unix_nano=_times,
    severity_number=_enums,
    severity_text=st.sampled_from(["", "warn", "INFO", "straße"]) | _texts,
    body=st.none() | _values,
    attributes=_attributes,
    flags=_numbers,
    trace_id=_ids,
    span_id=_ids,
    event_name=_texts,
)
_events = st.builds(Span.Event, time_unix_nano=_times, name=_texts, attributes=_attributes)
_links = st.builds(Span.Link, trace_id=_ids, span_id=_ids, trace_state=_texts, attributes=_attributes, flags=_numbers)
_spans = st.builds(
    Span,
    trace_id=_ids,
    span_id=_ids,
    parent_span_id=_ids,
    trace_state=_texts,
    name=_texts,
    kind=_enums,
    start_time_unix_nano=_times,
    end_time_unix_nano=_times,
    attributes=_attributes,
    events=st.lists(_events, max_size=2),
    links=st.lists(_links, max_size=2),
    status=st.none() | st.builds(Status, message=_texts, code=_enums),
)

REQUESTS: dict[Signal, SearchStrategy[Message]] = {
    Signal.LOGS: st.builds(
        ExportLogsServiceRequest,
        resource_logs=st.lists(
            st.builds(
                ResourceLogs,
                resource=_resources,
                scope_logs=st.lists(
                    st.builds(ScopeLogs, scope=_scopes, log_records=st.lists(_log_records, max_size=4)), max_size=2
                ),
            ),
            max_size=3,
        ),
    ),
    Signal.TRACES: st.builds(
        ExportTraceServiceRequest,
        resource_spans=st.lists(
            st.builds(
                ResourceSpans,
                resource=_resources,
                scope_spans=st.lists(
                    st.builds(ScopeSpans, scope=_scopes, spans=st.lists(_spans, max_size=4)), max_size=2
                ),
            ),
            max_size=3,
        ),
    ),
}
"""Requests of a signal: odd and colliding keys, all kinds of values, keys twice on a record, times of every sort."""


def tangled(message: Message, rng: Random) -> bytes:
    """The message as a wilful but legal sender writes it: singular messages in pieces, members of a oneof overridden.

    What it means is for upb to say; it may differ from ``message``, since pieces are merged with others' pieces.
    """
    chunks: list[bytes] = []
    for field, value in message.ListFields():
        if field.message_type is None:
            chunks.append(_alone(message, field.name))
        elif field.is_repeated:
            chunks += [delimited(field.number, tangled(one, rng)) for one in value]
        else:
            pieces = [value, value, value][: rng.randrange(1, 4)]
            chunks += [delimited(field.number, tangled(piece, rng)) for piece in pieces]
    if isinstance(message, AnyValue):
        others = [AnyValue(string_value="over"), AnyValue(int_value=7), AnyValue(kvlist_value=KeyValueList())]
        chunks += [other.SerializeToString() for other in rng.sample(others, rng.randrange(3))]
    rng.shuffle(chunks)
    return b"".join(chunks)


def _alone(message: Message, name: str) -> bytes:
    one = type(message)()
    value: Any = getattr(message, name)
    if hasattr(value, "extend"):
        getattr(one, name).extend(value)
    else:
        setattr(one, name, value)
    return one.SerializeToString()


def delimited(number: int, content: bytes) -> bytes:
    """A field of a string, bytes or a message, as the wire has it."""
    return header(number, len(content)) + content


def header(number: int, size: int) -> bytes:
    """What stands before so many bytes of such a field."""
    return _varint(number << 3 | 2) + _varint(size)


def _varint(number: int) -> bytes:
    encoded = bytearray()
    while number > 0x7F:
        encoded.append(number & 0x7F | 0x80)
        number >>= 7
    encoded.append(number)
    return bytes(encoded)


def mutated(original: bytes, rng: Random) -> bytes:
    """The bytes with one to three random damages."""
    data = bytearray(original)
    for _ in range(rng.choice([1, 1, 1, 2, 3])):
        at = rng.randrange(len(data) + 1)
        match rng.randrange(5):
            case 0:
                data[at : at + 1] = rng.randbytes(1)
            case 1:
                data[at : at + 1] = bytes([data[at] ^ 1 << rng.randrange(8)] if at < len(data) else [])
            case 2:
                del data[at : at + rng.randrange(1, 9)]
            case 3:
                data[at:at] = rng.choice([b"\xff" * 9 + b"\x01", b"\0", b"\x0b\x0c", b"\x0b\x14", rng.randbytes(3)])
            case _:
                data[at:at] = data[at : at + rng.randrange(1, 40)]
    return bytes(data)
