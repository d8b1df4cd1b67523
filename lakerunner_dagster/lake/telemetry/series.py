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


def series_ids(own: Attributes, named: pa.StringArray, name_of: Ints, resources: Attributes, resource_of: Ints) -> Ids:
    """The id of each point's series.

    ``own``: the attributes of points, one parent each. ``named``: texts of ``named_series``, of which point i has that
    at ``name_of[i]``; its resource is parent ``resource_of[i]`` of ``resources``.
    """
    # In sorted order attr_* come before chq_metric_type and metric_name, and these before resource_*.
    states = _with_attributes(np.full(own.parents, _BASIS), own)
    states = _extended(states, named, name_of)
    return _extended(states, _resource_texts(resources), resource_of).view(np.int64)


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
    rank = np.empty(len(by_key), np.int32)
    rank[by_key] = np.arange(len(by_key))
    prefixes = pa.array([f"attr_{normalised(key)}=" for key in own.keys], pa.string())
    tokens = pc.binary_join_element_wise(prefixes.take(pa.array(own.pair_key)), own.text, "|", "").take(
        pa.array(by_key)
    )
    starts = np.searchsorted(own.pair_key[by_key], np.arange(len(own.keys) + 1))
    for keys in _keys_by_name(own):
        hashed = np.zeros(own.parents if len(keys) > 1 else 0, np.bool_)
        for key in keys:
            points, pairs = own.holders_of(key)
            if len(keys) > 1:
                points, pairs = points[~hashed[points]], pairs[~hashed[points]]
                hashed[points] = True
            span = slice(starts[key], starts[key + 1])
            chosen = slice(None) if len(points) == own.parents else points
            states[chosen] = _extended(states[chosen], tokens[span], rank[pairs] - starts[key])
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


def _extended(states: Words, tokens: pa.StringArray, codes: Ints) -> Words:
    """The states after one more token each: state i takes ``tokens[codes[i]]``. No token that is used may be NULL."""
    low = states & np.uint64(_LOW_BYTES - 1)
    met = codes.astype(np.int64) * _LOW_BYTES + low.astype(np.int64)
    text = _Text(tokens)
    if len(tokens) * _LOW_BYTES <= _REPEATS * len(states):
        marked = np.zeros(len(tokens) * _LOW_BYTES, np.bool_)
        marked[met] = True
        distinct = np.flatnonzero(marked)
        hashed = np.zeros(len(marked), np.uint64)
        hashed[distinct] = text.hashed(distinct)
        ends = hashed[met]
    else:
        ends = text.hashed(met)
    extended: Words = (states - low) * text.factors()[codes] + ends
    return extended


class _Text:
    """Tokens as bytes with their bounds."""

    def __init__(self, tokens: pa.StringArray) -> None:
        tokens = tokens.cast(pa.large_string())
        _, offsets, data = tokens.buffers()
        bounds = np.frombuffer(offsets, np.int64)[tokens.offset : tokens.offset + len(tokens) + 1]
        self._bytes = np.frombuffer(data, np.uint8) if data else np.zeros(0, np.uint8)
        self._starts = bounds[:-1]
        self._lengths = np.diff(bounds)

    def factors(self) -> Words:
        """prime^length of each token."""
        powers = np.full(int(self._lengths.max(initial=0)) + 1, _PRIME, np.uint64)
        powers[0] = 1
        factors: Words = np.cumprod(powers)[self._lengths]
        return factors

    def hashed(self, met: Ints) -> Words:
        """What tokens make of low bytes; ``met`` is 256 * token + low byte."""
        states = (met % _LOW_BYTES).astype(np.uint64)
        tokens = met // _LOW_BYTES
        order = np.argsort(-self._lengths[tokens], kind="stable")
        lengths, starts = self._lengths[tokens][order], self._starts[tokens][order]
        states = states[order]
        unfinished = len(lengths) - np.searchsorted(lengths[::-1], np.arange(lengths.max(initial=0)), side="right")
        place = 0
        while place < len(unfinished) and unfinished[place] > _FEW:
            active = states[: unfinished[place]]
            active ^= self._bytes[starts[: unfinished[place]] + place]
            active *= np.uint64(_PRIME)
            place += 1
        for one in range(unfinished[place] if place < len(unfinished) else 0):
            rest = self._bytes[starts[one] + place : starts[one] + lengths[one]].tobytes()
            states[one] = _fnv(int(states[one]), rest)
        hashed = np.empty_like(states)
        hashed[order] = states
        return hashed


def _fnv(state: int, rest: bytes) -> int:
    for byte in rest:
        state = (state ^ byte) * _PRIME % _WRAP
    return state
