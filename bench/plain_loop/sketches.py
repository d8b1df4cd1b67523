"""The obvious sketch: a dict of bins, a value at a time. What belongs here: sketches of OTLP points, and their bytes.

What does not: anything of the product's sketches, whose oracle this is: it shares the specification with them, and no
code. (Powers of two are numpy's in both: libraries of mathematics differ in the last bit.)
"""

from __future__ import annotations

import math
import struct
from bisect import bisect_right
from collections import Counter
from decimal import Decimal, localcontext
from functools import cache
from itertools import pairwise

import numpy as np
from opentelemetry.proto.metrics.v1.metrics_pb2 import (
    ExponentialHistogramDataPoint,
    HistogramDataPoint,
    SummaryDataPoint,
)

GAMMA = 1.01 / 0.99
MOST = 2**45
PARTS = 4
LARGEST = struct.unpack("<d", bytes.fromhex("ffffffffffffef7f"))[0]

Bin = tuple[int, int]
"""Sign of the values of a bin (-1, 0, 1), and its index (0 for zero)."""

Sketch = dict[Bin, int]

Distribution = HistogramDataPoint | ExponentialHistogramDataPoint | SummaryDataPoint

Range = tuple[float, float, float]
"""Lower bound, upper bound, count."""


@cache
def bounds() -> tuple[int, list[float]]:
    """Index of the first bin, and the lower bound of each: powers of gamma, rounded correctly."""
    with localcontext() as context:
        context.prec = 80
        gamma, power = Decimal(GAMMA), Decimal(1)
        rising = [1.0]
        while (power := power * gamma) <= Decimal(LARGEST):
            rising.append(float(power))
        falling, power = [], Decimal(1)
        while (power := power / gamma) >= Decimal(2) ** -1022:
            falling.append(float(power))
    return -len(falling), falling[::-1] + rising


def bin_of(value: float) -> Bin:
    """The bin of a finite value."""
    first, lower = bounds()
    place = bisect_right(lower, abs(value)) - 1
    return (0, 0) if place < 0 else (int(math.copysign(1, value)), place + first)


def middle(one: Bin) -> float:
    """What a bin stands for."""
    sign, index = one
    first, lower = bounds()
    return sign * min(lower[index - first], LARGEST / 1.01) * 1.01 if sign else 0.0


def count_into(sketch: Sketch, value: float, count: int) -> None:
    """Counts a value so many times."""
    if count > 0:
        held = bin_of(value)
        sketch[held] = min(sketch.get(held, 0) + count, MOST)


def quantile(sketch: Sketch, fraction: float) -> float | None:
    """The value of rank floor(q * (n - 1))."""
    rank = math.floor(fraction * (sum(sketch.values()) - 1))
    for held in sorted(sketch, key=middle):
        rank -= sketch[held]
        if rank < 0:
            return middle(held)
    return None


def encode(sketch: Sketch) -> bytes:
    """DataDog's encoding."""
    out = bytearray(b"\x02" + struct.pack("<dd", GAMMA, 0.0))
    for sign, flag in ((1, 5), (-1, 7)):
        indexes = sorted(index for held, index in sketch if held == sign)
        if indexes:
            out.append(flag)
            out += _varint(len(indexes))
            for before, index in zip([0, *indexes], indexes, strict=False):
                delta = index - before
                out += _varint(2 * delta if delta >= 0 else -2 * delta - 1) + _varfloat(sketch[sign, index])
    if (0, 0) in sketch:
        out.append(4)
        out += _varfloat(sketch[0, 0])
    return bytes(out)


def decode(data: bytes) -> Sketch:
    """The sketch of an encoding."""
    if data[:17] != b"\x02" + struct.pack("<dd", GAMMA, 0.0):
        raise ValueError(f"another mapping: {data[:17].hex()}")
    sketch: Sketch = {}
    at = 17
    while at < len(data):
        flag = data[at]
        if flag == 4:
            sketch[0, 0], at = _read_varfloat(data, at + 1)
            continue
        sign = {5: 1, 7: -1}[flag]
        bins, at = _read_varint(data, at + 1)
        index = 0
        for _ in range(bins):
            zigzag, at = _read_varint(data, at)
            index += zigzag >> 1 if zigzag % 2 == 0 else -(zigzag + 1 >> 1)
            sketch[sign, index], at = _read_varfloat(data, at)
    return sketch


def _varint(number: int) -> bytes:
    out = bytearray()
    while number >= 0x80:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*out, number])


def _read_varint(data: bytes, at: int) -> tuple[int, int]:
    number = shift = 0
    while True:
        number |= (data[at] & 0x7F) << shift
        shift += 7
        at += 1
        if data[at - 1] < 0x80:
            return number, at


_ONE = 0x3FF0000000000000


def _varfloat(count: int) -> bytes:
    bits = int.from_bytes(struct.pack(">d", count + 1.0), "big") - _ONE
    bits = (bits << 6 | bits >> 58) & (1 << 64) - 1
    out = bytearray()
    while True:
        group = bits >> 57
        bits = bits << 7 & (1 << 64) - 1
        if not bits:
            return bytes([*out, group])
        out.append(group | 0x80)


def _read_varfloat(data: bytes, at: int) -> tuple[int, int]:
    bits, shift = 0, 57
    while True:
        bits |= (data[at] & 0x7F) << shift
        shift -= 7
        at += 1
        if data[at - 1] < 0x80:
            break
    bits = (bits >> 6 | bits << 58) & (1 << 64) - 1
    return int(struct.unpack(">d", (bits + _ONE).to_bytes(8, "big"))[0] - 1), at


def stated_bounds(point: Distribution) -> tuple[float | None, float | None]:
    """A point's own min and max, where they say something; summaries have none."""
    if isinstance(point, SummaryDataPoint) or not point.count:
        return None, None
    low = point.min if point.HasField("min") else None
    high = point.max if point.HasField("max") else None
    if low is not None and high is not None and low > high:
        return None, None
    return _finite(low), _finite(high)


def _finite(number: float | None) -> float | None:
    return number if number is not None and math.isfinite(number) else None


def place(ranges: list[Range], point: Distribution, total: float | None) -> tuple[Sketch, float | None, float | None]:
    """The sketch, lowest and highest value of a point with values in these ranges. ``total``: its sum, if known."""
    low, high = stated_bounds(point)
    if not ranges and point.count > 0:
        ranges = [(-math.inf, math.inf, float(point.count))]
    closed = [one for one in (_closed(one, point, total, low, high) for one in ranges) if one is not None]
    sketch: Sketch = {}
    for lower, upper, count in closed:
        whole = int(min(count, MOST))
        parts = min(whole, PARTS, _rank(bin_of(upper)) - _rank(bin_of(lower)) + 1)
        for part in range(parts):
            share = (part + 0.5) / parts
            value = lower * (1 - share) + upper * share
            count_into(sketch, value, (part + 1) * whole // parts - part * whole // parts)
    return (
        sketch,
        low if low is not None else min((lower for lower, _, _ in closed), default=None),
        high if high is not None else max((upper for _, upper, _ in closed), default=None),
    )


def _rank(held: Bin) -> int:
    """Numbers bins by value, without gaps."""
    sign, index = held
    return sign * (index - bounds()[0] + 1)


def _closed(
    one: Range, point: Distribution, total: float | None, low: float | None, high: float | None
) -> Range | None:
    lower, upper, count = one
    mean = None if total is None else total / max(point.count, 1)
    under, over = lower == -math.inf, upper == math.inf
    start: float | None = lower
    end: float | None = upper
    if under:
        start = low if low is not None else mean if over else min(upper, 0.0)
    if over:
        end = high if high is not None else mean if under else lower
    if start is None or end is None:
        return None
    start, end = (_clipped(bound, low, high) for bound in (start, end))
    return min(start, end), max(start, end), count


def _clipped(value: float, low: float | None, high: float | None) -> float:
    value = value if low is None else max(value, low)
    return value if high is None else min(value, high)


def explicit_ranges(point: HistogramDataPoint) -> list[Range]:
    """The buckets of an explicit histogram that hold any."""
    edges = [-math.inf, *point.explicit_bounds, math.inf]
    buckets = zip(pairwise(edges), point.bucket_counts, strict=False)
    return [(lower, upper, float(count)) for (lower, upper), count in buckets if count]


def exponential_ranges(point: ExponentialHistogramDataPoint) -> list[Range]:
    """The buckets of an exponential histogram that hold any."""
    ranges: list[Range] = []
    for sign, side in ((-1, point.negative), (1, point.positive)):
        for place, count in enumerate(side.bucket_counts):
            if count:
                ends = [sign * _power(side.offset + place + more, point.scale) for more in (0, 1)]
                ranges.append((min(ends), max(ends), float(count)))
    return [*ranges, (0.0, 0.0, float(point.zero_count))] if point.zero_count else ranges


def _power(index: int, scale: int) -> float:
    exponent = math.ldexp(float(index), -min(max(scale, -12), 1100))
    return float(np.exp2(min(max(exponent, -1075.0), math.nextafter(1024.0, 0.0))))


def summary_ranges(point: SummaryDataPoint) -> list[Range]:
    """Each quantile of a summary, with the ranks that are nearer to it than to its neighbours."""
    if not point.count:
        return []
    known = sorted(
        (one.quantile, one.value)
        for one in point.quantile_values
        if 0 <= one.quantile <= 1 and math.isfinite(one.value)
    )
    count = min(float(point.count), MOST)
    upto = [round((at + after) / 2 * count) for (at, _), (after, _) in pairwise(known)]
    cuts = [0, *upto, round(count)]
    return [(value, value, float(end - begin)) for (_, value), (begin, end) in zip(known, pairwise(cuts), strict=False)]


def merged(sketches: list[Sketch]) -> Sketch:
    """All that several sketches have counted."""
    total: Counter[Bin] = Counter()
    for sketch in sketches:
        total.update(sketch)
    return {held: min(count, MOST) for held, count in total.items()}
