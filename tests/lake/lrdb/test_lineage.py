"""Which raw file made which segment, asked from either end."""

from __future__ import annotations

import pytest

from lakerunner_dagster.lake.errors import RequestRefused
from lakerunner_dagster.lake.lrdb import lineage
from lakerunner_dagster.lake.lrdb.connection import Lrdb
from lakerunner_dagster.lake.model import HOUR_MS, RawState, Source
from lakerunner_dagster.lake.signals import Signal
from tests.lake.lrdb.work import (
    DAY,
    NOON_MS,
    add_source,
    box_pending,
    compact,
    ingest,
    must_claim,
    notification,
    notify,
    open_box,
    output,
    publish_box,
    replace_hour,
)


def test_from_a_file_to_its_segments_and_back(lrdb: Lrdb, edge: Source) -> None:
    box, out = ingest(lrdb, edge)
    member = box.members[1]
    with lrdb.connection() as conn:
        (link,) = lineage.segments_of_raw(conn, member.key)
        assert (link.segment.key, link.records, link.segment.published) == (out.segment.key, 10, True)
        assert (link.segment.run_id, link.segment.operation, link.segment.code_version) == ("run", "ingest", "1")
        assert (link.known.raw, link.known.state) == (member, RawState.INGESTED)
        for name in (out.segment.segment_id, str(out.segment.segment_id), out.segment.key):
            links = lineage.raw_of_segment(conn, name)
            assert [found.known.raw for found in links] == list(box.members)
            assert [found.records for found in links] == [10, 10, 10]
        assert lineage.segments_of_raw(conn, member.key, bucket="elsewhere") == []
        assert lineage.segments_of_raw(conn, "no/such\0key") == []


def test_a_file_that_made_nothing_yet_is_known_by_its_state(lrdb: Lrdb, edge: Source) -> None:
    told = notification(edge)
    notify(lrdb, told)
    with lrdb.connection() as conn:
        (known,) = lineage.raw_objects_at(conn, told.key)
        assert (known.state, known.raw.etag) == (RawState.PENDING, told.etag)
        assert lineage.segments_of_raw(conn, told.key) == []


def test_steps_between_are_followed_and_what_is_superseded_says_so(lrdb: Lrdb, edge: Source) -> None:
    done = [ingest(lrdb, edge, objects=2) for _ in range(2)]
    compacted = compact(lrdb, edge, [out.segment.segment_id for _, out in done])
    member = done[0][0].members[0]
    with lrdb.connection() as conn:
        links = {link.segment.segment_id: link for link in lineage.segments_of_raw(conn, member.key)}
        assert {key: (link.records, link.segment.published) for key, link in links.items()} == {
            done[0][1].segment.segment_id: (10, False),
            compacted: (None, True),
        }
        origins = lineage.raw_of_segment(conn, compacted)
        assert len(origins) == 4
        assert {link.records for link in origins} == {None}


def test_a_segment_nobody_has_heard_of_has_no_origin(lrdb: Lrdb, edge: Source) -> None:
    key = f"db/{edge.organization_id}/edge/{DAY}/logs/12/tbl_999.parquet"
    with lrdb.connection() as conn:
        assert lineage.raw_of_segment(conn, 999) == []
        assert lineage.raw_of_segment(conn, key) == []
        for nonsense in ("x", "db/acme/edge/tbl_1.parquet", "", "-5"):
            with pytest.raises(RequestRefused, match="neither"):
                lineage.raw_of_segment(conn, nonsense)


def test_a_rebuild_sees_what_ever_touched_the_day_and_what_was_to(lrdb: Lrdb, edge: Source) -> None:
    tomorrow = NOON_MS + 24 * HOUR_MS
    open_box(lrdb, edge, objects=2)
    box = must_claim(lrdb, edge)
    both, today_only = (member.raw_object_id for member in box.members)
    publish_box(
        lrdb, box, [output(edge, {both: 5, today_only: 10}), output(edge, {both: 5}, start_ms=tomorrow + HOUR_MS)]
    )
    notify(lrdb, notification(edge, event_time_ms=tomorrow), notification(edge, Signal.TRACES, event_time_ms=tomorrow))
    notify(lrdb, notification(add_source(lrdb, "acme", "core"), event_time_ms=tomorrow))

    def found(dateint: int, hour: int | None = None) -> list[tuple[int, RawState]]:
        with lrdb.connection() as conn:
            known = lineage.raw_objects_of_day(conn, edge, Signal.LOGS, dateint, hour)
        return [(item.raw.raw_object_id, item.state) for item in known]

    waiting = max(raw_object_id for raw_object_id, _ in found(DAY + 1))
    assert found(DAY) == [(both, RawState.INGESTED), (today_only, RawState.INGESTED)]
    assert found(DAY + 1) == [(both, RawState.INGESTED), (waiting, RawState.PENDING)]
    assert found(DAY + 1, 13) == [(both, RawState.INGESTED)]
    assert found(DAY + 1, 12) == [(waiting, RawState.PENDING)]
    assert found(DAY + 2) == []


def test_objects_whose_segments_were_superseded_are_still_of_the_day(lrdb: Lrdb, edge: Source) -> None:
    """What a decoder rejects today, the next one may take: the object must be read again then."""
    notify(lrdb, notification(edge, event_time_ms=NOON_MS - 48 * HOUR_MS))
    (early,) = box_pending(lrdb)
    assert early
    with lrdb.connection() as conn:
        conn.execute("UPDATE boxes SET dateint = %s", (DAY,))
    box = must_claim(lrdb, edge)
    publish_box(lrdb, box)
    replace_hour(lrdb, edge, [], [member.raw_object_id for member in box.members])
    with lrdb.connection() as conn:
        assert len(lineage.raw_objects_of_day(conn, edge, Signal.LOGS, DAY)) == 1
