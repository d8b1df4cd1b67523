"""The raw telemetry: what arrived in the object store, which others write and the boxer's sensor observes.

What belongs here: the external assets' specs. What does not: observing (``sensors.boxer``).
"""

from __future__ import annotations

import dagster as dg

from lakerunner_dagster.assets.conventions import OWNERS
from lakerunner_dagster.lake.signals import SignalSpec
from lakerunner_dagster.partitions import DAY_BY_SOURCE


def raw_asset(spec: SignalSpec) -> dg.AssetSpec:
    """The external asset of a signal: a partition is green once a raw object of that day and source is known."""
    return dg.AssetSpec(
        key=spec.raw_asset,
        group_name="raw",
        kinds={"otlp"},
        owners=OWNERS,
        partitions_def=DAY_BY_SOURCE,
        description=(
            f"Raw OTLP exports of {spec.signal} in the object store, as collectors write them: "
            "`otel-raw/{organization}/{collector}/…`. The boxer's sensor reports each day and source as it hears "
            f"of new objects on the topic `{spec.notification_topic}`."
        ),
        metadata={"topic of notifications": spec.notification_topic, "a record is": f"one {spec.record}"},
    )
