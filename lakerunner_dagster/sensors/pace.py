"""What the sensors of a stage have in common: how often they tick, whether a tick goes on listening, how they call it.

What belongs here: the pace, and words. What does not: the ticks (``sensors.boxer``, ``sensors.dispatcher``).
"""

from __future__ import annotations

from lakerunner_dagster.lake.settings import Settings
from lakerunner_dagster.lake.stages import Stage

BACKGROUND_TICKS = 6
"""A stage that nobody waits for ticks so many times more rarely: an hour is left alone for minutes in any case."""


def interval_seconds(stage: Stage) -> int:
    """Shortest time between two ticks of a sensor of the stage."""
    return Settings().sensor_interval_seconds * (1 if stage.urgent else BACKGROUND_TICKS)


def listen_seconds(stage: Stage, settings: Settings) -> float:
    """How long its ticks go on listening though nothing comes."""
    return settings.listen_seconds if stage.urgent else 0.0


def listed(stage: Stage) -> str:
    """The stage's assets, as a description names them."""
    return ", ".join(f"`{asset.name}`" for asset in stage.assets)
