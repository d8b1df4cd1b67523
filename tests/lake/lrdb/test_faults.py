"""Segments that cannot be read are remembered, left alone for a while, and forgotten once nobody sees them."""

from __future__ import annotations

import pytest

from lakerunner_dagster.lake.errors import RequestRefused
from lakerunner_dagster.lake.lrdb import faults, quarantine
from lakerunner_dagster.lake.lrdb.connection import Lrdb
from lakerunner_dagster.lake.lrdb.faults import LONGEST_RETRY_SECONDS, Fault
from lakerunner_dagster.lake.model import Segment, Source
from lakerunner_dagster.lake.signals import Signal
from tests.lake.lrdb.work import DAY, add_source, do, ingest, one, output, replace_hour


def mark(lrdb: Lrdb, segment: Segment, retry_seconds: float = 60.0) -> None:
    with lrdb.transaction() as conn:
        faults.mark(conn, segment, "object_missing", "it is not in the store", retry_seconds)


def waiting(lrdb: Lrdb, source: Source, signal: Signal = Signal.LOGS, dateint: int = DAY) -> set[int]:
    with lrdb.connection() as conn:
        return faults.waiting(conn, source.organization_id, source.instance_num, signal, dateint)


def listed(lrdb: Lrdb, source: Source) -> list[Fault]:
    with lrdb.connection() as conn:
        return faults.faults(conn, source.organization_id)


def test_a_segment_that_cannot_be_read_waits_and_is_listed(lrdb: Lrdb, edge: Source) -> None:
    segment = ingest(lrdb, edge)[1].segment
    mark(lrdb, segment)
    assert waiting(lrdb, edge) == {segment.segment_id}
    assert waiting(lrdb, edge, Signal.TRACES) == waiting(lrdb, edge, dateint=DAY + 1) == set()
    (fault,) = listed(lrdb, edge)
    assert (fault.key, fault.attempts, fault.organization_name) == (segment.key, 1, "acme")
    do(lrdb, "UPDATE segment_faults SET retry_at = now()")
    assert waiting(lrdb, edge) == set()


def test_each_time_it_is_left_alone_for_twice_as_long_up_to_a_day(lrdb: Lrdb, edge: Source) -> None:
    segment = ingest(lrdb, edge)[1].segment
    waits = []
    for _ in range(40):
        mark(lrdb, segment)
        waits.append(one(lrdb, "SELECT extract(epoch FROM retry_at - last_at)::float FROM segment_faults"))
    assert waits[:4] == [60.0, 120.0, 240.0, 480.0]
    assert waits[-1] == LONGEST_RETRY_SECONDS
    assert listed(lrdb, edge)[0].attempts == 40


def test_a_fault_goes_with_what_readers_see(lrdb: Lrdb, edge: Source) -> None:
    box, first = ingest(lrdb, edge)
    records = {member.raw_object_id: 10 for member in box.members}
    mark(lrdb, first.segment)
    whole = output(edge, records)
    replace_hour(lrdb, edge, [whole], records)
    assert listed(lrdb, edge) == []
    mark(lrdb, whole.segment)
    replace_hour(lrdb, edge, [whole], records)  # the same segment, whose object was written again
    assert listed(lrdb, edge) == []


def test_nobody_sees_the_faults_of_another_tenant(lrdb: Lrdb, edge: Source) -> None:
    other = add_source(lrdb, "acme1", "edge")
    mark(lrdb, ingest(lrdb, other)[1].segment)
    assert listed(lrdb, edge) == []
    assert waiting(lrdb, edge) == set()


def test_a_person_finds_a_fault_by_its_id_and_may_have_it_tried_at_once(lrdb: Lrdb, edge: Source) -> None:
    segment = ingest(lrdb, edge)[1].segment
    mark(lrdb, segment)
    item = f"segment:{segment.segment_id}"
    with lrdb.transaction() as conn:
        assert isinstance(quarantine.show(conn, item), Fault)
        assert quarantine.retry(conn, [item]).due == (segment.segment_id,)
    assert waiting(lrdb, edge) == set()
    with lrdb.connection() as conn:
        for nothing in ("segment:123456", f"segment:{2**63}", "segment:0"):
            with pytest.raises(RequestRefused):
                quarantine.show(conn, nothing)
