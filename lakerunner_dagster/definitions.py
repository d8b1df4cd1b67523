"""The code location: what Dagster loads. It opens no connection: loading it needs no service.

What belongs here: assembling. What does not: anything else.
"""

from __future__ import annotations

import dagster as dg

from lakerunner_dagster.assets.raw import raw_asset
from lakerunner_dagster.assets.segments import segment_asset
from lakerunner_dagster.checks.standing import standing_checks
from lakerunner_dagster.jobs.ingest import ingest_job
from lakerunner_dagster.lake.signals import SIGNALS
from lakerunner_dagster.resources.lake import LakeResource
from lakerunner_dagster.sensors.boxer import boxer_sensor
from lakerunner_dagster.sensors.dispatcher import dispatcher_sensor

defs = dg.Definitions(
    assets=[
        *(raw_asset(spec) for spec in SIGNALS.values()),
        *(segment_asset(spec) for spec in SIGNALS.values()),
    ],
    asset_checks=[standing_checks(spec) for spec in SIGNALS.values()],
    jobs=[ingest_job(spec) for spec in SIGNALS.values()],
    sensors=[
        *(boxer_sensor(spec) for spec in SIGNALS.values()),
        *(dispatcher_sensor(spec) for spec in SIGNALS.values()),
    ],
    resources={"lake": LakeResource()},
    # A run is one step of one asset: a process of its own for it would cost seconds and share nothing.
    executor=dg.in_process_executor,
)
