"""What an adapter has done since it started, as numbers for Prometheus.

What belongs here: counting, and the text format. What does not: what is counted (the adapters).
"""

from __future__ import annotations

import threading
import time
from bisect import bisect_left
from collections import Counter
from itertools import accumulate
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

SECONDS_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)

COUNTERS = {
    "received": "Notifications that came: bodies, or files of a directory.",
    "produced": "Objects whose notification Kafka has acknowledged.",
    "ignored": "Events that are none of ours to ingest.",
    "failed": "Notifications that were refused or could not be passed on: they are still their sender's.",
    "dead_letters": "Objects whose organization, collector or signal is unknown: kept for a person.",
}

GAUGES = {
    "in_hand": "Messages of a queue that are in hand: received, and neither acknowledged nor left to it.",
    "lag_seconds": "Age of the oldest message that came from the queue last; 0 once it had none.",
}

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


class AdapterMetrics:
    """Counters, one histogram and two gauges of an adapter; safe to share between threads."""

    def __init__(self, adapter: str, now: Callable[[], float] = time.time) -> None:
        self._adapter = adapter
        self._now = now
        self._lock = threading.Lock()
        self._counts: Counter[tuple[str, str]] = Counter()
        self._seconds_total = 0.0
        self._seconds = [0] * (len(SECONDS_BUCKETS) + 1)
        self._in_hand = 0
        self._oldest_sent: dict[str, float | None] = {}

    def count(self, counter: str, number: int = 1) -> None:
        """Add to one of COUNTERS."""
        with self._lock:
            self._counts[counter, ""] += number

    def count_reasons(self, counter: str, reasons: Mapping[str, int]) -> None:
        """Add to one of COUNTERS, by reason."""
        with self._lock:
            self._counts.update({(counter, reason): number for reason, number in reasons.items()})

    def observe(self, seconds: float) -> None:
        """Take in how long it was from a notification's coming to Kafka's acknowledgement."""
        with self._lock:
            self._seconds[bisect_left(SECONDS_BUCKETS, seconds)] += 1
            self._seconds_total += seconds

    def hold(self, number: int) -> None:
        """So many more messages (fewer, where negative) are in hand: received, and neither acknowledged nor left."""
        with self._lock:
            self._in_hand += number

    def found(self, loop: str, oldest_sent: float | None) -> None:
        """A loop has looked into the queue: when the oldest message was sent that came, in epoch s; None: none came."""
        with self._lock:
            self._oldest_sent[loop] = oldest_sent

    @property
    def in_hand(self) -> int:
        """Messages in hand now."""
        with self._lock:
            return self._in_hand

    @property
    def lag_seconds(self) -> float:
        """How old the oldest message is that came last; 0 where none came. It grows while none can be passed on."""
        with self._lock:
            sent = [oldest for oldest in self._oldest_sent.values() if oldest is not None]
            return max(self._now() - min(sent), 0.0) if sent else 0.0

    def value(self, counter: str, reason: str = "") -> int:
        """What has been counted."""
        with self._lock:
            return self._counts[counter, reason]

    def render(self) -> str:
        """The text that Prometheus reads."""
        gauges = [*self._gauge_lines("in_hand", self.in_hand), *self._gauge_lines("lag_seconds", self.lag_seconds)]
        with self._lock:
            lines = [line for name, help_text in COUNTERS.items() for line in self._counter_lines(name, help_text)]
            return "\n".join([*lines, *self._histogram_lines(), *gauges, ""])

    def _counter_lines(self, counter: str, help_text: str) -> list[str]:
        name = f"lakerunner_notifications_{counter}_total"
        samples = {reason: number for (of, reason), number in self._counts.items() if of == counter} or {"": 0}
        return [
            f"# HELP {name} {help_text}",
            f"# TYPE {name} counter",
            *(f"{name}{{{self._labels(reason=reason)}}} {samples[reason]}" for reason in sorted(samples)),
        ]

    def _gauge_lines(self, gauge: str, value: float) -> list[str]:
        name = f"lakerunner_notifications_{gauge}"
        return [f"# HELP {name} {GAUGES[gauge]}", f"# TYPE {name} gauge", f"{name}{{{self._labels()}}} {value:.15g}"]

    def _histogram_lines(self) -> list[str]:
        name = "lakerunner_notifications_seconds"
        bounds = [*(f"{bound:g}" for bound in SECONDS_BUCKETS), "+Inf"]
        counts = list(accumulate(self._seconds))
        return [
            f"# HELP {name} Seconds from a notification's coming to Kafka's acknowledgement.",
            f"# TYPE {name} histogram",
            *(f"{name}_bucket{{{self._labels(le=le)}}} {n}" for le, n in zip(bounds, counts, strict=True)),
            f"{name}_sum{{{self._labels()}}} {self._seconds_total:.6f}",
            f"{name}_count{{{self._labels()}}} {counts[-1]}",
        ]

    def _labels(self, **others: str) -> str:
        """Label values are our own words: nothing in them needs escaping."""
        labels = {"adapter": self._adapter, **others}
        return ",".join(f'{name}="{value}"' for name, value in labels.items() if value)
