"""The standing checks on a real lake: late or set-aside objects fail them, whatever ran last."""

from __future__ import annotations

import dagster as dg

from lakerunner_dagster.assets.segments import stage_asset
from lakerunner_dagster.checks import freshness, quarantine
from lakerunner_dagster.checks.standing import evaluations, results, standing_checks
from lakerunner_dagster.lake.signals import Signal
from lakerunner_dagster.lake.stages import ingest_stage
from lakerunner_dagster.resources.lake import LakeResource
from tests.lake.requests import logs, minutes
from tests.lake.world import COLLECTOR, NOON_MS, World

LOGS = ingest_stage(Signal.LOGS)


def _results(world: World) -> dict[str, dg.AssetCheckResult]:
    return {str(result.check_name): result for result in results(world.lake, LOGS)}


def test_an_empty_lake_is_fresh_and_whole(world: World) -> None:
    assert [result.passed for result in results(world.lake, LOGS)] == [True, True]


def test_a_quarantined_file_fails_its_check_until_it_is_ingested(world: World) -> None:
    world.send(Signal.LOGS, "good.binpb.gz", logs("good", minutes(NOON_MS, 2)))
    key = world.send(Signal.LOGS, "bad.binpb.gz", b"\x1f\x8b truncated")
    world.ingest(Signal.LOGS)

    failed = _results(world)[quarantine.NAME]

    assert (failed.passed, failed.severity) == (False, dg.AssetCheckSeverity.WARN)
    assert failed.metadata["quarantined"].value == 1
    (example,) = failed.metadata["the latest"].records  # type: ignore[attr-defined]
    assert (example.data["key"], example.data["state"]) == (key, "quarantined")
    (row,) = failed.metadata["sources"].records  # type: ignore[attr-defined]
    assert row.data == {"source": f"acme/{COLLECTOR}", "quarantined": 1, "missing": 0}


def test_an_object_that_waits_too_long_fails_freshness(world: World) -> None:
    world.send(Signal.LOGS, "a.binpb.gz", logs("a", minutes(NOON_MS, 2)))
    world.box(Signal.LOGS)
    assert _results(world)[freshness.NAME].passed

    world.query("UPDATE raw_objects SET pending_since = pending_since - interval '1 hour' RETURNING raw_object_id")
    late = _results(world)[freshness.NAME]
    assert not late.passed
    assert late.metadata["objects waiting"].value == 1
    assert late.metadata["oldest waiting object, seconds"].value >= 3600  # type: ignore[operator]

    world.drain(Signal.LOGS)
    assert _results(world)[freshness.NAME].passed


def test_one_signals_trouble_is_not_anothers(world: World) -> None:
    world.send(Signal.LOGS, "bad.binpb.gz", b"\x1f\x8b truncated")
    world.ingest(Signal.LOGS)
    assert all(result.passed for result in results(world.lake, ingest_stage(Signal.TRACES)))


def test_a_person_and_the_sensor_see_the_same(world: World, instance: dg.DagsterInstance) -> None:
    world.send(Signal.LOGS, "bad.binpb.gz", b"\x1f\x8b truncated")
    world.ingest(Signal.LOGS)
    job = dg.Definitions(
        assets=[stage_asset(LOGS, LOGS.assets[0])],
        asset_checks=[standing_checks(LOGS, LOGS.assets[0])],
        jobs=[dg.define_asset_job("checks", selection=dg.AssetSelection.checks(standing_checks(LOGS, LOGS.assets[0])))],
        resources={"lake": LakeResource()},
    ).resolve_job_def("checks")

    by_hand = job.execute_in_process(instance=instance).get_asset_check_evaluations()

    assert {(check.check_name, check.passed) for check in by_hand} == {
        (check.check_name, check.passed) for check in evaluations(world.lake, LOGS)
    }
