"""The pivot: lists of attributes → one column per key, and one JSON object for what gets no column.

What belongs here: names, values and places of attributes, for any signal. What does not: which parents there are.

How to use it, from the arrays of ``wire.read_requests`` (R records, each with a resource):

1. Read each kind of parent once. For parents that are bytes themselves, read the distinct ones::

       encoded = only(resource_logs.field("resource")).dictionary_encode()
       resources = read_attributes(reader(Resource).read(encoded.dictionary).field("attributes"), limits)
       own = read_attributes(log_records.field("attributes"), limits, Place.LOG_RECORD)

2. Decide which records are accepted: ``too_many`` and ``too_large`` are masks over the *parents*. A record is rejected
   for its resource's and scope's attributes too.

3. Pivot the accepted rows in one call, because the bound on columns counts them all; ``rows`` says which parent each
   row has (None: row i is parent i)::

       pivot(
           [
               AttributeGroup("resource", resources, rows=resource_of_row),
               AttributeGroup("scope", scopes, rows=scope_of_row),
               AttributeGroup("attr", own, rows=accepted_positions_or_None),
           ],
           limit=limits.columns,
           reserved={"scope_name", "scope_version"},
       )

   A group's ``eligible`` names the only columns it may have (metrics: the twelve resource keys; the rest overflows).

What must not depend on which other files are in the batch (a fingerprint, a series id) must not be computed from the
columns, since a rare or colliding key may be in the overflow: ``Attributes.pairs_of(key)`` finds it anywhere.

Rules beyond the specification's: of several values of one key on one parent, the first that is not empty takes the
column and the others go to the overflow; a key that is longer than 256 bytes or has a NUL in it gets no column.
``chq_overflow`` is ``{"resource": {key: text, …}, "scope": {…}, "attr": {…}}``, keys in the order of the wire, without
empty objects; several values of one key there are an array of texts. NULL where nothing overflows.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from opentelemetry.proto.common.v1.common_pb2 import KeyValue

from lakerunner_dagster.lake.segments.shared import shared
from lakerunner_dagster.lake.settings import Limits
from lakerunner_dagster.lake.telemetry.values import enclosed, quoted, texts
from lakerunner_dagster.lake.telemetry.wire import Place, check_attributes, reader

LONGEST_COLUMN_KEY = 256
"""Bytes of the longest key that may become a column."""

_REPLACED = re.compile(rb"[^a-z0-9]")

Ints = npt.NDArray[np.signedinteger]
Bools = npt.NDArray[np.bool_]


def normalised(key: str) -> str:
    """A key as a column's name has it (contract): a-z and 0-9 stay, A-Z become lower case, other bytes ``_``."""
    return _REPLACED.sub(b"_", key.encode().lower()).decode()


@dataclass(frozen=True, slots=True)
class Attributes:
    """The attributes of a number of parents as integers: occurrence → parent, occurrence → distinct (key, value) pair.

    An occurrence whose value is empty or unset is not here. Arrays of length:

    - pairs: ``pair_key`` (position in ``keys``), ``text`` (the value's cell; NULL where empty);
    - occurrences, in the order of the wire: ``parent`` (ascending), ``pair``;
    - occurrences, stably sorted by key, so that those of key k are at ``starts[k]`` to ``starts[k + 1]``: ``by_key``,
      positions in the above; ``keyed_parent`` and ``keyed_pair``, the same in this order; and ``later``, which marks
      those whose parent had that key before;
    - parents: ``too_many`` (more attributes than allowed), ``too_large`` (a key or value of more bytes than allowed).
    """

    parents: int
    keys: list[str]
    pair_key: Ints
    text: pa.StringArray
    parent: Ints
    pair: Ints
    by_key: Ints
    keyed_parent: Ints
    keyed_pair: Ints
    starts: Ints
    later: Bools
    too_many: Bools
    too_large: Bools

    def holders_of(self, key: int) -> tuple[Ints, Ints]:
        """The parents that have a key (a position in ``keys``), ascending, and the pair that each has first."""
        span = slice(self.starts[key], self.starts[key + 1])
        parents, pairs, later = self.keyed_parent[span], self.keyed_pair[span], self.later[span]
        return (parents[~later], pairs[~later]) if later.any() else (parents, pairs)

    def pairs_of(self, key: str, rows: Ints | None = None) -> Ints:
        """For each row the pair (position in ``text``) that holds its value of a key, -1 where it has none.

        ``rows``: the parent of each row; None: row i is parent i.
        """
        found = np.full(self.parents, -1, np.int32)
        if key in self.keys:
            parents, pairs = self.holders_of(self.keys.index(key))
            found[parents] = pairs
        return found if rows is None else found[rows]


def read_attributes(lists: pa.ListArray, limits: Limits, unchecked: Place | None = None) -> Attributes:
    """Reads one list of KeyValue bytes a parent; each distinct pair is decoded once.

    ``unchecked``: the place of attributes that nobody has checked yet. Raises InputError ``corrupt_protobuf`` where
    such are not valid.
    """
    encoded = lists.values.dictionary_encode()
    return _read(encoded.dictionary, encoded.indices.to_numpy(), lists.offsets.to_numpy(), limits, unchecked)


def read_distinct_attributes(lists: pa.ChunkedArray, limits: Limits, unchecked: Place) -> tuple[Attributes, Ints]:
    """As ``read_attributes``, but with one parent for each different list; and for each list the parent that it is."""
    encoded = pa.chunked_array([part.values for part in lists.chunks]).dictionary_encode().combine_chunks()
    pair = encoded.indices.to_numpy()
    offsets = np.concatenate([[0], np.cumsum(np.concatenate([np.diff(part.offsets) for part in lists.chunks]))])
    # The numbers of pairs are all of one width, so that lists are equal where the bytes of their numbers are.
    buffers = [None, pa.py_buffer(offsets * pair.itemsize), pa.py_buffer(pair)]
    alike = pa.LargeBinaryArray.from_buffers(pa.large_binary(), len(lists), buffers).dictionary_encode()
    _, distinct_ends, distinct_pair = alike.dictionary.buffers()
    attributes = _read(
        encoded.dictionary,
        np.frombuffer(distinct_pair or b"", pair.dtype),
        np.frombuffer(distinct_ends, np.int64)[: len(alike.dictionary) + 1] // pair.itemsize,
        limits,
        unchecked,
    )
    return attributes, alike.indices.to_numpy()


def _read(encoded: pa.BinaryArray, pair: Ints, offsets: Ints, limits: Limits, unchecked: Place | None) -> Attributes:
    """Of parents that have the pairs ``pair[offsets[k]:offsets[k + 1]]``, which are positions in ``encoded``."""
    counts = np.diff(offsets)
    if unchecked is not None:
        check_attributes(unchecked, encoded)
    pairs = reader(KeyValue).read(encoded)
    pair_keys = pairs.field("key").dictionary_encode()
    text = texts(pairs.field("value"))
    pair_key = _smallest(pair_keys.indices.to_numpy(), len(pair_keys.dictionary))
    parent = np.repeat(np.arange(len(counts), dtype=np.int32), counts)
    size = np.maximum(_bytes(pairs.field("key")), _bytes(text))
    too_large = np.zeros(len(counts), np.bool_)
    if size.max(initial=0) > limits.value_bytes:
        too_large[parent[(size > limits.value_bytes)[pair]]] = True
    if text.null_count:
        told = text.is_valid().to_numpy(zero_copy_only=False)[pair]
        parent, pair = parent[told], pair[told]
    key = pair_key[pair]
    by_key = np.argsort(key, kind="stable")
    keyed_parent = parent[by_key]
    starts = np.concatenate([[0], np.cumsum(np.bincount(key, minlength=len(pair_keys.dictionary)))])
    later = np.zeros(len(by_key), np.bool_)
    later[1:] = keyed_parent[1:] == keyed_parent[:-1]
    later[starts[:-1][starts[:-1] < len(later)]] = False
    return Attributes(
        parents=len(counts),
        keys=pair_keys.dictionary.to_pylist(),
        pair_key=pair_key,
        text=text,
        parent=parent,
        pair=pair,
        by_key=by_key,
        keyed_parent=keyed_parent,
        keyed_pair=pair[by_key],
        starts=starts,
        later=later,
        too_many=counts > limits.attributes,
        too_large=too_large,
    )


@dataclass(frozen=True, slots=True)
class AttributeGroup:
    """Attributes on their way to columns ``{name}_{normalised key}``.

    ``name`` is ``resource``, ``scope`` or ``attr``. ``rows`` is the parent of each row of the table to be (None: row i
    has parent i). ``eligible``: the only columns that there may be (None: any).
    """

    name: str
    attributes: Attributes
    rows: Ints | None = None
    eligible: frozenset[str] | None = None


@dataclass(frozen=True, slots=True)
class AttributeColumns:
    """Columns of the rows, ordered by group and name; dictionaries hold no value twice, and maybe some unused.

    Those of a group that has ``rows`` are one shared column of the group's name (``segments.shared``).
    ``overflow``: JSON objects, NULL where a row has nothing in it. ``original_keys`` maps a column to the attribute's
    key.
    """

    columns: dict[str, pa.DictionaryArray]
    overflow: pa.DictionaryArray
    original_keys: dict[str, str]


def pivot(
    groups: Sequence[AttributeGroup],
    *,
    limit: int,
    reserved: Collection[str] = (),
    pinned: Collection[str] = (),
) -> AttributeColumns:
    """The columns and the overflow of the groups' rows (at least one group; all have the same number of rows).

    ``limit``: most columns in all; the rarest go (fewest rows; at a tie, the last by name), but never ``pinned`` ones.
    ``reserved``: names that are taken by other columns, so that an attribute of that name overflows.
    """
    weights = [_rows_per_parent(group) for group in groups]
    candidates = [
        _Candidate(rows=count, column=column, group=index, key=key)
        for index, (group, weight) in enumerate(zip(groups, weights, strict=True))
        for column, key, count in _named(group, weight, reserved)
    ]
    candidates.sort(key=lambda one: (one.column not in pinned, -one.rows, one.column))
    kept = sorted(candidates[:limit], key=lambda one: (one.group, one.column))
    return AttributeColumns(
        columns=_columns(groups, kept),
        overflow=_overflow(groups, weights, [[one.key for one in kept if one.group == i] for i in range(len(groups))]),
        original_keys={one.column: groups[one.group].attributes.keys[one.key] for one in kept},
    )


@dataclass(frozen=True, slots=True)
class _Candidate:
    """A key that may become a column; ``key`` is its position in the group's keys."""

    rows: int
    column: str
    group: int
    key: int


def _rows_per_parent(group: AttributeGroup) -> Ints | None:
    """How many rows each parent stands for; None: one each."""
    return None if group.rows is None else np.bincount(group.rows, minlength=group.attributes.parents)


def _named(group: AttributeGroup, weight: Ints | None, reserved: Collection[str]) -> Iterable[tuple[str, int, int]]:
    """(column, key, rows with it) of the keys that take a name: the first in sorted order that wants it."""
    attributes = group.attributes
    taken = set(reserved)
    for key in sorted(range(len(attributes.keys)), key=attributes.keys.__getitem__):
        original = attributes.keys[key]
        column = f"{group.name}_{normalised(original)}"
        if not may_name_a_column(original) or column in taken or column not in (group.eligible or {column}):
            continue
        parents, _ = attributes.holders_of(key)
        rows = len(parents) if weight is None else int(weight[parents].sum())
        if rows:
            taken.add(column)
            yield column, key, rows


def may_name_a_column(key: str) -> bool:
    """Whether an attribute of this key may become a column (names that collide aside)."""
    return not key.startswith("_") and "\0" not in key and len(key.encode()) <= LONGEST_COLUMN_KEY


def _columns(groups: Sequence[AttributeGroup], kept: Sequence[_Candidate]) -> dict[str, pa.DictionaryArray]:
    found: dict[str, pa.DictionaryArray] = {}
    for index, group in enumerate(groups):
        columns = {one.column: _column(group.attributes, one.key) for one in kept if one.group == index}
        if columns and group.rows is not None:
            columns = {group.name: shared(group.rows, columns)}
        found.update(columns)
    return found


def _column(attributes: Attributes, key: int) -> pa.DictionaryArray:
    """The value of a key that each parent has."""
    parents, pairs = attributes.holders_of(key)
    members = np.flatnonzero(attributes.pair_key == key)
    values = attributes.text.take(pa.array(members)).dictionary_encode()  # 1 and "1" are two pairs and one value
    code_of_pair = np.zeros(len(attributes.pair_key), np.int32)
    code_of_pair[members] = values.indices.fill_null(0).to_numpy()
    codes = np.full(attributes.parents, -1, np.int32)
    codes[parents] = code_of_pair[pairs]
    return coded(codes, values.dictionary)


def coded(codes: npt.NDArray[np.int32], values: pa.Array) -> pa.DictionaryArray:
    """A column of the values at these positions; NULL where a position is negative. Positions are not checked."""
    valid = np.packbits(codes >= 0, bitorder="little")
    buffers = [pa.py_buffer(valid), pa.py_buffer(np.maximum(codes, 0))]
    indices = pa.Int32Array.from_buffers(pa.int32(), len(codes), buffers)
    return pa.DictionaryArray.from_arrays(indices, values, safe=False)


def _overflow(
    groups: Sequence[AttributeGroup], weights: Sequence[Ints | None], columns: Sequence[Sequence[int]]
) -> pa.DictionaryArray:
    """The objects are long and few: each combination of parts is joined once."""
    parts = [_overflow_part(*one) for one in zip(groups, weights, columns, strict=True)]
    combination = np.zeros(1, np.int64)
    for group, part in zip(groups, parts, strict=True):
        codes = part.indices.fill_null(len(part.dictionary)).to_numpy()
        rows = codes if group.rows is None else codes[group.rows]
        combination = combination * (len(part.dictionary) + 1) + rows
    combinations = pa.array(combination).dictionary_encode()
    left = combinations.dictionary.to_numpy()
    joined = pa.nulls(len(left), pa.string())
    for part in reversed(parts):
        left, codes = np.divmod(left, len(part.dictionary) + 1)
        texts = part.dictionary.take(pa.array(codes, mask=codes == len(part.dictionary)))
        joined = pc.coalesce(pc.binary_join_element_wise(texts, joined, ","), texts, joined)
    objects = enclosed("{", joined, "}").dictionary_encode()
    return pa.DictionaryArray.from_arrays(objects.indices.take(combinations.indices), objects.dictionary)


def _overflow_part(group: AttributeGroup, weight: Ints | None, columns: Sequence[int]) -> pa.DictionaryArray:
    """``"group":{…}`` for each parent, NULL where nothing of it overflows. Parents alike in that are written once."""
    attributes = group.attributes
    keyless = np.ones(len(attributes.keys), np.bool_)
    keyless[list(columns)] = False
    outside = keyless[attributes.pair_key][attributes.pair]
    outside[attributes.by_key[attributes.later]] = True
    if weight is not None and not weight.all():
        outside &= (weight > 0)[attributes.parent]
    occurrences = np.flatnonzero(outside)
    if len(occurrences) == 0:
        return pa.nulls(attributes.parents, pa.string()).dictionary_encode()
    alike = _alike(attributes, occurrences)
    first = np.zeros(alike.max() + 1, np.int64)
    first[alike[::-1]] = np.arange(attributes.parents)[::-1]
    written = np.zeros(attributes.parents, np.bool_)
    written[first] = True
    parent, members = _members(attributes, occurrences[written[attributes.parent[occurrences]]])
    offsets = np.searchsorted(parent, np.append(first, attributes.parents)).astype(np.int32)
    objects = pc.binary_join(pa.ListArray.from_arrays(offsets, members, mask=pa.array(np.diff(offsets) == 0)), ",")
    parts = enclosed(f'"{group.name}":{{', objects, "}").dictionary_encode()
    return pa.DictionaryArray.from_arrays(parts.indices.take(pa.array(alike)), parts.dictionary)


def _alike(attributes: Attributes, occurrences: Ints) -> Ints:
    """A number for each parent, equal where the pairs of these occurrences are, counting up in the order of parents."""
    parent, pair = attributes.parent[occurrences], attributes.pair[occurrences].astype(np.int64)
    counts = np.bincount(parent, minlength=attributes.parents)
    starts = np.cumsum(counts) - counts
    alike = np.zeros(attributes.parents, np.int64)
    numbers = 1
    for nth in range(counts.max()):
        longer = np.flatnonzero(counts > nth)
        lists = pa.array(alike[longer] * len(attributes.pair_key) + pair[starts[longer] + nth]).dictionary_encode()
        alike[longer] = numbers + lists.indices.to_numpy()
        numbers += len(lists.dictionary)
    counted: Ints = pa.array(alike).dictionary_encode().indices.to_numpy()
    return counted


def _members(attributes: Attributes, occurrences: Ints) -> tuple[Ints, pa.StringArray]:
    """(parent, ``"key":"text"``) of the given occurrences; a parent's texts of one key together, in an array."""
    used, pair = np.unique(attributes.pair[occurrences], return_inverse=True)
    parent = attributes.parent[occurrences]
    names = quoted(pa.array(attributes.keys, pa.string()).take(pa.array(attributes.pair_key[used])))
    values = quoted(attributes.text.take(pa.array(used)))
    if not attributes.later.any():
        return parent, pc.binary_join_element_wise(names, values, ":").take(pa.array(pair))
    place = parent.astype(np.int64) * len(attributes.keys) + attributes.pair_key[used][pair]
    _, first, group, sizes = np.unique(place, return_index=True, return_inverse=True, return_counts=True)
    together = np.argsort(first[group], kind="stable")
    heads = np.sort(first)
    sizes = sizes[np.argsort(first)]
    lists = pa.ListArray.from_arrays(
        np.concatenate([[0], np.cumsum(sizes)]).astype(np.int32), values.take(pa.array(pair[together]))
    )
    joined = pc.binary_join(lists, ",")
    shown = pc.if_else(pa.array(sizes > 1), enclosed("[", joined, "]"), joined)
    return parent[heads], pc.binary_join_element_wise(names.take(pa.array(pair[heads])), shown, ":")


def _bytes(strings: pa.StringArray) -> Ints:
    """UTF-8 length of each string, 0 for NULL."""
    lengths: Ints = pc.binary_length(strings).fill_null(0).to_numpy()
    return lengths


def _smallest(codes: Ints, size: int) -> Ints:
    """Codes below ``size`` in the narrowest type, which numpy sorts by radix."""
    return codes.astype(np.min_scalar_type(max(size - 1, 0)))
