"""What a statement locks does not grow with the days that a lake has: the lock table of PostgreSQL is small."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from typing import Any, cast

import pytest

from lakerunner_dagster.lake.lrdb import deletions, expiry, profiles, standing
from lakerunner_dagster.lake.lrdb.connection import Conn, Lrdb
from lakerunner_dagster.lake.lrdb.partitions import DAYS_AT_ONCE, ensure_partitions
from lakerunner_dagster.lake.maintenance.sources import stale_keys
from lakerunner_dagster.lake.model import HOUR_MS, Source, date_of
from lakerunner_dagster.lake.signals import Signal
from tests.lake.lrdb.work import DAY, NOON_MS, add_source, ingest, output, replace_hour

DAYS = 3 * DAYS_AT_ONCE
A_DAY = 9
"""A leaf of metrics and its indexes."""

HELD = """
    SELECT count(*) FROM pg_locks l JOIN pg_class c ON c.oid = l.relation
    WHERE l.pid = pg_backend_pid() AND c.relname LIKE '%_seg_%'
"""


class Watched:
    """A connection in which each statement commits by itself; ``most`` is what any of them has locked of segments."""

    def __init__(self, conn: Conn) -> None:
        self._conn = conn
        self.most = 0

    def execute(self, *arguments: Any) -> Any:
        with self._conn.transaction():
            cursor = self._conn.execute(*arguments)
            (held,) = self._conn.execute(HELD).fetchone() or (0,)
        self.most = max(self.most, held)
        return cursor

    def cursor(self, **rest: Any) -> Any:
        return self._conn.cursor(**rest)


@pytest.fixture(scope="module")
def old(postgres: Any, migrated_template: str) -> Iterator[tuple[Lrdb, Source]]:
    """A lrdb with many days of metrics; what was published on two of them was superseded."""
    with Lrdb(postgres.create_database(template=migrated_template)) as lrdb:
        edge = add_source(lrdb, "acme", "edge")
        first = date_of(DAY)
        days = [int((first + timedelta(days=n)).strftime("%Y%m%d")) for n in range(DAYS)]
        ensure_partitions(lrdb, Signal.METRICS, edge.organization_id, days)
        box, _ = ingest(lrdb, edge, Signal.METRICS)
        records = {member.raw_object_id: 10 for member in box.members}
        for start_ms in (NOON_MS, NOON_MS + 48 * HOUR_MS):
            for _ in range(2):
                again = output(edge, records, Signal.METRICS, start_ms=start_ms)
                replace_hour(lrdb, edge, [again], records, Signal.METRICS, start_ms=start_ms)
        yield lrdb, edge


@pytest.fixture
def watched(old: tuple[Lrdb, Source]) -> Iterator[Watched]:
    with old[0].connection() as conn:
        yield Watched(conn)


def test_locking_every_day_would_be_noticed(old: tuple[Lrdb, Source], watched: Watched) -> None:
    watched.execute("SELECT count(*) FROM metric_seg WHERE organization_id = %s", [old[1].organization_id])
    assert watched.most > DAYS * A_DAY


def test_finding_what_was_superseded_locks_one_day(old: tuple[Lrdb, Source], watched: Watched) -> None:
    conn, edge = cast("Conn", watched), old[1]
    days = deletions.superseded_days(conn, edge, Signal.METRICS, grace_seconds=0.0)
    assert days == [DAY, DAY + 2]
    found = [
        len(deletions.superseded(conn, edge, Signal.METRICS, dateint, grace_seconds=0.0, limit=100)) for dateint in days
    ]
    assert found == [2, 1]
    assert deletions.superseded_days(conn, edge, Signal.METRICS, grace_seconds=3600.0) == []
    assert watched.most < 3 * A_DAY


def test_what_readers_see_of_objects_is_told_with_the_locks_of_their_days(
    old: tuple[Lrdb, Source], watched: Watched
) -> None:
    conn, edge = cast("Conn", watched), old[1]
    (raw,) = conn.execute("SELECT min(raw_object_id) FROM raw_objects").fetchone() or (0,)
    seen = standing.records_by_hour(conn, edge, Signal.METRICS, [raw])
    assert seen[raw] == {standing.Hour(DAY, 12): 10, standing.Hour(DAY + 2, 12): 10}
    assert watched.most < 4 * A_DAY


def test_looking_at_every_day_locks_some_at_once(old: tuple[Lrdb, Source], watched: Watched) -> None:
    conn, edge = cast("Conn", watched), old[1]
    days = expiry.published_days(conn, edge.organization_id, Signal.METRICS, 99_991_231)
    assert [(day.dateint, day.segments) for day in days] == [(DAY, 1), (DAY + 2, 1)]
    assert profiles.bucket_use(conn, edge.bucket).segments == 2
    conn.execute("UPDATE organizations SET enabled = false")
    assert stale_keys(conn, [edge.key]) == {}
    assert watched.most < (DAYS_AT_ONCE + 2) * A_DAY
