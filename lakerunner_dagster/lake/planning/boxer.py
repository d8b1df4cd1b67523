"""The boxer: which waiting items are ready to become boxes. One planner for every stage.

What belongs here: the decision, a pure function of what waits, the policy and the time. What does not: what an item is,
where it waits, and what a box causes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from collections.abc import Hashable, Iterable, Iterator, Sequence

    from lakerunner_dagster.lake.settings import BoxPolicy

Reason = Literal["bytes", "count", "age"]
"""Why a box was closed: full by bytes, full by number of items, or its longest waiting item was old enough."""


@dataclass(frozen=True, slots=True)
class Pending:
    """An item that waits for a box. Only items of the same ``group`` share one.

    ``bytes`` is its (estimated) decompressed size, ``waiting_since_ms`` the epoch time at which it began to wait.
    """

    item_id: int
    group: tuple[Hashable, ...]
    bytes: int
    waiting_since_ms: int


@dataclass(frozen=True, slots=True)
class PlannedBox:
    """Items of one group, in the order in which they waited, that shall be worked on together."""

    group: tuple[Hashable, ...]
    item_ids: tuple[int, ...]
    bytes: int
    reason: Reason


def plan(pending: Iterable[Pending], policy: BoxPolicy, now_ms: int) -> list[PlannedBox]:
    """The boxes to close now, by group in the order of its first item; what is in none goes on waiting.

    Items of a group fill a box in the order given. It is full when it reaches a bound, or when the next item would
    pass the bound of bytes: so no box ever passes one, but that of an item which does so alone. What remains is closed
    once an item in it has waited for ``policy.age_seconds``.
    """
    groups: dict[tuple[Hashable, ...], list[Pending]] = {}
    for item in pending:
        groups.setdefault(item.group, []).append(item)
    return [box for items in groups.values() for box in _boxes(items, policy, now_ms)]


def next_ms(left: Iterable[Pending], policy: BoxPolicy) -> int | None:
    """When the next box is closed by its age (epoch ms) if nothing more comes; ``left`` is what is in no box yet."""
    oldest_ms = min((item.waiting_since_ms for item in left), default=None)
    return None if oldest_ms is None else math.ceil(oldest_ms + policy.age_seconds * 1000)


def _boxes(items: Sequence[Pending], policy: BoxPolicy, now_ms: int) -> Iterator[PlannedBox]:
    """The boxes of one group."""
    box: list[Pending] = []
    size = 0
    for item in items:
        if box and size + item.bytes > policy.bytes:
            yield _closed(box, "bytes")
            box, size = [], 0
        box.append(item)
        size += item.bytes
        if size >= policy.bytes or len(box) >= policy.count:
            yield _closed(box, "bytes" if size >= policy.bytes else "count")
            box, size = [], 0
    if box and min(item.waiting_since_ms for item in box) <= now_ms - policy.age_seconds * 1000:
        yield _closed(box, "age")


def _closed(box: Sequence[Pending], reason: Reason) -> PlannedBox:
    return PlannedBox(box[0].group, tuple(item.item_id for item in box), sum(item.bytes for item in box), reason)
