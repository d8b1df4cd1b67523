"""Two tenants that are alike in everything but their id never meet."""

from __future__ import annotations

from typing import Any
from uuid import UUID

import pytest

from lakerunner_dagster.lake.lrdb import boxes, check, lineage, quarantine, segments, status
from lakerunner_dagster.lake.lrdb.connection import Lrdb
from lakerunner_dagster.lake.model import Output, Source
from lakerunner_dagster.lake.signals import SIGNALS, Signal
from lakerunner_dagster.lake.stages import ingest_stage
from tests.lake.lrdb.work import (
    DAY,
    add_source,
    do,
    ingested,
    must_claim,
    one,
    open_box,
    output,
    publish_box,
    quarantined,
    replace_hour,
)

TENANT_TABLES = (
    "raw_objects",
    "boxes",
    "box_totals",
    "compression_ratios",
    "lineage",
    "ledger",
    "supersessions",
    "log_seg",
    "metric_seg",
    "trace_seg",
)


def everything_of(lrdb: Lrdb, organization_id: UUID) -> dict[str, list[tuple[Any, ...]]]:
    """Every row of every table that is an organization's."""
    with lrdb.connection() as conn:
        return {
            table: conn.execute(
                f"SELECT t::text FROM {table} t WHERE organization_id = %s ORDER BY 1", (organization_id,)
            ).fetchall()
            for table in TENANT_TABLES
        }


@pytest.fixture
def globex(lrdb: Lrdb) -> Source:
    """The collector of the same name, with the same number, bucket and days, of another organization."""
    return add_source(lrdb, "globex", "edge")


def publish_a_bit(lrdb: Lrdb, source: Source, signal: Signal, segment_id: int) -> tuple[Output, list[int]]:
    open_box(lrdb, source, signal)
    box = must_claim(lrdb, source, signal)
    first, second, third = (member.raw_object_id for member in box.members)
    out = output(source, {first: 10, second: 10}, signal, segment_id=segment_id)
    publish_box(lrdb, box, [out], [ingested(first), ingested(second), quarantined(third)])
    return out, [first, second, third]


@pytest.mark.parametrize("signal", list(Signal))
def test_one_tenants_work_touches_no_row_of_the_others(
    lrdb: Lrdb, edge: Source, globex: Source, signal: Signal
) -> None:
    assert (edge.instance_num, edge.collector, edge.bucket) == (globex.instance_num, globex.collector, globex.bucket)
    publish_a_bit(lrdb, globex, signal, segment_id=5)
    open_box(lrdb, globex, signal)
    before = everything_of(lrdb, globex.organization_id)
    out, (first, second, third) = publish_a_bit(lrdb, edge, signal, segment_id=5)
    records = {first: 10, second: 10}
    replace_hour(lrdb, edge, [output(edge, records, signal)], records, signal)
    replace_hour(lrdb, edge, [out], records, signal)
    with lrdb.transaction() as conn:
        quarantine.retry(conn, [f"raw:{third}"])
        boxes.reopen_failed(conn, ingest_stage(signal).name, edge, DAY)
    assert everything_of(lrdb, globex.organization_id) == before
    assert all(before[table] for table in ("raw_objects", "boxes", "lineage", "ledger", SIGNALS[signal].segment_table))


def test_one_tenant_sees_nothing_of_the_others(lrdb: Lrdb, edge: Source, globex: Source) -> None:
    out, ids = publish_a_bit(lrdb, globex, Signal.LOGS, segment_id=5)
    stage = ingest_stage(Signal.LOGS).name
    open_box(lrdb, globex)
    do(
        lrdb,
        "UPDATE boxes SET state = 'failed', error_class = 'E', error_text = 'e', ended_at = now() WHERE state = 'open'",
    )
    with lrdb.transaction() as conn:
        assert segments.published_segments(conn, edge, Signal.LOGS, DAY, frequency_ms=0) == []
        assert segments.known_ids(conn, edge, Signal.LOGS, DAY, [5]) == set()
        assert lineage.raw_objects_of_day(conn, edge, Signal.LOGS, DAY) == []
        assert lineage.raw_inputs(conn, edge.organization_id, [5]) == {}
        mine = out.segment.key.replace(str(globex.organization_id), str(edge.organization_id))
        assert lineage.raw_of_segment(conn, mine) == []
        assert quarantine.set_aside(conn, edge.organization_id, 10) == []
        assert status.failed_boxes(conn, edge.organization_id) == []
        assert len(status.failed_boxes(conn, globex.organization_id)) == 1
        assert boxes.reopen_failed(conn, stage, edge, DAY) == 0
        assert {row.source for row in status.status(conn)} == {"globex/edge"}
        assert check.breaches(conn) == []
    assert ids


def test_the_same_segment_id_in_two_organizations_is_two_segments(lrdb: Lrdb, edge: Source, globex: Source) -> None:
    (mine, my_ids), (theirs, their_ids) = (
        publish_a_bit(lrdb, source, Signal.LOGS, segment_id=5) for source in (edge, globex)
    )
    assert mine.segment.key != theirs.segment.key
    with lrdb.connection() as conn:
        assert lineage.raw_inputs(conn, edge.organization_id, [5]) == {5: set(my_ids[:2])}
        assert lineage.raw_inputs(conn, globex.organization_id, [5]) == {5: set(their_ids[:2])}
        assert len(lineage.raw_of_segment(conn, 5)) == 4
    replace_hour(lrdb, edge, [], my_ids[:2])
    assert one(lrdb, "SELECT published FROM log_seg WHERE organization_id = %s", globex.organization_id)
