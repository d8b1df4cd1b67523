"""What Dagster hears of a run: materialisations of what is whole, observations of what is not, the check, the failure.

What belongs here: which events a run's attempts make. What does not: the attempts (``assets.attempt``), what an event
shows (``assets.metadata``).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import dagster as dg

from lakerunner_dagster.assets.attempt import Attempt
from lakerunner_dagster.assets.metadata import Metadata, segments_metadata, work_metadata
from lakerunner_dagster.checks.conservation import conservation_result
from lakerunner_dagster.instance.lanes import Trigger
from lakerunner_dagster.lake.stages import Stage, StageAsset
from lakerunner_dagster.partitions import DaySource

CODE_VERSION_TAG = "dagster/code_version"

Event = dg.AssetMaterialization | dg.AssetObservation | dg.AssetCheckResult | dg.MaterializeResult[None]


def events(
    context: dg.AssetExecutionContext, stage: Stage, asset: StageAsset, attempts: Sequence[Attempt], trigger: Trigger
) -> Iterator[Event]:
    """The run's events; its failure, if a partition is not complete, after all of them."""
    steps = [step for attempt in attempts for step in attempt.steps]
    errors = [attempt.error for attempt in attempts if attempt.error]
    check = conservation_result(steps, errors)
    yield from _elsewhere(stage, asset, attempts)
    if errors:
        for attempt in attempts:
            yield _event_beside_a_failure(stage, asset, attempt)
        yield check
        raise _failure(attempts)
    if trigger is Trigger.DISPATCHER and not steps:
        yield check  # another run was faster: this one has materialised nothing
        return
    for attempt in attempts:
        context.add_asset_metadata(_metadata(attempt), partition_key=attempt.partition.key)
    yield dg.MaterializeResult(check_results=[check])


def _elsewhere(stage: Stage, asset: StageAsset, attempts: Sequence[Attempt]) -> Iterator[Event]:
    """A materialisation for each day outside the run's own partitions on which records of its boxes fell."""
    own = {attempt.partition for attempt in attempts}
    for attempt in attempts:
        for dateint in sorted({day for step in attempt.steps for day in step.days}):
            partition = DaySource(dateint, attempt.partition.source_key)
            if partition not in own:
                segments = [one for step in attempt.steps for one in step.segments if one.dateint == dateint]
                came_with: Metadata = {"came with": dg.MetadataValue.text(str(attempt.partition.key))}
                yield _materialisation(stage, asset, partition, segments_metadata(segments) | came_with)


def _event_beside_a_failure(stage: Stage, asset: StageAsset, attempt: Attempt) -> Event:
    """A whole partition of a failing run is materialised; a partial one stays failed, its work shown beside it."""
    if attempt.error is None:
        return _materialisation(stage, asset, attempt.partition, _metadata(attempt))
    return dg.AssetObservation(
        asset.name,
        partition=attempt.partition.key,
        metadata=_metadata(attempt) | {"not complete": dg.MetadataValue.md(f"```\n{attempt.error}\n```")},
    )


def _materialisation(
    stage: Stage, asset: StageAsset, partition: DaySource, metadata: Metadata
) -> dg.AssetMaterialization:
    return dg.AssetMaterialization(
        asset.name,
        partition=partition.key,
        metadata=metadata,
        tags={CODE_VERSION_TAG: stage.code_version},
    )


def _metadata(attempt: Attempt) -> Metadata:
    """A rebuild shows its hours, and apart from them what it had to ingest first: the hours hold that too."""
    if not attempt.hours:
        return work_metadata(attempt.boxes)
    first = sum(step.records_written for step in attempt.boxes)
    return work_metadata(attempt.hours) | {"records ingested before the rebuild": dg.MetadataValue.int(first)}


def _failure(attempts: Sequence[Attempt]) -> dg.Failure:
    failed = [attempt for attempt in attempts if attempt.error]
    return dg.Failure(
        description="\n".join(f"{attempt.partition.key}: {attempt.error}" for attempt in failed),
        metadata={"partitions not complete": len(failed), "partitions": len(attempts)},
        allow_retries=False,  # the box has its own back-off, and a rebuild is a person's to repeat
    )
