"""The ingested segments: one asset for each signal, from one factory.

What belongs here: what Dagster is told of the assets. What does not: the work (``assets.attempt``), its events
(``assets.events``), and which run is started when (``sensors``).

A run that a dispatcher started drains what waits for its partition; any other rebuilds it.
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
from lakerunner_dagster.lake.signals import SignalSpec
from lakerunner_dagster.partitions import DAY_BY_SOURCE, DaySource
from lakerunner_dagster.resources.lake import LakeResource


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
            trigger = trigger_of(context.run.tags)
            run_id = context.run.run_id
            with lake.open() as opened:
                attempts = [
                    attempt(opened, spec.signal, partition, trigger=trigger, run_id=run_id, log=context.log)
                    for partition in map(DaySource.of, context.partition_keys)
                ]
            yield from events(context, spec, attempts, trigger)

    return segments


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
