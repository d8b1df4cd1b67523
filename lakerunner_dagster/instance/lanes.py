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
from dagster._core.storage.dagster_run import DagsterRun, DagsterRunStatus
from dagster._core.storage.tags import ASSET_PARTITION_RANGE_END_TAG, ASSET_PARTITION_RANGE_START_TAG

from lakerunner_dagster.lake.stages import STAGES
from lakerunner_dagster.partitions import PARTITION_TAG, DaySource

TRIGGER_TAG = "lakerunner/trigger"
BACKGROUND_TAG = "lakerunner/background"
LANE_TAG_PREFIX = "lakerunner/lane."


UNFINISHED = [
    DagsterRunStatus.QUEUED,
    DagsterRunStatus.NOT_STARTED,
    DagsterRunStatus.STARTING,
    DagsterRunStatus.STARTED,
    DagsterRunStatus.CANCELING,
]
"""What a run is while it is queued or going."""

_URGENT = frozenset(asset.name for stage in STAGES.values() if stage.urgent for asset in stage.assets)


class Trigger(StrEnum):
    """Who started a run: a dispatcher (it drains what waits), a person (it rebuilds), or a maintenance schedule."""

    DISPATCHER = "dispatcher"
    PERSON = "person"
    MAINTENANCE = "maintenance"


def trigger_of(tags: Mapping[str, str]) -> Trigger:
    """Who started the run of these tags: a person, unless they say otherwise."""
    return Trigger(tags.get(TRIGGER_TAG, Trigger.PERSON))


def lane_tags(asset_names: list[str], tags: Mapping[str, str]) -> dict[str, str]:
    """The tags to add to a run of these assets: its trigger, and a lane for each asset where it has one source.

    A run that nobody waits for new data of is in the background: such runs leave places in the queue to the others.
    """
    trigger = trigger_of(tags)
    background = trigger is not Trigger.DISPATCHER or not _URGENT.issuperset(asset_names)
    keys = (PARTITION_TAG, ASSET_PARTITION_RANGE_START_TAG, ASSET_PARTITION_RANGE_END_TAG)
    sources = {DaySource.of(tags[key]).source_key for key in keys if key in tags}
    lanes = {LANE_TAG_PREFIX + name: f"{trigger} {source}" for name in asset_names for source in sources}
    marks = {TRIGGER_TAG: str(trigger)} | ({BACKGROUND_TAG: "true"} if background else {})
    return marks | (lanes if len(sources) == 1 else {})


class LaneRunCoordinator(QueuedRunCoordinator):
    """Dagster's run queue, fed with runs that say their lanes."""

    def submit_run(self, context: SubmitRunContext) -> DagsterRun:
        """Tag the run and queue it."""
        run = context.dagster_run
        names = sorted(key.to_user_string() for key in run.asset_selection or ())
        self._instance.add_run_tags(run.run_id, lane_tags(names, run.tags))
        return super().submit_run(context)
