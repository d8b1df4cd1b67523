"""A Dagster with a past: real runs on real PostgreSQL, made older by as many days as a test likes.

What belongs here: assets like the project's, their runs, and what a person sees of them. What does not: any assertion.
"""

from __future__ import annotations

import asyncio
import functools
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import dagster as dg
import psycopg
from dagster._core.instance.ref import InstanceRef
from dagster._core.remote_origin import InProcessCodeLocationOrigin
from dagster._core.storage.partition_status_cache import get_and_update_asset_status_cache_value
from dagster._core.types.loadable_target_origin import LoadableTargetOrigin
from dagster._core.workspace.context import WorkspaceProcessContext
from dagster._core.workspace.load_target import InProcessWorkspaceLoadTarget
from dagster_graphql.schema import create_schema

from lakerunner_dagster.lake.errors import LakeError

DAGSTER_YAML = """
storage:
  custom:
    module: lakerunner_dagster.instance.storage
    class: SettingsPostgresStorage
retention:
  sensor:
    purge_after_days: {skipped: 1, started: 7, success: 7, failure: 30}
telemetry: {enabled: false}
"""

PARTITIONS = dg.MultiPartitionsDefinition(
    {"date": dg.DailyPartitionsDefinition("2026-01-01"), "source": dg.DynamicPartitionsDefinition(name="sources")}
)
SOURCES = ("acme/db", "acme/web")
LOGS, COMPACTED = dg.AssetKey("log_segments"), dg.AssetKey("compacted_log_segments")


class Refused(LakeError):
    """What a run is told to fail of."""


def _segments(context: dg.AssetExecutionContext, name: str) -> Iterator[dg.MaterializeResult[None]]:
    if "fail" in context.run.tags:
        raise Refused("the test asks for it")
    context.log.info("a line of the run's log")
    check = dg.AssetCheckResult(check_name="conservation", passed="breach" not in context.run.tags)
    yield dg.MaterializeResult(asset_key=name, metadata={"run": context.run.run_id}, check_results=[check])


def _check(asset: str) -> dg.AssetCheckSpec:
    return dg.AssetCheckSpec("conservation", asset=asset)


@dg.asset(partitions_def=PARTITIONS, check_specs=[_check("log_segments")])
def log_segments(context):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN201  # Dagster reads annotations as they stand
    yield from _segments(context, "log_segments")


@dg.asset(partitions_def=PARTITIONS, deps=[log_segments], check_specs=[_check("compacted_log_segments")])
def compacted_log_segments(context):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN201
    yield from _segments(context, "compacted_log_segments")


ASSETS = {LOGS: log_segments, COMPACTED: compacted_log_segments}
defs = dg.Definitions(assets=list(ASSETS.values()))

TIMES = {
    "event_logs": ("timestamp",),
    "asset_event_tags": ("event_timestamp",),
    "asset_check_executions": ("create_timestamp", "evaluation_event_timestamp"),
    "runs": ("create_timestamp", "update_timestamp"),
    "job_ticks": ("timestamp", "create_timestamp", "update_timestamp"),
    "bulk_actions": ("timestamp",),
    "daemon_heartbeats": ("timestamp",),
}
"""Every table that history is deleted from (or with), and its times."""

_ASSET_PAGE = """
    query ($key: AssetKeyInput!) {
        assetNodeOrError(assetKey: $key) { ... on AssetNode {
            partitionStats { numMaterialized numFailed numMaterializing numPartitions }
            assetPartitionStatuses { ... on MultiPartitionStatuses { ranges {
                primaryDimStartKey primaryDimEndKey
                secondaryDim { ... on DefaultPartitionStatuses { materializedPartitions failedPartitions } }
            } } }
            latestMaterializationByPartition {
                partition runId runOrError { ... on Run { id status tags { key value } } }
                metadataEntries { label ... on TextMetadataEntry { text } }
            }
            assetChecksOrError { ... on AssetChecks { checks {
                name executionForLatestMaterialization { status runId evaluation { success } }
            } } }
        } }
        assetsLatestInfo(assetKeys: [$key]) { latestMaterialization { runId } latestRun { id status } }
    }
"""
_RUN_PAGE = """
    query ($run: ID!) {
        runOrError(runId: $run) { ... on Run {
            id status startTime endTime tags { key value } stepStats { status } assets { key { path } }
        } }
        logsForRun(runId: $run) { ... on EventConnection { events { ... on MessageEvent { message } } } }
    }
"""


_schema = functools.cache(create_schema)


class Past:
    """An instance at ``url`` (``postgresql://…``), with its assets' runs."""

    def __init__(self, instance: dg.DagsterInstance, url: str) -> None:
        self.instance = instance
        self._url = url

    def run(self, asset: dg.AssetKey, date: str, source: str = SOURCES[0], **tags: str) -> str:
        """The id of a run of a partition of the asset; a tag ``fail`` or ``breach`` says how it ends."""
        result = dg.materialize(
            list(ASSETS.values()),
            selection=[asset],
            partition_key=dg.MultiPartitionKey({"date": date, "source": source}),
            tags=tags,
            instance=self.instance,
            raise_on_error=False,
        )
        assert result.success == ("fail" not in tags)
        return str(result.run_id)

    def age(self, days: float) -> None:
        """Make all that has happened so much older."""
        with psycopg.connect(self._url) as conn:
            for table, columns in TIMES.items():
                older = ", ".join(f"{column} = {column} - make_interval(secs => %(seconds)s)" for column in columns)
                conn.execute(f"UPDATE {table} SET {older}", {"seconds": days * 86400})
            conn.execute("UPDATE runs SET end_time = end_time - %s", (days * 86400,))
        for file in Path(self.instance.storage_directory()).rglob("*"):
            if file.is_file():
                os.utime(file, times=(file.stat().st_mtime - days * 86400,) * 2)

    def query(self, statement: str, *values: object) -> list[Any]:
        """Rows, as tuples, where there are any."""
        with psycopg.connect(self._url) as conn:
            found = conn.execute(statement, values)
            return found.fetchall() if found.description else []

    def rows(self) -> dict[str, int]:
        """How many rows each table has."""
        return {table: self.query(f"SELECT count(*) FROM {table}")[0][0] for table in TIMES}

    def statuses(self) -> dict[str, Any]:
        """Each asset's partitions by status, computed anew from the events; its latest materialisation and check."""
        found = {}
        for key in ASSETS:
            self.instance.wipe_asset_cached_status([key])
            cached = get_and_update_asset_status_cache_value(self.instance, key, PARTITIONS)
            latest = self.instance.get_latest_materialization_event(key)
            assert cached is not None
            assert latest is not None
            check = dg.AssetCheckKey(key, "conservation")
            found[key.to_user_string()] = (
                cached._replace(latest_storage_id=0),
                self.instance.get_materialized_partitions(key),
                latest.run_id,
                latest.asset_materialization,
                self.instance.event_log_storage.get_latest_asset_check_execution_by_key([check])[check],
                sorted(map(str, self.instance.event_log_storage.get_asset_check_partition_info([check]))),
            )
        return found

    def asset_pages(self) -> dict[str, Any]:
        """What the UI asks of each asset, answered by Dagster's GraphQL."""
        return {key.to_user_string(): self._ask(_ASSET_PAGE, {"key": {"path": list(key.path)}}) for key in ASSETS}

    def run_page(self, run_id: str) -> Mapping[str, Any]:
        """What the UI asks of a run."""
        return self._ask(_RUN_PAGE, {"run": run_id})

    def _ask(self, query: str, variables: dict[str, Any]) -> Mapping[str, Any]:
        target = LoadableTargetOrigin(
            executable_path=sys.executable, python_file=__file__, working_directory=str(Path(__file__).parent)
        )
        origin = InProcessCodeLocationOrigin(target, location_name="past")
        with WorkspaceProcessContext(self.instance, InProcessWorkspaceLoadTarget(origin)) as process:
            asked = _schema().execute_async(query, variables=variables, context=process.create_request_context())
            answer = asyncio.run(asked)
        assert not answer.errors, answer.errors
        data: Mapping[str, Any] = answer.data
        return data


@contextmanager
def past_at(url: str, home: Path) -> Iterator[Past]:
    """A Dagster without any past; the environment must name ``url`` as its storage."""
    home.mkdir()
    (home / "dagster.yaml").write_text(DAGSTER_YAML)
    with dg.DagsterInstance.from_ref(InstanceRef.from_dir(str(home))) as instance:
        instance.add_dynamic_partitions("sources", SOURCES)
        yield Past(instance, url)
