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
    listed,
    pieces,
)

Words: TypeAlias = np.ndarray[tuple[int], np.dtype[np.uint64]]
Bytes: TypeAlias = np.ndarray[tuple[int], np.dtype[np.uint8]]
Mask: TypeAlias = np.ndarray[tuple[int], np.dtype[np.bool_]]

_MAPPING = np.frombuffer(b"\x02" + struct.pack("<dd", GAMMA, 0.0), np.uint8)
"""How every encoding opens: flag of the logarithmic mapping, gamma, index offset."""

_MAPPING_AT = (0, len(_MAPPING) - 16, len(_MAPPING) - 8)
_MAPPING_WORDS = tuple(_MAPPING[at : at + 8].view(np.uint64)[0] for at in _MAPPING_AT)
"""The same as words of eight bytes that overlap: put and compared one by one they cost a fraction of the bytes."""

_POSITIVE, _NEGATIVE, _ZERO = 0x05, 0x07, 0x04
"""Flags of the blocks."""

_MORE = 0x80
"""The bit of a byte that says that its number goes on."""

_LONGEST = 8
"""Most bytes of a number: counts saturate, so that the ninth byte, which has no such bit, is never needed."""


_MAPPING_NUMBERS = int((_MAPPING < _MORE).sum())
"""How many numbers the mapping would be, were it read as such: its last byte would end one."""

_FEW = 1 << 10
"""Counts below this are looked up where there are more of them."""

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
    data, offsets = _encoded_blocks(sketches)
    words = _words(data)
    for at, word in zip(_MAPPING_AT, _MAPPING_WORDS, strict=True):
        words[offsets[:-1] + at] = word
    buffers = [None, pa.py_buffer(offsets.astype(np.int32)), pa.py_buffer(data)]
    return pa.BinaryArray.from_buffers(pa.binary(), len(sketches), buffers)


def _words(data: Bytes) -> Words:
    """The eight bytes from each byte on, as they lie in memory."""
    return np.ndarray((max(len(data) - 7, 0),), np.uint64, data, strides=(1,))


def _decoded(blobs: pa.BinaryArray) -> Sketches:
    data, offsets = _opened(blobs)
    tokens = _Tokens(data)
    bounds = np.searchsorted(tokens.starts, offsets)
    cursors, limits = bounds[:-1] + _MAPPING_NUMBERS, bounds[1:]
    rows = np.flatnonzero(cursors < limits)
    blocks: list[tuple[Ints, Ints, Ints]] = []
    for _ in range(3):
        if not len(rows):
            break
        sizes, slots, counts, cursors[rows] = tokens.block(cursors[rows], limits[rows])
        if not blocks and len(rows) == len(blobs) and (cursors == limits).all():
            return listed(sizes, slots, counts)
        blocks.append((np.repeat(rows, sizes), slots, counts))
        rows = rows[cursors[rows] < limits[rows]]
    if len(rows):
        raise _corrupt("more than three blocks follow the mapping")
    blocks.append((np.zeros(0, np.int64),) * 3)
    owners, slots, counts = (np.concatenate(parts) for parts in zip(*blocks, strict=True))
    return collected(owners, slots, counts, len(blobs))


def _encoded_blocks(sketches: Sketches) -> tuple[Bytes, Ints]:
    """The bytes of all sketches, with room for the mapping of each, and their bounds (one more than sketches)."""
    slots, owners = sketches.slots, sketches.owners()
    above, below, at_zero = slots > 0, slots < 0, slots == 0
    positives, negatives, zeros = (_of_each(owners, one, len(sketches)) for one in (above, below, at_zero))
    positive_size, negative_size = np.where(positives, 2 + 2 * positives, 0), np.where(negatives, 2 + 2 * negatives, 0)
    ends = np.cumsum(positive_size + negative_size + 2 * zeros)
    negative_at = ends - negative_size - 2 * zeros

    numbers = _Numbers(int(ends[-1]) if len(ends) else 0)
    bins = slice(None) if above.all() else np.flatnonzero(above)
    firsts = np.cumsum(positives) - positives
    _put_stores(numbers, _Stores(_POSITIVE, negative_at - positive_size, positives, firsts, bins), sketches, owners)
    if below.any():
        bins = np.flatnonzero(below)[::-1]  # by ascending index is by magnitude
        firsts = len(bins) - np.cumsum(negatives)
        _put_stores(numbers, _Stores(_NEGATIVE, negative_at, negatives, firsts, bins), sketches, owners)
    count_at = ends[zeros > 0] - 1
    numbers.put(count_at - 1, np.full(len(count_at), _ZERO, np.uint64))
    numbers.put(count_at, _rotated(sketches.counts[at_zero]), highest_first=True)
    return numbers.written(ends)


def _of_each(owners: Ints, chosen: Mask, sketches: int) -> Ints:
    """How many of the chosen bins each sketch has."""
    if not chosen.any():
        return np.zeros(sketches, np.int64)
    return np.bincount(owners if chosen.all() else owners[chosen], minlength=sketches)


@dataclass(frozen=True, slots=True)
class _Stores:
    """A store of each sketch, from number ``at`` on: sketch k has ``sizes[k]`` of ``bins``, from ``firsts[k]`` on."""

    flag: int
    at: Ints
    sizes: Ints
    firsts: Ints
    bins: Ints | slice


def _put_stores(numbers: _Numbers, stores: _Stores, sketches: Sketches, owners: Ints) -> None:
    """Put the numbers of some stores. ``bins`` are by ascending index within a store; ``owners``: of all bins."""
    used = np.flatnonzero(stores.sizes)
    numbers.put(stores.at[used], np.full(len(used), stores.flag, np.uint64))
    numbers.put(stores.at[used] + 1, stores.sizes[used].view(np.uint64))
    indexes = np.abs(sketches.slots[stores.bins]) - (1 - LOWEST)
    deltas = np.diff(indexes, prepend=0)
    deltas[stores.firsts[used]] = indexes[stores.firsts[used]]
    count_at = (stores.at + 3 - 2 * stores.firsts)[owners[stores.bins]] + 2 * np.arange(len(indexes))
    numbers.put(count_at - 1, _zigzag(deltas))
    numbers.put(count_at, _rotated(sketches.counts[stores.bins]), highest_first=True)


def _zigzag(values: Ints) -> Words:
    return ((values << 1) ^ (values >> 63)).view(np.uint64)


def _unzigzag(words: Words) -> Ints:
    values: Ints = words.view(np.int64)
    return (values >> 1) ^ -(values & 1)


def _rotated(counts: Ints) -> Words:
    """DataDog's varfloat before it is cut into groups of 7 bits: small integers have few leading bits set."""
    if counts.max(initial=0) < _FEW and len(counts) > _FEW:
        return _rotated(np.arange(_FEW))[counts]
    words = (counts + 1.0).view(np.uint64) - np.float64(1).view(np.uint64)
    return (words << np.uint64(6)) | (words >> np.uint64(58))


def _unrotated(words: Words) -> Floats:
    bits = (words >> np.uint64(6)) | (words << np.uint64(58))
    floats: Floats = (bits + np.float64(1).view(np.uint64)).view(np.float64) - 1.0
    return floats


class _Numbers:
    """So many numbers, to be written one after another in groups of 7 bits with a continuation bit.

    Of integers the lowest group goes first, of counts the highest. Most numbers are one group.
    """

    def __init__(self, count: int) -> None:
        self._lengths = np.ones(count, np.int64)
        self._firsts = np.zeros(count, np.uint8)
        self._later: list[tuple[int, Ints, Bytes]] = []

    def put(self, places: Ints, words: Words, *, highest_first: bool = False) -> None:
        """These are the numbers at ``places``."""
        self._firsts[places], left = _next_groups(words, highest_first=highest_first)
        nth = 0
        while len(more := np.flatnonzero(left != 0)):
            nth += 1
            places = places[more]
            self._lengths[places] += 1
            groups, left = _next_groups(left[more], highest_first=highest_first)
            self._later.append((nth, places, groups))

    def written(self, ends: Ints) -> tuple[Bytes, Ints]:
        """The bytes of sketches, the numbers of each ending at ``ends``, with room for a mapping before them; and the
        bounds of the sketches (one more than there are).
        """
        bounds = np.concatenate(([0], np.cumsum(self._lengths)))
        room = len(_MAPPING) * np.arange(len(ends) + 1)
        offsets = np.concatenate(([0], bounds[ends])) + room
        starts = bounds[:-1] + np.repeat(room[1:], np.diff(ends, prepend=0))
        data = np.empty(offsets[-1], np.uint8)
        data[starts] = self._firsts
        for nth, places, groups in self._later:
            data[starts[places] + nth] = groups
        return data, offsets


def _next_groups(left: Words, *, highest_first: bool) -> tuple[Bytes, Words]:
    """The next byte of each number, and what is left of it."""
    if highest_first:
        groups, left = (left >> np.uint64(57)).astype(np.uint8), left << np.uint64(7)
    else:
        groups, left = (left & np.uint64(0x7F)).astype(np.uint8), left >> np.uint64(7)
    groups |= (left != 0).view(np.uint8) * np.uint8(_MORE)
    return groups, left


def _opened(blobs: pa.BinaryArray) -> tuple[Bytes, Ints]:
    """The bytes of the blobs, and the bounds of each (one more than blobs); each opens with the mapping."""
    blobs = blobs.cast(pa.binary())
    _, offset_buffer, data_buffer = blobs.buffers()
    offsets = np.frombuffer(offset_buffer, np.int32)[blobs.offset : blobs.offset + len(blobs) + 1].astype(np.int64)
    if (np.diff(offsets) < len(_MAPPING)).any():
        raise _corrupt("it is shorter than an index mapping")
    data = np.frombuffer(data_buffer or b"", np.uint8)[offsets[0] : offsets[-1]]
    offsets -= offsets[0]
    words = _words(data)
    for at, word in zip(_MAPPING_AT, _MAPPING_WORDS, strict=True):
        if (words[offsets[:-1] + at] != word).any():
            raise _corrupt(f"it does not open with the logarithmic mapping of gamma = {GAMMA!r} and offset 0")
    if (data[offsets[1:] - 1] >= _MORE).any():
        raise _corrupt("it ends inside a number")
    return data, offsets


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
        """Reads a block of each sketch, at its cursor: how many bins, their slots and counts; the next cursors."""
        flags = self._integers(cursors)
        all_positive = bool((flags == _POSITIVE).all())
        known = all_positive or np.isin(flags, (_POSITIVE, _NEGATIVE, _ZERO)).all()
        if not known or (cursors + 1 >= limits).any():
            raise _corrupt("a block of it is of another kind, or cut short")
        stored = flags != _ZERO
        bins = np.where(stored, self._integers(cursors + 1), np.uint64(1)).astype(np.int64)
        moved = cursors + 2 + np.where(stored, 2 * bins, 0)
        if (moved > limits).any():
            raise _corrupt("a store of it has fewer bins than it says")
        firsts = np.cumsum(bins) - bins
        first_count_at = np.where(stored, cursors + 3, cursors + 1)
        count_at = np.repeat(first_count_at - 2 * firsts, bins) + 2 * np.arange(int(bins.sum()))
        deltas = _unzigzag(self._integers(count_at - 1))
        if not all_positive:
            deltas[np.repeat(~stored, bins)] = 0
        running = np.cumsum(deltas)
        filled = bins > 0
        before = running[firsts[filled]] - deltas[firsts[filled]]
        indexes = running - np.repeat(before, bins[filled])
        counts = _unrotated(self._integers(count_at, highest_first=True))
        if (indexes < LOWEST).any() or (indexes > HIGHEST).any() or (counts != np.rint(counts)).any():
            raise _corrupt("a bin of it is beyond the range of doubles, or its count is not a whole number")
        slots = indexes - (LOWEST - 1)
        if not all_positive:
            slots *= np.repeat(np.select([flags == _POSITIVE, flags == _NEGATIVE], [1, -1], 0), bins)
        return bins, slots, counts.astype(np.int64), moved

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
