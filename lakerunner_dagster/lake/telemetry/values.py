"""OTLP values → text: what an AnyValue becomes in a cell, and in JSON. Column at a time, whatever the nesting.

What belongs here: the rules of spec/segments.md for values. What does not: where the text goes (``attributes``).

A cell holds a string as it is, ``true``/``false``, a number in decimal (a double as ECMAScript, Go and JSON write it:
``1``, ``0.1``, ``1e+21``; ``NaN``, ``Infinity``, ``-Infinity``), bytes in base64, arrays and maps in JSON. Unset values
and empty strings are NULL. In JSON an unset value is ``null``, bytes and non-finite numbers are strings, and a map's
keys come in the order of the wire, repeated ones repeatedly: nothing is lost.
"""

from __future__ import annotations

import base64
import json
import math
from decimal import Decimal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, ArrayValue, KeyValue, KeyValueList

from lakerunner_dagster.lake.telemetry.wire import reader

_PLAIN_LOW, _PLAIN_HIGH = 1e-6, 1e10
"""Between these magnitudes Arrow writes a double without an exponent; ECMAScript goes further up."""

_ECMASCRIPT_LOW, _ECMASCRIPT_HIGH = -6, 21
"""ECMAScript writes no exponent while the decimal point stands between these digits."""

_ESCAPED_IN_JSON = r'["\\\x00-\x1f]'


def texts(values: pa.StructArray) -> pa.StringArray:
    """The cell of each value (structs as ``wire`` reads AnyValue); NULL where unset or empty."""
    strings = values.field("string_value")
    if strings.null_count == 0:
        text = strings
    else:
        text = _coalesce([strings, *_scalars(values), _base64(values.field("bytes_value")), *_nested(values)])
    empty = pc.equal(text, "")
    return pc.if_else(empty, None, text) if pc.any(empty).as_py() else text


def jsons(values: pa.StructArray) -> pa.StringArray:
    """The JSON text of each value (structs as ``wire`` reads AnyValue); ``null`` where unset."""
    members = [
        quoted(values.field("string_value")),
        *_scalars(values, in_json=True),
        quoted(_base64(values.field("bytes_value"))),
        *_nested(values),
    ]
    return pc.fill_null(_coalesce(members), "null")


def array_jsons(arrays: pa.ListArray) -> pa.StringArray:
    """The JSON array of each list of AnyValue bytes."""
    distinct = arrays.values.dictionary_encode()
    elements = jsons(reader(AnyValue).read(distinct.dictionary)).take(distinct.indices)
    return enclosed("[", _joined(arrays, elements), "]")


def object_jsons(maps: pa.ListArray) -> pa.StringArray:
    """The JSON object of each list of KeyValue bytes."""
    distinct = maps.values.dictionary_encode()
    pairs = reader(KeyValue).read(distinct.dictionary)
    members = pc.binary_join_element_wise(quoted(pairs.field("key")), jsons(pairs.field("value")), ":")
    return enclosed("{", _joined(maps, members.take(distinct.indices)), "}")


def quoted(strings: pa.StringArray) -> pa.StringArray:
    """Each string as JSON writes it; NULL stays NULL."""
    escaped = pc.match_substring_regex(strings, _ESCAPED_IN_JSON)
    plain = enclosed('"', strings, '"')
    if not pc.any(escaped).as_py():
        return plain
    written = [json.dumps(text, ensure_ascii=False) for text in strings.filter(escaped).to_pylist()]
    return pc.replace_with_mask(plain, pc.fill_null(escaped, fill_value=False), pa.array(written, pa.string()))


def enclosed(before: str, strings: pa.StringArray, after: str) -> pa.StringArray:
    """Each string between two others; NULL stays NULL."""
    return pc.binary_join_element_wise(before, strings, after, "")


def double_texts(doubles: pa.DoubleArray) -> pa.StringArray:
    """Each double as ECMAScript writes it, shortest digits that read back the same; NULL stays NULL."""
    text = doubles.cast(pa.string())
    numbers = doubles.fill_null(0.0).to_numpy()
    magnitudes = np.abs(numbers)
    plain = ((magnitudes >= _PLAIN_LOW) & (magnitudes < _PLAIN_HIGH)) | (numbers == 0)
    if plain.all():
        return text
    written = [_ecmascript(number) for number in numbers[~plain].tolist()]
    return pc.replace_with_mask(text, pa.array(~plain), pa.array(written, pa.string()))


def _ecmascript(number: float) -> str:
    if not math.isfinite(number):
        return {math.inf: "Infinity", -math.inf: "-Infinity"}.get(number, "NaN")
    negative, digits, exponent = Decimal(repr(number)).normalize().as_tuple()
    shown = "".join(map(str, digits))
    point = len(digits) + int(exponent)
    sign = "-" if negative else ""
    if _ECMASCRIPT_LOW < point <= 0:
        return f"{sign}0.{'0' * -point}{shown}"
    if 0 < point <= _ECMASCRIPT_HIGH:
        whole, fraction = shown[:point].ljust(point, "0"), shown[point:]
        return f"{sign}{whole}.{fraction}" if fraction else f"{sign}{whole}"
    mantissa = f"{shown[0]}.{shown[1:]}" if shown[1:] else shown
    return f"{sign}{mantissa}e{point - 1:+d}"


def _scalars(values: pa.StructArray, *, in_json: bool = False) -> list[pa.StringArray]:
    doubles = values.field("double_value")
    finite = pc.is_finite(doubles)
    shown = double_texts(doubles)
    if in_json and pc.any(pc.invert(finite)).as_py():
        shown = pc.if_else(finite, shown, enclosed('"', shown, '"'))
    return [values.field("bool_value").cast(pa.string()), values.field("int_value").cast(pa.string()), shown]


def _base64(encoded: pa.BinaryArray) -> pa.StringArray:
    if encoded.null_count == len(encoded):
        return pa.nulls(len(encoded), pa.string())
    shown = (None if one is None else base64.b64encode(one).decode() for one in encoded.to_pylist())
    return pa.array(list(shown), pa.string())


def _nested(values: pa.StructArray) -> list[pa.StringArray]:
    arrays, maps = values.field("array_value"), values.field("kvlist_value")
    nested = []
    if len(arrays.values):
        read = array_jsons(reader(ArrayValue).read(arrays.values).field("values"))
        nested.append(read.take(_positions(arrays)))
    if len(maps.values):
        read = object_jsons(reader(KeyValueList).read(maps.values).field("values"))
        nested.append(read.take(_positions(maps)))
    return nested


def _positions(singles: pa.ListArray) -> pa.Int64Array:
    """Where in ``singles.values`` the one element of each list stands; NULL for an empty list."""
    offsets = singles.offsets.to_numpy().astype(np.int64)
    return pa.array(offsets[:-1], mask=offsets[1:] == offsets[:-1])


def _joined(lists: pa.ListArray, elements: pa.StringArray) -> pa.StringArray:
    return pc.binary_join(pa.ListArray.from_arrays(lists.offsets, elements), ",")


def _coalesce(members: list[pa.StringArray]) -> pa.StringArray:
    """The first non-null member of each row."""
    present = [member for member in members if member.null_count < len(member)]
    return pc.coalesce(*present) if present else members[0]
