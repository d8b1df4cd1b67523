"""The jobs that dispatchers start, one for each stage.

What belongs here: what such a run consists of. What does not: the work (``assets.segments``).
"""

from __future__ import annotations

import dagster as dg
from dagster._core.definitions.unresolved_asset_job_definition import UnresolvedAssetJobDefinition

from lakerunner_dagster.checks import conservation
from lakerunner_dagster.lake.stages import Stage


def drain_job(stage: Stage) -> UnresolvedAssetJobDefinition:
    """The job of a stage: its assets and the check within each, none of those that look at the whole lake."""
    assets = [dg.AssetKey(asset.name) for asset in stage.assets]
    return dg.define_asset_job(
        stage.job,
        selection=dg.AssetSelection.assets(*assets).without_checks()
        | dg.AssetSelection.checks(*(dg.AssetCheckKey(asset, conservation.NAME) for asset in assets)),
        description=f"Started by the dispatcher of {stage.name}, a run drains the boxes that wait for its partition; "
        "started by a person, it does the partition's day anew, as a whole.",
    )
