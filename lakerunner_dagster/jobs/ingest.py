"""The ingest jobs: what a dispatcher starts, one for each signal.

What belongs here: what such a run consists of. What does not: the work (``assets.segments``).
"""

from __future__ import annotations

import dagster as dg
from dagster._core.definitions.unresolved_asset_job_definition import UnresolvedAssetJobDefinition

from lakerunner_dagster.checks import conservation
from lakerunner_dagster.lake.signals import SignalSpec


def ingest_job_name(spec: SignalSpec) -> str:
    """Name of the job that ingests a signal."""
    return f"ingest_{spec.signal}"


def ingest_job(spec: SignalSpec) -> UnresolvedAssetJobDefinition:
    """The job that ingests a signal: its asset and the check within, none of those that look at the whole lake."""
    asset = dg.AssetKey(spec.segment_asset)
    return dg.define_asset_job(
        ingest_job_name(spec),
        selection=dg.AssetSelection.assets(asset).without_checks()
        | dg.AssetSelection.checks(dg.AssetCheckKey(asset, conservation.NAME)),
        description=f"Started by the {spec.signal} dispatcher, a run drains the boxes that wait for its partition; "
        "started by a person, it rebuilds the partition's day.",
    )
