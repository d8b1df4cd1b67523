"""Dagster's backfills, launched and watched from outside its UI, where they show like any other.

What belongs here: what is asked of Dagster, and what it says. What does not: which partitions (``commands.backfill``).

A backfill is a row of Dagster's storage: its daemon starts the runs, whether or not whoever launched it is still there.
Dagster has no public way to launch one but its web server's GraphQL; what is used here is what that calls.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import dagster as dg
from dagster._core.definitions.assets.graph.asset_graph_subset import AssetGraphSubset
from dagster._core.definitions.events import AssetKeyPartitionKey
from dagster._core.execution.asset_backfill import AssetBackfillData
from dagster._core.execution.backfill import BulkActionsFilter, BulkActionStatus, PartitionBackfill
from dagster._core.storage.tags import BACKFILL_ID_TAG
from dagster._core.utils import make_new_backfill_id

import lakerunner_dagster
from lakerunner_dagster.definitions import defs
from lakerunner_dagster.instance.lanes import UNFINISHED
from lakerunner_dagster.lake.errors import ConfigurationError
from lakerunner_dagster.partitions import SOURCES_NAME, DaySource

REQUEST_TAG = "lakerunner/backfill"
"""Says what was asked for, so that the same request finds its backfill again."""

_OVER = {
    BulkActionStatus.COMPLETED,
    BulkActionStatus.COMPLETED_SUCCESS,
    BulkActionStatus.COMPLETED_FAILED,
    BulkActionStatus.FAILED,
    BulkActionStatus.CANCELED,
}


@dataclass(frozen=True, slots=True)
class Progress:
    """Where a backfill is: partitions (of each asset one) that it is for, and those that are done or failed.

    ``ended`` says how it ended, in Dagster's word; None while it goes on.
    """

    partitions: int
    done: int
    failed: int
    ended: str | None


def dagster_instance() -> dg.DagsterInstance:
    """The instance of DAGSTER_HOME; without one, that of the checkout's dagster.yaml and of our settings.

    ConfigurationError where there is neither: Dagster would look into a storage of its own that nobody else knows.
    """
    if "DAGSTER_HOME" in os.environ:
        return dg.DagsterInstance.get()
    checkout = Path(lakerunner_dagster.__file__).parents[1]
    if not (checkout / "dagster.yaml").is_file():
        raise ConfigurationError("which Dagster? Set DAGSTER_HOME to the directory that holds its dagster.yaml")
    return dg.DagsterInstance.from_config(str(checkout))


def unfinished(instance: dg.DagsterInstance, request: str) -> str | None:
    """The id of the backfill that was launched for the same request and goes on still."""
    going = BulkActionsFilter(tags={REQUEST_TAG: request})
    found = [one for one in instance.get_backfills(filters=going) if one.status not in _OVER]
    return found[0].backfill_id if found else None


def launch(
    instance: dg.DagsterInstance,
    partitions: Mapping[str, Sequence[DaySource]],
    *,
    request: str,
    title: str,
) -> str:
    """Ask for partitions of assets, by the asset's name; the backfill's id. Its daemon orders them by dependency."""
    instance.add_dynamic_partitions(
        SOURCES_NAME, sorted({one.source_key for wanted in partitions.values() for one in wanted})
    )
    wanted = {
        AssetKeyPartitionKey(dg.AssetKey(name), str(one.key)) for name, each in partitions.items() for one in each
    }
    backfill = PartitionBackfill.from_asset_graph_subset(
        backfill_id=make_new_backfill_id(),
        backfill_timestamp=time.time(),
        tags={REQUEST_TAG: request},
        asset_graph_subset=AssetGraphSubset.from_asset_partition_set(wanted, defs.resolve_asset_graph()),
        dynamic_partitions_store=instance,
        title=title,
        description=None,
        run_config=None,
    )
    instance.add_backfill(backfill)
    return str(backfill.backfill_id)


def progress(instance: dg.DagsterInstance, backfill_id: str) -> Progress:
    """Where a backfill is."""
    backfill = instance.get_backfill(backfill_id)
    if backfill is None:
        return Progress(0, 0, 0, "gone from Dagster's storage")
    data: AssetBackfillData = backfill.get_asset_backfill_data(defs.resolve_asset_graph())
    return Progress(
        partitions=_count(data.target_subset),
        done=_count(data.materialized_subset),
        failed=_count(data.failed_and_downstream_subset),
        ended=backfill.status.value if backfill.status in _OVER else None,
    )


def _count(subset: AssetGraphSubset) -> int:
    return int(subset.num_partitions_and_non_partitioned_assets)


def failures(instance: dg.DagsterInstance, backfill_id: str) -> list[tuple[str, str]]:
    """Each failed run of a backfill: its id, and why it failed, in its own words."""
    runs = instance.get_runs(dg.RunsFilter(tags={BACKFILL_ID_TAG: backfill_id}, statuses=[dg.DagsterRunStatus.FAILURE]))
    return [(run.run_id, _why(instance, run.run_id)) for run in runs]


def is_working(instance: dg.DagsterInstance, backfill_id: str) -> bool:
    """Whether any run of it is queued or going."""
    going = dg.RunsFilter(tags={BACKFILL_ID_TAG: backfill_id}, statuses=UNFINISHED)
    return bool(instance.get_runs(going, limit=1))


def _why(instance: dg.DagsterInstance, run_id: str) -> str:
    found = instance.get_records_for_run(
        run_id, of_type={dg.DagsterEventType.STEP_FAILURE, dg.DagsterEventType.RUN_FAILURE}
    ).records
    for record in found:
        event = record.event_log_entry.dagster_event
        if event is not None and event.event_type is dg.DagsterEventType.STEP_FAILURE:
            data = event.step_failure_data
            told = data.user_failure_data.description if data.user_failure_data else None
            return told or (data.error.message.strip() if data.error else "a step failed")
    event = found[0].event_log_entry.dagster_event if found else None
    return event.message or "the run failed" if event is not None else "the run failed"
