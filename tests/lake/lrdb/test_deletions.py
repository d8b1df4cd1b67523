"""The deletion protocol: an object is deleted only while nobody sees it, and nobody publishes what was deleted."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta
from itertools import permutations

import psycopg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lakerunner_dagster.lake.errors import LakeDatabaseUnavailable, SwapConflict
from lakerunner_dagster.lake.lrdb import check, deletions
from lakerunner_dagster.lake.lrdb.connection import Lrdb
from lakerunner_dagster.lake.lrdb.deletions import Deletion, Reason
from lakerunner_dagster.lake.lrdb.migrate import migrate
from lakerunner_dagster.lake.lrdb.partitions import ensure_partitions
from lakerunner_dagster.lake.model import HOUR_MS, Output, Source
from lakerunner_dagster.lake.settings import Settings
from lakerunner_dagster.lake.signals import Signal
from tests.lake.lrdb.conftest import empty
from tests.lake.lrdb.work import (
    DAY,
    NOON_MS,
    add_source,
    claim,
    do,
    ingest,
    one,
    open_box,
    output,
    publish_box,
    replace_hour,
)

PATIENT = Settings(box_attempts=1_000_000, lease_seconds=3600.0, retry_backoff_seconds=0.0)


def candidates(lrdb: Lrdb, source: Source, grace_seconds: float = 0.0) -> list[Deletion]:
    with lrdb.connection() as conn:
        return [
            found
            for signal in Signal
            for dateint in deletions.superseded_days(conn, source, signal, grace_seconds=grace_seconds)
            for found in deletions.superseded(conn, source, signal, dateint, grace_seconds=grace_seconds, limit=1000)
        ]


def intend(lrdb: Lrdb, source: Source, found: list[Deletion], grace_seconds: float = 0.0) -> list[Deletion]:
    with lrdb.transaction() as conn:
        return deletions.intend(conn, source, found, grace_seconds)


def confirm(lrdb: Lrdb, source: Source, deleted: list[Deletion]) -> None:
    with lrdb.transaction() as conn:
        deletions.confirm(conn, source, deleted)


def orphan(out: Output) -> Deletion:
    """The deletion of an object that no row knows, as its key tells it."""
    segment = out.segment
    return Deletion(segment.segment_id, segment.signal, 0, segment.dateint, segment.key, Reason.ORPHAN)


def superseded(lrdb: Lrdb, source: Source, signal: Signal = Signal.LOGS) -> tuple[Output, dict[int, int]]:
    """A segment that a rebuild has replaced, and the records of its raw objects."""
    box, first = ingest(lrdb, source, signal)
    records = {member.raw_object_id: 10 for member in box.members}
    replace_hour(lrdb, source, [output(source, records, signal)], records, signal)
    return first, records


def rows_of(lrdb: Lrdb, segment_id: int) -> tuple[int, int]:
    """How many rows of the index and how many supersessions a segment of logs has."""
    return (
        one(lrdb, "SELECT count(*) FROM log_seg WHERE segment_id = %s", segment_id),
        one(lrdb, "SELECT count(*) FROM supersessions WHERE segment_id = %s", segment_id),
    )


@pytest.mark.parametrize("signal", Signal)
def test_a_superseded_segment_has_the_key_that_its_object_has(lrdb: Lrdb, edge: Source, signal: Signal) -> None:
    first, _ = superseded(lrdb, edge, signal)
    (found,) = candidates(lrdb, edge)
    assert (found.segment_id, found.key, found.frequency_ms) == (
        first.segment.segment_id,
        first.segment.key,
        first.segment.frequency_ms,
    )
    assert intend(lrdb, edge, [found]) == [found]


def test_nothing_is_deleted_within_its_grace_period(lrdb: Lrdb, edge: Source) -> None:
    superseded(lrdb, edge)
    assert candidates(lrdb, edge, 60.0) == []
    (found,) = candidates(lrdb, edge)
    assert intend(lrdb, edge, [found], 60.0) == []


def test_what_expired_before_notes_told_is_looked_for_only_where_its_row_is_left(before_history: str) -> None:
    with Lrdb(before_history) as lrdb:
        edge = add_source(lrdb, "acme", "edge")
        ensure_partitions(lrdb, Signal.LOGS, edge.organization_id, [DAY])
        left, gone = (output(edge, {1: 10}).segment.segment_id for _ in range(2))
        do(
            lrdb,
            "INSERT INTO log_seg (organization_id, dateint, segment_id, instance_num, ts_range, record_count,"
            " file_size, published, created_by) VALUES (%s, %s, %s, %s, int8range(%s, %s), 1, 1, false, 1)",
            *(edge.organization_id, DAY, left, edge.instance_num, NOON_MS, NOON_MS + 1),
        )
        for segment_id, dateint in ((left, DAY), (gone, DAY), (gone + 1, DAY - 1)):
            do(
                lrdb,
                "INSERT INTO supersessions (organization_id, instance_num, signal, frequency_ms, dateint, segment_id,"
                " operation, run_id, replaced_by) VALUES (%s, %s, 'logs', 0, %s, %s, 'retention', 'run', '{}')",
                *(edge.organization_id, edge.instance_num, dateint, segment_id),
            )
        migrate(before_history)
        with lrdb.connection() as conn:
            assert deletions.superseded_days(conn, edge, Signal.LOGS, grace_seconds=0.0) == [DAY]
        (found,) = candidates(lrdb, edge)
        assert found.segment_id == left
        confirm(lrdb, edge, intend(lrdb, edge, [found]))
        assert candidates(lrdb, edge) == []
        assert one(lrdb, "SELECT count(*) FROM supersessions") == 3, "what has expired is known for ever"


def test_rows_go_only_with_the_confirmation_and_lineage_stays(lrdb: Lrdb, edge: Source) -> None:
    first, _ = superseded(lrdb, edge)
    segment_id = first.segment.segment_id
    intended = intend(lrdb, edge, candidates(lrdb, edge))
    assert rows_of(lrdb, segment_id) == (1, 1)
    assert candidates(lrdb, edge) == [], "what is under way is no news"
    with lrdb.connection() as conn:
        assert deletions.unconfirmed(conn, edge, 10) == intended
    confirm(lrdb, edge, intended)
    assert rows_of(lrdb, segment_id) == (0, 0)
    assert one(lrdb, "SELECT count(*) FROM lineage WHERE segment_id = %s", segment_id) > 0
    with lrdb.snapshot() as conn:
        assert check.breaches(conn) == []
        assert deletions.unconfirmed(conn, edge, 10) == []


def test_a_segment_that_is_published_again_is_not_deleted(lrdb: Lrdb, edge: Source) -> None:
    first, records = superseded(lrdb, edge)
    stale = candidates(lrdb, edge)
    replace_hour(lrdb, edge, [first], records)
    assert intend(lrdb, edge, stale) == []


def test_an_orphan_that_was_published_meanwhile_is_not_deleted(lrdb: Lrdb, edge: Source) -> None:
    out = output(edge, {1: 10})
    ensure_partitions(lrdb, Signal.LOGS, edge.organization_id, [DAY])
    assert intend(lrdb, edge, [orphan(out)]) == [orphan(out)]
    confirm(lrdb, edge, [orphan(out)])
    _, known = ingest(lrdb, edge)
    assert intend(lrdb, edge, [orphan(known)]) == []


@pytest.mark.parametrize("signal", [Signal.LOGS, Signal.METRICS])
def test_a_rebuild_that_wrote_before_the_object_was_deleted_steps_back(
    lrdb: Lrdb, edge: Source, signal: Signal
) -> None:
    first, records = superseded(lrdb, edge, signal)
    began = lrdb.clock()
    intended = intend(lrdb, edge, candidates(lrdb, edge))
    with pytest.raises(SwapConflict, match="deleted"):
        replace_hour(lrdb, edge, [first], records, signal, written_since=lrdb.clock())
    confirm(lrdb, edge, intended)
    with pytest.raises(SwapConflict, match="deleted"):
        replace_hour(lrdb, edge, [first], records, signal, written_since=began)
    again = replace_hour(lrdb, edge, [first], records, signal, written_since=lrdb.clock())
    assert again.inserted == (first.segment.segment_id,)


@pytest.mark.parametrize("signal", [Signal.LOGS, Signal.METRICS])
def test_a_retried_box_whose_orphan_is_deleted_steps_back(lrdb: Lrdb, edge: Source, signal: Signal) -> None:
    open_box(lrdb, edge, signal)
    box = claim(lrdb, edge, signal, settings=PATIENT)
    assert box is not None
    out = output(edge, {member.raw_object_id: 10 for member in box.members}, signal)
    ensure_partitions(lrdb, signal, edge.organization_id, [DAY])
    began = lrdb.clock()
    intended = intend(lrdb, edge, [orphan(out)])
    with pytest.raises(SwapConflict, match="deleted"):
        publish_box(lrdb, box, [out], written_since=began)
    confirm(lrdb, edge, intended)
    with pytest.raises(SwapConflict, match="deleted"):
        publish_box(lrdb, box, [out], written_since=began)
    publish_box(lrdb, box, [out], written_since=lrdb.clock())
    with lrdb.snapshot() as conn:
        assert check.breaches(conn) == []


def test_of_two_deleters_of_a_source_one_steps_back_and_other_sources_wait_for_nobody(lrdb: Lrdb, edge: Source) -> None:
    other = add_source(lrdb, "acme", "edge1")
    with deletions.turn(lrdb, edge) as held, deletions.turn(lrdb, edge) as refused, deletions.turn(lrdb, other) as free:
        assert held is not None
        assert refused is None
        assert free is not None
    with deletions.turn(lrdb, edge) as again:
        assert again is not None


def test_a_deleter_that_was_cut_off_from_lrdb_finds_out(lrdb: Lrdb, edge: Source, shared_url: str) -> None:
    def deletes() -> None:
        with deletions.turn(lrdb, edge) as held:
            assert held is not None
            with psycopg.connect(shared_url, autocommit=True) as server:
                server.execute("SELECT pg_terminate_backend(%s)", (held.info.backend_pid,))
            held.execute("SELECT 1")

    with pytest.raises(LakeDatabaseUnavailable):
        deletes()
    with deletions.turn(lrdb, edge) as again:
        assert again is not None


def test_only_old_confirmed_deletions_are_forgotten(lrdb: Lrdb, edge: Source) -> None:
    first, records = superseded(lrdb, edge)
    confirm(lrdb, edge, intend(lrdb, edge, candidates(lrdb, edge)))
    replace_hour(lrdb, edge, [output(edge, records)], records)
    intend(lrdb, edge, candidates(lrdb, edge))
    with lrdb.transaction() as conn:
        assert deletions.purge(conn, days=7) == 0
    do(lrdb, "UPDATE deletions SET intended_at = %s", datetime.now().astimezone() - timedelta(days=9))
    do(lrdb, "UPDATE deletions SET confirmed_at = intended_at WHERE confirmed_at IS NOT NULL")
    with lrdb.transaction() as conn:
        assert deletions.purge(conn, days=7) == 1
    assert one(lrdb, "SELECT count(*) FROM deletions WHERE segment_id = %s", first.segment.segment_id) == 0
    assert one(lrdb, "SELECT count(*) FROM deletions") == 1


class Race:
    """A store, and three that work on it at once, a step at a time, in whichever order a test says.

    ``rebuild`` publishes a superseded segment again, ``attempt`` retries a box whose first attempt left an orphan, and
    ``deleter`` is after both objects. ``kill`` ends the deleter wherever it is: another one goes on from lrdb.
    """

    def __init__(self, lrdb: Lrdb, source: Source) -> None:
        self.lrdb, self.source = lrdb, source
        self.again, self.records = superseded(lrdb, source)
        open_box(lrdb, source)
        box = claim(lrdb, source, settings=PATIENT)
        assert box is not None
        self.box = box
        records = {member.raw_object_id: 10 for member in box.members}
        self.retried = output(source, records, start_ms=NOON_MS + HOUR_MS)  # an hour that the rebuild does not touch
        self.store = {one(lrdb, "SELECT segment_id FROM log_seg WHERE published"), *self._ids()}
        self.steps = {name: getattr(self, f"_{name}")() for name in ("rebuild", "attempt", "deleter")}

    def take(self, name: str) -> None:
        """Let one of them take its next step, and look at what readers see then."""
        if name == "kill":
            self.steps["deleter"] = self._deleter()
        else:
            next(self.steps[name])
        with self.lrdb.connection() as conn:
            rows = conn.execute("SELECT segment_id FROM log_seg WHERE published").fetchall()
        assert {segment_id for (segment_id,) in rows} <= self.store, "readers see what is deleted"

    def finish(self) -> None:
        """Whatever was refused is done again, and ends well."""
        for name in ("deleter", "rebuild", "attempt"):
            for _ in range(6):
                self.take(name)
        with self.lrdb.snapshot() as conn:
            assert check.breaches(conn) == []

    def _ids(self) -> tuple[int, int]:
        return self.again.segment.segment_id, self.retried.segment.segment_id

    def _rebuild(self) -> Iterator[None]:
        def publish(began: datetime) -> None:
            replace_hour(self.lrdb, self.source, [self.again], self.records, written_since=began)

        return self._writer(self.again, publish)

    def _attempt(self) -> Iterator[None]:
        return self._writer(
            self.retried, lambda began: publish_box(self.lrdb, self.box, [self.retried], written_since=began)
        )

    def _writer(self, out: Output, publish: Callable[[datetime], object]) -> Iterator[None]:
        published = False
        while True:
            began = self.lrdb.clock()
            yield
            self.store.add(out.segment.segment_id)
            yield
            with contextlib.suppress(SwapConflict):
                if not published:
                    publish(began)
                    published = True
            yield

    def _deleter(self) -> Iterator[None]:
        while True:
            with self.lrdb.connection() as conn:
                intended = deletions.unconfirmed(conn, self.source, 10)
            if not intended:
                there = [orphan(self.retried)] if self.retried.segment.segment_id in self.store else []
                intended = intend(self.lrdb, self.source, candidates(self.lrdb, self.source) + there)
            yield
            self.store -= {deletion.segment_id for deletion in intended}
            yield
            confirm(self.lrdb, self.source, intended)
            yield


def race_in(lrdb: Lrdb, url: str) -> Race:
    empty(url)
    edge = add_source(lrdb, "acme", "edge")
    ensure_partitions(lrdb, Signal.LOGS, edge.organization_id, [DAY])
    return Race(lrdb, edge)


WRITERS = ("rebuild", "attempt")
ORDERS = sorted({*permutations(["writer"] * 3 + ["deleter"] * 3)})


@pytest.mark.parametrize("writer", WRITERS)
@pytest.mark.parametrize("order", ORDERS, ids="-".join)
def test_a_writer_and_a_deleter_in_each_order(lrdb: Lrdb, shared_url: str, order: list[str], writer: str) -> None:
    race = race_in(lrdb, shared_url)
    for name in order:
        race.take(writer if name == "writer" else name)
    race.finish()


@settings(max_examples=120, suppress_health_check=list(HealthCheck))
@given(st.permutations(["rebuild"] * 3 + ["attempt"] * 3 + ["deleter"] * 6 + ["kill"] * 2))
def test_two_writers_and_deleters_that_are_killed_in_any_order(lrdb: Lrdb, shared_url: str, order: list[str]) -> None:
    race = race_in(lrdb, shared_url)
    for name in order:
        race.take(name)
    race.finish()
