"""The segments, ingested, rolled up and compacted: the assets of every stage, from one factory.

What belongs here: what Dagster is told of the assets. What does not: the work (``assets.attempt``), its events
(``assets.events``), and which run is started when (``sensors``).

A run that a dispatcher started drains what waits for its partition; any other does the partition anew, as a whole.
"""

# No postponed annotations here: Dagster reads those of the decorated function as they stand.

import warnings
from collections.abc import Iterator

import dagster as dg

from lakerunner_dagster.assets.attempt import attempt
from lakerunner_dagster.assets.conventions import OWNERS
from lakerunner_dagster.assets.events import Event, events
from lakerunner_dagster.assets.metadata import Metadata
from lakerunner_dagster.checks.conservation import conservation_spec
from lakerunner_dagster.instance.lanes import trigger_of
from lakerunner_dagster.lake.segments.columns import FIXED_COLUMNS
from lakerunner_dagster.lake.stages import Operation, Stage, StageAsset
from lakerunner_dagster.lake.tiers import TIERS
from lakerunner_dagster.partitions import DAY_BY_SOURCE, DaySource
from lakerunner_dagster.resources.lake import LakeResource


def stage_asset(stage: Stage, asset: StageAsset) -> dg.AssetsDefinition:
    """The asset of segments that a stage makes."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", dg.BetaWarning)  # backfill_policy: without it, a month is as many runs as days

        @dg.asset(
            name=asset.name,
            deps=list(asset.upstream),
            group_name=stage.group,
            kinds={"parquet", "python"},
            owners=OWNERS,
            partitions_def=DAY_BY_SOURCE,
            output_required=False,  # a drain may find that another run was faster: it has materialised nothing
            backfill_policy=dg.BackfillPolicy.single_run(),
            code_version=stage.code_version,
            check_specs=[conservation_spec(asset)],
            description=_DESCRIPTIONS[stage.operation](stage, asset),
            metadata=_static_metadata(stage),
        )
        def segments(context: dg.AssetExecutionContext, lake: LakeResource) -> Iterator[Event]:
            trigger = trigger_of(context.run.tags)
            run_id = context.run.run_id
            with lake.open() as opened:
                attempts = [
                    attempt(opened, stage, asset, partition, trigger=trigger, run_id=run_id, log=context.log)
                    for partition in map(DaySource.of, context.partition_keys)
                ]
            yield from events(context, stage, asset, attempts, trigger)

    return segments


def _of_ingest(stage: Stage, _asset: StageAsset) -> str:
    spec = stage.spec
    return (
        f"Parquet segments of {spec.signal}, sorted by {', '.join(spec.sort_keys)}, registered in lrdb's "
        f"`{spec.segment_table}`. One partition is one UTC day of one source.\n\n"
        "New data comes in by itself: the dispatcher starts a run wherever boxes of raw objects wait. "
        "**Materialising a partition rebuilds its day** from the raw objects, hour by hour: the published "
        "segments are replaced at once, and doing it twice changes nothing."
    )


def _of_rollup(_stage: Stage, asset: StageAsset) -> str:
    tier = TIERS[asset.frequency_ms or 0]
    return (
        f"Metrics in buckets of {tier.frequency_ms // 1000} s, computed from `{asset.upstream[0]}` in slots of "
        f"{tier.slot_ms // 60_000} min: count, sum, min, max, last and average are exact, percentiles within 1 %. "
        "Cumulative sums and histograms are turned into increments.\n\n"
        "New and late data comes in by itself: where the finer tier has changed, the slot is computed anew from all of "
        "it.\n\n**Materialising a partition computes its day anew**; doing it twice changes nothing."
    )


def _of_compaction(stage: Stage, _asset: StageAsset) -> str:
    return (
        f"Segments of {stage.signal}, merged towards LAKERUNNER_COMPACTION_TARGET_BYTES, so that a query reads few. "
        "What is merged takes the place of its inputs in one transaction; no record is changed.\n\n"
        "It goes on by itself: the boxer looks at every hour with small segments, and the dispatcher starts a run "
        "where there is something to merge. **Materialising a partition merges its day down to its final files**; "
        "doing it twice changes nothing. A segment that cannot be read is set aside (`lakerunner quarantine list`)."
    )


_DESCRIPTIONS = {Operation.INGEST: _of_ingest, Operation.ROLLUP: _of_rollup, Operation.COMPACT: _of_compaction}


def _static_metadata(stage: Stage) -> Metadata:
    spec = stage.spec
    columns = [dg.TableColumn(column.name, str(column.type)) for column in FIXED_COLUMNS[spec.signal]]
    return {
        "dagster/column_schema": dg.MetadataValue.table_schema(dg.TableSchema(columns)),
        "index table": dg.MetadataValue.text(spec.segment_table),
        "object key": dg.MetadataValue.text(
            f"db/{{organization_id}}/{{collector}}/{{YYYYMMDD}}/{spec.signal}/{{HH}}/tbl_{{segment_id}}.parquet"
        ),
        "lineage": dg.MetadataValue.md("`lakerunner lineage SEGMENT_KEY` lists the raw objects that made a segment."),
    }
