"""Conservation: every record that a run read is in a segment, rejected with a reason, or another hour's.

What belongs here: the check's spec and its result from a run's steps. What does not: the enforcement. Each transaction
asserts this for itself before it publishes (``lake.lrdb.publish``); the check shows the sums, and why a run stopped.
"""

from __future__ import annotations

from collections.abc import Sequence

import dagster as dg

from lakerunner_dagster.lake.errors import ConservationBreach
from lakerunner_dagster.lake.runs.report import Step
from lakerunner_dagster.lake.stages import StageAsset

NAME = "conservation"


def conservation_spec(asset: StageAsset) -> dg.AssetCheckSpec:
    """The check of a stage's segments; what is downstream waits for it to pass."""
    return dg.AssetCheckSpec(
        NAME,
        asset=asset.name,
        blocking=True,
        description="Records read = records written + records rejected by reason + records of other hours, in each "
        "transaction of the run.",
    )


def conservation_result(steps: Sequence[Step], errors: Sequence[Exception]) -> dg.AssetCheckResult:
    """The evaluation for a run that did these steps and met these errors."""
    lost = [step.records_read - step.records_written - sum(step.rejected.values()) - step.elsewhere for step in steps]
    # A run names the error class of each step that it gave up: the breach of one is in the sum of all.
    breaches = [str(error) for error in errors if ConservationBreach.__name__ in f"{type(error).__name__} {error}"]
    return dg.AssetCheckResult(
        check_name=NAME,
        passed=not any(lost) and not breaches,
        metadata={
            "records read": sum(step.records_read for step in steps),
            "records written": sum(step.records_written for step in steps),
            "records rejected": sum(sum(step.rejected.values()) for step in steps),
            "records of other hours": sum(step.elsewhere for step in steps),
            "records unaccounted for": sum(lost),
            "transactions": len(steps),
            "transactions that do not add up": sum(1 for records in lost if records),
            "breaches that stopped a transaction": dg.MetadataValue.md("\n\n".join(breaches) or "none"),
        },
    )
