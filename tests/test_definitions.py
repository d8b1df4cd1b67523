"""The code location as Dagster loads it: what a person finds in the UI, and that nobody changes it unawares."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import dagster as dg
import yaml  # type: ignore[import-untyped]

from lakerunner_dagster.definitions import defs
from lakerunner_dagster.lake.stages import STAGES
from lakerunner_dagster.partitions import DAY_BY_SOURCE

ROOT = Path(__file__).parents[1]
SIGNALS = ("log", "metric", "trace")
TIERS = ("1m", "5m", "20m", "1h")
ROLLUPS = [f"metric_rollup_{label}" for label in TIERS]


def _spec(spec: dg.AssetSpec) -> dict[str, Any]:
    return {
        "group": spec.group_name,
        "kinds": sorted(spec.kinds),
        "owners": list(spec.owners),
        "upstream": [dep.asset_key.to_user_string() for dep in spec.deps],
        "code version": spec.code_version,
    }


def test_the_assets_are_those_of_the_design() -> None:
    raw = {"group": "raw", "kinds": ["otlp"], "owners": ["team:telemetry"], "upstream": [], "code version": None}
    cooked = {
        "group": "segments",
        "kinds": ["parquet", "python"],
        "owners": ["team:telemetry"],
        "code version": "1",
    }
    specs = {spec.key.to_user_string(): spec for spec in defs.resolve_all_asset_specs()}
    assert {name: _spec(spec) for name, spec in specs.items()} == {
        "raw_logs": raw,
        "raw_metrics": raw,
        "raw_traces": raw,
        "log_segments": {**cooked, "upstream": ["raw_logs"]},
        "metric_segments": {**cooked, "upstream": ["raw_metrics"]},
        "trace_segments": {**cooked, "upstream": ["raw_traces"]},
        **{
            f"metric_rollup_{label}": {**cooked, "group": "rollups", "upstream": [finer]}
            for label, finer in zip(TIERS, ["metric_segments", *ROLLUPS], strict=False)
        },
        **{
            f"compacted_{signal}_segments": {
                **cooked,
                "group": "compacted",
                "upstream": [f"{signal}_segments", *(ROLLUPS if signal == "metric" else [])],
            }
            for signal in SIGNALS
        },
    }
    for spec in specs.values():
        assert spec.partitions_def == DAY_BY_SOURCE
        assert spec.description
        assert spec.metadata


def test_only_the_segments_can_be_materialised_and_a_month_of_a_source_is_one_run() -> None:
    graph = defs.resolve_asset_graph()
    assert {key.to_user_string() for key in graph.materializable_asset_keys} == {
        *(f"{signal}_segments" for signal in SIGNALS),
        *(f"compacted_{signal}_segments" for signal in SIGNALS),
        *ROLLUPS,
    }
    for key in graph.materializable_asset_keys:
        assert graph.get(key).backfill_policy == dg.BackfillPolicy.single_run()


def test_every_segment_asset_has_its_checks() -> None:
    checks = {(key.asset_key.to_user_string(), key.name) for key in defs.resolve_asset_graph().asset_check_keys}
    ingested, compacted = ("conservation", "freshness", "quarantined_files"), ("conservation", "small_file_debt")
    assert checks == {
        *((f"{signal}_segments", name) for signal in SIGNALS for name in ingested),
        *((f"compacted_{signal}_segments", name) for signal in SIGNALS for name in compacted),
        *((tier, name) for tier in ROLLUPS for name in ("conservation", "tier_coverage")),
    }


def test_the_sensors_run_as_soon_as_dagster_does() -> None:
    signals, operations = ("logs", "metrics", "traces"), ("ingest", "compact")
    sensors = {sensor.name: sensor.default_status for sensor in defs.get_repository_def().sensor_defs}
    assert sensors == {
        f"{stage}_{role}": dg.DefaultSensorStatus.RUNNING
        for stage in ("metrics_rollup", *(f"{signal}_{operation}" for signal in signals for operation in operations))
        for role in ("boxer", "dispatcher")
    }


def test_a_dispatched_run_is_its_asset_and_the_check_within() -> None:
    for signal, asset in (("logs", "log_segments"), ("metrics", "metric_segments"), ("traces", "trace_segments")):
        for job, made in ((f"ingest_{signal}", asset), (f"compact_{signal}", f"compacted_{asset}")):
            graph = defs.resolve_job_def(job).asset_layer.asset_graph
            assert {check.name for check in graph.asset_check_keys} == {"conservation"}
            assert {key.to_user_string() for key in graph.materializable_asset_keys} == {made}
    graph = defs.resolve_job_def("rollup_metrics").asset_layer.asset_graph
    assert {check.name for check in graph.asset_check_keys} == {"conservation"}
    assert {key.to_user_string() for key in graph.materializable_asset_keys} == set(ROLLUPS)


def test_runs_share_their_process_and_hold_no_configuration() -> None:
    assert defs.executor is dg.in_process_executor
    for job in ("ingest_logs", "ingest_metrics", "ingest_traces"):
        assert defs.resolve_job_def(job).run_config is None


def test_the_run_queue_has_a_lane_for_every_segment_asset() -> None:
    instance = yaml.safe_load((ROOT / "dagster.yaml").read_text())
    limits = {limit["key"] for limit in instance["run_coordinator"]["config"]["tag_concurrency_limits"]}
    assert limits == {
        "lakerunner/background",
        "lakerunner/maintenance",
        "lakerunner/trigger",
        *(f"lakerunner/lane.{asset.name}" for stage in STAGES.values() for asset in stage.assets),
    }
