"""What would break if a person could not see what waits, what failed, and where a record came from or went."""

from __future__ import annotations

import re

import pytest

from lakerunner_dagster.lake.errors import WorkIncomplete
from lakerunner_dagster.lake.model import HOUR_MS
from lakerunner_dagster.lake.signals import Signal
from tests.command_line import done, refused
from tests.lake.gathering import gather
from tests.lake.requests import gauges, logs
from tests.lake.world import NOON_MS, ORGANIZATION, World

TEN = NOON_MS - 2 * HOUR_MS


def row(listing: str, *words: str) -> list[str]:
    """The cells of the one line that begins with these."""
    (found,) = [cells for line in listing.splitlines() if (cells := line.split())[: len(words)] == list(words)]
    return found[len(words) :]


def test_status_shows_each_source_and_stage_with_its_backlog(world: World) -> None:
    assert done("status") == "nothing has been notified yet\n"
    world.send(Signal.LOGS, "a", logs("a", [TEN + number for number in range(1200)]))
    world.send(Signal.METRICS, "m", gauges("queue.length", [TEN]))
    world.ingest(Signal.LOGS)
    world.box(Signal.METRICS)
    out = done("status")
    notified, boxed, ingested, quarantined, records, *_ = row(out, "acme/edge", "logs.ingest")
    assert (notified, boxed, ingested, quarantined, records) == ("1", "0", "1", "0", "1,200")
    notified, boxed, ingested, _, records, _, oldest = row(out, "acme/edge", "metrics.ingest")
    assert (notified, boxed, ingested, records) == ("1", "1", "0", "0")
    assert float(oldest) >= 0
    assert "set aside" not in out


def test_status_says_what_waits_for_a_person(world: World) -> None:
    world.send(Signal.LOGS, "broken", b"\x1f\x8b")
    world.ingest(Signal.LOGS)
    world.notify("somewhere/else.gz")
    out = done("status")
    assert "1 objects are set aside: `lakerunner quarantine list`" in out
    assert "1 dead letters wait: `lakerunner deadletter list`" in out


def test_status_shows_a_failed_box_with_its_error_and_the_way_out(world: World) -> None:
    world.send(Signal.LOGS, "a", logs("a", [TEN]))
    world.box(Signal.LOGS)
    world.place.bucket.rename(world.place.bucket.with_name("unplugged"))
    attempts = world.lake.settings.box_attempts
    for _ in range(attempts):
        with pytest.raises(WorkIncomplete):
            world.drain(Signal.LOGS)
    out = done("status")
    assert re.search(r"^box \d+ has failed: logs.ingest of acme/edge, 2026-02-03, 1 objects$", out, re.MULTILINE)
    assert f"StoreUnavailable: attempt {attempts} of {attempts}:" in out
    assert "materialise the partition 2026-02-03|acme/edge of log_segments" in out


def test_status_tells_of_messages_that_kafka_has_not_taken(world: World) -> None:
    world.send(Signal.LOGS, "a", logs("a", [TEN]))
    world.box(Signal.LOGS)
    with world.lake.lrdb.transaction() as conn:
        conn.execute("INSERT INTO outbox (topic, key, body, headers) VALUES ('t', 'k', '{}', '{}')")
    assert "1 messages wait for Kafka" in done("status")


def test_status_shows_what_compaction_has_to_do_until_it_is_done(world: World) -> None:
    for name in ("a", "b", "c"):
        world.send(Signal.LOGS, name, logs(name, [TEN]))
        world.ingest(Signal.LOGS)
    hours, below, _, merges, *_ = row(done("status"), "acme/edge", "logs.compact")
    assert (hours, below, merges) == ("1", "3", "1")
    world.compact(Signal.LOGS)
    assert "compaction has nothing to do" in done("status")


def ingest_in_one_box(world: World, *keys: str) -> None:
    """Notify objects, and ingest them once lrdb knows all."""
    world.notify(*keys)
    gather(world, Signal.LOGS, len(keys))
    world.ingest(Signal.LOGS)


def test_lineage_leads_from_a_raw_object_to_its_segments_and_back(world: World) -> None:
    key = world.put(Signal.LOGS, "a", logs("a", [TEN, TEN, NOON_MS]))
    other = world.put(Signal.LOGS, "b", logs("b", [TEN]))
    ingest_in_one_box(world, key, other)
    down = done("lineage", key)
    segments = re.findall(r"^  (\d) records? → (db/\S+)$", down, re.MULTILINE)
    assert [records for records, _ in segments] == ["2", "1"]
    assert down.startswith(f"lake/{key}\n  ingested; etag ")
    assert down.count("published; by ingest, code version 1, run run") == 2

    _, segment = segments[0]
    up = done("lineage", segment)
    assert up.startswith(f"{segment}\n  published; by ingest")
    assert f"2 records ← lake/{key}\n" in up
    assert f"1 record ← lake/{other}\n" in up
    segment_id = segment.rpartition("_")[2].removesuffix(".parquet")
    assert done("lineage", segment_id) == up
    assert (world.place.bucket / segment).exists()


def test_lineage_of_what_is_in_no_segment_says_why(world: World) -> None:
    broken = world.send(Signal.LOGS, "broken", b"\x1f\x8b")
    world.ingest(Signal.LOGS)
    waiting = world.send(Signal.LOGS, "[waiting]", logs("x", [TEN]))
    world.box(Signal.LOGS)
    assert "quarantined; etag" in done("lineage", broken)
    assert "`lakerunner quarantine list` says why" in done("lineage", broken)
    assert "waits in a box for a run" in done("lineage", waiting)


def test_lineage_shows_each_content_that_a_key_has_had(world: World) -> None:
    key = world.send(Signal.LOGS, "a", logs("first", [TEN]))
    world.ingest(Signal.LOGS)
    world.send(Signal.LOGS, "a", logs("second", [TEN, TEN]))
    world.ingest(Signal.LOGS)
    out = done("lineage", key, "--bucket", "lake")
    assert out.count(f"lake/{key}\n") == 2
    assert "2 records → " in out
    assert "1 record → " in out


@pytest.mark.usefixtures("world")
def test_lineage_of_what_nobody_knows_is_refused() -> None:
    too_large = f"db/{ORGANIZATION}/x/tbl_{'9' * 19}.parquet"
    for key in ("nowhere", "1234", "9" * 19, "9" * 30, "db/x/tbl_1.parquet", too_large, "[/x]"):
        assert key in refused("lineage", key)


def test_a_segment_that_is_gone_is_told_with_the_asset_that_makes_it_anew(world: World) -> None:
    world.send(Signal.METRICS, "m", gauges("queue.length", [TEN]))
    world.ingest(Signal.METRICS)
    world.roll_up()
    for path in world.segment_files():
        path.unlink()
    done("maintain", "orphans")
    mended = re.findall(r"materialise the partition 2026-02-03\|acme/edge of (\w+),", done("quarantine", "list"))
    assert sorted(mended) == [*(f"metric_rollup_{tier}" for tier in ("1h", "1m", "20m", "5m")), "metric_segments"]
