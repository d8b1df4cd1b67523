"""What the decoders of all signals do alike: where each record stands, which records are refused, ids and constants.

What belongs here: steps that know no signal. What does not: the columns of one (``logs``, ``metrics``, ``traces``).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from lakerunner_dagster.lake.model import day_start_ms
from lakerunner_dagster.lake.telemetry.raw import IDENTITY_DIGITS, RawPayload
from lakerunner_dagster.lake.telemetry.wire import only

if TYPE_CHECKING:
    from lakerunner_dagster.lake.settings import Limits
    from lakerunner_dagster.lake.telemetry.attributes import Bools, Ints

NS_PER_MS = 1_000_000

_LATEST_NS = 2**63 - 1
_HEX = np.array([f"{byte:02x}" for byte in range(256)], dtype="S2").view(np.uint16)
_ORDINAL_DIGITS = 8

Times = npt.NDArray[np.uint64]
"""Epoch ns as OTLP has them: unsigned, 0 where unknown."""


@dataclass(frozen=True, slots=True)
class Rows:
    """What one signal's decoder makes of payloads that are all valid; ``_file`` counts among them."""

    table: pa.Table
    records_read: tuple[int, ...]
    rejected: tuple[Mapping[str, int], ...]
    original_keys: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Records:
    """The R records of some payloads, flat, in the order of the files.

    ``file``: payload of each record. ``ordinal``: its number within the file. ``resource`` and ``scope``: its position
    in ``resources`` and ``scopes``, the distinct encoded messages (b"" where absent).
    """

    records: pa.StructArray
    files: int
    file: Ints
    ordinal: Ints
    resource: Ints
    resources: pa.BinaryArray
    scope: Ints
    scopes: pa.BinaryArray

    def at(self, positions: Ints | None) -> Records:
        """The records at these positions; None: all."""
        if positions is None:
            return self
        return replace(
            self,
            records=self.records.take(pa.array(positions)),
            file=self.file[positions],
            ordinal=self.ordinal[positions],
            resource=self.resource[positions],
            scope=self.scope[positions],
        )

    @property
    def per_file(self) -> tuple[int, ...]:
        """How many records each payload has."""
        return tuple(np.bincount(self.file, minlength=self.files).tolist())


def flattened(requests: pa.StructArray, resource_lists: str, scope_lists: str, record_lists: str) -> Records:
    """The records of export requests (``wire.read_requests``), given the names of the three nested lists."""
    by_file = requests.field(resource_lists)
    by_resource = by_file.values.field(scope_lists)
    by_scope = by_resource.values.field(record_lists)
    scope_ends = by_scope.offsets.to_numpy()
    resource_ends = scope_ends[by_resource.offsets.to_numpy()]
    file_ends = resource_ends[by_file.offsets.to_numpy()]
    resources = only(by_file.values.field("resource")).dictionary_encode()
    scopes = only(by_resource.values.field("scope")).dictionary_encode()
    file = np.repeat(np.arange(len(requests), dtype=np.int32), np.diff(file_ends))
    return Records(
        records=by_scope.values,
        files=len(requests),
        file=file,
        ordinal=np.arange(len(file)) - file_ends[file],
        resource=np.repeat(resources.indices.to_numpy(), np.diff(resource_ends)),
        resources=resources.dictionary,
        scope=np.repeat(scopes.indices.to_numpy(), np.diff(scope_ends)),
        scopes=scopes.dictionary,
    )


class Rejections:
    """Which of some records are refused, each for the first reason that was found."""

    def __init__(self, records: int) -> None:
        self._reasons = [""]
        self._reason_of = np.zeros(records, np.int64)

    def add(self, reason: str, refused: Bools) -> None:
        """Refuse those of the records that no earlier reason refuses."""
        self._reason_of[refused & (self._reason_of == 0)] = len(self._reasons)
        self._reasons.append(reason)

    def add_times_outside(self, times: Times, file: Ints, payloads: Sequence[RawPayload], limits: Limits) -> None:
        """Refuse times before the lake's first date, or further ahead of their object's own time than allowed."""
        first_date = limits.first_date
        first_ms = day_start_ms(first_date.year * 10_000 + first_date.month * 100 + first_date.day)
        latest = own_times(payloads, ahead_ms=limits.ahead_ms)
        self.add("time_before_first_date", times < np.uint64(max(0, first_ms * NS_PER_MS)))
        self.add("time_ahead", times > latest[file])

    @property
    def accepted(self) -> Ints | None:
        """Positions of the records that are not refused; None: all of them."""
        return np.flatnonzero(self._reason_of == 0) if self._reason_of.any() else None

    def per_file(self, file: Ints, files: int) -> tuple[dict[str, int], ...]:
        """How many records of each payload are refused, by reason."""
        counts: tuple[dict[str, int], ...] = tuple({} for _ in range(files))
        for reason, name in enumerate(self._reasons[1:], start=1):
            for one, refused in enumerate(np.bincount(file[self._reason_of == reason], minlength=files).tolist()):
                if refused:
                    counts[one][name] = counts[one].get(name, 0) + refused
        return counts


def own_times(payloads: Sequence[RawPayload], ahead_ms: int = 0) -> Times:
    """Each payload's own time, so much later, in epoch ns."""
    times = ((payload.event_time_ms + ahead_ms) * NS_PER_MS for payload in payloads)
    return np.array([min(max(0, time), _LATEST_NS) for time in times], np.uint64)


def as_bigint(values: Times, *, known: Bools | None = None) -> pa.Int64Array:
    """Unsigned integers as BIGINT; NULL where unknown, or beyond what a BIGINT holds."""
    held = values <= np.uint64(_LATEST_NS)
    if known is not None:
        held &= known
    return pa.array(values.astype(np.int64), mask=~held)


def chq_ids(payloads: Sequence[RawPayload], file: Ints, ordinal: Ints) -> pa.StringArray:
    """``{identity}-{ordinal in 8 hex digits}`` of each record: the same whichever files are read along with its own."""
    firsts = np.array([payload.first_ordinal for payload in payloads], np.int64)
    if firsts.any():
        ordinal = ordinal + firsts[file]
    identities = np.frombuffer("".join(payload.identity for payload in payloads).encode(), np.uint8)
    width = IDENTITY_DIGITS + 1 + _ORDINAL_DIGITS
    text = np.empty((len(file), width), np.uint8)
    text[:, :IDENTITY_DIGITS] = identities.reshape(-1, IDENTITY_DIGITS)[file]
    text[:, IDENTITY_DIGITS] = ord("-")
    text[:, IDENTITY_DIGITS + 1 :] = _hex_digits(ordinal.astype(">u4").view(np.uint8)).reshape(-1, _ORDINAL_DIGITS)
    ends = np.arange(0, (len(file) + 1) * width, width, dtype=np.int32)
    return pa.StringArray.from_buffers(len(file), pa.py_buffer(ends), pa.py_buffer(text))


def hex_texts(encoded: pa.BinaryArray) -> pa.StringArray:
    """Each value in hexadecimal; empty stays empty. The array must hold no NULL."""
    ends = np.frombuffer(encoded.buffers()[1], np.int32)[encoded.offset : encoded.offset + len(encoded) + 1]
    stored = encoded.buffers()[2]
    held = np.frombuffer(stored, np.uint8)[ends[0] : ends[-1]] if stored is not None else np.empty(0, np.uint8)
    offsets = pa.py_buffer((ends - ends[0]) * np.int32(2))
    return pa.StringArray.from_buffers(len(encoded), offsets, pa.py_buffer(_hex_digits(held)))


def null_if_empty(strings: pa.StringArray) -> pa.StringArray:
    """The strings with NULL for the empty ones."""
    empty = pc.equal(strings, "")
    return pc.if_else(empty, None, strings) if pc.any(empty).as_py() else strings


def constant(text: str, rows: int) -> pa.DictionaryArray:
    """A column that holds one text everywhere."""
    return pa.DictionaryArray.from_arrays(np.zeros(rows, np.int32), [text])


def chosen(codes: Ints, texts: pa.StringArray) -> pa.DictionaryArray:
    """A column of the texts at these positions, each distinct text held once; NULL where the text is."""
    distinct = texts.dictionary_encode()
    places = distinct.indices.fill_null(-1).to_numpy().astype(np.int32)[codes]
    return pa.DictionaryArray.from_arrays(pa.array(places, mask=places < 0), distinct.dictionary)


def _hex_digits(held: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    return _HEX[held].view(np.uint8)
