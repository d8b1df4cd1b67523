"""What is told of a virtual day.

What belongs here: its figures. What does not: measuring them, showing them (``__main__``, ``plot``).
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Day:
    """What a virtual day took and left. Times are medians, in ms of CPU, PostgreSQL's included.

    ``ingested`` segments came that day, ``published`` are there at its end. ``rewritten`` are the records that merges
    have written by then for each record ingested, ``allowed`` is the planner's bound on that.
    """

    number: int
    tick_ms: float
    look_ms: float
    box_ms: float
    status_ms: float
    ingested: int
    published: int
    merges: int
    rewritten: float
    allowed: float
