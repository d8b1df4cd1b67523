"""The code location: what Dagster loads. It opens no connection: loading it needs no service.

What belongs here: assembling. What does not: anything else.
"""

from __future__ import annotations

import dagster as dg

from lakerunner_dagster.assets.raw import raw_asset
from lakerunner_dagster.assets.segments import stage_asset
from lakerunner_dagster.checks.standing import standing_checks
from lakerunner_dagster.instance import history
from lakerunner_dagster.jobs.drain import drain_job
from lakerunner_dagster.jobs.maintenance import history_job, maintenance_job, maintenance_schedule
from lakerunner_dagster.lake.maintenance.jobs import JOBS
from lakerunner_dagster.lake.signals import SIGNALS
from lakerunner_dagster.lake.stages import STAGES
from lakerunner_dagster.resources.lake import LakeResource
from lakerunner_dagster.sensors.boxer import boxer_sensor
from lakerunner_dagster.sensors.dispatcher import dispatcher_sensor

defs = dg.Definitions(
    assets=[
        *(raw_asset(spec) for spec in SIGNALS.values()),
        *(stage_asset(stage, asset) for stage in STAGES.values() for asset in stage.assets),
    ],
    asset_checks=[standing_checks(stage, asset) for stage in STAGES.values() for asset in stage.assets],
    jobs=[
        *(drain_job(stage) for stage in STAGES.values()),
        *(maintenance_job(job) for job in JOBS),
        history_job(),
    ],
    schedules=[
        *(maintenance_schedule(job.name, job.summary) for job in JOBS),
        maintenance_schedule(history.NAME, history.SUMMARY),
    ],
    sensors=[
        *(boxer_sensor(stage) for stage in STAGES.values()),
        *(dispatcher_sensor(stage) for stage in STAGES.values()),
    ],
    resources={"lake": LakeResource()},
    # A run is one step of one asset: a process of its own for it would cost seconds and share nothing.
    executor=dg.in_process_executor,
)
