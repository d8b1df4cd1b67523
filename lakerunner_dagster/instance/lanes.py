"""Lanes: run tags that say who started a run and on what it works, for the run queue's limits in dagster.yaml.

What belongs here: the tags, and the run coordinator that puts them on every run as it is queued. What does not: the
limits themselves (dagster.yaml), and when a run is started (``sensors``).

A lane is an asset, a source and a trigger. The trigger is part of it so that the long rebuild of a source never keeps
its new data waiting: both may work at once, because leases and the swap's own check keep them apart (``lake/runs``).
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum

from dagster._core.run_coordinator import QueuedRunCoordinator, SubmitRunContext
from dagster._core.storage.dagster_run import DagsterRun
from dagster._core.storage.tags import ASSET_PARTITION_RANGE_END_TAG, ASSET_PARTITION_RANGE_START_TAG

from lakerunner_dagster.partitions import PARTITION_TAG, DaySource

TRIGGER_TAG = "lakerunner/trigger"
LANE_TAG_PREFIX = "lakerunner/lane."


class Trigger(StrEnum):
    """Who started a run: a dispatcher, for it to drain what waits; or a person, for it to rebuild."""

    DISPATCHER = "dispatcher"
    PERSON = "person"


def trigger_of(tags: Mapping[str, str]) -> Trigger:
    """Who started the run of these tags: a person, unless they say otherwise."""
    return Trigger(tags.get(TRIGGER_TAG, Trigger.PERSON))


def lane_tags(asset_names: list[str], tags: Mapping[str, str]) -> dict[str, str]:
    """The tags to add to a run of these assets: its trigger, and a lane for each asset where it has one source."""
    trigger = trigger_of(tags)
    keys = (PARTITION_TAG, ASSET_PARTITION_RANGE_START_TAG, ASSET_PARTITION_RANGE_END_TAG)
    sources = {DaySource.of(tags[key]).source_key for key in keys if key in tags}
    lanes = {LANE_TAG_PREFIX + name: f"{trigger} {source}" for name in asset_names for source in sources}
    return {TRIGGER_TAG: str(trigger)} | (lanes if len(sources) == 1 else {})


class LaneRunCoordinator(QueuedRunCoordinator):
    """Dagster's run queue, fed with runs that say their lanes."""

    def submit_run(self, context: SubmitRunContext) -> DagsterRun:
        """Tag the run and queue it."""
        run = context.dagster_run
        names = sorted(key.to_user_string() for key in run.asset_selection or ())
        self._instance.add_run_tags(run.run_id, lane_tags(names, run.tags))
        return super().submit_run(context)
