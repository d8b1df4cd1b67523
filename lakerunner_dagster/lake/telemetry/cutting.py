"""One large Export request → several smaller ones that together say the same, each of which is decoded on its own.

What belongs here: where a request may be cut. What does not: the meaning of what is in it (``wire``, and each signal's
decoder), keeping records countable over the pieces (``runs.transform``).

Whole resource entries are one after another on the wire, and so are the scope entries of a resource, the records of a
scope and the points of a metric. A message that is larger than a piece is cut between these; what it has besides (the
resource, the scope, the metric's name: its *rest*) is repeated in each piece. The bytes of a piece are those of the
request but for the lengths of the messages that were cut, so that whether they are valid is left to ``wire`` as ever:
here only so much is refused as keeps the next field from being found, and the reference library refuses that too.

The request is read in windows, forward, twice at each level that is cut: first for the rest, which may come last.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, NamedTuple

from opentelemetry.proto.logs.v1.logs_pb2 import ResourceLogs, ScopeLogs
from opentelemetry.proto.metrics.v1.metrics_pb2 import Gauge, Metric, ResourceMetrics, ScopeMetrics
from opentelemetry.proto.trace.v1.trace_pb2 import ResourceSpans, ScopeSpans

from lakerunner_dagster.lake.errors import InputError
from lakerunner_dagster.lake.signals import Signal
from lakerunner_dagster.lake.telemetry.points import KINDS
from lakerunner_dagster.lake.telemetry.wire import REQUESTS

if TYPE_CHECKING:
    from google.protobuf.message import Message

    from lakerunner_dagster.lake.byte_ranges import ByteRanges

WINDOW_BYTES = 256 * 1024
"""What is read at once to find the fields of a message."""

REST_SHARE = 4
"""The rest of a message may have this part of a piece: with more, a request could be made many times its size."""

_TAG_BYTES, _VARINT_BYTES = 5, 10
_TAGS = 2**32
"""What the reference library takes: a tag is a number of 32 bits."""

_MORE, _DIGIT = 0x80, 0x7F
"""Of a byte of a number: that more follow, and what it holds."""

_HEADER_BYTES = _TAG_BYTES + _VARINT_BYTES

_VARINT, _FIXED64, _DELIMITED, _GROUP, _GROUP_END, _FIXED32 = range(6)
_FIXED_BYTES = {_FIXED64: 8, _FIXED32: 4}


@dataclass(frozen=True, slots=True)
class _Level:
    """A kind of message that can be cut between its fields ``numbers``; if ``alone``, only where it has one of them."""

    numbers: frozenset[int]
    alone: bool = False


def _level(message: type[Message], *names: str, alone: bool = False) -> _Level:
    return _Level(frozenset(message.DESCRIPTOR.fields_by_name[name].number for name in names), alone)


_LEVELS: Mapping[Signal, Sequence[_Level]] = MappingProxyType(
    {
        Signal.LOGS: (
            _level(REQUESTS[Signal.LOGS], "resource_logs"),
            _level(ResourceLogs, "scope_logs"),
            _level(ScopeLogs, "log_records"),
        ),
        Signal.METRICS: (
            _level(REQUESTS[Signal.METRICS], "resource_metrics"),
            _level(ResourceMetrics, "scope_metrics"),
            _level(ScopeMetrics, "metrics"),
            _level(Metric, *KINDS, alone=True),  # of several members of the oneof the last holds, whichever it is
            _level(Gauge, "data_points"),  # all kinds have them in the field of this number
        ),
        Signal.TRACES: (
            _level(REQUESTS[Signal.TRACES], "resource_spans"),
            _level(ResourceSpans, "scope_spans"),
            _level(ScopeSpans, "spans"),
        ),
    }
)
"""The messages that a request of each signal is cut in, outermost first."""


def cut(signal: Signal, request: ByteRanges, key: str, max_bytes: int) -> Iterator[bytes]:
    """Requests of at most ``max_bytes`` with the records of ``request``, each once, in their order.

    Raises InputError, naming the object ``key``: ``corrupt_protobuf``, which pieces before it do not show, and
    ``part_too_large`` where a record, or what would be repeated for it, is too large for a piece.
    """
    for parts in _Cutter(request, key).cut(0, len(request), _LEVELS[signal], max_bytes):
        piece = b"".join(parts)
        parts.clear()  # who has asked for the piece holds it once, not twice
        yield piece


class _Field(NamedTuple):
    """A field of a message by its place: its header is at ``begin``, its content from ``content`` to before ``end``."""

    number: int
    wire_type: int
    begin: int
    content: int
    end: int


class _Cutter:
    """Cuts the messages of one request."""

    def __init__(self, request: ByteRanges, key: str) -> None:
        self._request = request
        self._key = key

    def cut(self, begin: int, end: int, levels: Sequence[_Level], room: int) -> Iterator[list[bytes]]:
        """The message between two positions as messages of at most ``room`` bytes, each in parts."""
        if end - begin <= room:
            yield [self._request[begin:end]]
            return
        if not levels:
            raise self._too_large(f"a part of {end - begin} bytes that cannot be cut", room)
        rest = self._rest(begin, end, levels[0], room)
        piece = _Piece(self._request, rest)
        for field in self._fields(begin, end):
            if not _is_cut_at(field, levels[0]):
                continue
            size = field.end - field.begin
            if piece.filled and piece.size + size > room:
                yield piece.taken()
            if len(rest) + size <= room:
                piece.add(field.begin, field.end)
                continue
            for parts in self.cut(field.content, field.end, levels[1:], room - len(rest) - _HEADER_BYTES):
                length = sum(map(len, parts))
                parts[:0] = [rest, _varint_of(field.number << 3 | _DELIMITED), _varint_of(length)]
                yield parts
        if piece.filled:
            yield piece.taken()

    def _rest(self, begin: int, end: int, level: _Level, room: int) -> bytes:
        """What each piece of a message repeats: all but what it is cut between."""
        rest = bytearray()
        cuts = 0
        for field in self._fields(begin, end):
            if _is_cut_at(field, level):
                cuts += 1
            elif len(rest) + field.end - field.begin > room // REST_SHARE:
                raise self._too_large(
                    f"a message of {end - begin} bytes with more than {room // REST_SHARE} besides its parts", room
                )
            else:
                rest += self._request[field.begin : field.end]
        if level.alone and cuts > 1:
            raise self._too_large(f"a metric of {end - begin} bytes whose data is in several pieces", room)
        return bytes(rest)

    def _fields(self, begin: int, end: int) -> Iterator[_Field]:
        """The fields of the message between two positions; a group, with all that is in it, is one."""
        window, start = b"", begin
        position = opened = begin
        depth = 0
        while position < end:
            at = position - start
            if at + _HEADER_BYTES > len(window) and start + len(window) < end:
                window, start, at = self._request[position : min(position + WINDOW_BYTES, end)], position, 0
            if depth == 0:
                opened = position
            try:
                tag, at = _varint(window, at, _TAG_BYTES)
                length, at = _length(window, at, tag & 7)
            except (IndexError, ValueError) as error:
                raise self._corrupt(position) from error
            content = start + at
            position = content + length
            depth += {_GROUP: 1, _GROUP_END: -1}.get(tag & 7, 0)
            if position > end or depth < 0:
                raise self._corrupt(content)
            if depth == 0:
                yield _Field(tag >> 3, tag & 7, opened, content, position)
        if depth:
            raise self._corrupt(opened)

    def _corrupt(self, position: int) -> InputError:
        return InputError(
            "corrupt_protobuf",
            f"{self._key}: its {len(self._request)} bytes are no export request: no field can be read at byte "
            f"{position}; send it again, or retry it once the exporter is mended",
        )

    def _too_large(self, what: str, room: int) -> InputError:
        return InputError(
            "part_too_large",
            f"{self._key}: its {len(self._request)} bytes are too many to be decoded at once, and have {what}, where "
            f"{room} fit: send smaller batches",
        )


class _Piece:
    """Some of the fields that a message is cut between, and its rest; ``size`` in bytes."""

    def __init__(self, request: ByteRanges, rest: bytes) -> None:
        self.size = len(rest)
        self._request = request
        self._rest = rest
        self._parts: list[bytes] = []
        self._begin = self._end = 0

    @property
    def filled(self) -> bool:
        return self.size > len(self._rest)

    def add(self, begin: int, end: int) -> None:
        """Fields that follow one another are read at once."""
        if begin != self._end:
            self._read()
            self._begin = begin
        self._end = end
        self.size += end - begin

    def taken(self) -> list[bytes]:
        """Its parts; the next piece begins."""
        self._read()
        parts = [self._rest, *self._parts]
        self._parts = []
        self._begin = self._end
        self.size = len(self._rest)
        return parts

    def _read(self) -> None:
        if self._end > self._begin:
            self._parts.append(self._request[self._begin : self._end])


def _is_cut_at(field: _Field, level: _Level) -> bool:
    return field.wire_type == _DELIMITED and field.number in level.numbers


def _length(window: bytes, at: int, wire_type: int) -> tuple[int, int]:
    """How long the content of a field is, and where it begins. ValueError for a wire type that there is not."""
    if wire_type == _DELIMITED:
        return _varint(window, at, _VARINT_BYTES)
    if wire_type == _VARINT:
        return 0, _varint(window, at, _VARINT_BYTES)[1]
    if wire_type in (_GROUP, _GROUP_END):
        return 0, at
    if wire_type in _FIXED_BYTES:
        return _FIXED_BYTES[wire_type], at
    raise ValueError(wire_type)


def _varint(window: bytes, at: int, most_bytes: int) -> tuple[int, int]:
    """A number, and where it ends. IndexError where it does not end, ValueError where it is longer than allowed."""
    byte = window[at]
    if byte < _MORE:
        return byte, at + 1
    value = byte & _DIGIT
    for place in range(1, most_bytes):
        byte = window[at + place]
        value |= (byte & _DIGIT) << 7 * place
        if byte < _MORE:
            if most_bytes == _TAG_BYTES and value >= _TAGS:
                break
            return value, at + place + 1
    raise ValueError(value)


def _varint_of(number: int) -> bytes:
    encoded = bytearray()
    while number >= _MORE:
        encoded.append(number & _DIGIT | _MORE)
        number >>= 7
    encoded.append(number)
    return bytes(encoded)
