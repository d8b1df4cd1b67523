"""Protobuf bytes → nested Arrow, by ptars, held to exactly what upb (the reference library) accepts and says.

What belongs here: the edited OTLP descriptors and the readers made of them. What does not: the meaning of a field.

Two stages make it fast. OTLP's own descriptors are edited so that resources, scopes, attributes and the arrays and
maps inside values arrive as bytes (the same wire type); whoever wants them dictionary-encodes those bytes and reads
each distinct one once, with the reader of its own message.

ptars is young and lenient, so it never sees a byte that upb has not accepted. As a whole (``validate``) that would be
a sixth of all work: the attributes of records, most of the bytes and nearly all repeated, are left out of the first
check (``read_requests``) and made up for by a check of the distinct ones (``check_attributes``), at the same depth.
Together they accept what ``validate`` accepts; which payload is to blame, ``validate`` tells.

Where the wire says something that the edited descriptors cannot express (a singular message in several pieces, two
members of a oneof: legal, and merged or overridden by every parser), the messages are written anew by upb and read
again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from enum import Enum
from functools import cache
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import ptars
import pyarrow as pa
from google.protobuf import descriptor_pb2, descriptor_pool
from google.protobuf.descriptor import Descriptor, FileDescriptor
from google.protobuf.message import DecodeError, Message
from google.protobuf.message_factory import GetMessageClass
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import (
    AnyValue,
    ArrayValue,
    InstrumentationScope,
    KeyValue,
    KeyValueList,
)
from opentelemetry.proto.logs.v1.logs_pb2 import LogRecord
from opentelemetry.proto.metrics.v1.metrics_pb2 import (
    ExponentialHistogramDataPoint,
    HistogramDataPoint,
    NumberDataPoint,
    SummaryDataPoint,
)
from opentelemetry.proto.resource.v1.resource_pb2 import Resource
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from lakerunner_dagster.lake.errors import InputError
from lakerunner_dagster.lake.signals import Signal

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from google._upb._message import Descriptor as UpbDescriptor
    from google._upb._message import FileDescriptor as UpbFileDescriptor

    _File = FileDescriptor | UpbFileDescriptor

REQUESTS: Mapping[Signal, type[Message]] = MappingProxyType(
    {
        Signal.LOGS: ExportLogsServiceRequest,
        Signal.METRICS: ExportMetricsServiceRequest,
        Signal.TRACES: ExportTraceServiceRequest,
    }
)
"""The message that a raw file of a signal holds."""

_LATER = frozenset(
    message.DESCRIPTOR.full_name for message in (Resource, InstrumentationScope, ArrayValue, KeyValueList)
)
"""Messages that arrive as bytes wherever they stand."""

_LATER_WHERE_REPEATED = frozenset(message.DESCRIPTOR.full_name for message in (KeyValue, AnyValue))
"""Messages that arrive as bytes where they are repeated: attributes, and the elements of arrays and maps."""

_UNREAD = frozenset({"schema_url", "entity_refs", "exemplars", "metadata", "key_strindex", "dropped_attributes_count"})
"""Fields that no column holds; ptars skips them."""


class Place(Enum):
    """Where in a request lists of attributes stand that are checked apart: the way to the messages that have them."""

    LOG_RECORD = (Signal.LOGS, "resource_logs", "scope_logs", "log_records")
    POINT = (Signal.METRICS, "resource_metrics", "scope_metrics", "metrics", "gauge", "data_points")
    SPAN = (Signal.TRACES, "resource_spans", "scope_spans", "spans")
    EVENT_OR_LINK = (Signal.TRACES, "resource_spans", "scope_spans", "spans", "events")


_CHECKED_APART = frozenset(
    message.DESCRIPTOR.full_name
    for message in (
        LogRecord,
        NumberDataPoint,
        HistogramDataPoint,
        ExponentialHistogramDataPoint,
        SummaryDataPoint,
        Span,
        Span.Event,
        Span.Link,
    )
)
"""Messages in these places; those of one place stand equally deep, which matters to what depth of values upb takes."""

_READERS: dict[str, Reader] = {}

_Field = descriptor_pb2.FieldDescriptorProto


def validate(signal: Signal, payload: bytes, key: str) -> None:
    """Whether a raw file is what the reference library takes for an export request of its signal.

    Raises InputError ``corrupt_protobuf`` naming the object ``key``.
    """
    try:
        _parsed(REQUESTS[signal], payload)
    except InputError as error:
        raise InputError(
            error.reason, f"{key}: {error}; send it again, or retry it once the exporter is mended"
        ) from error


def _parsed(message: type[Message], encoded: bytes) -> Message:
    try:
        return message.FromString(encoded)
    except DecodeError as error:
        raise InputError(
            "corrupt_protobuf", f"its {len(encoded)} bytes are no {message.DESCRIPTOR.name} ({error})"
        ) from error


def read_requests(signal: Signal, payloads: Sequence[bytes]) -> pa.StructArray:
    """One struct a payload, nested as OTLP nests: resource_logs → scope_logs → log_records, and so on.

    In the result ``resource``, ``scope``, and ``array_value`` and ``kvlist_value`` of an AnyValue are lists of at most
    one binary (empty where absent; see ``only``), ``attributes`` are lists of KeyValue bytes, and at most one member of
    a oneof is not null. Attributes in a ``Place`` are not known to be valid before ``check_attributes`` says so. Bytes
    of one call: at most 1 GiB.

    Raises InputError ``corrupt_protobuf`` for a payload that is not valid without these.
    """
    message = _without_attributes(signal)
    for payload in payloads:
        _parsed(message, payload)
    offsets = np.cumsum([0, *map(len, payloads)], dtype=np.int32)
    buffers = [None, pa.py_buffer(offsets), pa.py_buffer(b"".join(payloads))]
    return reader(REQUESTS[signal]).read(pa.BinaryArray.from_buffers(pa.binary(), len(payloads), buffers))


def check_attributes(place: Place, encoded: pa.BinaryArray) -> None:
    """Whether these are what the reference library takes for KeyValues in that place.

    Raises InputError ``corrupt_protobuf``.
    """
    signal, *way = place.value
    request = _without_attributes(signal)()
    holder: Any = request
    for name in way:
        field = getattr(holder, name)
        holder = field if isinstance(field, Message) else field.add()
    holder.attributes.extend(encoded.to_pylist())
    _parsed(REQUESTS[signal], request.SerializeToString())


def only(singles: pa.ListArray) -> pa.BinaryArray:
    """The elements of lists of at most one binary; an absent message is the empty one (b"")."""
    lengths = np.diff(singles.offsets.to_numpy())
    if len(singles.values) == len(singles):
        return singles.values
    positions = np.where(lengths > 0, np.cumsum(lengths) - 1, len(singles.values))
    return pa.concat_arrays([singles.values, pa.array([b""], singles.type.value_type)]).take(pa.array(positions))


class Reader:
    """Reads many messages of one type into one nested array."""

    def __init__(self, message: type[Message]) -> None:
        descriptor = _edited_pool().FindMessageTypeByName(message.DESCRIPTOR.full_name)
        self._message = message
        self._handler = ptars.HandlerPool([descriptor.file]).get_for_message(descriptor)

    def read(self, encoded: pa.BinaryArray) -> pa.StructArray:
        """One struct a message. The bytes must be valid messages, but for attributes that are left as bytes.

        Raises InputError ``unreadable_protobuf`` where ptars fails all the same, and ``corrupt_protobuf`` for messages
        that have to be written anew and prove not to be valid.
        """
        array = self._read(encoded)
        if not _is_irregular(array, self._message.DESCRIPTOR):
            return array
        merged = [_parsed(self._message, one).SerializeToString() for one in encoded.to_pylist()]
        return self._read(pa.array(merged, pa.binary()))

    def _read(self, encoded: pa.BinaryArray) -> pa.StructArray:
        try:
            return self._handler.array_to_record_batch(encoded).to_struct_array()
        except BaseException as error:  # a panic in Rust is no Exception
            if not isinstance(error, ValueError) and type(error).__module__ != "pyo3_runtime":
                raise
            raise InputError(
                "unreadable_protobuf",
                f"{len(encoded)} messages of type {self._message.DESCRIPTOR.name} that protobuf takes, ptars does not "
                f"({error}); report it with the object",
            ) from error


def reader(message: type[Message]) -> Reader:
    """The reader of a message type, made once in a process."""
    name = message.DESCRIPTOR.full_name
    if name not in _READERS:
        _READERS[name] = Reader(message)
    return _READERS[name]


def _is_irregular(array: pa.StructArray, descriptor: Descriptor | UpbDescriptor) -> bool:
    """Whether some singular message stands there in pieces, or more than one member of a oneof."""
    children = {field.name: array.field(field.name) for field in array.type}
    for field in descriptor.fields:
        child = children.get(field.name)
        if child is None or field.message_type is None:
            continue
        if not field.is_repeated and pa.types.is_list(child.type) and _longest(child) > 1:
            return True
        elements = child.values if pa.types.is_list(child.type) else child
        if pa.types.is_struct(elements.type) and _is_irregular(elements, field.message_type):
            return True
    return any(
        _has_two([children[field.name] for field in oneof.fields if field.name in children])
        for oneof in descriptor.oneofs
    )


def _longest(lists: pa.ListArray) -> int:
    return int(np.diff(lists.offsets.to_numpy()).max(initial=0))


def _has_two(members: Sequence[pa.Array]) -> bool:
    """Whether two of these arrays have a value in the same row."""
    present = [mask for mask in map(_presence, members) if mask.any()]
    return len(present) > 1 and int(np.sum(present, axis=0, dtype=np.uint8).max()) > 1


def _presence(member: pa.Array) -> npt.NDArray[np.bool_]:
    if pa.types.is_list(member.type):
        return np.diff(np.asarray(member.offsets)) > 0
    if member.null_count == len(member):
        return np.zeros(len(member), np.bool_)
    return np.asarray(member.is_valid())


@cache
def _edited_pool() -> descriptor_pool.DescriptorPool:
    """OTLP's descriptors under their own names, edited, in a pool of their own."""
    return _pool(_edited)


@cache
def _without_attributes(signal: Signal) -> type[Message]:
    """The message of a signal's raw files with bytes for the attributes that are checked apart."""
    return GetMessageClass(_pool(_attributes_edited).FindMessageTypeByName(REQUESTS[signal].DESCRIPTOR.full_name))


def _pool(edited: Callable[[_File], descriptor_pb2.FileDescriptorProto]) -> descriptor_pool.DescriptorPool:
    pool = descriptor_pool.DescriptorPool()
    seen: set[str] = set()
    for message in REQUESTS.values():
        for file in _with_dependencies(message.DESCRIPTOR.file):
            if file.name not in seen:
                seen.add(file.name)
                pool.Add(edited(file))
    return pool


def _with_dependencies(file: _File) -> Iterator[_File]:
    for dependency in file.dependencies:
        yield from _with_dependencies(dependency)
    yield file


def _attributes_edited(file: _File) -> descriptor_pb2.FileDescriptorProto:
    """Bytes for the attributes that are checked apart."""
    proto = descriptor_pb2.FileDescriptorProto()
    file.CopyToProto(proto)
    for name, message in _messages(proto):
        if name in _CHECKED_APART:
            _to_bytes(next(field for field in message.field if field.name == "attributes"))
    return proto


def _edited(file: _File) -> descriptor_pb2.FileDescriptorProto:
    """Only fields that are read, and bytes for messages that are read later."""
    proto = descriptor_pb2.FileDescriptorProto()
    file.CopyToProto(proto)
    for _, message in _messages(proto):
        read = [field for field in message.field if field.name not in _UNREAD]
        for field in read:
            _edit(field)
        del message.field[:]
        message.field.extend(read)
    return proto


def _messages(file: descriptor_pb2.FileDescriptorProto) -> Iterator[tuple[str, descriptor_pb2.DescriptorProto]]:
    """All messages of a file by their full names, nested ones too."""
    pending = [(f"{file.package}.{message.name}", message) for message in file.message_type]
    while pending:
        name, message = pending.pop()
        yield name, message
        pending += [(f"{name}.{nested.name}", nested) for nested in message.nested_type]


def _edit(field: _Field) -> None:
    """Turns a message that is read later into bytes; a singular one into repeated bytes, so that pieces show."""
    name = field.type_name.removeprefix(".")
    repeated = field.label == _Field.LABEL_REPEATED
    if name in _LATER or (repeated and name in _LATER_WHERE_REPEATED):
        _to_bytes(field)


def _to_bytes(field: _Field) -> None:
    field.type = _Field.TYPE_BYTES
    field.label = _Field.LABEL_REPEATED
    field.ClearField("type_name")
    field.ClearField("oneof_index")
