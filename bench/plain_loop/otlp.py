"""The obvious reading of OTLP's values and attributes: one Python object at a time.

What belongs here: what the loops over logs, metrics and traces share. What does not: anything of the product's decoder,
whose oracle this is: it shares the specification with it, and no code.
"""

from __future__ import annotations

import base64
import json
import math
import re
from collections import Counter
from dataclasses import dataclass, field
from decimal import Decimal
from functools import cache
from typing import TYPE_CHECKING, Any

import xxhash

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping

    from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue

    from lakerunner_dagster.lake.settings import Limits

NS_PER_MS = 1_000_000
BIGINT = range(-(2**63), 2**63)
LONGEST_COLUMN_KEY = 256

_WORD = re.compile(r"[A-Za-z0-9_.-]+")
_DIGIT = re.compile(r"[0-9]")

Attribute = tuple[str, str]
"""An attribute's key and the text of its value, which is not empty."""


def double_text(number: float) -> str:
    """A double as ECMAScript writes it."""
    if math.isnan(number):
        return "NaN"
    if math.isinf(number):
        return "Infinity" if number > 0 else "-Infinity"
    if number == 0 or 1e-6 <= abs(number) < 1e21:
        plain = f"{Decimal(repr(number)):f}"
        return plain.rstrip("0").rstrip(".") if "." in plain else plain
    mantissa, exponent = repr(number).split("e")
    return f"{mantissa}e{int(exponent):+d}"


def value_json(value: AnyValue) -> str:
    """The JSON text of an AnyValue."""
    kind = value.WhichOneof("value")
    if kind == "array_value":
        return f"[{','.join(value_json(element) for element in value.array_value.values)}]"
    if kind == "kvlist_value":
        return attributes_json(value.kvlist_value.values)
    if kind in {"bool_value", "int_value"}:
        return json.dumps(getattr(value, kind))
    if kind == "double_value":
        text = double_text(value.double_value)
        return text if math.isfinite(value.double_value) else f'"{text}"'
    if kind in {"string_value", "bytes_value"}:
        return quoted(value_text(value) or "")
    return "null"


def attributes_json(attributes: Iterable[KeyValue]) -> str:
    """The JSON object of KeyValues, in their order."""
    return "{" + ",".join(f"{quoted(pair.key)}:{value_json(pair.value)}" for pair in attributes) + "}"


def quoted(text: str) -> str:
    """A string in JSON."""
    return json.dumps(text, ensure_ascii=False)


def value_text(value: AnyValue) -> str | None:
    """The cell of an AnyValue; None where it is unset or empty."""
    kind = value.WhichOneof("value")
    if kind == "string_value":
        return value.string_value or None
    if kind == "bytes_value":
        return base64.b64encode(value.bytes_value).decode() or None
    if kind == "double_value":
        return double_text(value.double_value)
    if kind is None or kind == "string_value_strindex":
        return None
    return value_json(value)


@dataclass(slots=True)
class Owner:
    """A resource, a scope, or a record: its attributes as text, and whether there are too many or too large ones."""

    attributes: list[Attribute] = field(default_factory=list)
    too_many: bool = False
    too_large: bool = False


def read_owner(attributes: Collection[KeyValue], limits: Limits) -> Owner:
    """Reads the attributes of one message."""
    owner = Owner(too_many=len(attributes) > limits.attributes)
    for pair in attributes:
        text = value_text(pair.value)
        owner.too_large |= max(len(pair.key.encode()), len((text or "").encode())) > limits.value_bytes
        if text is not None:
            owner.attributes.append((pair.key, text))
    return owner


def refusal(time_ns: int, latest_ns: int, owners: Iterable[Owner], limits: Limits) -> str | None:
    """Why a record of this time with these attributes is refused, if it is."""
    first = limits.first_date
    days = first.toordinal() - type(first)(1970, 1, 1).toordinal()
    if time_ns < days * 86_400_000 * NS_PER_MS:
        return "time_before_first_date"
    if time_ns > latest_ns:
        return "time_ahead"
    owners = list(owners)
    if any(owner.too_many for owner in owners):
        return "too_many_attributes"
    if any(owner.too_large for owner in owners):
        return "value_too_large"
    return None


@cache
def column_name(group: str, key: str) -> str:
    """The column of an attribute."""
    letters = (chr(byte).lower() if chr(byte).isascii() and chr(byte).isalnum() else "_" for byte in key.encode())
    return f"{group}_{''.join(letters)}"


PINNED = [
    f"resource_{name}" for name in ("customer_domain", "file", "k8s_cluster_name", "k8s_namespace_name", "service_name")
]
"""Columns that never overflow."""

SCOPE_FIELDS = ["scope_name", "scope_version"]
"""Columns that no attribute may take."""


def fingerprint(description: str) -> int:
    """xxh64 as a signed integer."""
    return int.from_bytes(xxhash.xxh64_digest(description.encode()), "big", signed=True)


def masked(text: str) -> str:
    """A text with ``*`` for each word that has a digit."""
    return _WORD.sub(lambda word: "*" if _DIGIT.search(word[0]) else word[0], text)


def lay_out(
    rows: list[dict[str, Any]],
    groups: list[dict[str, list[Attribute]]],
    limit: int,
    reserved: Iterable[str] = (),
    pinned: Iterable[str] = (),
    *,
    eligible: Mapping[str, Collection[str]] | None = None,
) -> None:
    """Gives each row its attribute columns and its overflow, in place. ``groups``: each row's attributes by group.

    ``eligible``: the only columns of those groups that it names.
    """
    used = Counter(
        (group, key) for row in groups for group, attributes in row.items() for key in {key for key, _ in attributes}
    )
    names: dict[tuple[str, str], str] = {}
    taken = set(reserved)
    for group, key in sorted(used):
        name = column_name(group, key)
        barred = key.startswith("_") or "\0" in key or len(key.encode()) > LONGEST_COLUMN_KEY
        if not barred and name not in taken and name in (eligible or {}).get(group, [name]):
            taken.add(name)
            names[group, key] = name
    by_rank = sorted(names, key=lambda one: (names[one] not in set(pinned), -used[one], names[one]))
    columns = {one: names[one] for one in by_rank[:limit]}
    for row, attributes in zip(rows, groups, strict=True):
        _fill(row, attributes, columns)


def _fill(row: dict[str, Any], groups: dict[str, list[Attribute]], columns: dict[tuple[str, str], str]) -> None:
    overflow: dict[str, dict[str, list[str]]] = {}
    for group, attributes in groups.items():
        for key, text in attributes:
            column = columns.get((group, key))
            if column is not None and column not in row:
                row[column] = text
            else:
                overflow.setdefault(group, {}).setdefault(key, []).append(text)
    shown = {
        group: {key: texts[0] if len(texts) == 1 else texts for key, texts in keys.items()}
        for group, keys in overflow.items()
    }
    row["chq_overflow"] = json.dumps(shown, ensure_ascii=False, separators=(",", ":")) if shown else None
