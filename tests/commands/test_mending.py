"""What would break if a person could not register, check and send round again what the lake is about."""

from __future__ import annotations

import json
from uuid import UUID

import pytest

from lakerunner_dagster.lake.model import HOUR_MS
from lakerunner_dagster.lake.signals import Signal
from tests.command_line import done, lakerunner, refused
from tests.lake.requests import expected, logs
from tests.lake.world import BUCKET, NOON_MS, ORGANIZATION, World

TEN = NOON_MS - 2 * HOUR_MS
OTHER = UUID("deadbeef-0000-4000-8000-000000000000")


def test_organizations_are_added_listed_disabled_and_enabled(world: World) -> None:
    assert f"otel-raw/{OTHER}/{{collector}}/" in done("organization", "add", "globex", "--id", str(OTHER))
    listed = done("organization", "list")
    assert " ".join(("acme", str(ORGANIZATION), "yes", "edge")) in " ".join(listed.split())
    assert " ".join(("globex", str(OTHER), "yes", "none yet")) in " ".join(listed.split())
    done("organization", "disable", "globex")
    assert " ".join(("globex", str(OTHER), "no")) in " ".join(done("organization", "list").split())
    world.notify(f"otel-raw/{OTHER}/edge/logs/a")
    assert "organization_disabled" in done("deadletter", "list")
    assert "deadletter replay --reason organization_disabled" in done("organization", "enable", "globex")
    assert done("deadletter", "replay", "--reason", "organization_disabled") == "1 dead letters were passed on\n"
    assert done("deadletter", "list") == "no dead letter waits\n"


@pytest.mark.usefixtures("world")
def test_an_organization_that_cannot_be_is_refused() -> None:
    assert "'acme'" in refused("organization", "add", "acme")
    assert "slug" in refused("organization", "add", "Not A Slug")
    assert "no organization 'nobody'" in refused("organization", "disable", "nobody")


def test_buckets_are_added_listed_and_mapped(world: World) -> None:
    done("profile", "add", "old", "--provider", "file", "--endpoint", str(world.place.bucket))
    done("profile", "add", "cloud", "--provider", "aws", "--region", "eu-central-1", "--path-style")
    listed = " ".join(done("profile", "list").split())
    assert f"old file {world.place.bucket}" in listed
    assert "cloud aws eu-central-1 path" in listed

    path = world.place.bucket / "logs-raw" / "a"
    path.parent.mkdir()
    path.write_bytes(logs("mapped", [TEN]))
    world.notify("logs-raw/a")
    assert "no_route" in done("deadletter", "list")
    assert "holds logs of acme/edge" in done("profile", "map", BUCKET, "logs-raw/", "logs", "acme", "edge")
    done("deadletter", "replay", "1")
    world.ingest(Signal.LOGS)
    assert world.messages() == expected(mapped=1)


@pytest.mark.usefixtures("world")
def test_a_bucket_that_cannot_be_is_refused() -> None:
    assert "give its full path" in refused("profile", "add", "x", "--provider", "file", "--endpoint", "relative")
    assert "not there" in refused("profile", "add", "x", "--provider", "file", "--endpoint", "/nonexistent")
    assert "only be assumed with" in refused("profile", "add", "x", "--provider", "gcp", "--role", "arn:x")
    assert "'nobody'" in refused("profile", "map", BUCKET, "p/", "logs", "nobody", "edge")
    assert "'unknown'" in refused("profile", "map", "unknown", "p/", "logs", "acme", "edge")
    assert "no name for one" in refused("profile", "map", BUCKET, "p/", "logs", "acme", "a/b")
    assert "'x'" not in done("profile", "list")


def test_a_retry_sends_objects_round_again(world: World) -> None:
    broken = world.send(Signal.LOGS, "broken", b"\x1f\x8b")
    world.box(Signal.LOGS)  # so that it is the first, whichever way the others come
    absent = world.put(Signal.LOGS, "absent", logs("absent", [TEN]))
    world.notify(absent, f"otel-raw/{OTHER}/edge/logs/a")
    data = (world.place.bucket / absent).read_bytes()
    (world.place.bucket / absent).unlink()
    world.ingest(Signal.LOGS)
    listed = done("quarantine", "list")
    for words in (
        "raw:1  quarantined  truncated_gzip",
        broken,
        "raw:2  missing  object_missing",
        absent,
        "1 dead letters wait: `lakerunner deadletter list`",
    ):
        assert words in listed

    (world.place.bucket / absent).write_bytes(data)
    assert "2 of the objects wait for a box again" in done("quarantine", "retry", "raw:1", "raw:2", "raw:2")
    world.ingest(Signal.LOGS)
    assert world.messages() == expected(absent=1)
    listed = done("quarantine", "list")
    assert "raw:1  quarantined" in listed
    assert "raw:2" not in listed
    assert world.breaches() == []


def test_what_was_ingested_in_part_is_not_ingested_again(world: World) -> None:
    world.send(Signal.LOGS, "a", logs("a", [TEN, NOON_MS + 2 * HOUR_MS]))
    world.ingest(Signal.LOGS)
    listed = done("quarantine", "list")
    assert "raw:1  ingested in part  time_ahead  acme/edge, logs" in listed
    assert "1 of its 2 records are rejected: 1 time_ahead" in listed
    assert "Materialise its day" in refused("quarantine", "retry", "raw:1")
    shown = json.loads(done("quarantine", "show", "raw:1"))
    assert shown["rejected"] == {"time_ahead": 1}
    assert shown["raw"]["organization_id"] == str(ORGANIZATION)


def test_a_long_list_says_that_it_is_not_all(world: World) -> None:
    for name in ("a", "b", "c"):
        world.send(Signal.LOGS, name, b"\x1f\x8b")
    world.ingest(Signal.LOGS)
    short = done("quarantine", "list", "--limit", "2")
    assert "raw:1 " not in short
    assert "the latest 2, --limit shows others" in short
    assert "--limit" not in done("quarantine", "list")


@pytest.mark.usefixtures("world")
def test_an_item_that_is_not_there_is_refused() -> None:
    for command in ("show", "retry"):
        for item in ("raw:1", "dead:1", "segment:1", "raw:999999999999999999", "raw:0", "x", "raw:1; DROP", "[/x]"):
            assert item in refused("quarantine", command, item)


def test_the_check_of_a_corrupted_lrdb_fails_and_says_how(world: World) -> None:
    key = world.send(Signal.LOGS, "a", logs("a", [TEN]))
    world.ingest(Signal.LOGS)
    assert done("lrdb", "check") == "no breach found\n"
    with world.lake.lrdb.transaction() as conn:
        conn.execute("DELETE FROM ledger")
        conn.execute("DELETE FROM log_seg")
    ended = lakerunner("lrdb", "check")
    assert ended.code == 1
    lines = ended.out.splitlines()
    lost = lines.index("invariant 2: accepted records of a raw object are published nowhere")
    assert lines[lost + 1] == f"  1 case, for example lake/{key} (ingested): 1 records accepted, 0 published, 0 expired"
    assert "invariant 4: a box is done without a line in the ledger" in lines
    assert "in 2 ways (above): keep lrdb and the bucket as they are" in ended.err
