"""What would break if the doctor saw a fault and did not say what to do, or told a secret."""

from __future__ import annotations

import time

import pytest

from lakerunner_dagster.lake import bus
from lakerunner_dagster.lake.lrdb import partitions
from lakerunner_dagster.lake.settings import (
    BoxPolicy,
    CompactionPolicy,
    Limits,
    MaintenancePolicy,
    Settings,
    variable_of,
)
from tests.command_line import done, lakerunner
from tests.commands.test_profile import Denying
from tests.lake.world import World
from tests.servers.aws import CREDENTIALS, REGION, Aws

SECRETS = {
    "LAKERUNNER_HTTP_TOKEN": "hunter2",
    "LAKERUNNER_KAFKA_OPTIONS": '{"sasl.username": "bob", "client.rack": "hunter2"}',
}


@pytest.fixture
def healthy(world: World, monkeypatch: pytest.MonkeyPatch) -> World:
    """A lake to which nothing is lacking."""
    monkeypatch.setenv(
        "LAKERUNNER_DAGSTER_DATABASE_URL", world.place.url.replace("postgresql:", "postgresql+psycopg2:")
    )
    return world


def findings(out: str) -> dict[str, tuple[bool, str]]:
    """By what was checked, whether it is well, and what is said of it."""
    found: dict[str, tuple[bool, str]] = {}
    for line in out.splitlines():
        if line.startswith((" well ", " ill  ")):
            what, _, sentence = line[6:].partition(": ")
            found[what] = (line.startswith(" well "), sentence)
    return found


def ill(out: str) -> dict[str, str]:
    return {what: sentence for what, (well, sentence) in findings(out).items() if not well}


def test_what_is_well_is_said_to_be(healthy: World) -> None:
    found = findings(done("doctor"))
    assert found.keys() == {"lrdb", "Dagster's storage", "Kafka", "clock", "lock table", "bucket lake"}
    assert all(well for well, _ in found.values())
    assert healthy.place.url.rpartition("/")[2] in found["lrdb"][1]
    assert healthy.place.bootstrap in found["Kafka"][1]
    assert "nothing under otel-raw/ yet" in found["bucket lake"][1]


def test_a_lock_table_that_the_days_will_fill_is_told_with_the_setting_that_helps(
    healthy: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    with healthy.lake.lrdb.connection() as conn:
        room = partitions.lock_room(conn)
        days = conn.execute("SELECT count(*) FROM pg_class WHERE relkind = 'r' AND relispartition").fetchone()
    assert room.enough
    assert days is not None
    assert room.needed >= 7 * days[0]
    full = room._replace(needed=30_000, per_transaction=64, connections=100)
    monkeypatch.setattr(partitions, "lock_room", lambda _conn: full)
    ended = lakerunner("doctor")
    assert ended.code == 1
    said = ill(ended.out)["lock table"]
    assert "room for 6,400 locks" in said
    assert "takes 30,000 of them: set max_locks_per_transaction to 2048 or more (it is 64)" in said
    assert full._replace(per_transaction=full.advised // 2).enough


def test_every_setting_is_shown_and_no_secret(healthy: World, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in SECRETS.items():
        monkeypatch.setenv(name, value)
    out = done("doctor")
    for group in (Settings, BoxPolicy, CompactionPolicy, MaintenancePolicy, Limits):
        for name in group.model_fields:
            assert f" {variable_of(group, name)} " in out
    password = healthy.place.url.partition("@")[0].rpartition(":")[2]
    assert len(password) > 20
    for secret in (password, "hunter2", "bob"):
        assert secret not in out
    assert "sasl.username=(set), client.rack=(set)" in out


@pytest.mark.usefixtures("bare")
def test_with_nothing_configured_there_is_one_clear_line() -> None:
    ended = lakerunner("doctor")
    assert ended.code == 1
    assert findings(ended.out) == {}
    assert ended.err.count("\n") == 1
    for word in ("`lakerunner services up`", "LAKERUNNER_DATABASE_URL", "LAKERUNNER_KAFKA_BOOTSTRAP_SERVERS"):
        assert word in ended.err


def test_what_is_away_is_named_with_what_to_do_and_the_rest_is_still_tried(
    healthy: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bus, "REQUEST_SECONDS", 1.0)
    monkeypatch.setenv("LAKERUNNER_KAFKA_BOOTSTRAP_SERVERS", "127.0.0.1:9")
    monkeypatch.setenv("LAKERUNNER_DAGSTER_DATABASE_URL", "postgresql+psycopg2://bob:hunter2@127.0.0.1:1/dagster")
    healthy.place.bucket.rename(healthy.place.bucket.with_name("elsewhere"))
    ended = lakerunner("doctor")
    assert ended.code == 1
    told = ill(ended.out)
    assert told.keys() == {"Kafka", "Dagster's storage", "bucket lake"}
    assert "127.0.0.1:9" in told["Kafka"]
    assert "correct LAKERUNNER_DAGSTER_DATABASE_URL" in told["Dagster's storage"]
    assert "create or mount it" in told["bucket lake"]
    assert "needs attention: Dagster's storage, Kafka, bucket lake" in ended.err
    assert "hunter2" not in ended.out + ended.err


def test_a_bucket_that_may_only_be_read_is_told_with_the_right_that_is_missing(
    healthy: World, aws: Aws, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in CREDENTIALS.items():
        monkeypatch.setenv(name, value)
    aws.create_bucket("read-only")
    proxy = Denying(aws.endpoint, "write")
    region = ("--region", REGION, "--endpoint", proxy.endpoint, "--path-style")
    done("profile", "add", "read-only", "--provider", "aws", *region)
    done("profile", "add", "not-there", "--provider", "aws", *region[:2], "--endpoint", aws.endpoint, "--path-style")
    told = ill(lakerunner("doctor").out)
    proxy.close()
    assert told.keys() == {"bucket read-only", "bucket not-there"}
    assert told["bucket read-only"].endswith("(needed: s3:PutObject on db/*)")
    assert "bucket 'not-there' does not exist" in told["bucket not-there"]
    assert [path for path in healthy.place.bucket.rglob("*") if path.is_file()] == []


@pytest.mark.usefixtures("healthy")
def test_a_database_that_is_away_hides_neither_kafka_nor_the_other_database(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LAKERUNNER_DATABASE_URL", "postgresql://127.0.0.1:1/lrdb")
    found = findings(lakerunner("doctor").out)
    assert {what: well for what, (well, _) in found.items()} == {
        "lrdb": False,
        "Dagster's storage": True,
        "Kafka": True,
    }
    assert "correct LAKERUNNER_DATABASE_URL" in found["lrdb"][1]


def test_a_lake_without_a_bucket_is_told_how_to_register_one(healthy: World) -> None:
    with healthy.lake.lrdb.transaction() as conn:
        conn.execute("DELETE FROM organization_buckets")
        conn.execute("DELETE FROM bucket_configurations")
    assert "lakerunner profile add" in ill(lakerunner("doctor").out)["buckets"]


@pytest.mark.usefixtures("healthy")
def test_a_wrong_clock_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    right = time.time
    for seconds, word in ((7200.0, "ahead of"), (-7200.0, "behind")):
        with monkeypatch.context() as patch:
            patch.setattr(time, "time", lambda: right() + seconds)  # noqa: B023  # called within the round
            told = ill(lakerunner("doctor").out)
        assert told.keys() == {"clock"}
        assert f"7,200 s {word} PostgreSQL's" in told["clock"]
