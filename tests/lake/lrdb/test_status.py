"""The backlog as a person sees it adds up, and ages."""

from __future__ import annotations

import pytest

from lakerunner_dagster.lake.lrdb import intake, status
from lakerunner_dagster.lake.lrdb.connection import Lrdb
from lakerunner_dagster.lake.lrdb.status import SourceStatus
from lakerunner_dagster.lake.model import Source
from lakerunner_dagster.lake.signals import Signal
from tests.lake.lrdb.work import (
    add_source,
    do,
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


def shown(lrdb: Lrdb) -> dict[tuple[str, str], SourceStatus]:
    with lrdb.connection() as conn:
        return {(row.stage, row.source): row for row in status.status(conn)}


def test_nothing_notified_shows_nothing(lrdb: Lrdb, edge: Source) -> None:
    assert edge.key == "acme/edge"
    assert shown(lrdb) == {}


def test_every_object_is_in_one_column(lrdb: Lrdb, edge: Source) -> None:
    ingest(lrdb, edge, objects=4)
    ingest(lrdb, edge, Signal.METRICS)
    ingest(lrdb, add_source(lrdb, "globex", "edge"))
    open_box(lrdb, edge, objects=2)
    box = must_claim(lrdb, edge)
    publish_box(lrdb, box, [], [quarantined(member.raw_object_id) for member in box.members])
    open_box(lrdb, edge, objects=5)
    must_claim(lrdb, edge)
    open_box(lrdb, edge, objects=1)
    notify(lrdb, notification(edge))
    rows = shown(lrdb)
    assert set(rows) == {("logs.ingest", "acme/edge"), ("logs.ingest", "globex/edge"), ("metrics.ingest", "acme/edge")}
    logs = rows["logs.ingest", "acme/edge"]
    states = (logs.pending, logs.boxed, logs.ingested, logs.quarantined, logs.missing)
    assert states == (1, 6, 4, 2, 0)
    assert logs.notified == sum(states)
    assert (logs.boxes_open, logs.boxes_claimed, logs.boxes_failed) == (1, 1, 0)
    assert (logs.segments, logs.records) == (1, 40)


def test_objects_sent_round_again_move_to_their_new_column(lrdb: Lrdb, edge: Source) -> None:
    open_box(lrdb, edge, objects=3)
    box = must_claim(lrdb, edge)
    good, *bad = (member.raw_object_id for member in box.members)
    outcomes = [ingested(good), *(quarantined(raw_object_id) for raw_object_id in bad)]
    publish_box(lrdb, box, [output(edge, {good: 10})], outcomes)
    with lrdb.transaction() as conn:
        intake.requeue(conn, edge.organization_id, bad[:1])
    row = shown(lrdb)["logs.ingest", "acme/edge"]
    assert (row.notified, row.pending, row.ingested, row.quarantined) == (3, 1, 1, 1)


def test_ages_and_latencies_are_in_seconds(lrdb: Lrdb, edge: Source) -> None:
    ingest(lrdb, edge, objects=4)
    done = shown(lrdb)["logs.ingest", "acme/edge"]
    assert done.oldest_seconds is None
    do(lrdb, "UPDATE raw_objects SET pending_since = ended_at - interval '8 seconds'")
    do(
        lrdb,
        "UPDATE raw_objects SET pending_since = ended_at - interval '28 seconds'"
        " WHERE raw_object_id = (SELECT max(raw_object_id) FROM raw_objects)",
    )
    notify(lrdb, notification(edge))
    do(lrdb, "UPDATE raw_objects SET pending_since = now() - interval '1 hour' WHERE state = 'pending'")
    row = shown(lrdb)["logs.ingest", "acme/edge"]
    assert row.p50_seconds == pytest.approx(8)
    assert row.p95_seconds == pytest.approx(25)
    assert row.oldest_seconds is not None
    assert row.oldest_seconds >= 3600


def test_the_oldest_object_may_be_in_a_failed_box(lrdb: Lrdb, edge: Source) -> None:
    box_id = open_box(lrdb, edge)
    do(lrdb, "UPDATE raw_objects SET pending_since = now() - interval '1 hour'")
    do(lrdb, "UPDATE boxes SET state = 'failed', error_class = 'E', error_text = 'why', ended_at = now(), attempts = 5")
    row = shown(lrdb)["logs.ingest", "acme/edge"]
    assert row.boxes_failed == 1
    assert row.oldest_seconds is not None
    assert row.oldest_seconds >= 3600
    with lrdb.connection() as conn:
        (failed,) = status.failed_boxes(conn, edge.organization_id)
    assert (failed.box_id, failed.source, failed.error_text, failed.attempts) == (box_id, "acme/edge", "why", 5)


def test_what_was_published_stays_counted_whatever_becomes_of_it(lrdb: Lrdb, edge: Source) -> None:
    box, _ = ingest(lrdb, edge)
    ingest(lrdb, edge, Signal.METRICS)
    replace_hour(lrdb, edge, [], [member.raw_object_id for member in box.members])
    row = shown(lrdb)["logs.ingest", "acme/edge"]
    assert (row.segments, row.records) == (1, 30)
