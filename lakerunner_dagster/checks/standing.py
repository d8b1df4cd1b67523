"""The standing checks: those that look at all of a signal, whatever ran last.

What belongs here: evaluating them on lrdb, for a person's click and for the boxer's sensor. What does not: judging
(``checks.freshness``, ``checks.quarantine``).

They are not part of ingest runs: a lake that stands still has no runs, and is late all the same.
"""

from __future__ import annotations

from collections.abc import Iterator

import dagster as dg

from lakerunner_dagster.checks import freshness, quarantine
from lakerunner_dagster.lake.lrdb.boxes import ingest_stage
from lakerunner_dagster.lake.lrdb.profiles import organizations
from lakerunner_dagster.lake.lrdb.quarantine import SetAside, set_aside
from lakerunner_dagster.lake.lrdb.status import status
from lakerunner_dagster.lake.model import RawState
from lakerunner_dagster.lake.runs.context import Lake
from lakerunner_dagster.lake.signals import SignalSpec
from lakerunner_dagster.resources.lake import LakeResource

EXAMPLES = 20
"""Latest objects set aside that are looked at, for each organization."""


def standing_checks(spec: SignalSpec) -> dg.AssetChecksDefinition:
    """The standing checks of a signal's segments, as a person runs them."""

    @dg.multi_asset_check(
        name=f"{spec.segment_asset}_standing_checks",
        specs=[
            dg.AssetCheckSpec(freshness.NAME, asset=spec.segment_asset, description=freshness.DESCRIPTION),
            dg.AssetCheckSpec(quarantine.NAME, asset=spec.segment_asset, description=quarantine.DESCRIPTION),
        ],
    )
    def checks(lake: LakeResource) -> Iterator[dg.AssetCheckResult]:
        with lake.open() as opened:
            yield from results(opened, spec)

    return checks


def results(lake: Lake, spec: SignalSpec) -> list[dg.AssetCheckResult]:
    """The standing checks of a signal, evaluated now."""
    with lake.lrdb.snapshot() as conn:
        backlog = [row for row in status(conn) if row.stage == ingest_stage(spec.signal)]
        latest = [
            item
            for organization in organizations(conn)
            for item in set_aside(conn, organization.organization_id, EXAMPLES)
            if _is_out(item, spec)
        ]
    return [
        freshness.freshness_result(backlog, lake.settings.freshness_seconds),
        quarantine.quarantine_result(backlog, latest),
    ]


def evaluations(lake: Lake, spec: SignalSpec) -> list[dg.AssetCheckEvaluation]:
    """The same as events that need no run."""
    return [
        dg.AssetCheckEvaluation(
            asset_key=dg.AssetKey(spec.segment_asset),
            check_name=result.check_name or "",
            passed=result.passed,
            severity=result.severity,
            description=result.description,
            metadata=result.metadata,
        )
        for result in results(lake, spec)
    ]


def _is_out(item: SetAside, spec: SignalSpec) -> bool:
    """Whether the object itself is set aside, not only some of its records."""
    return item.raw.signal is spec.signal and item.state in {RawState.QUARANTINED, RawState.MISSING}
