"""Quarantined files: every raw object is in segments, or else a person sees which one is not, and why.

What belongs here: the judgement of what was set aside, and how it is shown. What does not: finding it
(``lake.lrdb.quarantine``), when it is evaluated (``checks.standing``).
"""

from __future__ import annotations

from collections.abc import Sequence

import dagster as dg

from lakerunner_dagster.lake.lrdb.quarantine import SetAside
from lakerunner_dagster.lake.lrdb.status import SourceStatus
from lakerunner_dagster.tables import table

NAME = "quarantined_files"
DESCRIPTION = (
    "No raw object is quarantined or missing. `lakerunner quarantine list` shows each that is, "
    "`lakerunner quarantine retry ID` sends it round again."
)


def quarantine_result(backlog: Sequence[SourceStatus], latest: Sequence[SetAside]) -> dg.AssetCheckResult:
    """The evaluation of what a signal's sources have set aside, of which ``latest`` are examples."""
    quarantined = sum(row.quarantined for row in backlog)
    missing = sum(row.missing for row in backlog)
    affected = [row for row in backlog if row.quarantined or row.missing]
    return dg.AssetCheckResult(
        check_name=NAME,
        passed=not affected,
        severity=dg.AssetCheckSeverity.WARN,
        description=f"{quarantined} raw objects are quarantined, {missing} are missing.",
        metadata={
            "quarantined": quarantined,
            "missing": missing,
            "raw objects known": sum(row.notified for row in backlog),
            "sources": table(
                {"source": "string", "quarantined": "int", "missing": "int"},
                ((row.source, row.quarantined, row.missing) for row in affected),
            ),
            "the latest": table(
                {"id": "string", "state": "string", "why": "string", "key": "string"},
                ((item.item_id, str(item.state), item.reason, item.raw.key) for item in latest),
            ),
        },
    )
