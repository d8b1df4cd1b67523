"""DataDog's binary encoding of DDSketch, for many sketches at once.

What belongs here: bytes of a sketch, both ways. What does not: what a sketch means (``sketch``).

An encoding is the index mapping (flag, gamma and index offset as little-endian doubles), then blocks, each where it is
not empty: positive store, negative store, zero count. A store is a flag, the number of its bins, and for each bin, by
ascending index, the index less that of the bin before (zigzag varint) and the count (DataDog's varfloat).
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from lakerunner_dagster.lake.errors import InputError
from lakerunner_dagster.lake.telemetry.sketch import (
    AT_ONCE,
    GAMMA,
    HIGHEST,
    LOWEST,
    Floats,
    Ints,
    Sketches,
    collected,
    pieces,
)

Words: TypeAlias = np.ndarray[tuple[int], np.dtype[np.uint64]]
Bytes: TypeAlias = np.ndarray[tuple[int], np.dtype[np.uint8]]
Mask: TypeAlias = np.ndarray[tuple[int], np.dtype[np.bool_]]

_MAPPING = np.frombuffer(b"\x02" + struct.pack("<dd", GAMMA, 0.0), np.uint8)
"""How every encoding opens: flag of the logarithmic mapping, gamma, index offset."""

_POSITIVE, _NEGATIVE, _ZERO = 0x05, 0x07, 0x04
"""Flags of the blocks."""

_MORE = 0x80
"""The bit of a byte that says that its number goes on."""

_LONGEST = 8
"""Most bytes of a number: counts saturate, so that the ninth byte, which has no such bit, is never needed."""


_BYTES_AT_ONCE = 4 * AT_ONCE
"""Bytes decoded at once: a bin is two or three of them, and a sketch begins with seventeen."""


def encoded(sketches: Sketches) -> pa.BinaryArray:
    """The bytes of each sketch: the same bytes for equal sketches."""
    parts = [_encoded(sketches.slice(*piece)) for piece in pieces(sketches.offsets)]
    return pa.concat_arrays([pa.array([], pa.binary()), *parts])


def decoded(blobs: pa.BinaryArray) -> Sketches:
    """The sketches of ``encoded``. Raises InputError ``corrupt_sketch`` for anything else, null included."""
    if blobs.null_count:
        raise _corrupt("it is null")
    offsets = np.concatenate(([0], np.cumsum(pc.binary_length(blobs).to_numpy(), dtype=np.int64)))
    parts = [_decoded(blobs.slice(begin, end - begin)) for begin, end in pieces(offsets, _BYTES_AT_ONCE)]
    return Sketches.joined([Sketches.none(), *parts])


def _encoded(sketches: Sketches) -> pa.BinaryArray:
    body, ends = _encoded_blocks(sketches)
    offsets = np.concatenate(([0], ends + len(_MAPPING) * np.arange(1, len(ends) + 1)))
    data = np.empty(offsets[-1], np.uint8)
    opening = offsets[:-1, None] + np.arange(len(_MAPPING))
    data[opening] = _MAPPING
    rest = np.ones(len(data), np.bool_)
    rest[opening] = False
    data[rest] = body
    buffers = [None, pa.py_buffer(offsets.astype(np.int32)), pa.py_buffer(data)]
    return pa.BinaryArray.from_buffers(pa.binary(), len(sketches), buffers)


def _decoded(blobs: pa.BinaryArray) -> Sketches:
    body, bounds = _without_mapping(blobs)
    tokens = _Tokens(body)
    cursors, limits = np.searchsorted(tokens.starts, bounds[:-1]), np.searchsorted(tokens.starts, bounds[1:])
    rows = np.flatnonzero(cursors < limits)
    blocks: list[tuple[Ints, Ints, Ints]] = [(np.zeros(0, np.int64),) * 3]
    for _ in range(3):
        if not len(rows):
            break
        places, slots, counts, cursors[rows] = tokens.block(cursors[rows], limits[rows])
        blocks.append((rows[places], slots, counts))
        rows = rows[cursors[rows] < limits[rows]]
    if len(rows):
        raise _corrupt("more than three blocks follow the mapping")
    owners, slots, counts = (np.concatenate(parts) for parts in zip(*blocks, strict=True))
    return collected(owners, slots, counts, len(blobs))


def _encoded_blocks(sketches: Sketches) -> tuple[Bytes, Ints]:
    """Everything but the mapping: the bytes of all sketches, and where those of each end."""
    slots, owners = sketches.slots, sketches.owners()
    above, below, at_zero = slots > 0, slots < 0, slots == 0
    positives, negatives, zeros = (np.bincount(owners[one], minlength=len(sketches)) for one in (above, below, at_zero))
    positive_size, negative_size = np.where(positives, 2 + 2 * positives, 0), np.where(negatives, 2 + 2 * negatives, 0)
    token_ends = np.cumsum(positive_size + negative_size + 2 * zeros)
    negative_at = token_ends - negative_size - 2 * zeros

    tokens = np.zeros(token_ends[-1] if len(token_ends) else 0, np.uint64)
    is_count = np.zeros(len(tokens), np.bool_)
    bins = np.arange(len(slots)) if above.all() else np.flatnonzero(above)
    firsts = np.cumsum(positives) - positives
    _put_stores(tokens, is_count, _Stores(_POSITIVE, negative_at - positive_size, positives, firsts, bins), sketches)
    if below.any():
        bins = np.flatnonzero(below)[::-1]  # by ascending index is by magnitude
        firsts = len(bins) - np.cumsum(negatives)
        _put_stores(tokens, is_count, _Stores(_NEGATIVE, negative_at, negatives, firsts, bins), sketches)
    count_at = token_ends[zeros > 0] - 1
    tokens[count_at - 1], tokens[count_at] = _ZERO, _rotated(sketches.counts[at_zero])
    is_count[count_at] = True
    return _written(tokens, is_count, token_ends)


@dataclass(frozen=True, slots=True)
class _Stores:
    """A store of each sketch, at the token ``at``: sketch k has ``sizes[k]`` of the ``bins``, from ``firsts[k]`` on."""

    flag: int
    at: Ints
    sizes: Ints
    firsts: Ints
    bins: Ints


def _put_stores(tokens: Words, is_count: Mask, stores: _Stores, sketches: Sketches) -> None:
    """Put the numbers of some stores among the tokens. ``bins`` are by ascending index within a store."""
    used = np.flatnonzero(stores.sizes)
    tokens[stores.at[used]], tokens[stores.at[used] + 1] = stores.flag, stores.sizes[used]
    indexes = np.abs(sketches.slots[stores.bins]) - 1 + LOWEST
    deltas = np.diff(indexes, prepend=0)
    deltas[stores.firsts[used]] = indexes[stores.firsts[used]]
    count_at = (stores.at + 3 - 2 * stores.firsts)[sketches.owners()[stores.bins]] + 2 * np.arange(len(indexes))
    tokens[count_at - 1], tokens[count_at] = _zigzag(deltas), _rotated(sketches.counts[stores.bins])
    is_count[count_at] = True


def _zigzag(values: Ints) -> Words:
    return ((values << 1) ^ (values >> 63)).view(np.uint64)


def _unzigzag(words: Words) -> Ints:
    values: Ints = words.view(np.int64)
    return (values >> 1) ^ -(values & 1)


def _rotated(counts: Ints) -> Words:
    """DataDog's varfloat before it is cut into groups of 7 bits: small integers have few leading bits set."""
    words = (counts + 1.0).view(np.uint64) - np.float64(1).view(np.uint64)
    return (words << np.uint64(6)) | (words >> np.uint64(58))


def _unrotated(words: Words) -> Floats:
    bits = (words >> np.uint64(6)) | (words << np.uint64(58))
    floats: Floats = (bits + np.float64(1).view(np.uint64)).view(np.float64) - 1.0
    return floats


def _written(tokens: Words, is_count: Mask, token_ends: Ints) -> tuple[Bytes, Ints]:
    """Groups of 7 bits with a continuation bit: of integers the lowest first, of counts the highest first."""
    first, left = _next_groups(tokens, is_count)
    lengths = np.ones(len(tokens), np.int64)
    groups: list[tuple[Ints, Bytes]] = []
    places = np.flatnonzero(left != 0)  # few: most numbers are one group
    left, highest_first = left[places], is_count[places]
    while len(places):
        lengths[places] += 1
        group, left = _next_groups(left, highest_first)
        groups.append((places, group))
        more = left != 0
        places, left, highest_first = places[more], left[more], highest_first[more]
    bounds = np.concatenate(([0], np.cumsum(lengths)))
    written = np.empty(bounds[-1], np.uint8)
    written[bounds[:-1]] = first
    for nth, (places, group) in enumerate(groups, 1):
        written[bounds[places] + nth] = group
    return written, bounds[token_ends]


def _next_groups(left: Words, highest_first: Mask) -> tuple[Bytes, Words]:
    """The next byte of each number, and what is left of it."""
    group = np.where(highest_first, left >> np.uint64(57), left & np.uint64(0x7F)).astype(np.uint8)
    left = np.where(highest_first, left << np.uint64(7), left >> np.uint64(7))
    group[left != 0] |= _MORE
    return group, left


def _without_mapping(blobs: pa.BinaryArray) -> tuple[Bytes, Ints]:
    """The bytes after the mapping of each blob, and the bounds of each (one more than blobs)."""
    blobs = blobs.cast(pa.binary())
    _, offset_buffer, data_buffer = blobs.buffers()
    offsets = np.frombuffer(offset_buffer, np.int32)[blobs.offset : blobs.offset + len(blobs) + 1].astype(np.int64)
    if (np.diff(offsets) < len(_MAPPING)).any():
        raise _corrupt("it is shorter than an index mapping")
    data = np.frombuffer(data_buffer or b"", np.uint8)[offsets[0] : offsets[-1]]
    opening = (offsets[:-1] - offsets[0])[:, None] + np.arange(len(_MAPPING))
    if (data[opening] != _MAPPING).any():
        raise _corrupt(f"it does not open with the logarithmic mapping of gamma = {GAMMA!r} and offset 0")
    rest = np.ones(len(data), np.bool_)
    rest[opening] = False
    body = data[rest]
    bounds = offsets - offsets[0] - len(_MAPPING) * np.arange(len(offsets))
    closed = bounds[1:][np.diff(bounds) > 0] - 1
    if (body[closed] >= _MORE).any():
        raise _corrupt("it ends inside a number")
    return body, bounds


class _Tokens:
    """The numbers of many encodings, one after another: each ends with the first byte below 0x80."""

    def __init__(self, body: Bytes) -> None:
        ends = np.flatnonzero(body < _MORE) + 1
        self.starts = np.concatenate(([0], ends))[: len(ends)]
        self._body = body
        lengths = ends - self.starts
        if (lengths > _LONGEST).any():
            raise _corrupt(f"a number of it has more than {_LONGEST} bytes")
        self._lengths = lengths.astype(np.uint8)
        self._first_groups = body[self.starts] & 0x7F

    def block(self, cursors: Ints, limits: Ints) -> tuple[Ints, Ints, Ints, Ints]:
        """Reads a block of each sketch, at its cursor: the bins' cursor numbers, slots and counts; the next cursors."""
        flags = self._integers(cursors)
        if not np.isin(flags, (_POSITIVE, _NEGATIVE, _ZERO)).all() or (cursors + 1 >= limits).any():
            raise _corrupt("a block of it is of another kind, or cut short")
        stored = flags != _ZERO
        bins = np.where(stored, self._integers(cursors + 1), np.uint64(1)).astype(np.int64)
        moved = cursors + 2 + np.where(stored, 2 * bins, 0)
        if (moved > limits).any():
            raise _corrupt("a store of it has fewer bins than it says")
        places = np.repeat(np.arange(len(cursors)), bins)
        firsts = np.cumsum(bins) - bins
        nth = np.arange(len(places)) - firsts[places]
        count_at = np.where(stored, cursors + 3, cursors + 1)[places] + 2 * nth
        deltas = _unzigzag(self._integers(count_at - 1))
        if not stored.all():
            deltas[~stored[places]] = 0
        running = np.cumsum(deltas)
        indexes = running - (running[firsts] - deltas[firsts])[places]
        counts = _unrotated(self._integers(count_at, highest_first=True))
        if (indexes < LOWEST).any() or (indexes > HIGHEST).any() or (counts != np.rint(counts)).any():
            raise _corrupt("a bin of it is beyond the range of doubles, or its count is not a whole number")
        slots = indexes - (LOWEST - 1)
        if not (flags == _POSITIVE).all():
            slots *= np.select([flags == _POSITIVE, flags == _NEGATIVE], [1, -1], 0)[places]
        return places, slots, counts.astype(np.int64), moved

    def _integers(self, tokens: Ints, *, highest_first: bool = False) -> Words:
        """The numbers at ``tokens``, whose groups of 7 bits go from the lowest up, or from the highest of 64 down."""
        words = self._first_groups[tokens].astype(np.uint64)
        if highest_first:
            words <<= np.uint64(57)
        lengths = self._lengths[tokens]
        nth, held = 1, np.flatnonzero(lengths > 1)  # few: most numbers are one group
        while len(held):
            group = (self._body[self.starts[tokens[held]] + nth] & 0x7F).astype(np.uint64)
            words[held] |= group << np.uint64(57 - 7 * nth if highest_first else 7 * nth)
            nth += 1
            held = held[lengths[held] > nth]
        return words


def _corrupt(why: str) -> InputError:
    return InputError(
        "corrupt_sketch",
        f"a sketch cannot be read: {why}; it was not written by this lake, or the segment is damaged: "
        "rebuild the segment's hour from its raw objects",
    )
