"""Freshness: no raw object waits longer than it may to become queryable.

What belongs here: judging the backlog, and how it is shown. What does not: counting (``lake.lrdb.status``), the
bound (``lake.settings``), when it is evaluated (``checks.standing``).
"""

from __future__ import annotations

from collections.abc import Sequence

import dagster as dg

from lakerunner_dagster.lake.lrdb.status import SourceStatus
from lakerunner_dagster.tables import table

NAME = "freshness"
DESCRIPTION = (
    "No raw object of any source has waited longer than LAKERUNNER_FRESHNESS_SECONDS to become queryable. "
    "What waits in a failed box counts: materialising its partition tries it again."
)


def freshness_result(backlog: Sequence[SourceStatus], bound_seconds: float) -> dg.AssetCheckResult:
    """The evaluation of a signal's backlog, which has a row for each source."""
    ranked = sorted(backlog, key=lambda row: -(row.oldest_seconds or 0))
    late = [row for row in ranked if (row.oldest_seconds or 0) > bound_seconds]
    return dg.AssetCheckResult(
        check_name=NAME,
        passed=not late,
        severity=dg.AssetCheckSeverity.ERROR,
        description=f"{len(late)} of {len(backlog)} sources are late." if late else "No source is late.",
        metadata={
            "oldest waiting object, seconds": _rounded(ranked[0].oldest_seconds) if ranked else 0.0,
            "bound, seconds": bound_seconds,
            "objects waiting": sum(row.pending + row.boxed for row in backlog),
            "failed boxes": sum(row.boxes_failed for row in backlog),
            "sources, longest wait first": table(
                {
                    "source": "string",
                    "oldest wait, s": "float",
                    "objects waiting": "int",
                    "failed boxes": "int",
                    "median delay, s": "float",
                    "95 % delay, s": "float",
                },
                (
                    (
                        row.source,
                        _rounded(row.oldest_seconds),
                        row.pending + row.boxed,
                        row.boxes_failed,
                        _rounded(row.p50_seconds),
                        _rounded(row.p95_seconds),
                    )
                    for row in ranked
                ),
            ),
        },
    )


def _rounded(seconds: float | None) -> float:
    return round(seconds or 0.0, 1)
