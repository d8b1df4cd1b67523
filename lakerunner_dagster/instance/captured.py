"""What runs wrote to stdout and stderr, which Dagster captures and never deletes: it goes as their log does.

What belongs here: which captured output may go, where Dagster's local compute log manager keeps it. What does not: the
rows that tell of it (``history``), and how it is captured (``launcher.output``).

A captured output is a directory of three small files, ``{base}/{run id}/compute_logs``. Others keep things beside it
(Dagster's io managers do so by default), so nothing is touched whose name is no run's id.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from uuid import UUID

import dagster as dg
from dagster._core.storage.compute_log_manager import ComputeLogManager
from dagster._core.storage.dagster_run import FINISHED_STATUSES
from dagster._core.storage.local_compute_log_manager import LocalComputeLogManager
from dagster._core.storage.noop_compute_log_manager import NoOpComputeLogManager

from lakerunner_dagster.lake.maintenance.report import FAILED, Findings

GONE = "captured outputs"
LEFT_ALONE = "left alone"
_DIRECTORY = "compute_logs"


def take_captured(instance: dg.DagsterInstance, said_before: datetime, findings: Findings) -> None:
    """Delete what runs that have ended wrote before then (UTC, without a zone), or with a dry run count it.

    What another manager keeps is left alone, and named. What cannot be deleted is told as failed.
    """
    manager: ComputeLogManager[dg.DagsterInstance] = instance.compute_log_manager
    if isinstance(manager, NoOpComputeLogManager):
        return
    if not isinstance(manager, LocalComputeLogManager):
        why = "it keeps them itself: let what it keeps them in expire them, as a bucket's lifecycle rule does"
        findings.add(LEFT_ALONE, f"captured outputs of {type(manager).__name__}", why)
        return
    unfinished = [status for status in dg.DagsterRunStatus if status not in FINISHED_STATUSES]
    going = set(instance.get_run_ids(dg.RunsFilter(statuses=unfinished)))
    said_before_s = said_before.replace(tzinfo=UTC).timestamp()
    for run_id, captured in _captured(Path(manager.get_captured_local_path(["any"], "out")).parent):
        if run_id in going or _last_written(captured) >= said_before_s:
            continue
        if findings.order.dry_run or _deleted(manager, run_id, captured, findings):
            findings.count(GONE, 1)


def _captured(base: Path) -> Iterator[tuple[str, Path]]:
    """Each run's id and directory."""
    for place in sorted(base.iterdir()) if base.is_dir() else ():
        captured = place / _DIRECTORY
        if _is_run_id(place.name) and captured.is_dir():
            yield place.name, captured


def _is_run_id(name: str) -> bool:
    try:
        return str(UUID(name)) == name
    except ValueError:
        return False


def _last_written(captured: Path) -> float:
    """When the last of its files was written (epoch s); 0 where there is none: a turn was killed as it deleted them."""
    return max((file.stat().st_mtime for file in captured.iterdir()), default=0.0)


def _deleted(manager: LocalComputeLogManager, run_id: str, captured: Path, findings: Findings) -> bool:
    try:
        manager.delete_logs(prefix=[run_id, _DIRECTORY])
    except OSError as error:
        findings.add(FAILED, str(captured), f"{type(error).__name__}: {error}")
        return False
    with suppress(OSError):  # something else of the run stands beside it
        captured.parent.rmdir()
    return True
