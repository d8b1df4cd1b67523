"""Whose work goes first when not all can: a pure function that shares places among organizations.

What belongs here: the choice. What does not: what waits and how many places there are (``ticks.dispatcher``).
"""

from __future__ import annotations

from collections import Counter, deque
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Iterable, Mapping

T = TypeVar("T")
K = TypeVar("K", bound="Hashable")


def fair_share(
    waiting: Iterable[T], organization_of: Callable[[T], K], active: Mapping[K, int], places: int
) -> list[T]:
    """Which of ``waiting`` (longest wait first) get the free ``places``.

    Each place goes to the organization with the fewest runs (``active`` and chosen), of equal ones to that whose oldest
    work waits longest; within an organization the longest wait goes first. So one with a backlog of thousands has every
    place while nobody else wants one, and another's work waits for one run to end, not for the backlog.
    """
    queues: dict[K, deque[tuple[int, T]]] = {}
    for age, item in enumerate(waiting):
        queues.setdefault(organization_of(item), deque()).append((age, item))
    runs: Counter[K] = Counter(active)
    chosen: list[T] = []
    while queues and len(chosen) < places:
        first = min(queues, key=lambda organization: (runs[organization], queues[organization][0][0]))
        chosen.append(queues[first].popleft()[1])
        runs[first] += 1
        if not queues[first]:
            del queues[first]
    return chosen
