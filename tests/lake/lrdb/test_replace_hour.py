"""A rebuild's swap: an hour's segments are replaced whole, or stay, and no record is lost to it or seen twice."""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import pytest

from lakerunner_dagster.lake.errors import ConservationBreach, SwapConflict
from lakerunner_dagster.lake.lrdb import lineage, outbox, publish, segments, swap
from lakerunner_dagster.lake.lrdb.connection import Lrdb
from lakerunner_dagster.lake.model import HOUR_MS, Message, Segment, Source
from lakerunner_dagster.lake.signals import Signal
from tests.lake.lrdb.work import (
    DAY,
    NOON_MS,
    add_source,
    compact,
    do,
    ingest,
    ingested,
    must_claim,
    no_breaches,
    notification,
    notify,
    one,
    open_box,
    output,
    publish_box,
    replace_hour,
    swap_hour,
    visible_records,
)

MESSAGE = Message("boxer.logs.compact", "key", {"v": 1})


def published(lrdb: Lrdb, source: Source) -> list[Segment]:
    with lrdb.connection() as conn:
        return segments.published_segments(conn, source, Signal.LOGS, DAY, frequency_ms=0)


def three_boxes(lrdb: Lrdb, source: Source) -> tuple[dict[int, int], list[int]]:
    """Three ingested boxes; ten records by raw object, and the ids of their segments."""
    done = [ingest(lrdb, source, objects=2) for _ in range(3)]
    records = {member.raw_object_id: 10 for box, _ in done for member in box.members}
    return records, sorted(out.segment.segment_id for _, out in done)


def test_an_hours_segments_are_replaced_by_one_of_the_same_records(lrdb: Lrdb, edge: Source) -> None:
    records, before = three_boxes(lrdb, edge)
    whole = output(edge, records)
    found = replace_hour(lrdb, edge, [whole], records, messages=[MESSAGE])
    assert found == swap.Replaced((), (whole.segment.segment_id,), (), tuple(before))
    assert published(lrdb, edge) == [whole.segment]
    assert one(lrdb, "SELECT count(*) FROM log_seg WHERE NOT published") == 3
    with lrdb.connection() as conn:
        rows = conn.execute(
            "SELECT segment_id, replaced_by, operation, run_id FROM supersessions ORDER BY 1"
        ).fetchall()
        assert rows == [(segment_id, [whole.segment.segment_id], "rebuild", "rebuild") for segment_id in before]
        assert set(lineage.raw_inputs(conn, edge.organization_id, before)) == set(before), (
            "lineage outlives its segment"
        )
    assert no_breaches(lrdb)


def test_doing_it_twice_changes_nothing_and_tells_nobody(lrdb: Lrdb, edge: Source) -> None:
    records, _ = three_boxes(lrdb, edge)
    whole = output(edge, records)
    replace_hour(lrdb, edge, [whole], records)
    do(lrdb, "DELETE FROM outbox")
    again = replace_hour(lrdb, edge, [whole], records, messages=[MESSAGE])
    assert again == swap.Replaced((whole.segment.segment_id,), (), (), ())
    assert published(lrdb, edge) == [whole.segment]
    assert one(lrdb, "SELECT count(*) FROM supersessions") == 3
    with lrdb.transaction() as conn:
        assert outbox.take(conn, 10) == []
    assert no_breaches(lrdb)


def test_only_the_hour_is_replaced(lrdb: Lrdb, edge: Source) -> None:
    core = add_source(lrdb, "acme", "core")
    open_box(lrdb, edge, objects=1)
    box = must_claim(lrdb, edge)
    (raw,) = (member.raw_object_id for member in box.members)
    at_noon, at_one = output(edge, {raw: 6}), output(edge, {raw: 4}, start_ms=NOON_MS + HOUR_MS)
    publish_box(lrdb, box, [at_noon, at_one])
    ingest(lrdb, core)
    ingest(lrdb, edge, Signal.TRACES)
    anew = output(edge, {raw: 6})
    replace_hour(lrdb, edge, [anew], [raw])
    assert published(lrdb, edge) == [anew.segment, at_one.segment]
    assert visible_records(lrdb) == 40
    assert visible_records(lrdb, Signal.TRACES) == 30
    assert no_breaches(lrdb)


def test_a_segment_that_comes_back_is_published_again_and_no_longer_superseded(lrdb: Lrdb, edge: Source) -> None:
    """As after a decoder was changed, and changed back: the first segment has its id, row and lineage still."""
    box, first = ingest(lrdb, edge)
    records = {member.raw_object_id: 10 for member in box.members}
    second = output(edge, records)
    replace_hour(lrdb, edge, [second], records)
    back = replace_hour(lrdb, edge, [first], records, run="back", messages=[MESSAGE])
    assert back == swap.Replaced((), (), (first.segment.segment_id,), (second.segment.segment_id,))
    assert published(lrdb, edge) == [first.segment]
    assert one(lrdb, "SELECT array_agg(segment_id) FROM supersessions") == [second.segment.segment_id]
    assert one(lrdb, "SELECT DISTINCT run_id FROM lineage WHERE segment_id = %s", first.segment.segment_id) == "back"
    assert no_breaches(lrdb)


def test_a_row_says_what_its_object_is_now(lrdb: Lrdb, edge: Source) -> None:
    """Another version of a library may write the same segment in other bytes: the object was replaced already."""
    box, first = ingest(lrdb, edge)
    records = {member.raw_object_id: 10 for member in box.members}
    rewritten = replace(first, segment=replace(first.segment, file_size=5000, fingerprints=(1,)))
    found = replace_hour(lrdb, edge, [rewritten], records)
    assert found.republished == (first.segment.segment_id,)
    assert published(lrdb, edge) == [rewritten.segment]
    assert no_breaches(lrdb)


def test_the_day_of_ingest_is_carried_forward(lrdb: Lrdb, edge: Source) -> None:
    records, _ = three_boxes(lrdb, edge)
    replace_hour(lrdb, edge, [output(edge, records, ingest_dateint=DAY + 20)], records)
    assert [segment.ingest_dateint for segment in published(lrdb, edge)] == [DAY]


def test_an_hour_whose_records_are_all_rejected_now_is_emptied(lrdb: Lrdb, edge: Source) -> None:
    box, _ = ingest(lrdb, edge)
    ids = [member.raw_object_id for member in box.members]
    replace_hour(lrdb, edge, [], ids)
    assert visible_records(lrdb) == 0
    with lrdb.transaction() as conn:
        publish.recount(conn, edge, [ingested(raw_object_id, rejected={"no_time": 10}) for raw_object_id in ids])
    assert no_breaches(lrdb)


def test_what_came_in_after_the_reading_is_not_taken_away(lrdb: Lrdb, edge: Source) -> None:
    records, before = three_boxes(lrdb, edge)
    _, late = ingest(lrdb, edge)
    with pytest.raises(SwapConflict, match="came in meanwhile"):
        replace_hour(lrdb, edge, [output(edge, records)], records)
    assert [segment.segment_id for segment in published(lrdb, edge)] == [*before, late.segment.segment_id]


def test_an_object_that_is_gone_costs_no_record(lrdb: Lrdb, edge: Source) -> None:
    records, _ = three_boxes(lrdb, edge)
    readable = dict(list(records.items())[1:])
    with pytest.raises(SwapConflict, match="stays as it is"):
        replace_hour(lrdb, edge, [output(edge, readable)], readable)
    assert visible_records(lrdb) == 60


def test_a_segment_of_unknown_origin_is_not_taken_away(lrdb: Lrdb, edge: Source) -> None:
    records, _ = three_boxes(lrdb, edge)
    do(lrdb, "DELETE FROM lineage WHERE segment_id = (SELECT min(segment_id) FROM lineage)")
    with pytest.raises(SwapConflict, match="unknown"):
        replace_hour(lrdb, edge, [output(edge, records)], records)


def test_objects_that_wait_for_their_box_are_not_published_by_a_rebuild(lrdb: Lrdb, edge: Source) -> None:
    records, _ = three_boxes(lrdb, edge)
    notify(lrdb, notification(edge))
    waiting = one(lrdb, "SELECT raw_object_id FROM raw_objects WHERE state = 'pending'")
    with pytest.raises(SwapConflict, match="not ingested"):
        replace_hour(lrdb, edge, [output(edge, {**records, waiting: 10})], [*records, waiting])


def test_another_tenants_objects_are_not_published(lrdb: Lrdb, edge: Source) -> None:
    box, _ = ingest(lrdb, add_source(lrdb, "globex", "edge"))
    foreign = {member.raw_object_id: 10 for member in box.members}
    with pytest.raises(SwapConflict, match="not ingested"):
        replace_hour(lrdb, edge, [output(edge, foreign)], foreign)


def test_outputs_of_another_hour_or_unread_objects_are_refused(lrdb: Lrdb, edge: Source) -> None:
    records, _ = three_boxes(lrdb, edge)
    with pytest.raises(SwapConflict, match="is not of"):
        replace_hour(lrdb, edge, [output(edge, records, start_ms=NOON_MS + HOUR_MS)], records)
    with pytest.raises(ConservationBreach, match="not read"):
        replace_hour(lrdb, edge, [output(edge, records)], list(records)[1:])
    whole = output(edge, records)
    made_up = replace(whole, segment=replace(whole.segment, records=61, record_count=61))
    with pytest.raises(ConservationBreach, match="from its inputs"):
        replace_hour(lrdb, edge, [made_up], records)
    assert visible_records(lrdb) == 60


def test_a_compacted_segment_stands_on_what_it_was_made_of(lrdb: Lrdb, edge: Source) -> None:
    records, before = three_boxes(lrdb, edge)
    compacted = compact(lrdb, edge, before)
    late = {member.raw_object_id: 10 for member in ingest(lrdb, edge)[0].members}
    assert no_breaches(lrdb)
    with pytest.raises(SwapConflict):
        replace_hour(lrdb, edge, [output(edge, late)], late)
    everything = {**records, **late}
    found = replace_hour(lrdb, edge, [output(edge, everything)], everything)
    assert compacted in found.superseded
    assert no_breaches(lrdb)


def test_rebuilds_of_one_hour_at_once_leave_one_result(lrdb: Lrdb, edge: Source) -> None:
    """Rows locked by one are not enough: the other would not see the first one's new rows, and publish beside them."""
    records, _ = three_boxes(lrdb, edge)
    wanted = [output(edge, records) for _ in range(6)]
    with ThreadPoolExecutor(6) as pool:
        found = list(pool.map(lambda out: replace_hour(lrdb, edge, [out], records), wanted))
    assert sum(len(replaced.inserted) for replaced in found) == 6
    assert len(published(lrdb, edge)) == 1
    assert no_breaches(lrdb)


def test_a_rebuild_beside_ingest_loses_nothing_and_doubles_nothing(lrdb: Lrdb, edge: Source) -> None:
    records, _ = three_boxes(lrdb, edge)
    for _ in range(8):
        open_box(lrdb, edge, objects=1)

    def rebuild(_: int) -> None:
        with lrdb.connection() as conn:
            known = conn.execute("SELECT raw_object_id FROM raw_objects WHERE state = 'ingested'").fetchall()
        read = {raw_object_id: 10 for (raw_object_id,) in known}
        try:
            replace_hour(lrdb, edge, [output(edge, read)], read)
        except SwapConflict:
            return

    with ThreadPoolExecutor(6) as pool:
        work = [pool.submit(lambda: publish_box(lrdb, must_claim(lrdb, edge))) for _ in range(8)]
        work += [pool.submit(rebuild, turn) for turn in range(8)]  # type: ignore[arg-type]  # results are not looked at
        for future in work:
            future.result()
    assert visible_records(lrdb) == 60 + 80
    assert records
    assert no_breaches(lrdb)


def test_segments_that_another_system_takes_away_meanwhile_are_not_superseded(lrdb: Lrdb, edge: Source) -> None:
    records, before = three_boxes(lrdb, edge)
    with ThreadPoolExecutor(1) as pool, lrdb.transaction() as conn:
        conn.execute("UPDATE log_seg SET published = false WHERE segment_id = %s", (before[0],))
        waiting = pool.submit(replace_hour, lrdb, edge, [output(edge, records)], records)
        wait_for_a_lock(lrdb, waiting)
    assert waiting.result().superseded == tuple(before[1:])


def wait_for_a_lock(lrdb: Lrdb, work: Future[Any]) -> None:
    """Until the work is kept waiting by a lock in the database."""
    while not one(lrdb, "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'"):
        assert not work.done()


def test_rebuilds_of_several_hours_that_share_objects_do_not_lock_each_other_out(lrdb: Lrdb, edge: Source) -> None:
    """Each swaps two hours in one transaction, in another order, and recounts the objects that both have read."""
    open_box(lrdb, edge, objects=4)
    box = must_claim(lrdb, edge)
    later = NOON_MS + HOUR_MS
    ids = [member.raw_object_id for member in box.members]
    fives = dict.fromkeys(ids, 5)
    publish_box(lrdb, box, [output(edge, fives), output(edge, fives, start_ms=later)])

    def rebuild(turn: int) -> None:
        with lrdb.transaction() as conn:
            for start_ms in (NOON_MS, later) if turn % 2 else (later, NOON_MS):
                swap_hour(conn, edge, [output(edge, fives, start_ms=start_ms)], ids, start_ms=start_ms)
            anew: dict[str, Any] = {"records": 11 + turn, "rejected": {"no_time": 1 + turn}}
            publish.recount(conn, edge, [ingested(raw_object_id, **anew) for raw_object_id in ids])

    with ThreadPoolExecutor(6) as pool:
        for _ in pool.map(rebuild, range(24)):
            pass
    assert visible_records(lrdb) == 40
    assert no_breaches(lrdb)
