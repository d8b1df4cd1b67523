"""Fingerprints of what a record is an instance of: the template of a log message, the semantic parts of a span.

What belongs here: templates, parts and their hash. What does not: the fingerprints of a segment's index (``segments``).

A fingerprint is a function of the one record: no state, no training, the same on every machine and in every batch.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import xxhash

if TYPE_CHECKING:
    from lakerunner_dagster.lake.telemetry.attributes import Attributes, Ints

VARIABLE_WORD = "[A-Za-z0-9_.-]*[0-9][A-Za-z0-9_.-]*"
"""A word with a digit in it: numbers, ids, addresses, times, versions. ``*`` stands for it in a template."""

VARIABLE_SERIES = r"""\*(?:[\s'",;:/|+-]*\*)+"""
"""Variable words with nothing but punctuation between them; one ``*`` stands for all: lists of any length are alike."""

PLACE = ("k8s.cluster.name", "k8s.namespace.name", "service.name")
"""Resource attributes that say where a span comes from."""

KINDS_OF_WORK: Sequence[Sequence[Sequence[str]]] = (
    (
        ("messaging.system",),
        ("messaging.operation.type", "messaging.operation.name", "messaging.operation"),
        ("messaging.destination.name", "messaging.destination"),
    ),
    (
        ("db.system.name", "db.system"),
        ("db.namespace", "db.name"),
        ("db.operation.name", "db.operation"),
        ("db.collection.name", "db.sql.table"),
    ),
    (
        ("http.request.method", "http.method"),
        ("http.route", "url.template"),
    ),
)
"""The semantic parts of a span, by kind of work. A part is the value of the first of its attributes (the name of today,
then older ones) that the span has. The first kind whose first part is there is the span's."""

_KIND, _NAME = "kind", "name"
_WIDEST = 2**62


def message_fingerprints(messages: pa.StringArray) -> pa.Int64Array:
    """The hash of each message's template; NULL for NULL."""
    distinct = messages.dictionary_encode()
    masked = pc.replace_substring_regex(distinct.dictionary, VARIABLE_WORD, "*").dictionary_encode()
    templates = pc.replace_substring_regex(masked.dictionary, VARIABLE_SERIES, "*")
    return _hashes(templates.to_pylist()).take(masked.indices).take(distinct.indices)


def span_fingerprints(
    *,
    names: pa.StringArray,
    kinds: pa.Int32Array,
    own: Attributes,
    own_rows: Ints | None,
    resources: Attributes,
    resource_rows: Ints,
) -> pa.Int64Array:
    """The hash of each span's place and kind, and of the parts of its work or, where it has none, its name's template.

    ``own_rows`` and ``resource_rows``: each span's position among the parents of ``own`` (None: span i is parent i) and
    of ``resources``.
    """
    masked = names.dictionary_encode()
    templates = pc.replace_substring_regex(masked.dictionary, VARIABLE_WORD, "*").dictionary_encode()
    kind = kinds.dictionary_encode()
    columns: dict[str, tuple[Ints, pa.Array]] = {
        **{key: (resources.pairs_of(key, resource_rows), resources.text) for key in PLACE},
        _KIND: (kind.indices.to_numpy(), kind.dictionary),
        _NAME: (templates.indices.to_numpy()[masked.indices.to_numpy()], templates.dictionary),
        **{part[0]: (_first_of(own, part, own_rows), own.text) for work in KINDS_OF_WORK for part in work},
    }
    first, group = _distinct_rows([codes for codes, _ in columns.values()], len(names))
    shown = {name: _at(texts, codes[first]) for name, (codes, texts) in columns.items()}
    rows = (dict(zip(shown, row, strict=True)) for row in zip(*shown.values(), strict=True))
    return _hashes(_description(row) for row in rows).take(pa.array(group))


def _description(span: Mapping[str, str | int | None]) -> str:
    """What is hashed: ``name=value`` of each part that counts, in a fixed order."""
    work = next((kind for kind in KINDS_OF_WORK if span[kind[0][0]] is not None), None)
    parts = (*PLACE, _KIND, *([_NAME] if work is None else [part[0] for part in work]))
    return "\x1f".join(f"{part}={'' if span[part] is None else span[part]}" for part in parts)


def _first_of(attributes: Attributes, keys: Sequence[str], rows: Ints | None) -> Ints:
    """For each row the pair of the first of these keys that it has, -1 where it has none."""
    found = attributes.pairs_of(keys[0], rows)
    for key in keys[1:]:
        found = np.where(found < 0, attributes.pairs_of(key, rows), found)
    return found


def _distinct_rows(columns: Sequence[Ints], rows: int) -> tuple[Ints, Ints]:
    """(a row of each distinct combination of codes, the combination of each row); codes are -1 or more."""
    combined, size = np.zeros(rows, np.int64), 1
    for codes in columns:
        width = int(codes.max(initial=-1)) + 2
        if size > _WIDEST // width:
            seen, combined = np.unique(combined, return_inverse=True)
            size = len(seen)
        combined = combined * width + (codes + 1)
        size *= width
    _, first, group = np.unique(combined, return_index=True, return_inverse=True)
    return first, group


def _at(texts: pa.Array, codes: Ints) -> list[str | int | None]:
    shown: list[str | int | None] = texts.take(pa.array(codes, mask=codes < 0)).to_pylist()
    return shown


def _hashes(texts: Iterable[str | None]) -> pa.Int64Array:
    """xxh64 of the UTF-8 of each text, as a signed integer; NULL for NULL."""
    hashes = (None if text is None else xxhash.xxh64_intdigest(text.encode()) for text in texts)
    return pa.array([None if one is None else one - (one >> 63 << 64) for one in hashes], pa.int64())
