"""The standing checks: those that look at all of a stage, whatever ran last.

What belongs here: which there are, and evaluating them on lrdb, for a person's click and for the boxer's sensor. What
does not: judging (``checks.freshness``, ``checks.quarantine``, ``checks.debt``).

They are not part of a stage's runs: a lake that stands still has no runs, and is late all the same.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from types import MappingProxyType

import dagster as dg

from lakerunner_dagster.checks import coverage, debt, freshness, quarantine
from lakerunner_dagster.lake.lrdb import coverage as tiers
from lakerunner_dagster.lake.lrdb import debt as owed
from lakerunner_dagster.lake.lrdb.profiles import organizations
from lakerunner_dagster.lake.lrdb.quarantine import SetAside, set_aside
from lakerunner_dagster.lake.lrdb.status import status
from lakerunner_dagster.lake.model import RawState, dateint_of
from lakerunner_dagster.lake.runs.context import Lake
from lakerunner_dagster.lake.stages import Operation, Stage, StageAsset
from lakerunner_dagster.lake.tiers import TIERS
from lakerunner_dagster.resources.lake import LakeResource

EXAMPLES = 20
"""Latest objects set aside that are looked at, for each organization."""

_DESCRIPTIONS: Mapping[Operation, Mapping[str, str]] = MappingProxyType(
    {
        Operation.INGEST: {freshness.NAME: freshness.DESCRIPTION, quarantine.NAME: quarantine.DESCRIPTION},
        Operation.ROLLUP: {coverage.NAME: coverage.DESCRIPTION},
        Operation.COMPACT: {debt.NAME: debt.DESCRIPTION},
    }
)
"""The checks of a stage's asset, by name."""


def standing_checks(stage: Stage, asset: StageAsset) -> dg.AssetChecksDefinition:
    """The standing checks of an asset of a stage, as a person runs them."""

    @dg.multi_asset_check(
        name=f"{asset.name}_standing_checks",
        specs=[
            dg.AssetCheckSpec(name, asset=asset.name, description=description)
            for name, description in _DESCRIPTIONS[stage.operation].items()
        ],
    )
    def checks(lake: LakeResource) -> Iterator[dg.AssetCheckResult]:
        own = dg.AssetKey(asset.name)
        with lake.open() as opened:
            yield from (result for result in results(opened, stage) if result.asset_key in {None, own})

    return checks


def results(lake: Lake, stage: Stage) -> list[dg.AssetCheckResult]:
    """The standing checks of a stage's assets, evaluated now."""
    return _EVALUATE[stage.operation](lake, stage)


def _of_ingest(lake: Lake, stage: Stage) -> list[dg.AssetCheckResult]:
    with lake.lrdb.snapshot() as conn:
        backlog = [row for row in status(conn) if row.stage == stage.name]
        latest = [
            item
            for organization in organizations(conn)
            for item in set_aside(conn, organization.organization_id, EXAMPLES)
            if _is_out(item, stage)
        ]
    return [
        freshness.freshness_result(backlog, lake.settings.freshness_seconds),
        quarantine.quarantine_result(backlog, latest),
    ]


def _of_rollup(lake: Lake, stage: Stage) -> list[dg.AssetCheckResult]:
    since = dateint_of(time.time_ns() // 1_000_000 - tiers.LOOK_BACK_MS)
    with lake.lrdb.snapshot() as conn:
        rows = tiers.coverage(conn, since)
    return [
        coverage.coverage_result(
            asset.name,
            [row for row in rows if row.frequency_ms == asset.frequency_ms],
            lake.rollup.gather_seconds(TIERS[asset.frequency_ms or 0].label),
        )
        for asset in stage.assets
    ]


def _of_compaction(lake: Lake, stage: Stage) -> list[dg.AssetCheckResult]:
    with lake.lrdb.snapshot() as conn:
        debts = owed.debt(conn, stage.signal, lake.compaction, time.time_ns() // 1_000_000)
    return [debt.debt_result(debts)]


_EVALUATE: Mapping[Operation, Callable[[Lake, Stage], list[dg.AssetCheckResult]]] = MappingProxyType(
    {Operation.INGEST: _of_ingest, Operation.ROLLUP: _of_rollup, Operation.COMPACT: _of_compaction}
)


def evaluations(lake: Lake, stage: Stage) -> list[dg.AssetCheckEvaluation]:
    """The same as events that need no run."""
    return [
        dg.AssetCheckEvaluation(
            asset_key=result.asset_key or dg.AssetKey(stage.assets[0].name),
            check_name=result.check_name or "",
            passed=result.passed,
            severity=result.severity,
            description=result.description,
            metadata=result.metadata,
        )
        for result in results(lake, stage)
    ]


def _is_out(item: SetAside, stage: Stage) -> bool:
    """Whether the object itself is set aside, not only some of its records."""
    return item.raw.signal is stage.signal and item.state in {RawState.QUARANTINED, RawState.MISSING}
