"""A run's work on one of its partitions: done, or kept from being done without keeping the others.

What belongs here: which work a run does, and gathering what came of it. What does not: the work itself (``lake.runs``),
how it is shown (``assets.events``).
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from lakerunner_dagster.instance.lanes import Trigger
from lakerunner_dagster.lake.errors import ConfigurationError
from lakerunner_dagster.lake.lrdb import profiles
from lakerunner_dagster.lake.model import Source
from lakerunner_dagster.lake.runs.context import Lake
from lakerunner_dagster.lake.runs.drain import drain
from lakerunner_dagster.lake.runs.full_compaction import compact_day
from lakerunner_dagster.lake.runs.full_rollup import roll_up_day
from lakerunner_dagster.lake.runs.rebuild import rebuild
from lakerunner_dagster.lake.runs.report import Step
from lakerunner_dagster.lake.stages import Operation, Stage, StageAsset
from lakerunner_dagster.lake.tiers import TIERS
from lakerunner_dagster.partitions import DaySource


@dataclass(frozen=True, slots=True)
class Attempt:
    """What a run did for one of its partitions: the steps that are committed, and what kept it from the others."""

    partition: DaySource
    boxes: tuple[Step, ...]
    hours: tuple[Step, ...]
    error: Exception | None

    @property
    def steps(self) -> tuple[Step, ...]:
        """Every committed step, in order."""
        return self.boxes + self.hours


def _whole_day(stage: Stage, asset: StageAsset) -> Callable[..., object]:
    """What materialising a partition does."""
    match stage.operation:
        case Operation.INGEST:
            return partial(rebuild, signal=stage.signal)
        case Operation.ROLLUP:
            return partial(roll_up_day, tier=TIERS[asset.frequency_ms or 0])
        case Operation.COMPACT:
            return partial(compact_day, signal=stage.signal)


def attempt(
    lake: Lake,
    stage: Stage,
    asset: StageAsset,
    partition: DaySource,
    *,
    trigger: Trigger,
    run_id: str,
    log: logging.Logger,
) -> Attempt:
    """Drain the partition for a dispatcher, for a while; do it as a whole for a person. Errors are in the result."""
    boxes: list[Step] = []
    hours: list[Step] = []

    def on_step(step: Step) -> None:
        (boxes if step.hour is None else hours).append(step)
        log.info(_progress(step))

    error: Exception | None = None
    try:
        source = _source(lake, partition)
        if trigger is Trigger.DISPATCHER:
            drain(
                lake,
                stage,
                source,
                partition.dateint,
                run_id=run_id,
                on_step=on_step,
                frequency_ms=asset.frequency_ms,
                seconds=lake.settings.drain_seconds,
            )
        else:
            whole_day = _whole_day(stage, asset)
            whole_day(lake, source=source, dateint=partition.dateint, run_id=run_id, on_step=on_step)
    except Exception as caught:  # the run raises at its end, when every partition has had its turn
        log.exception("%s is not complete", partition.key)
        error = caught
    return Attempt(partition, tuple(boxes), tuple(hours), error)


def _source(lake: Lake, partition: DaySource) -> Source:
    with lake.lrdb.connection() as conn:
        source = profiles.source_by_key(conn, partition.source_key)
    if source is None:
        raise ConfigurationError(
            f"lrdb knows no source {partition.source_key!r}: delete its partition key, or register its collector"
        )
    return source


def _progress(step: Step) -> str:
    what = f"box {step.box_id}" if step.hour is None else f"hour {step.hour:02d}"
    return (
        f"{what} of {step.source.key} {step.dateint}: {step.records_read} records of {step.objects} objects -> "
        f"{step.records_written} records in {len(step.segments)} segments, {sum(step.rejected.values())} rejected, "
        f"{len(step.set_aside)} objects set aside, {step.seconds:.2f} s"
    )
