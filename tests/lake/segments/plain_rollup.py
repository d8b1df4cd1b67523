"""Rolling up in plain Python, a dict a row and a loop over them: the oracle of the product's, with which it shares the
specification and no code.

Rows are those of segments, as ``to_pylist`` gives them; sums are exact fractions.
"""

from __future__ import annotations

from collections import defaultdict
from fractions import Fraction
from typing import Any

from bench.plain_loop import sketches
from bench.plain_loop.metrics import PERCENTS, merged_rows

Row = dict[str, Any]

DERIVED = {"chq_rollup_avg", *(f"chq_rollup_p{percent}" for percent in PERCENTS)}
EMPTY = sketches.encode({})
ORDER = ("metric_name", "chq_tid", "chq_timestamp")
LARGEST = sketches.LARGEST


def rolled_rows(rows: list[Row], frequency_ms: int, horizon_ms: int = 0) -> list[Row]:
    """The rows of the coarser tier, of all rows of the finer one, in the order of a segment."""
    latest = merged_rows([row for row in rows if is_latest(row)])
    added = [row for row in rows if not is_latest(row)] + increments(latest, horizon_ms)
    bare = [{name: value for name, value in row.items() if name not in DERIVED} for row in added]
    floored = [{**row, "chq_timestamp": row["chq_timestamp"] // frequency_ms * frequency_ms} for row in bare]
    return in_order(merged_rows(floored))


def in_order(rows: list[Row]) -> list[Row]:
    """Rows as they can be compared: by their keys, then by all else."""
    return sorted(rows, key=lambda row: ([row[name] for name in ORDER], repr(sorted(row.items(), key=lambda i: i[0]))))


def is_latest(row: Row) -> bool:
    """Whether the row holds what came since its start."""
    since_start = row["chq_metric_type"] == "histogram" or row["metric_is_monotonic"] is True
    return row["metric_temporality"] == "cumulative" and since_start


def increments(rows: list[Row], horizon_ms: int) -> list[Row]:
    """What each row of a sub-series adds to the one before it."""
    sub_series: dict[tuple[Any, ...], list[Row]] = defaultdict(list)
    for row in rows:
        names = ("metric_name", "chq_tid", "chq_metric_type", "metric_is_monotonic", "chq_start_tsns")
        sub_series[tuple(row[name] for name in names)].append(row)
    added = []
    for group in sub_series.values():
        before: Row | None = None
        for row in sorted(group, key=lambda one: int(one["chq_timestamp"])):
            added.append({**row, "metric_temporality": "delta", **_added(row, before, horizon_ms)})
            before = row
    return added


def _added(row: Row, before: Row | None, horizon_ms: int) -> Row:
    histogram = row["chq_metric_type"] == "histogram"
    if before is None:
        start = row["chq_start_tsns"]
        whole = start is not None and start // 10**6 >= horizon_ms and start < row["chq_tsns"]
        return _whole(row, histogram) if whole else _nothing(row, histogram)
    fell = row["chq_rollup_count"] < before["chq_rollup_count"] if histogram else _exact(row) < _exact(before)
    if fell:
        return _whole(row, histogram)
    total, rest = _rounded(row, before)
    if not histogram:
        return _value(total, rest)
    count = row["chq_rollup_count"] - before["chq_rollup_count"]
    later, earlier = (sketches.decode(one["chq_sketch"]) for one in (row, before))
    sketch = _difference(later, earlier)
    low, high = _bounds(sketch, row, before) if count else (None, None)
    return {
        "chq_rollup_count": count,
        "chq_rollup_sum": total,
        "chq_rollup_sum_low": rest,
        "chq_rollup_min": low,
        "chq_rollup_max": high,
        "chq_last": None,
        "chq_sketch": sketches.encode(sketch),
    }


def _whole(row: Row, histogram: bool) -> Row:  # noqa: FBT001 -- what the row is, not a switch
    return {} if histogram else _value(row["chq_rollup_sum"], row["chq_rollup_sum_low"])


def _nothing(row: Row, histogram: bool) -> Row:  # noqa: FBT001
    nothing = dict.fromkeys(("chq_rollup_min", "chq_rollup_max", "chq_last"))
    count = 0.0 if histogram else row["chq_rollup_count"]
    sums = {"chq_rollup_sum": 0.0, "chq_rollup_sum_low": 0.0}
    return {"chq_rollup_count": count, **sums, **nothing, "chq_sketch": EMPTY}


def _value(total: float | None, rest: float | None) -> Row:
    sketch: sketches.Sketch = {}
    if total is not None:
        sketches.count_into(sketch, total, 1)
    values = dict.fromkeys(("chq_rollup_sum", "chq_rollup_min", "chq_rollup_max", "chq_last"), total)
    return {**values, "chq_rollup_sum_low": rest, "chq_sketch": sketches.encode(sketch)}


def _exact(row: Row) -> Fraction:
    return Fraction(row["chq_rollup_sum"]) + Fraction(row["chq_rollup_sum_low"])


def _rounded(row: Row, before: Row) -> tuple[float | None, float | None]:
    if row["chq_rollup_sum"] is None or before["chq_rollup_sum"] is None:
        return None, None
    exact = _exact(row) - _exact(before)
    try:
        rounded = float(exact)
    except OverflowError:
        return None, None
    return rounded, float(exact - Fraction(rounded))


def _difference(later: sketches.Sketch, earlier: sketches.Sketch) -> sketches.Sketch:
    """What the later sketch has more, by rank."""
    most = max(sum(later.values()) - sum(earlier.values()), 0)
    difference: sketches.Sketch = {}
    upto = more = 0
    for held in sorted({*later, *earlier}, key=sketches.middle):
        more += later.get(held, 0) - earlier.get(held, 0)
        raised = min(most, max(upto, more))
        if raised > upto:
            difference[held] = raised - upto
        upto = raised
    return difference


def _bounds(sketch: sketches.Sketch, row: Row, before: Row) -> tuple[float | None, float | None]:
    low, high = row["chq_rollup_min"], row["chq_rollup_max"]
    lowest, highest = before["chq_rollup_min"], before["chq_rollup_max"]
    ends = [_ends(held) for held in sketch]
    least = min((one for one, _ in ends), default=None)
    most = max((one for _, one in ends), default=None)
    if least is not None and most is not None:
        least, most = (sketches._clipped(one, low, high) for one in (least, most))
    fell = low is not None and lowest is not None and low < lowest
    rose = high is not None and highest is not None and high > highest
    return low if fell else least, high if rose else most


def _ends(held: sketches.Bin) -> tuple[float, float]:
    sign, index = held
    if not sign:
        return 0.0, 0.0
    first, lower = sketches.bounds()
    nearer = lower[index - first]
    farther = lower[index - first + 1] if index - first + 1 < len(lower) else LARGEST
    return (nearer, farther) if sign > 0 else (-farther, -nearer)
