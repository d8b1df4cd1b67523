"""The dispatchers: for each stage a sensor that starts a run wherever boxes wait.

What belongs here: what Dagster knows and the tick does not, that is which runs there are; and run requests. What does
not: which partitions need a run (``lake.ticks.dispatcher``).

At most ``active_runs`` runs of a stage are queued or going, so that a backlog waits in lrdb, where it is visible, and
not in Dagster's queue. A run that fails does not come back here: its box does, when its back-off is over.
"""

from __future__ import annotations

import time

import dagster as dg

from lakerunner_dagster.checks import conservation
from lakerunner_dagster.instance.lanes import TRIGGER_TAG, UNFINISHED, Trigger, lane_tags
from lakerunner_dagster.lake.stages import Stage
from lakerunner_dagster.lake.ticks.dispatcher import Dispatch
from lakerunner_dagster.partitions import PARTITION_TAG, DaySource, new_sources
from lakerunner_dagster.sensors.pace import interval_seconds, listed, listen_seconds
from lakerunner_dagster.sensors.resident import resident


def dispatcher_sensor(stage: Stage) -> dg.SensorDefinition:
    """The dispatcher of a stage."""

    @dg.sensor(
        name=f"{stage.identifier}_dispatcher",
        job_name=stage.job,
        minimum_interval_seconds=interval_seconds(stage),
        default_status=dg.DefaultSensorStatus.RUNNING,
        description=(
            f"Starts a run of {listed(stage)} wherever boxes of a day and source wait, of a source one at a time "
            f"(`{stage.box_topic}` wakes it, lrdb knows). Switched off, boxes gather in lrdb and nothing is lost."
        ),
    )
    def dispatcher(context: dg.SensorEvaluationContext) -> dg.SensorResult:
        kept = resident()
        places = kept.lake.settings.active_runs
        going: list[str] = []

        def active() -> list[str]:
            going[:] = _active_sources(context.instance, stage)
            return going

        with kept.dispatcher(stage) as tick:
            dispatches = tick.run(
                active,
                places,
                int(time.time() * 1000),
                time.monotonic() + kept.lake.settings.tick_seconds,
                listen_seconds(stage, kept.lake.settings),
            )
        requests = {DaySource(dispatch.dateint, dispatch.source.key): dispatch for dispatch in dispatches}
        startable = {partition: dispatch for partition, dispatch in requests.items() if partition.exists}
        if startable != requests:
            # One request for no partition would fail the tick, and all the others with it.
            context.log.error("not startable, for their days are no partitions: %s", requests.keys() - startable.keys())
        if not startable:
            return dg.SensorResult(skip_reason=_why_none(len(going), places))
        return dg.SensorResult(
            run_requests=[_run_request(stage, partition, dispatch) for partition, dispatch in startable.items()],
            dynamic_partitions_requests=new_sources(
                context.instance, {partition.source_key for partition in startable}
            ),
        )

    return dispatcher


def _active_sources(instance: dg.DagsterInstance, stage: Stage) -> list[str]:
    """The source key of each run that a dispatcher asked for and that is not finished."""
    runs = instance.get_runs(
        dg.RunsFilter(job_name=stage.job, tags={TRIGGER_TAG: Trigger.DISPATCHER}, statuses=UNFINISHED)
    )
    return [DaySource.of(run.tags[PARTITION_TAG]).source_key for run in runs]


def _run_request(stage: Stage, partition: DaySource, dispatch: Dispatch) -> dg.RunRequest:
    tags = {TRIGGER_TAG: str(Trigger.DISPATCHER), PARTITION_TAG: str(partition.key)}
    names = [asset.name for asset in stage.assets if asset.frequency_ms in {None, *dispatch.frequencies_ms}]
    # Of a selection Dagster makes a job anew, for each run and in three processes: what is all of the job needs none.
    selected = [dg.AssetKey(name) for name in names] if len(names) < len(stage.assets) else None
    return dg.RunRequest(
        run_key=dispatch.run_key,
        partition_key=partition.key,
        asset_selection=selected,
        # Named, or Dagster adds every check of these assets, those that look at all of the lake too.
        asset_check_keys=[dg.AssetCheckKey(key, conservation.NAME) for key in selected] if selected else None,
        tags=lane_tags(names, tags) | {"dagster/priority": str(stage.priority)},  # a person's run has 0
    )


def _why_none(active: int, places: int) -> str:
    if active >= places:
        return f"no room: {active} runs are queued or going, the most that LAKERUNNER_ACTIVE_RUNS allows"
    return f"nothing waits that no run is on its way for; runs that something waits for: {active}"
