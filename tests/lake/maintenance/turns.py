"""Turns of maintenance in a test's lake: at once, or when a test says that it is."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import UUID

from lakerunner_dagster.lake.errors import LakeError, StoreUnavailable
from lakerunner_dagster.lake.lrdb import profiles
from lakerunner_dagster.lake.maintenance.jobs import JOBS
from lakerunner_dagster.lake.maintenance.report import Order, Report
from lakerunner_dagster.lake.model import HOUR_MS, Source, dateint_of
from lakerunner_dagster.lake.runs.context import Lake
from lakerunner_dagster.lake.runs.rebuild import rebuild
from lakerunner_dagster.lake.settings import MaintenancePolicy
from lakerunner_dagster.lake.signals import Signal
from lakerunner_dagster.lake.store import Store
from tests.lake.world import BUCKET, NOON_MS, World

DAY_MS = 24 * HOUR_MS
LATER_MS = NOON_MS + 100 * DAY_MS
"""When maintenance comes: long after every raw object of a test was stored, and before its segments seem to be."""

AT_ONCE = MaintenancePolicy(grace_seconds=0.0, look_back_hours=24.0 * 200, overdue_seconds=0.0)
"""Nothing has to wait, but orphans: what has just been written is a day old by no clock."""


def turn(
    lake: Lake, name: str, *, dry_run: bool = False, now_ms: int = LATER_MS, policy: MaintenancePolicy = AT_ONCE
) -> Report:
    """One turn of a job."""
    (job,) = [job for job in JOBS if job.name == name]
    return job.run(lake, policy, Order(dry_run=dry_run, now_ms=now_ms))


def rebuild_day(world: World, signal: Signal = Signal.LOGS, noon_ms: int = NOON_MS) -> None:
    """Materialise a day."""
    rebuild(world.lake, signal, world.source, dateint_of(noon_ms), run_id="rebuild", on_step=lambda _: None)


def old_object(world: World, key: str, data: bytes = b"x", modified_ms: int = NOON_MS) -> Path:
    """An object that has been there for long."""
    path = world.place.bucket / key
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    os.utime(path, (modified_ms / 1000, modified_ms / 1000))
    return path


def subjects(report: Report, outcome: str) -> list[str]:
    """What had this outcome."""
    return [item.subject for item in report.items if item.outcome == outcome]


def keys_of(paths: list[Path], world: World) -> set[str]:
    """Object keys of files of the bucket."""
    return {str(path.relative_to(world.place.bucket)) for path in paths}


TABLES: tuple[str, ...] = (
    *("log_seg", "metric_seg", "trace_seg", "supersessions", "deletions", "segment_faults", "raw_objects", "boxes"),
    "box_totals",
    *("outbox", "dead_letters", "organization_buckets", "ledger", "lineage"),
)


def everything(world: World) -> tuple[Any, ...]:
    """Every table, every leaf and every object: what a dry run may not change."""
    rows = [sorted(map(str, world.query(f"SELECT * FROM {table}"))) for table in TABLES]
    leaves = world.query("SELECT relname FROM pg_class WHERE relispartition AND relkind IN ('r', 'p') ORDER BY 1")
    files = sorted((str(path), path.stat().st_mtime_ns) for path in world.place.bucket.rglob("*") if path.is_file())
    return rows, leaves, files


def add_source(world: World, organization: str, organization_id: UUID, collector: str) -> Source:
    """Another source in the same bucket."""
    with world.lake.lrdb.transaction() as conn:
        if profiles.organization_named(conn, organization) is None:
            profiles.add_organization(conn, organization, organization_id)
        return profiles.register_source(conn, organization_id, collector, BUCKET, limit=10)


class StubbornStore(Store):
    """A bucket that refuses to delete some keys."""

    refused: frozenset[str] = frozenset()

    def delete(self, keys: Any) -> dict[str, LakeError | None]:
        gone = super().delete([key for key in keys if key not in self.refused])
        return gone | {key: StoreUnavailable(f"{key}: no answer") for key in keys if key in self.refused}


@contextmanager
def refusing(world: World, keys: set[str]) -> Iterator[None]:
    """The lake's bucket refuses to delete these."""
    store = world.lake.stores.of(BUCKET)
    store.__class__, before = StubbornStore, store.__class__
    store.refused = frozenset(keys)  # type: ignore[attr-defined]
    try:
        yield
    finally:
        store.__class__ = before
