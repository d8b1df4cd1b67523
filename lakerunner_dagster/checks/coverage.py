"""Tier coverage: every tier has what the finer one has, so that no chart is blank at any zoom.

What belongs here: judging the coverage of a tier, and how it is shown. What does not: counting it
(``lake.lrdb.coverage``), when it is evaluated (``checks.standing``).
"""

from __future__ import annotations

from collections.abc import Sequence

import dagster as dg

from lakerunner_dagster.lake.lrdb.coverage import TierCoverage
from lakerunner_dagster.tables import table

NAME = "tier_coverage"
OVERDUE_SECONDS = 1800.0
"""A dirty slot may wait so long beyond the time for which changes gather."""

DESCRIPTION = (
    "Every hour of the tier stands for as many points as the same hour of the finer tier, or is on its way to: its "
    f"slots are marked, and none waits more than {OVERDUE_SECONDS / 60:.0f} min longer than changes gather "
    "(LAKERUNNER_ROLLUP_GATHER_*). `lakerunner status` shows the same."
)


def coverage_result(asset: str, rows: Sequence[TierCoverage], gather_seconds: float) -> dg.AssetCheckResult:
    """The evaluation of the tier of an asset, which has a row for each source."""
    bound = gather_seconds + OVERDUE_SECONDS
    behind = [row for row in rows if row.holes or row.boxes_failed or (row.oldest_seconds or 0.0) > bound]
    return dg.AssetCheckResult(
        asset_key=dg.AssetKey(asset),
        check_name=NAME,
        passed=not behind,
        severity=dg.AssetCheckSeverity.WARN,
        description=f"{len(behind)} of {len(rows)} sources are behind." if behind else "Up to date.",
        metadata={
            "slots that wait": sum(row.dirty for row in rows),
            "hours with a hole": sum(row.holes for row in rows),
            "sources, longest wait first": table(
                {
                    "source": "string",
                    "slots that wait": "int",
                    "longest wait, s": "string",
                    "hours with a hole": "int",
                    "failed boxes": "int",
                    "bytes read for each byte of the finer tier": "string",
                },
                (
                    (
                        row.source,
                        row.dirty,
                        "" if row.oldest_seconds is None else f"{row.oldest_seconds:.0f}",
                        row.holes,
                        row.boxes_failed,
                        "" if row.amplification is None else f"{row.amplification:.1f}",
                    )
                    for row in sorted(rows, key=lambda row: (-(row.oldest_seconds or 0.0), row.source))
                ),
            ),
        },
    )
