"""The ingested segments: one asset for each signal, from one factory.

What belongs here: what Dagster is told of the assets, and how a run's outcome becomes its events. What does not: the
work (``lake.runs``), and which run is started when (``sensors``).

A run that a dispatcher started drains what waits for its partition; any other rebuilds it.
"""

# No postponed annotations here: Dagster reads those of the decorated function as they stand.

import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain

import dagster as dg

from lakerunner_dagster.assets.conventions import OWNERS
from lakerunner_dagster.assets.metadata import Metadata, segments_metadata, work_metadata
from lakerunner_dagster.checks.conservation import conservation_result, conservation_spec
from lakerunner_dagster.instance.lanes import Trigger, trigger_of
from lakerunner_dagster.lake.errors import ConfigurationError
from lakerunner_dagster.lake.lrdb import profiles
from lakerunner_dagster.lake.model import Source
from lakerunner_dagster.lake.runs.context import Lake
from lakerunner_dagster.lake.runs.ingest import drain
from lakerunner_dagster.lake.runs.rebuild import rebuild
from lakerunner_dagster.lake.runs.report import Step
from lakerunner_dagster.lake.segments.columns import FIXED_COLUMNS
from lakerunner_dagster.lake.signals import SignalSpec
from lakerunner_dagster.partitions import DAY_BY_SOURCE, DaySource
from lakerunner_dagster.resources.lake import LakeResource

CODE_VERSION_TAG = "dagster/code_version"

Event = dg.AssetMaterialization | dg.AssetObservation | dg.AssetCheckResult | dg.MaterializeResult[None]


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


def segment_asset(spec: SignalSpec) -> dg.AssetsDefinition:
    """The asset of a signal's ingested segments."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", dg.BetaWarning)  # backfill_policy: without it, a month is as many runs as days

        @dg.asset(
            name=spec.segment_asset,
            deps=[spec.raw_asset],
            group_name="segments",
            kinds={"parquet", "python"},
            owners=OWNERS,
            partitions_def=DAY_BY_SOURCE,
            output_required=False,  # a drain may find that another run was faster: it has materialised nothing
            backfill_policy=dg.BackfillPolicy.single_run(),
            code_version=spec.code_version,
            check_specs=[conservation_spec(spec)],
            description=_description(spec),
            metadata=_static_metadata(spec),
        )
        def segments(context: dg.AssetExecutionContext, lake: LakeResource) -> Iterator[Event]:
            with lake.open() as opened:
                attempts = [_attempt(opened, context, spec, DaySource.of(key)) for key in context.partition_keys]
            yield from _events(context, spec, attempts)

    return segments


def _attempt(lake: Lake, context: dg.AssetExecutionContext, spec: SignalSpec, partition: DaySource) -> Attempt:
    """Drain or rebuild one partition; what goes wrong with it is kept, so that those behind it have their turn."""
    boxes: list[Step] = []
    hours: list[Step] = []

    def on_step(step: Step) -> None:
        (boxes if step.hour is None else hours).append(step)
        context.log.info(_progress(step))

    error: Exception | None = None
    try:
        source = _source(lake, partition)
        if trigger_of(context.run.tags) is Trigger.DISPATCHER:
            drain(lake, spec.signal, source, partition.dateint, run_id=context.run.run_id, on_box=on_step)
        else:
            rebuild(lake, spec.signal, source, partition.dateint, run_id=context.run.run_id, on_hour=on_step)
    except Exception as caught:  # raised again at the end of the run
        context.log.exception("%s is not complete", partition.key)
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


def _events(context: dg.AssetExecutionContext, spec: SignalSpec, attempts: list[Attempt]) -> Iterator[Event]:
    """The run's events: every partition's work, whole or not; the failure of those that are not at the end."""
    own = {attempt.partition for attempt in attempts}
    for attempt in attempts:
        yield from _elsewhere(context, spec, attempt, own)
    errors = [attempt.error for attempt in attempts if attempt.error]
    check = conservation_result(list(chain.from_iterable(attempt.steps for attempt in attempts)), errors)
    if errors:
        for attempt in attempts:
            yield _event_beside_a_failure(spec, attempt)
        yield check
        raise _failure(attempts)
    if trigger_of(context.run.tags) is Trigger.DISPATCHER and not any(attempt.steps for attempt in attempts):
        yield check
        return
    for attempt in attempts:
        context.add_asset_metadata(_metadata(attempt), partition_key=attempt.partition.key)
    yield dg.MaterializeResult(check_results=[check])


def _failure(attempts: list[Attempt]) -> dg.Failure:
    failed = [attempt for attempt in attempts if attempt.error]
    return dg.Failure(
        description="\n".join(f"{attempt.partition.key}: {attempt.error}" for attempt in failed),
        metadata={"partitions not complete": len(failed), "partitions": len(attempts)},
        allow_retries=False,  # the box has its own back-off, and a rebuild is a person's to repeat
    )


def _elsewhere(
    context: dg.AssetExecutionContext, spec: SignalSpec, attempt: Attempt, own: set[DaySource]
) -> Iterator[Event]:
    """A materialisation for each other day on which records of this partition's boxes fell."""
    came_with: Metadata = {"came with": dg.MetadataValue.text(f"{attempt.partition.key} (run {context.run.run_id})")}
    for dateint in sorted({day for step in attempt.steps for day in step.days}):
        partition = DaySource(dateint, attempt.partition.source_key)
        if partition not in own:
            segments = [segment for step in attempt.steps for segment in step.segments if segment.dateint == dateint]
            yield dg.AssetMaterialization(
                spec.segment_asset,
                partition=partition.key,
                metadata=segments_metadata(segments) | came_with,
                tags={CODE_VERSION_TAG: spec.code_version},
            )


def _event_beside_a_failure(spec: SignalSpec, attempt: Attempt) -> Event:
    """A whole partition of a failing run is materialised; a partial one stays failed, its work shown beside it."""
    if attempt.error is None:
        return dg.AssetMaterialization(
            spec.segment_asset,
            partition=attempt.partition.key,
            metadata=_metadata(attempt),
            tags={CODE_VERSION_TAG: spec.code_version},
        )
    return dg.AssetObservation(
        spec.segment_asset,
        partition=attempt.partition.key,
        metadata=_metadata(attempt) | {"not complete": dg.MetadataValue.md(f"```\n{attempt.error}\n```")},
    )


def _metadata(attempt: Attempt) -> Metadata:
    """A rebuild shows its hours, and apart from them what it had to ingest first: the hours hold that too."""
    if not attempt.hours:
        return work_metadata(attempt.boxes)
    first = sum(step.records_written for step in attempt.boxes)
    return work_metadata(attempt.hours) | {"records ingested before the rebuild": dg.MetadataValue.int(first)}


def _progress(step: Step) -> str:
    what = f"box {step.box_id}" if step.hour is None else f"hour {step.hour:02d}"
    return (
        f"{what} of {step.source.key} {step.dateint}: {step.records_read} records of {step.objects} objects -> "
        f"{step.records_written} records in {len(step.segments)} segments, {sum(step.rejected.values())} rejected, "
        f"{len(step.set_aside)} objects set aside, {step.seconds:.2f} s"
    )


def _description(spec: SignalSpec) -> str:
    return (
        f"Parquet segments of {spec.signal}, sorted by {', '.join(spec.sort_keys)}, registered in lrdb's "
        f"`{spec.segment_table}`. One partition is one UTC day of one source.\n\n"
        "New data comes in by itself: the dispatcher starts a run wherever boxes of raw objects wait. "
        "**Materialising a partition rebuilds its day** from the raw objects, hour by hour: the published "
        "segments are replaced at once, and doing it twice changes nothing."
    )


def _static_metadata(spec: SignalSpec) -> Metadata:
    columns = [dg.TableColumn(column.name, str(column.type)) for column in FIXED_COLUMNS[spec.signal]]
    return {
        "dagster/column_schema": dg.MetadataValue.table_schema(dg.TableSchema(columns)),
        "index table": dg.MetadataValue.text(spec.segment_table),
        "object key": dg.MetadataValue.text(
            f"db/{{organization_id}}/{{collector}}/{{YYYYMMDD}}/{spec.signal}/{{HH}}/tbl_{{segment_id}}.parquet"
        ),
        "lineage": dg.MetadataValue.md("`lakerunner lineage SEGMENT_KEY` lists the raw objects that made a segment."),
    }
