"""The rollup planner: which dirty slots of an hour are computed together.

What belongs here: the decision, a pure function of the slots and of what the tier has published. What does not: when a
slot is due (``lrdb.slots``), computing it (``segments.rollup``).

Slots are computed one by one, so that little is read while an hour lives. Where a published segment of the tier holds
rows of several slots, as compaction makes them, these are one piece: it can only be replaced as a whole.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lakerunner_dagster.lake.tiers import Tier


def pieces(tier: Tier, dirty: Iterable[int], standing: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    """The times [start, end), whole slots, that cover the slots beginning at ``dirty`` (ms) and cut no segment.

    ``standing`` are the times of the tier's published segments. In order, without overlap.
    """
    wide = [tier.aligned(start_ms, end_ms) for start_ms, end_ms in standing]
    return sorted({_grown((slot_ms, slot_ms + tier.slot_ms), wide) for slot_ms in dirty})


def _grown(piece: tuple[int, int], standing: Iterable[tuple[int, int]]) -> tuple[int, int]:
    """The piece with all of each segment that it touches."""
    touched = [times for times in standing if times[0] < piece[1] and piece[0] < times[1]]
    grown = min([piece[0], *(start for start, _ in touched)]), max([piece[1], *(end for _, end in touched)])
    return piece if grown == piece else _grown(grown, standing)
