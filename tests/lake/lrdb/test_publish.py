"""A box's end: all of it or nothing, once, and only when the numbers add up."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import psycopg
import pytest

from lakerunner_dagster.lake.errors import ConservationBreach, LeaseLost, SwapConflict
from lakerunner_dagster.lake.lrdb import check, outbox, segments
from lakerunner_dagster.lake.lrdb.connection import Lrdb
from lakerunner_dagster.lake.model import HOUR_MS, ClaimedBox, Message, ObjectOutcome, Output, RawState, Source
from lakerunner_dagster.lake.signals import SIGNALS, Signal
from tests.lake.lrdb.work import (
    DAY,
    NOON_MS,
    add_source,
    do,
    ingest,
    ingested,
    ledger,
    must_claim,
    one,
    open_box,
    output,
    publish_box,
    quarantined,
    states,
    visible_records,
)

MESSAGE = Message("boxer.logs.compact", "key", {"v": 1, "s": 5}, {"reason": "test"})

WRITTEN = ("log_seg", "lineage", "ledger", "outbox", "compression_ratios")


@pytest.fixture
def box(lrdb: Lrdb, edge: Source) -> ClaimedBox:
    """A claimed box of three logs objects, whose message has left the outbox."""
    open_box(lrdb, edge)
    do(lrdb, "DELETE FROM outbox")
    return must_claim(lrdb, edge)


def ids(box: ClaimedBox) -> list[int]:
    return [member.raw_object_id for member in box.members]


def untouched(lrdb: Lrdb, box: ClaimedBox) -> bool:
    """Whether nothing of a refused publication is left."""
    return (
        set(states(lrdb, box.source.organization_id).values()) == {"boxed"}
        and one(lrdb, "SELECT state FROM boxes WHERE box_id = %s", box.lease.box_id) == "claimed"
        and all(one(lrdb, f"SELECT count(*) FROM {table}") == 0 for table in WRITTEN)
    )


@pytest.mark.parametrize("signal", list(Signal))
def test_a_published_segment_is_read_back_as_it_was(lrdb: Lrdb, edge: Source, signal: Signal) -> None:
    _, out = ingest(lrdb, edge, signal)
    with lrdb.connection() as conn:
        frequency_ms = SIGNALS[signal].frequency_ms
        assert segments.published_segments(conn, edge, signal, DAY, frequency_ms=frequency_ms) == [out.segment]
        assert segments.published_segments(conn, edge, signal, DAY, frequency_ms=frequency_ms, hour=12) == [out.segment]
        assert segments.published_segments(conn, edge, signal, DAY, frequency_ms=frequency_ms, hour=11) == []
        assert segments.published_segments(conn, edge, signal, DAY + 1, frequency_ms=frequency_ms) == []


def test_everything_about_a_box_becomes_true_at_once(lrdb: Lrdb, edge: Source, box: ClaimedBox) -> None:
    good, partly, bad = ids(box)
    outputs = [
        output(edge, {good: 6, partly: 3}),
        output(edge, {good: 4}, start_ms=NOON_MS + HOUR_MS),
    ]
    rejected = {"time_ahead": 2}
    outcomes = [ingested(good), ingested(partly, records=5, rejected=rejected), quarantined(bad)]
    publish_box(lrdb, box, outputs, outcomes, messages=[MESSAGE])
    assert states(lrdb, edge.organization_id) == {good: "ingested", partly: "ingested", bad: "quarantined"}
    assert one(lrdb, "SELECT state || members FROM boxes") == "done3"
    assert visible_records(lrdb) == 13
    with lrdb.transaction() as conn:
        assert [item.message for item in outbox.take(conn, 10)] == [MESSAGE]
        lineage = conn.execute(
            "SELECT segment_id, input_id, records, operation, run_id, code_version, hour FROM lineage ORDER BY 1, 2"
        ).fetchall()
        books = conn.execute(
            "SELECT records_read, records_written, records_rejected, rejected, rows_written, records_merged, box_id"
            " FROM ledger"
        ).fetchall()
        assert check.breaches(conn) == []
    first, second = (out.segment.segment_id for out in outputs)
    assert lineage == [
        (first, good, 6, "ingest", "run", "1", 12),
        (first, partly, 3, "ingest", "run", "1", 12),
        (second, good, 4, "ingest", "run", "1", 13),
    ]
    assert books == [(15, 13, 2, rejected, 13, 0, box.lease.box_id)]


def test_metric_rows_may_be_fewer_than_their_points(lrdb: Lrdb, edge: Source) -> None:
    open_box(lrdb, edge, Signal.METRICS)
    box = must_claim(lrdb, edge, Signal.METRICS)
    out = output(edge, dict.fromkeys(ids(box), 10), Signal.METRICS, record_count=4, rollup_count=33.0)
    publish_box(lrdb, box, [out])
    assert one(lrdb, "SELECT (records_merged, rollup_count_written)::text FROM ledger") == "(26,33)"


def test_a_box_of_bad_objects_alone_is_done_without_a_segment(lrdb: Lrdb, edge: Source, box: ClaimedBox) -> None:
    publish_box(lrdb, box, [], [quarantined(raw_object_id) for raw_object_id in ids(box)])
    assert set(states(lrdb, edge.organization_id).values()) == {"quarantined"}
    assert one(lrdb, "SELECT state FROM boxes") == "done"


def test_hostile_text_in_an_error_keeps_no_box_from_its_end(lrdb: Lrdb, box: ClaimedBox) -> None:
    outcomes = [replace(quarantined(raw_object_id), error_text="\0\ud800") for raw_object_id in ids(box)]
    publish_box(lrdb, box, [], outcomes)
    assert one(lrdb, "SELECT count(*) FROM raw_objects WHERE state = 'quarantined'") == 3


def test_a_box_is_published_once(lrdb: Lrdb, box: ClaimedBox) -> None:
    publish_box(lrdb, box)
    with pytest.raises(LeaseLost):
        publish_box(lrdb, box)
    assert visible_records(lrdb) == 30


def bad_outputs(box: ClaimedBox) -> dict[str, list[Output]]:
    """Outputs that must not be published, by what is wrong with them; every member has given ten records."""
    tens = dict.fromkeys(ids(box), 10)
    good = output(box.source, tens)
    stranger = replace(box.source, instance_num=box.source.instance_num + 1)
    return {
        "a record is lost": [output(box.source, {**tens, ids(box)[0]: 9})],
        "a record is there twice": [output(box.source, {**tens, ids(box)[0]: 11})],
        "one object's record is given to another": [output(box.source, {**tens, ids(box)[0]: 9, ids(box)[1]: 11})],
        "an object is left out": [output(box.source, dict.fromkeys(ids(box)[:2], 10))],
        "an object of another box": [output(box.source, {**tens, ids(box)[0]: 9, 10**9: 1})],
        "the segment has more rows than it was given": [replace(good, segment=replace(good.segment, record_count=31))],
        "the segment claims more records": [replace(good, segment=replace(good.segment, records=31))],
        "another collector's segment": [output(stranger, tens)],
        "another signal's segment": [output(box.source, tens, Signal.TRACES)],
        "a tier that ingest does not write": [output(box.source, tens, frequency_ms=60_000)],
    }


@pytest.mark.parametrize(
    "wrong",
    [
        "a record is lost",
        "a record is there twice",
        "one object's record is given to another",
        "an object is left out",
        "an object of another box",
        "the segment has more rows than it was given",
        "the segment claims more records",
        "another collector's segment",
        "another signal's segment",
        "a tier that ingest does not write",
    ],
)
def test_outputs_that_do_not_add_up_change_nothing(lrdb: Lrdb, box: ClaimedBox, wrong: str) -> None:
    with pytest.raises((ConservationBreach, SwapConflict), match="nothing is published"):
        publish_box(lrdb, box, bad_outputs(box)[wrong])
    assert untouched(lrdb, box)


def bad_outcomes(box: ClaimedBox) -> dict[str, list[ObjectOutcome]]:
    first, second, third = (ingested(raw_object_id) for raw_object_id in ids(box))
    return {
        "one has no outcome": [first, second],
        "one has two": [first, second, third, third],
        "one is of another box": [first, second, replace(third, raw_object_id=10**9)],
        "one has not ended": [first, second, replace(third, state=RawState.PENDING)],
        "one lost records without a reason": [first, second, replace(third, records_read=12)],
        "one is quarantined and published": [first, second, quarantined(third.raw_object_id)],
    }


@pytest.mark.parametrize(
    "wrong",
    [
        "one has no outcome",
        "one has two",
        "one is of another box",
        "one has not ended",
        "one lost records without a reason",
        "one is quarantined and published",
    ],
)
def test_outcomes_that_do_not_fit_the_box_change_nothing(lrdb: Lrdb, box: ClaimedBox, wrong: str) -> None:
    outputs = [output(box.source, dict.fromkeys(ids(box), 10))]
    with pytest.raises((ConservationBreach, SwapConflict)):
        publish_box(lrdb, box, outputs, bad_outcomes(box)[wrong])
    assert untouched(lrdb, box)


@pytest.mark.parametrize(
    "changes", [{"records_read": 31}, {"records_written": 29}, {"rejected": {"no_time": 1}}], ids=str
)
def test_books_that_say_otherwise_change_nothing(lrdb: Lrdb, box: ClaimedBox, changes: dict[str, Any]) -> None:
    outputs = [output(box.source, dict.fromkeys(ids(box), 10))]
    entry = replace(ledger(box.source, box.signal, outputs, run="run", box_id=box.lease.box_id), **changes)
    with pytest.raises(ConservationBreach, match="books"):
        publish_box(lrdb, box, outputs, entry=entry)
    assert untouched(lrdb, box)


def test_a_member_that_left_the_box_meanwhile_changes_nothing(lrdb: Lrdb, box: ClaimedBox) -> None:
    do(lrdb, "UPDATE raw_objects SET state = 'pending', box_id = NULL WHERE raw_object_id = %s", ids(box)[0])
    with pytest.raises(SwapConflict, match="work on it again"):
        publish_box(lrdb, box)
    assert visible_records(lrdb) == 0


def test_a_segment_that_is_there_already_is_an_error_and_not_passed_over(lrdb: Lrdb, edge: Source) -> None:
    _, before = ingest(lrdb, edge)
    open_box(lrdb, edge)
    box = must_claim(lrdb, edge)
    same_id = output(edge, dict.fromkeys(ids(box), 10), segment_id=before.segment.segment_id)
    with pytest.raises(SwapConflict, match="a row already"):
        publish_box(lrdb, box, [same_id])
    assert visible_records(lrdb) == 30
    assert one(lrdb, "SELECT state FROM boxes WHERE box_id = %s", box.lease.box_id) == "claimed"


def test_a_box_is_never_booked_twice_whatever_the_code_does(lrdb: Lrdb, edge: Source) -> None:
    ingest(lrdb, edge)
    columns = (
        "run_id, operation, code_version, organization_id, instance_num, signal, dateint, frequency_ms, box_id,"
        " records_read, records_written, records_rejected, rejected, rows_written, rollup_count_read,"
        " rollup_count_written, bytes_in, bytes_out, seconds, peak_memory_bytes"
    )
    with pytest.raises(psycopg.errors.UniqueViolation):
        do(lrdb, f"INSERT INTO ledger ({columns}) SELECT {columns} FROM ledger")


def test_one_tenants_box_cannot_be_published_as_anothers(lrdb: Lrdb, box: ClaimedBox) -> None:
    globex = add_source(lrdb, "globex", "edge")
    with pytest.raises(LeaseLost):
        publish_box(lrdb, replace(box, source=globex))
    assert untouched(lrdb, box)
