"""What an adapter has done since it started, as numbers for Prometheus.

What belongs here: counting, and the text format. What does not: what is counted (the adapters).
"""

from __future__ import annotations

import threading
from bisect import bisect_left
from collections import Counter
from itertools import accumulate
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

SECONDS_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)

COUNTERS = {
    "received": "Notifications that came: bodies, or files of a directory.",
    "produced": "Objects whose notification Kafka has acknowledged.",
    "ignored": "Events that are none of ours to ingest.",
    "failed": "Notifications that were refused or could not be passed on: they are still their sender's.",
    "dead_letters": "Objects whose organization, collector or signal is unknown: kept for a person.",
}

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


class AdapterMetrics:
    """Counters and one histogram of an adapter; safe to share between threads."""

    def __init__(self, adapter: str) -> None:
        self._adapter = adapter
        self._lock = threading.Lock()
        self._counts: Counter[tuple[str, str]] = Counter()
        self._seconds_total = 0.0
        self._seconds = [0] * (len(SECONDS_BUCKETS) + 1)

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

    def value(self, counter: str, reason: str = "") -> int:
        """What has been counted."""
        with self._lock:
            return self._counts[counter, reason]

    def render(self) -> str:
        """The text that Prometheus reads."""
        with self._lock:
            lines = [line for name, help_text in COUNTERS.items() for line in self._counter_lines(name, help_text)]
            return "\n".join([*lines, *self._histogram_lines(), ""])

    def _counter_lines(self, counter: str, help_text: str) -> list[str]:
        name = f"lakerunner_notifications_{counter}_total"
        samples = {reason: number for (of, reason), number in self._counts.items() if of == counter} or {"": 0}
        return [
            f"# HELP {name} {help_text}",
            f"# TYPE {name} counter",
            *(f"{name}{{{self._labels(reason=reason)}}} {samples[reason]}" for reason in sorted(samples)),
        ]

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
