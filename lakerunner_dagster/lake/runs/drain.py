"""The draining run: claims the boxes of a stage that wait for a partition, one by one, and works them off.

What belongs here: claiming boxes and giving back those that fail. What does not: the work on one box (``attempt``,
``rollup``, ``compaction``), what the transactions that end it do (``lrdb``).
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from math import inf
from types import MappingProxyType

from lakerunner_dagster.lake.errors import (
    LakeDatabaseUnavailable,
    LeaseLost,
    StoreDenied,
    StoreUnavailable,
    WorkIncomplete,
)
from lakerunner_dagster.lake.lrdb import boxes
from lakerunner_dagster.lake.model import ClaimedBox, Source
from lakerunner_dagster.lake.runs.attempt import ingest
from lakerunner_dagster.lake.runs.compaction import compact_box
from lakerunner_dagster.lake.runs.context import Lake
from lakerunner_dagster.lake.runs.report import DrainReport, Failure, OnStep, Step
from lakerunner_dagster.lake.runs.rollup import roll_up_box
from lakerunner_dagster.lake.stages import Operation, Stage
from lakerunner_dagster.lake.ticks.outbox import announce

logger = logging.getLogger(__name__)

LONGEST_BACKOFF_SECONDS = 3600.0
"""Longest wait between two attempts at a box."""

OUTAGES = (StoreUnavailable, StoreDenied, LakeDatabaseUnavailable)
"""What the next box would meet too: the run ends, and spends no attempt of the boxes behind."""

_WORK: Mapping[Operation, Callable[[Lake, ClaimedBox, OnStep], None]] = MappingProxyType(
    {Operation.INGEST: ingest, Operation.ROLLUP: roll_up_box, Operation.COMPACT: compact_box}
)
"""What is done with a claimed box: each committed step is told, and the box has ended when it returns."""


def drain(
    lake: Lake,
    stage: Stage,
    source: Source,
    dateint: int,
    *,
    run_id: str,
    on_step: OnStep,
    frequency_ms: int | None = None,
    seconds: float = inf,
) -> DrainReport:
    """Work off every box of the stage (of one tier, where it is named) that waits for (source, dateint).

    After ``seconds`` the box at hand is the last, and those that are left call for another run at once: a backlog that
    grows as fast as it is worked off would have no end, and its run would give no other a place.
    A box that cannot be done is given back with its error and a back-off, and the run goes on with the next.
    Raises WorkIncomplete at the end when any box was given back.
    """
    report = work_off(
        lake, stage, source, dateint, run_id=run_id, on_step=on_step, frequency_ms=frequency_ms, seconds=seconds
    )
    require_complete(source, dateint, report.failures)
    return report


def require_complete(source: Source, dateint: int, failures: Sequence[Failure]) -> None:
    """Raise WorkIncomplete, listing what was not done, unless all was."""
    if failures:
        listed = "\n".join(f"- {failure.what}: {failure.error_class}: {failure.error_text}" for failure in failures)
        raise WorkIncomplete(f"{source.key} {dateint}: {len(failures)} steps of the run were not done:\n{listed}")


def work_off(
    lake: Lake,
    stage: Stage,
    source: Source,
    dateint: int,
    *,
    run_id: str,
    on_step: OnStep,
    frequency_ms: int | None = None,
    seconds: float = inf,
) -> DrainReport:
    """As ``drain``, with what was not done in the report alone."""
    lake.bus.connect()  # what the first box has to announce shall not wait for it
    over_at = time.monotonic() + seconds
    steps: list[Step] = []
    failures: list[Failure] = []

    def committed(step: Step) -> None:
        steps.append(step)
        announce(lake.lrdb, lake.bus)
        on_step(step)

    while True:
        with lake.lrdb.transaction() as conn:
            box = boxes.claim(
                conn,
                stage.name,
                source,
                dateint,
                run_id=run_id,
                settings=lake.settings,
                frequency_ms=frequency_ms,
            )
        if box is None:
            break
        try:
            _WORK[stage.operation](lake, box, committed)
        except Exception as error:  # noqa: BLE001  # whatever ails this box, the boxes behind it are to be done
            _give_back(lake, box, error)
            failures.append(Failure(f"box {box.lease.box_id}", type(error).__name__, str(error)))
            if isinstance(error, OUTAGES):
                break
        except BaseException as stop:
            _give_back(lake, box, stop)
            raise
        if time.monotonic() >= over_at:
            with lake.lrdb.transaction() as conn:
                boxes.recall(conn, stage.name, source, dateint, frequency_ms=frequency_ms)
            break
    return DrainReport(tuple(steps), tuple(failures))


def _give_back(lake: Lake, box: ClaimedBox, error: BaseException) -> None:
    """Release a box that was not done, to be claimed again after its back-off.

    Where that fails too, the lease is another run's already, or will expire: the box is found again either way.
    """
    backoff = min(lake.settings.retry_backoff_seconds * 2 ** (box.lease.attempt - 1), LONGEST_BACKOFF_SECONDS)
    logger.warning("box %d is given back after attempt %d: %s", box.lease.box_id, box.lease.attempt, error)
    with contextlib.suppress(LeaseLost, LakeDatabaseUnavailable), lake.lrdb.transaction() as conn:
        boxes.release(conn, box.lease, type(error).__name__, str(error), backoff)
