"""Series ids (chq_tid): FNV-1a 64 over the pairs that name a series, for many points at once.

What belongs here: which pairs name a series, and their hash. What does not: columns (``attributes``), which know of
other points; an id must not, so that a series keeps it in whatever company it comes. Of a point's keys that normalise
alike, the first in sorted order counts.

FNV-1a goes byte by byte, h = (h xor byte) * prime modulo 2^64, but its low byte depends on nothing else than the low
byte before. So a token takes any state h to (h - low) * prime^length + (what it makes of the low byte alone), and is
hashed once for each low byte that it meets instead of once for each series that it is part of.
"""

from __future__ import annotations

from itertools import groupby
from operator import itemgetter
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from lakerunner_dagster.lake.telemetry.attributes import Attributes, Ints, may_name_a_column, normalised

Words: TypeAlias = npt.NDArray[np.uint64]
Ids: TypeAlias = npt.NDArray[np.int64]

_BASIS = np.uint64(0xCBF29CE484222325)
_PRIME = 0x100000001B3
_WRAP = 1 << 64

_LOW_BYTES = 256

_REPEATS = 4
"""Tokens that are fewer than this many points to each low byte meet the same one again: worth looking up."""

_FEW = 32
"""So few tokens are hashed faster by Python's integers, one after another, than by numpy, byte by byte."""

RESOURCE_KEYS = (
    "app",
    "container_image_name",
    "container_image_tag",
    "k8s_cluster_name",
    "k8s_daemonset_name",
    "k8s_deployment_name",
    "k8s_namespace_name",
    "k8s_pod_ip",
    "k8s_pod_name",
    "k8s_statefulset_name",
    "service_name",
    "service_version",
)
"""Normalised resource keys that are part of a series' name (contract)."""


def series_ids(
    own: Attributes,
    own_of: Ints,
    *,
    named: pa.StringArray,
    name_of: Ints,
    resources: Attributes,
    resource_of: Ints,
) -> Ids:
    """The id of each point's series.

    ``own``: the attributes of points, those of point i at parent ``own_of[i]``; its resource is parent
    ``resource_of[i]`` of ``resources``. ``named``: texts of ``named_series``, of which it has that at ``name_of[i]``.
    """
    # In sorted order attr_* come before chq_metric_type and metric_name, and these before resource_*.
    states = _with_attributes(np.full(own.parents, _BASIS), own)[own_of]
    states = _Tokens(named).extended(states, name_of)
    return _Tokens(_resource_texts(resources)).extended(states, resource_of).view(np.int64)


def named_series(metric_types: pa.StringArray, names: pa.StringArray) -> pa.StringArray:
    """The pairs of the metric itself, as they are hashed."""
    return pc.binary_join_element_wise(_pairs("chq_metric_type", metric_types), _pairs("metric_name", names), "")


def _pairs(name: str, values: pa.StringArray) -> pa.StringArray:
    """``name=value|``; nothing where the value is NULL or empty."""
    pairs = pc.binary_join_element_wise(f"{name}=", values, "|", "")
    return pc.if_else(pc.equal(values, ""), "", pairs).fill_null("")


def _with_attributes(states: Words, own: Attributes) -> Words:
    """The states after each point's attributes, key by key."""
    by_key = np.argsort(own.pair_key, kind="stable")
    rank = np.empty(len(by_key), np.int64)
    rank[by_key] = np.arange(len(by_key))
    prefixes = pa.array([f"attr_{normalised(key)}=" for key in own.keys], pa.string())
    texts = pc.binary_join_element_wise(prefixes.take(pa.array(own.pair_key)), own.text, "|", "")
    tokens = _Tokens(texts.take(pa.array(by_key)))
    starts = np.searchsorted(own.pair_key[by_key], np.arange(len(own.keys) + 1)).tolist()
    for keys in _keys_by_name(own):
        hashed = np.zeros(own.parents if len(keys) > 1 else 0, np.bool_)
        for key in keys:
            points, pairs = own.holders_of(key)
            if len(keys) > 1:
                points, pairs = points[~hashed[points]], pairs[~hashed[points]]
                hashed[points] = True
            chosen = slice(None) if len(points) == own.parents else points
            states[chosen] = tokens.extended(states[chosen], rank[pairs], slice(starts[key], starts[key + 1]))
    return states


def _resource_texts(resources: Attributes) -> pa.StringArray:
    """The pairs of each resource, as they are hashed."""
    keys_of = {normalised(resources.keys[keys[0]]): keys for keys in _keys_by_name(resources)}
    texts = [pa.array([""] * resources.parents, pa.string())]
    for name in RESOURCE_KEYS:
        found = np.full(resources.parents, -1, np.int64)
        for key in keys_of.get(name, ()):
            found = np.where(found < 0, resources.pairs_of(resources.keys[key]), found)
        texts.append(_pairs(f"resource_{name}", resources.text.take(pa.array(found, mask=found < 0))))
    return pc.binary_join_element_wise(*texts, "")


def _keys_by_name(attributes: Attributes) -> list[list[int]]:
    """The keys that may name a column, sorted; those that normalise alike are together."""
    eligible = (key for key, text in enumerate(attributes.keys) if may_name_a_column(text))
    ordered = sorted((normalised(attributes.keys[key]), attributes.keys[key], key) for key in eligible)
    return [[key for _, _, key in alike] for _, alike in groupby(ordered, key=itemgetter(0))]


class _Tokens:
    """Texts that go into hashes whole. NULL ones may be there, but not used."""

    def __init__(self, texts: pa.StringArray) -> None:
        texts = texts.cast(pa.large_string())
        _, offsets, data = texts.buffers()
        bounds = np.frombuffer(offsets, np.int64)[texts.offset : texts.offset + len(texts) + 1]
        self._bytes = np.frombuffer(data or b"", np.uint8)
        self._starts = bounds[:-1]
        self._lengths = np.diff(bounds)
        powers = np.full(int(self._lengths.max(initial=0)) + 1, _PRIME, np.uint64)
        powers[0] = 1
        self._factors: Words = np.cumprod(powers)[self._lengths]

    def extended(self, states: Words, codes: Ints, among: slice | None = None) -> Words:
        """The states after one more token each: state i takes token ``codes[i]``. ``among``: where all codes are."""
        if len(states) <= _FEW:
            pairs = zip(states.tolist(), codes.tolist(), strict=True)
            return np.array([_fnv(state, self._rest(code)) for state, code in pairs], np.uint64)
        first, end, _ = (among or slice(None)).indices(len(self._starts))
        low = states & np.uint64(_LOW_BYTES - 1)
        met = (codes - first) * _LOW_BYTES + low.astype(np.int64)
        lookups = (end - first) * _LOW_BYTES
        if lookups <= _REPEATS * len(states):
            marked = np.zeros(lookups, np.bool_)
            marked[met] = True
            distinct = np.flatnonzero(marked)
            hashed = np.zeros(lookups, np.uint64)
            hashed[distinct] = self._hashed(distinct % _LOW_BYTES, distinct // _LOW_BYTES + first)
            ends = hashed[met]
        else:
            ends = self._hashed(low, codes)
        extended: Words = (states - low) * self._factors[codes] + ends
        return extended

    def _hashed(self, states: Ints | Words, codes: Ints) -> Words:
        """The states after one more token each, byte by byte: the longest tokens first, the shorter ones drop out."""
        order = np.argsort(-self._lengths[codes], kind="stable")
        lengths, starts = self._lengths[codes][order], self._starts[codes][order]
        sorted_states = states[order].astype(np.uint64)
        unfinished = len(lengths) - np.searchsorted(lengths[::-1], np.arange(lengths.max(initial=0)), side="right")
        place = 0
        while place < len(unfinished) and unfinished[place] > _FEW:
            active = sorted_states[: unfinished[place]]
            active ^= self._bytes[starts[: unfinished[place]] + place]
            active *= np.uint64(_PRIME)
            place += 1
        for one in range(unfinished[place] if place < len(unfinished) else 0):
            sorted_states[one] = _fnv(int(sorted_states[one]), self._rest(codes[order[one]], place))
        hashed = np.empty_like(sorted_states)
        hashed[order] = sorted_states
        return hashed

    def _rest(self, code: int, place: int = 0) -> bytes:
        """The bytes of a token from ``place`` on."""
        start = self._starts[code]
        return self._bytes[start + place : start + self._lengths[code]].tobytes()


def _fnv(state: int, rest: bytes) -> int:
    for byte in rest:
        state = (state ^ byte) * _PRIME % _WRAP
    return state
