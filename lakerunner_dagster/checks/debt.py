"""Small-file debt: compaction keeps up, and no query has to read more segments than it must.

What belongs here: judging the debt, and how it is shown. What does not: counting it (``lake.lrdb.debt``), when it is
evaluated (``checks.standing``).
"""

from __future__ import annotations

from collections.abc import Sequence

import dagster as dg

from lakerunner_dagster.lake.lrdb.debt import SourceDebt
from lakerunner_dagster.tables import table

NAME = "small_file_debt"
DESCRIPTION = (
    "Every hour is merged down to its final files within an hour of turning cold, no box of compaction has failed, and "
    "no segment is set aside as unreadable. `lakerunner status` shows the same."
)


def debt_result(debts: Sequence[SourceDebt]) -> dg.AssetCheckResult:
    """The evaluation of a signal's debt, which has a row for each source that owes anything."""
    behind = [row for row in debts if row.overdue or row.boxes_failed or row.aside]
    return dg.AssetCheckResult(
        check_name=NAME,
        passed=not behind,
        severity=dg.AssetCheckSeverity.WARN,
        description=f"{len(behind)} of {len(debts)} sources with small files are behind." if behind else "Up to date.",
        metadata={
            "segments below target": sum(row.segments for row in debts),
            "bytes below target": sum(row.bytes for row in debts),
            "merges to come": sum(row.merges for row in debts),
            "sources, most merges first": table(
                {
                    "source": "string",
                    "hours not settled": "int",
                    "of them overdue": "int",
                    "segments below target": "int",
                    "bytes below target": "int",
                    "merges to come": "int",
                    "seconds of work to drain": "string",
                    "segments set aside": "int",
                    "failed boxes": "int",
                },
                (
                    (
                        row.source,
                        row.hours,
                        row.overdue,
                        row.segments,
                        row.bytes,
                        row.merges,
                        "nothing merged lately" if row.drain_seconds is None else f"{row.drain_seconds:.0f}",
                        row.aside,
                        row.boxes_failed,
                    )
                    for row in sorted(debts, key=lambda row: (-row.merges, row.source))
                ),
            ),
        },
    )
