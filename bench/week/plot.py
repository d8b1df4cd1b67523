"""The simulated week as a picture: what stays flat, and what does not grow.

What belongs here: drawing. What does not: any figure.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import matplotlib as mpl
from matplotlib import pyplot as plt

if TYPE_CHECKING:
    from bench.week.days import Day


def plot(days: Sequence[Day], path: Path) -> None:
    """Draw what the days took and left into an SVG file, the same for the same days."""
    mpl.rcParams["svg.hashsalt"] = "week"
    numbers = [day.number for day in days]
    figure, (segments, times, cost) = plt.subplots(1, 3, figsize=(12, 3.4), layout="constrained")
    segments.bar(numbers, [day.ingested for day in days], color="#c7d5e8", label="ingested that day")
    segments.plot(numbers, [day.published for day in days], "o-", color="#1f4e79", label="published at its end")
    segments.set(title="segments", xlabel="day", yscale="log")
    for label, color, values in (
        ("boxer's tick", "#1f4e79", [day.tick_ms for day in days]),
        ("dispatcher's look", "#7a9cc6", [day.look_ms for day in days]),
        ("a box, without its rows", "#c0504d", [day.box_ms for day in days]),
    ):
        times.plot(numbers, values, "o-", color=color, label=label)
    times.set(title="CPU, median ms", xlabel="day", ylim=(0, None))
    cost.plot(numbers, [day.rewritten for day in days], "o-", color="#1f4e79", label="records rewritten / ingested")
    cost.plot(numbers, [day.allowed for day in days], "--", color="#999999", label="the planner's bound")
    cost.set(title="write amplification", xlabel="day", ylim=(0, None))
    for axes in (segments, times, cost):
        axes.legend(frameon=False, fontsize=8)
        axes.grid(visible=True, alpha=0.25)
        axes.set_xticks(numbers)
    figure.savefig(path, format="svg", metadata={"Date": None})
