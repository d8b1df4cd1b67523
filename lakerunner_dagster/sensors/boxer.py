"""The boxers: for each stage a sensor that hears of work, boxes it, and shows what arrived.

What belongs here: ticking, and the raw assets' events. What does not: what a tick does (``lake.ticks.boxer``), how
often a partition is told about (``sensors.observations``).
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping

import dagster as dg

from lakerunner_dagster.checks.standing import evaluations
from lakerunner_dagster.lake.lrdb.intake import Observed
from lakerunner_dagster.lake.stages import Operation, Stage
from lakerunner_dagster.lake.ticks.boxer import BoxerReport
from lakerunner_dagster.partitions import DaySource, new_sources
from lakerunner_dagster.sensors.observations import Observations, Seen
from lakerunner_dagster.sensors.pace import interval_seconds, listed, listen_seconds
from lakerunner_dagster.sensors.resident import resident

_HEARS = {
    Operation.INGEST: "Hears of new raw objects, writes them to lrdb, and closes the boxes that are full or old enough",
    Operation.ROLLUP: "Boxes the slots of each tier that lack something of the finer one, once changes have gathered",
    Operation.COMPACT: "Looks at every hour with small segments, and boxes those in which there is something to merge",
}


def boxer_sensor(stage: Stage) -> dg.SensorDefinition:
    """The boxer of a stage."""

    @dg.sensor(
        name=f"{stage.identifier}_boxer",
        minimum_interval_seconds=interval_seconds(stage),
        default_status=dg.DefaultSensorStatus.RUNNING,
        description=(
            f"{_HEARS[stage.operation]} (`{stage.input_topic}` wakes it). Shows days and sources with new objects on "
            f"`{stage.spec.raw_asset}`, and evaluates the standing checks of {listed(stage)} every five minutes."
        ),
    )
    def boxer(context: dg.SensorEvaluationContext) -> dg.SensorResult:
        now_ms = int(time.time() * 1000)
        kept = resident()
        with kept.boxer(stage) as tick:
            report = tick.run(
                now_ms, time.monotonic() + kept.lake.settings.tick_seconds, listen_seconds(stage, kept.lake.settings)
            )
        observations = Observations.of_cursor(context.cursor).with_observed(_by_partition(report))
        due = observations.due(now_ms)
        check_due = observations.check_due(now_ms)
        observations = observations.told(now_ms)
        return dg.SensorResult(
            skip_reason=_summary(report),  # a boxer never asks for a run: this is what the UI shows of a tick
            asset_events=[*_raw_events(stage, due), *(evaluations(kept.lake, stage) if check_due else [])],
            dynamic_partitions_requests=_additions(context, due),
            cursor=(observations.checked(now_ms) if check_due else observations).cursor,
        )

    return boxer


def _additions(context: dg.SensorEvaluationContext, due: Mapping[str, Seen]) -> list[dg.AddDynamicPartitionsRequest]:
    """The sources that are no partition yet. Most ticks have nothing to tell, and open no instance of Dagster."""
    return new_sources(context.instance, {DaySource.of(key).source_key for key in due}) if due else []


def _by_partition(report: BoxerReport) -> dict[str, Observed]:
    """What was observed, by partition key; a day that is no partition (a wrong clock's) is shown by lrdb alone."""
    partitions = {DaySource(dateint, source.key): seen for (source, dateint), seen in report.observed.items()}
    return {str(partition.key): seen for partition, seen in partitions.items() if partition.exists}


def _raw_events(stage: Stage, due: Mapping[str, Seen]) -> Iterator[dg.AssetMaterialization]:
    for key, seen in due.items():
        yield dg.AssetMaterialization(
            stage.spec.raw_asset,
            partition=DaySource.of(key).key,
            metadata={
                "new raw objects": seen.objects,
                "bytes": seen.bytes,
                "seen since": dg.MetadataValue.timestamp(seen.told_ms / 1000) if seen.told_ms else "the first one",
            },
        )


def _summary(report: BoxerReport) -> str:
    facts = {
        "notifications heard": report.received,
        "new": report.new,
        "known already": report.known,
        "dead letters": report.dead,
        "boxes closed": report.boxes,
        "messages sent": report.outbox_published,
    }
    happened = ", ".join(f"{count} {what}" for what, count in facts.items() if count) or "nothing new"
    return f"{happened}. {report.trouble}" if report.trouble else happened
