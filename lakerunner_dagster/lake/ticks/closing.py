"""What a look for boxes to close has come to. What belongs here: that value. What does not: the looks (``boxing``)."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Closed:
    """How many boxes a look has closed, and when the next one is due by time alone (epoch ms).

    ``next_ms`` is None where nothing waits for its time, or nobody waits for it so closely: the next tick looks again.
    """

    boxes: int
    next_ms: int | None = None
