"""Tier coverage: what a tier lacks is a warning once it should have been computed, and never before."""

from __future__ import annotations

import dagster as dg

from lakerunner_dagster.checks import coverage
from lakerunner_dagster.checks.standing import results
from lakerunner_dagster.lake.signals import Signal
from lakerunner_dagster.lake.stages import rollup_stage
from lakerunner_dagster.lake.tiers import TIERS
from tests.lake.requests import gauges
from tests.lake.world import World, now_ms

STAGE = rollup_stage()


def _ingest(world: World) -> None:
    start_ms = now_ms() // 10_000 * 10_000 - 60_000
    data = gauges("queue.length", [start_ms, start_ms + 10_000])
    world.send(Signal.METRICS, "a", data, event_time_ms=start_ms)
    world.ingest(Signal.METRICS)


def _checks(world: World) -> dict[str, dg.AssetCheckResult]:
    found = results(world.lake, STAGE)
    assert {result.check_name for result in found} == {coverage.NAME}
    return {result.asset_key.to_user_string(): result for result in found if result.asset_key}


def test_each_tier_has_its_own_evaluation(world: World) -> None:
    assert {name: result.passed for name, result in _checks(world).items()} == {
        tier.asset: True for tier in TIERS.values()
    }


def test_a_slot_that_waits_too_long_is_a_warning_until_it_is_computed(world: World) -> None:
    _ingest(world)
    assert _checks(world)["metric_rollup_1m"].passed
    world.query("UPDATE dirty_slots SET dirty_at = now() - interval '1 day' RETURNING slot_ms")
    late = _checks(world)["metric_rollup_1m"]
    assert (late.passed, late.severity) == (False, dg.AssetCheckSeverity.WARN)
    assert late.metadata["slots that wait"].value == 1
    world.roll_up()
    assert all(result.passed for result in _checks(world).values())


def test_a_hole_is_a_warning_on_the_tier_that_has_it(world: World) -> None:
    _ingest(world)
    world.roll_up()
    world.query("DELETE FROM metric_seg WHERE frequency_ms = 3600000 RETURNING segment_id")
    passed = {name: result.passed for name, result in _checks(world).items()}
    assert passed.pop("metric_rollup_1h") is False
    assert all(passed.values())
