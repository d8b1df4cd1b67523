"""Index fingerprints: int64 hashes by which a query finds the segments that may hold what it seeks (spec/segments.md).

What belongs here: which column gets which fingerprints, and the hash of Lakerunner's query API. What does not: the
fingerprints of log messages and spans (``telemetry``), the other fields of the index row (``index``).
"""

from __future__ import annotations

from enum import Enum
from itertools import pairwise
from types import MappingProxyType
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from lakerunner_dagster.lake.segments.parquet import distinct

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from numpy.typing import NDArray

EXISTS = ".*"
"""The value that stands for "the field exists"."""

_GRAM = 3
_CONTINUATION = 0b1000_0000  # the two high bits of every byte of a UTF-8 character but its first
_BATCH_BYTES = 1 << 16  # of values hashed at once, at some 100 bytes of work a byte: what a core's cache holds
_BASE = 31
_WRAP = 1 << 64
_INVERSE = pow(_BASE, -1, _WRAP)


class Depth(Enum):
    """How closely the values of a column are indexed."""

    EXACT = "the whole value"
    TRIGRAMS = "the whole value and all its substrings of three characters"


INDEXED: Mapping[str, Depth] = MappingProxyType(
    {
        "chq_telemetry_type": Depth.TRIGRAMS,
        "resource_customer_domain": Depth.TRIGRAMS,
        "resource_k8s_cluster_name": Depth.TRIGRAMS,
        "resource_k8s_namespace_name": Depth.TRIGRAMS,
        "resource_service_name": Depth.TRIGRAMS,
        "span_trace_id": Depth.TRIGRAMS,
        "log_level": Depth.EXACT,
        "metric_name": Depth.EXACT,
        "resource_file": Depth.EXACT,
    }
)
"""Columns indexed by value (contract). These and all others are indexed as existing where they hold a value."""

TRACE_TRIGRAMS = 16**3
"""All the trigrams that trace ids can have: with them found, the search ends."""

MOST_TRIGRAMS = 1 << 16
"""Trigrams of any other column in one segment: of more, those of the least fingerprints. Names made of the 40
characters usual in them never have as many; what random text would add to the index helps nobody, and costs the
database dearly."""


class Fingerprints:
    """The index fingerprints of rows that come a table at a time, in whatever pieces.

    ``held``: the columns that have had a value so far. A column without a value gives no fingerprint.
    """

    def __init__(self) -> None:
        self.held: set[str] = set()
        self._values: dict[str, _Values] = {}

    def add(self, table: pa.Table) -> None:
        """Count in the rows of an encoded table."""
        held = {name for name in table.column_names if table.column(name).null_count < table.num_rows}
        self.held |= held
        for name in INDEXED.keys() & held:
            self._values.setdefault(name, _Values(name, INDEXED[name])).add(distinct(table.column(name)))

    def found(self) -> tuple[int, ...]:
        """Sorted distinct fingerprints of all the rows."""
        hashes = {exists_fingerprint(name) for name in self.held}
        return tuple(sorted(hashes.union(*(values.found().tolist() for values in self._values.values()))))


def index_fingerprints(table: pa.Table) -> tuple[int, ...]:
    """Sorted distinct fingerprints of an encoded table's rows."""
    fingerprints = Fingerprints()
    fingerprints.add(table)
    return fingerprints.found()


def exists_fingerprint(field: str) -> int:
    """Of any record that has the field."""
    hashed = 0
    for byte in f"{field}:{EXISTS}".encode():
        hashed = (hashed * _BASE + byte) % _WRAP
    return hashed - (hashed >> 63 << 64)


def value_fingerprints(field: str, values: pa.Array, depth: Depth) -> NDArray[np.int64]:
    """Distinct fingerprints of these different values of a field, at this depth; an empty value has none."""
    found = _Values(field, depth)
    found.add(values)
    return found.found()


class _Values:
    """The fingerprints of a field's values, which come in pieces. What is found is the same in whatever pieces."""

    def __init__(self, field: str, depth: Depth) -> None:
        self._field = field
        self._depth = depth
        self._most = TRACE_TRIGRAMS if field == "span_trace_id" else MOST_TRIGRAMS
        self._exact = [np.zeros(0, np.int64)]
        self._trigrams = np.zeros(0, np.int64)

    def add(self, values: pa.Array) -> None:
        for batch in _batches(values):
            self._exact.append(_hash_texts(self._field, batch))
            if self._depth is Depth.TRIGRAMS and not self._all_found():
                self._add_trigrams(batch)

    def found(self) -> NDArray[np.int64]:
        return np.union1d(np.concatenate(self._exact), self._trigrams)

    def _all_found(self) -> bool:
        return self._most == TRACE_TRIGRAMS == len(self._trigrams)

    def _add_trigrams(self, batch: pa.Array) -> None:
        hashes = _hash_trigrams(self._field, batch)
        if len(self._trigrams) == self._most:
            hashes = hashes[hashes < self._trigrams[-1]]
        self._trigrams = np.union1d(self._trigrams, hashes)[: self._most]


def _batches(values: pa.Array) -> Iterator[pa.Array]:
    """The non-empty values in pieces of bounded size."""
    values = values.filter(pc.not_equal(values, ""))
    bounds, _ = _bytes_of(values)
    piece = bounds[1:] // _BATCH_BYTES
    starts = np.flatnonzero(np.diff(piece, prepend=-1))
    for start, end in pairwise([*starts.tolist(), len(values)]):
        yield values.slice(start, end - start)


def _hash_texts(field: str, values: pa.Array) -> NDArray[np.int64]:
    bounds, data = _bytes_of(values)
    return _hash_slices(field, data, bounds[:-1], bounds[1:])


def _hash_trigrams(field: str, values: pa.Array) -> NDArray[np.int64]:
    """Hashes of all substrings of three characters, some more than once."""
    bounds, data = _bytes_of(values)
    characters = np.flatnonzero(data & 0b1100_0000 != _CONTINUATION)
    starts = characters[: 1 - _GRAM]
    ends = np.append(characters[_GRAM:], len(data))[: len(starts)]
    text_ends = bounds[np.searchsorted(bounds, starts, side="right")]
    whole = ends <= text_ends
    return _hash_slices(field, data, starts[whole], ends[whole])


def _hash_slices(
    field: str, data: NDArray[np.uint8], starts: NDArray[np.int64], ends: NDArray[np.int64]
) -> NDArray[np.int64]:
    """Hash of ``field:`` followed by ``data[start:end]``, for each slice.

    hash(s) = Σ s[i]·31^(n-1-i) modulo 2^64. As 31 has an inverse there, the prefix sums P of s[i]·31^-i give the hash
    of any slice as (P[end] - P[start])·31^(end-1): one pass over the bytes serves all their substrings.
    """
    head = np.frombuffer(f"{field}:".encode(), np.uint8)
    text = np.concatenate([head, data]).astype(np.uint64)
    prefix = np.concatenate([np.zeros(1, np.uint64), np.cumsum(text * _powers(_INVERSE, len(text)))])
    power = _powers(_BASE, len(text) + 1)
    starts, ends = starts + len(head), ends + len(head)
    of_slice = (prefix[ends] - prefix[starts]) * power[ends - 1]
    of_head = prefix[len(head)] * power[len(head) - 1 + ends - starts]
    hashes: NDArray[np.int64] = (of_head + of_slice).view(np.int64)
    return hashes


def _powers(base: int, count: int) -> NDArray[np.uint64]:
    """base^0 … base^(count-1) modulo 2^64."""
    powers = np.full(count, base, np.uint64)
    powers[:1] = 1
    return np.cumprod(powers)


def _bytes_of(values: pa.Array) -> tuple[NDArray[np.int64], NDArray[np.uint8]]:
    """(bounds, data) of an array of strings without NULL: the bytes of value i are data[bounds[i]:bounds[i+1]]."""
    values = values.cast(pa.large_string())
    _, offsets, data = values.buffers()
    bounds = np.frombuffer(offsets, np.int64)[values.offset : values.offset + len(values) + 1]
    return bounds - bounds[0], np.frombuffer(data or b"", np.uint8)[bounds[0] : bounds[-1]]
