"""The tiers of metrics that are rolled up: from which finer tier each is computed, and in which pieces of an hour.

What belongs here: the arithmetic of tiers and slots. What does not: rolling up (``segments.rollup``), which slots wait
for it (``lrdb.slots``).

A slot is a fixed piece of an hour. It is always computed anew from all that the finer tier has published in it, never
patched: so late data, repetition, a rebuild and the first computation are one and the same.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from types import MappingProxyType

from lakerunner_dagster.lake.model import HOUR_MS
from lakerunner_dagster.lake.signals import SIGNALS, Signal

ROLLED_UP = Signal.METRICS
"""The signal that has tiers."""

FIRST_SLOT_MS = 600_000
"""Slot of the tier that is computed from ingested rows: of the live hour, ten minutes are computed again and again."""

_LABELS = {60_000: "1m", 300_000: "5m", 1_200_000: "20m", 3_600_000: "1h"}


@dataclass(frozen=True, slots=True)
class Tier:
    """A tier of buckets of ``frequency_ms``, computed from the one of ``finer_ms`` in slots of ``slot_ms``.

    ``label`` is what people call it: ``1m``. Slots begin at multiples of their length and divide the hour.
    """

    frequency_ms: int
    finer_ms: int
    slot_ms: int
    label: str

    @property
    def asset(self) -> str:
        """Name of its asset."""
        return f"metric_rollup_{self.label}"

    def slots(self, start_ms: int, end_ms: int) -> range:
        """The beginnings (ms) of the slots that [start_ms, end_ms) touches."""
        return range(start_ms // self.slot_ms * self.slot_ms, end_ms, self.slot_ms)

    def aligned(self, start_ms: int, end_ms: int) -> tuple[int, int]:
        """[start_ms, end_ms) widened to whole slots."""
        return start_ms // self.slot_ms * self.slot_ms, -(-end_ms // self.slot_ms) * self.slot_ms


def _tiers() -> dict[int, Tier]:
    pairs = list(pairwise(SIGNALS[ROLLED_UP].tiers_ms))
    return {
        frequency_ms: Tier(frequency_ms, finer_ms, FIRST_SLOT_MS if number == 0 else HOUR_MS, _LABELS[frequency_ms])
        for number, (finer_ms, frequency_ms) in enumerate(pairs)
    }


TIERS: Mapping[int, Tier] = MappingProxyType(_tiers())
"""Every tier that is rolled up, by its frequency (ms), the finest first."""

_ABOVE = MappingProxyType({tier.finer_ms: tier for tier in TIERS.values()})


def tier_above(frequency_ms: int) -> Tier | None:
    """The tier that is computed from the one of this frequency; None for the coarsest, and for signals without any."""
    return _ABOVE.get(frequency_ms)
