"""The check finds each way of breaking an invariant that leaves a trace, and nothing where all is well."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest

from lakerunner_dagster.lake.lrdb import check, deletions, expiry
from lakerunner_dagster.lake.lrdb.connection import Conn, Lrdb
from lakerunner_dagster.lake.model import Source
from lakerunner_dagster.lake.signals import SIGNALS, Signal
from tests.lake.lrdb.conftest import disconnect, empty
from tests.lake.lrdb.work import (
    DAY,
    add_source,
    compact,
    ingest,
    ingested,
    must_claim,
    notification,
    notify,
    open_box,
    output,
    publish_box,
    quarantined,
    replace_hour,
)


@dataclass(frozen=True)
class Lake:
    """A lrdb in which a bit of everything has happened and nothing went wrong, in a transaction that is rolled back."""

    conn: Conn
    edge: Source
    globex: Source
    first: int
    second: int

    def do(self, statement: str, *parameters: object) -> None:
        assert self.conn.execute(statement, parameters).rowcount > 0, "the test has corrupted nothing"

    def found(self) -> dict[str, check.Breach]:
        return {breach.what: breach for breach in check.breaches(self.conn)}


@pytest.fixture(scope="module")
def past(shared_url: str) -> Iterator[tuple[Lrdb, Source, Source, int, int]]:
    disconnect(shared_url)
    empty(shared_url)
    with Lrdb(shared_url) as lrdb:
        edge, globex = add_source(lrdb, "acme", "edge"), add_source(lrdb, "globex", "edge")
        ingest(lrdb, globex)
        ingest(lrdb, edge, Signal.METRICS)
        first, second = (ingest(lrdb, edge)[1].segment.segment_id for _ in range(2))
        ingest(lrdb, edge)
        compact(lrdb, edge, [first, second])
        third, fourth = (ingest(lrdb, edge, Signal.TRACES) for _ in range(2))
        records = {member.raw_object_id: 10 for member in third[0].members + fourth[0].members}
        replace_hour(lrdb, edge, [output(edge, records, Signal.TRACES)], records, Signal.TRACES)
        open_box(lrdb, edge)
        partly = must_claim(lrdb, edge)
        a, b, c = (member.raw_object_id for member in partly.members)
        outcomes = [ingested(a), ingested(b, rejected={"no_time": 3}), quarantined(c)]
        publish_box(lrdb, partly, [output(edge, {a: 10, b: 7})], outcomes)
        open_box(lrdb, edge)
        must_claim(lrdb, edge)
        open_box(lrdb, edge)
        notify(lrdb, notification(edge))
        yield lrdb, edge, globex, first, second


@pytest.fixture
def lake(past: tuple[Lrdb, Source, Source, int, int]) -> Iterator[Lake]:
    lrdb, edge, globex, first, second = past
    with lrdb.connection() as conn, conn.transaction(force_rollback=True):
        yield Lake(conn, edge, globex, first, second)


def publish_again(lake: Lake) -> None:
    lake.do("UPDATE log_seg SET published = true WHERE segment_id = %s", lake.first)


COPY = 7_000_000_077
"""The id of a segment that no other has: tests number theirs one after the other."""


def copy_segment(lake: Lake) -> None:
    columns = (
        "organization_id, dateint, instance_num, ts_range, record_count, file_size, published, created_by, records"
    )
    lake.do(
        f"INSERT INTO log_seg (segment_id, {columns}) SELECT {COPY}, {columns} FROM log_seg"
        " WHERE published AND records = 17"
    )
    lake.do(
        "INSERT INTO lineage SELECT l.organization_id, l.instance_num, l.signal, l.frequency_ms, l.dateint, l.hour,"
        f" {COPY},"
        " l.input_kind, l.input_id, l.records, l.operation, l.run_id, l.code_version FROM lineage l"
        " JOIN log_seg s ON s.segment_id = l.segment_id AND s.published AND s.records = 17"
    )


def lose_segment(lake: Lake) -> None:
    lake.do("DELETE FROM log_seg WHERE published AND records = 17")


def shrink_merge(lake: Lake) -> None:
    lake.do("UPDATE lineage SET records = 29 WHERE input_kind = 'segment' AND input_id = %s", lake.first)


def other_records(lake: Lake) -> None:
    lake.do("UPDATE log_seg SET records = 18 WHERE published AND records = 17")


def other_rows(lake: Lake) -> None:
    lake.do("UPDATE log_seg SET record_count = 18 WHERE published AND records = 17")


def one_id_twice(lake: Lake) -> None:
    columns = "organization_id, dateint, segment_id, ts_range, record_count, file_size, published, created_by, records"
    lake.do(
        f"INSERT INTO log_seg (instance_num, {columns}) SELECT 9, {columns} FROM log_seg"
        " WHERE published AND records = 17"
    )


def no_lineage(lake: Lake) -> None:
    lake.do("DELETE FROM lineage WHERE input_kind = 'segment'")


def no_supersession(lake: Lake) -> None:
    lake.do("DELETE FROM supersessions WHERE segment_id = %s", lake.second)


def strange_collector(lake: Lake) -> None:
    lake.do("UPDATE log_seg SET instance_num = 9 WHERE published AND records = 17")


def wrong_books(lake: Lake) -> None:
    lake.conn.execute("ALTER TABLE ledger DROP CONSTRAINT ledger_conserves_records")
    lake.do("UPDATE ledger SET records_read = records_read + 1 WHERE records_rejected = 3")


def booked_twice(lake: Lake) -> None:
    lake.conn.execute("DROP INDEX ledger_box")
    columns = (
        "run_id, operation, code_version, organization_id, instance_num, signal, dateint, frequency_ms, box_id,"
        " records_read, records_written, records_rejected, rejected, rows_written, rollup_count_read,"
        " rollup_count_written, bytes_in, bytes_out, seconds, peak_memory_bytes"
    )
    lake.do(f"INSERT INTO ledger ({columns}) SELECT {columns} FROM ledger WHERE box_id IS NOT NULL LIMIT 1")


def counted_twice(lake: Lake) -> None:
    lake.do("UPDATE box_totals SET records = records * 2 WHERE stage = 'logs.ingest'")


def two_rows_of_one_object(lake: Lake) -> None:
    lake.conn.execute("ALTER TABLE raw_objects DROP CONSTRAINT raw_objects_bucket_key_etag_key")
    columns = "organization_id, instance_num, collector, signal, bucket, key, etag, identity, size, event_time_ms"
    lake.do(
        f"INSERT INTO raw_objects (event_dateint, adapter, {columns}) SELECT {DAY}, 'test', {columns}"
        " FROM raw_objects LIMIT 1"
    )


def unbooked(lake: Lake) -> None:
    lake.do("DELETE FROM ledger WHERE records_rejected = 3")


def ended_too_soon(lake: Lake) -> None:
    lake.do(
        "UPDATE raw_objects SET state = 'quarantined', error_class = 'e', ended_at = now() WHERE raw_object_id ="
        " (SELECT max(r.raw_object_id) FROM raw_objects r JOIN boxes b USING (box_id) WHERE b.state = 'claimed')"
    )


def skipped(lake: Lake) -> None:
    lake.do("UPDATE boxes SET state = 'done', ended_at = now() WHERE state = 'open'")


def lost_member(lake: Lake) -> None:
    lake.do(
        "DELETE FROM raw_objects WHERE raw_object_id ="
        " (SELECT max(r.raw_object_id) FROM raw_objects r JOIN boxes b USING (box_id) WHERE b.state = 'open')"
    )


def no_reason(lake: Lake) -> None:
    lake.conn.execute("ALTER TABLE raw_objects DROP CONSTRAINT set_aside_says_why")
    lake.do("UPDATE raw_objects SET error_class = NULL WHERE state = 'quarantined'")


def foreign_box(lake: Lake) -> None:
    lake.do(
        "UPDATE boxes SET organization_id = %s, instance_num = %s WHERE state = 'open'",
        lake.globex.organization_id,
        lake.globex.instance_num,
    )


def foreign_origin(lake: Lake) -> None:
    lake.do(
        "UPDATE raw_objects SET organization_id = %s WHERE raw_object_id ="
        " (SELECT min(input_id) FROM lineage WHERE organization_id = %s AND input_kind = 'raw')",
        lake.globex.organization_id,
        lake.edge.organization_id,
    )


def foreign_key(lake: Lake) -> None:
    lake.do(
        "UPDATE raw_objects SET key = 'otel-raw/' || %s || '/edge/logs/x' WHERE state = 'pending'",
        str(lake.globex.organization_id),
    )


def doom(lake: Lake) -> None:
    lake.do(
        "INSERT INTO deletions (organization_id, segment_id, instance_num, signal, frequency_ms, dateint, bucket, key,"
        " reason, intended_at) SELECT organization_id, segment_id, instance_num, 'logs', 0, dateint, 'lake', 'db/key',"
        " 'superseded', now() FROM log_seg WHERE published AND records = 17"
    )


CORRUPTIONS: list[tuple[Callable[[Lake], None], int, str, str]] = [
    (copy_segment, 1, "records of a raw object are published more than once", "10 records accepted, 20 published"),
    (publish_again, 1, "a segment is published beside those that were made of it", "of its 30 records 60"),
    (lose_segment, 2, "accepted records of a raw object are published nowhere", "accepted, 0 published"),
    (shrink_merge, 2, "a segment was merged into others that do not hold all its records", "of its 30 records 29"),
    (other_records, 2, "a published segment has other records than its inputs gave it", "18 records (17 rows), 17"),
    (other_rows, 2, "a published segment has other records than its inputs gave it", "17 records (18 rows), 17"),
    (wrong_books, 2, "a step of a run has booked more or fewer records than it read", "21 read, 17 written, 3"),
    (one_id_twice, 3, "one segment id is published more than once", f"{DAY}, {DAY}"),
    (booked_twice, 3, "a box is booked more than once", "by the runs run, run"),
    (counted_twice, 3, "the totals of a source's boxes are not what its boxes have made", "logs.ingest: "),
    (two_rows_of_one_object, 3, "one raw object has more than one row", "rows "),
    (no_lineage, 4, "a published segment has no lineage", f"of {DAY}"),
    (no_supersession, 4, "a segment was unpublished, and nothing says when and by what", f"of {DAY}"),
    (publish_again, 4, "a segment is published and superseded at once", f"of {DAY}"),
    (doom, 4, "a segment is published whose object is about to be deleted", "db/key, since"),
    (unbooked, 4, "a box is done without a line in the ledger", "logs.ingest, run run"),
    (ended_too_soon, 4, "a raw object has ended in a box that has not", "is quarantined, box"),
    (skipped, 5, "a box is done and a raw object in it has not ended", "is boxed, box"),
    (lost_member, 5, "a box has lost members", "(open): 3 members, 2 objects"),
    (no_reason, 5, "a raw object was set aside without a reason", "is quarantined"),
    (strange_collector, 6, "a segment is of a collector that its organization has not", "instance 9"),
    (foreign_box, 6, "a raw object is in a box of another organization", "box"),
    (foreign_origin, 6, "a segment was made of another organization's raw object", "stands on lake/otel-raw/"),
    (foreign_key, 6, "a raw object's key names another organization", "is held for"),
]


def test_a_lake_in_which_all_went_well_has_no_breach(lake: Lake) -> None:
    assert lake.found() == {}


@pytest.mark.parametrize("signal", Signal)
def test_what_has_expired_is_not_lost_and_what_is_lost_has_not_expired(lake: Lake, signal: Signal) -> None:
    (frequency_ms, *_) = SIGNALS[signal].tiers_ms
    gone = expiry.expire(lake.conn, lake.edge, signal, frequency_ms=frequency_ms, dateint=DAY, run_id="retention")
    assert gone
    assert lake.found() == {}
    unpublished = deletions.superseded(lake.conn, lake.edge, signal, DAY, grace_seconds=0.0, limit=100)
    assert {segment.segment_id for segment in gone} <= {deletion.segment_id for deletion in unpublished}
    deletions.confirm(lake.conn, lake.edge, deletions.intend(lake.conn, lake.edge, unpublished, 0.0))
    assert lake.conn.execute(
        f"SELECT count(*) FROM {SIGNALS[signal].segment_table} WHERE NOT published"
    ).fetchone() == (0,)
    assert lake.found() == {}
    assert deletions.superseded_days(lake.conn, lake.edge, signal, grace_seconds=0.0) == []
    lake.do("DELETE FROM supersessions WHERE segment_id = %s", gone[0].segment_id)
    assert "accepted records of a raw object are published nowhere" in lake.found()


@pytest.mark.parametrize(
    ("corrupt", "invariant", "what", "example"), CORRUPTIONS, ids=lambda value: getattr(value, "__name__", None)
)
def test_a_breach_is_found_and_put_into_words(
    lake: Lake, corrupt: Callable[[Lake], None], invariant: int, what: str, example: str
) -> None:
    corrupt(lake)
    found = lake.found()
    assert what in found, found
    assert found[what].invariant == invariant
    assert example in found[what].example
    assert found[what].cases >= 1


def test_every_question_of_the_check_is_tried_on_a_breach() -> None:
    asked = {item.what for item in (*check._OF_ALL, *check._OF_SIGNAL)}
    assert asked == {what for _, _, what, _ in CORRUPTIONS}
