"""What would break if the directory adapter told of half a file, told twice, forgot one, or left its bucket."""

from __future__ import annotations

import os
import threading
import time
from hashlib import md5
from pathlib import Path
from typing import Any

import pytest

from lakerunner_dagster.lake.bus import Bus
from lakerunner_dagster.lake.errors import ConfigurationError
from lakerunner_dagster.lake.lrdb import dead_letters
from lakerunner_dagster.lake.lrdb.intake import Notification, upsert_raw_objects
from lakerunner_dagster.lake.notifications import intake as intake_module
from lakerunner_dagster.lake.notifications.directory import DirectoryAdapter
from lakerunner_dagster.lake.notifications.intake import Intake
from lakerunner_dagster.lake.notifications.listing import raw_objects
from lakerunner_dagster.lake.signals import Signal
from lakerunner_dagster.lake.store import BucketConfiguration, Store
from tests.lake.notifications.conftest import WAIT_SECONDS, Lake

TOPIC = "objstore.ingest.logs"


class Watched:
    """An adapter, and the clock that it goes by."""

    def __init__(self, lake: Lake, intake: Intake | None = None) -> None:
        self.now = 1000.0
        self.adapter = DirectoryAdapter(lake.store, intake or lake.intake, lake.settings, clock=lambda: self.now)

    def look(self, seconds_later: float = 0.0) -> int:
        self.now += seconds_later
        return self.adapter.look()

    def settle(self) -> int:
        """Look twice, with as much time between as a file needs to settle."""
        return self.look() + self.look(seconds_later=1.0)


@pytest.fixture
def watched(lake: Lake) -> Watched:
    return Watched(lake)


def put(lake: Lake, key: str, data: bytes = b"payload") -> Path:
    path = lake.directory / key
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def make_old(path: Path) -> None:
    """As if it had been there for an hour."""
    hour_ago = time.time() - 3600
    os.utime(path, (hour_ago, hour_ago))


def remember(bodies: list[Any], lake: Lake) -> None:
    """What the boxer does with notifications."""
    with lake.lrdb.transaction() as conn:
        upsert_raw_objects(conn, [Notification.from_body(Signal.LOGS, body) for body in bodies])


def test_a_settled_file_is_told_once_with_its_content_s_etag(lake: Lake, watched: Watched) -> None:
    key = lake.key("a b+%41/ü/logs_1.binpb.gz")
    path = put(lake, key)
    assert watched.settle() == 1
    assert [watched.look(seconds_later=5.0) for _ in range(3)] == [0, 0, 0]
    [body] = lake.bodies(TOPIC, 1)
    assert (body["k"], body["s"], body["a"], body["c"]) == (key, 7, "directory", "edge")
    assert body["e"] == md5(b"payload", usedforsecurity=False).hexdigest()
    assert body["et"] == path.stat().st_mtime_ns // 1_000_000


def test_a_file_that_still_grows_is_not_told(lake: Lake, watched: Watched) -> None:
    path = put(lake, lake.key())
    watched.look()
    for length in range(1, 5):
        with path.open("ab") as growing:
            growing.write(b"x" * length)
        assert watched.look(seconds_later=0.9) == 0
    assert watched.look(seconds_later=0.9) == 0
    assert watched.look(seconds_later=0.2) == 1


def test_a_file_written_again_at_the_same_size_is_told_again(lake: Lake, watched: Watched) -> None:
    path = put(lake, lake.key(), b"one")
    make_old(path)
    assert watched.settle() == 1
    put(lake, lake.key(), b"two")
    assert watched.settle() == 1
    assert len({body["e"] for body in lake.bodies(TOPIC, 2)}) == 2


def test_a_file_changed_between_listing_and_hashing_waits_again(
    lake: Lake, watched: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(lake, lake.key(), b"one")
    watched.look()
    original = Store.head

    def changed_first(self: Store, key: str) -> Any:
        put(lake, key, b"longer")
        return original(self, key)

    monkeypatch.setattr(Store, "head", changed_first)
    assert watched.look(seconds_later=1.0) == 0
    monkeypatch.setattr(Store, "head", original)
    assert watched.look() == 0
    assert watched.look(seconds_later=1.0) == 1


def test_a_file_taken_away_and_put_back_is_told_again(lake: Lake, watched: Watched) -> None:
    path = put(lake, lake.key())
    assert watched.settle() == 1
    path.unlink()
    watched.look()
    put(lake, lake.key())
    assert watched.settle() == 1


def test_after_a_restart_only_what_lrdb_does_not_know_is_told(lake: Lake, watched: Watched) -> None:
    for number in range(3):
        make_old(put(lake, lake.key(f"logs/{number}"), bytes([number])))
    assert watched.settle() == 3
    remember(lake.bodies(TOPIC, 3), lake)
    make_old(put(lake, lake.key("logs/0"), b"another content"))
    make_old(put(lake, lake.key("logs/9"), b"came meanwhile"))
    restarted = Watched(lake)
    assert restarted.settle() == 2
    assert restarted.adapter.metrics.value("ignored", "known") == 2
    assert restarted.settle() == 0
    assert sorted(body["k"][-6:] for body in lake.bodies(TOPIC, 5)) == [
        "logs/0",
        "logs/0",
        "logs/1",
        "logs/2",
        "logs/9",
    ]


def test_segments_hidden_files_and_uploads_are_not_told(lake: Lake, watched: Watched) -> None:
    for key in (
        "db/o/c/20260101/logs/00/tbl_1.parquet",
        ".DS_Store",
        lake.key(".logs_1.gz.part"),
        lake.key("logs/x#1"),
    ):
        put(lake, key)
    put(lake, lake.key())
    assert watched.settle() == 1
    assert watched.adapter.metrics.value("ignored", "hidden") == 2
    assert watched.settle() == 0
    assert watched.adapter.metrics.value("ignored", "hidden") == 2
    assert [body["k"] for body in lake.bodies(TOPIC, 1)] == [lake.key()]


def test_links_out_of_the_bucket_are_not_there(lake: Lake, watched: Watched, tmp_path: Path) -> None:
    outside = tmp_path / "outside" / "logs"
    outside.mkdir(parents=True)
    (outside / "logs_1").write_bytes(b"secret")
    base = lake.directory / "otel-raw" / str(lake.organization_id)
    base.mkdir(parents=True)
    (base / "edge").symlink_to(outside.parent)
    (base / "logs_1").symlink_to(outside / "logs_1")
    os.mkfifo(base / "logs_2")
    assert watched.settle() == 0
    assert watched.adapter.metrics.value("received") == 0


def test_names_that_can_be_none_become_dead_letters_and_hide_no_other(lake: Lake, watched: Watched) -> None:
    base = lake.directory / "otel-raw" / str(lake.organization_id) / "edge" / "logs"
    base.mkdir(parents=True)
    (base / "line\nbreak").write_bytes(b"x")
    (Path(os.fsdecode(os.fsencode(base) + b"/not-\xff-utf8"))).write_bytes(b"x")
    put(lake, "stray.txt")
    put(lake, lake.key())
    assert watched.settle() == 1
    assert watched.settle() == 0
    with lake.lrdb.connection() as conn:
        letters = dead_letters.waiting(conn, 10)
    assert sorted((letter.reason, letter.times) for letter in letters) == [
        ("bad_key", 1),
        ("bad_key", 1),
        ("no_route", 1),
    ]


def test_while_kafka_is_away_files_wait_and_are_told_once(
    lake: Lake, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    patience = intake_module.PRODUCE_SECONDS
    monkeypatch.setattr(intake_module, "PRODUCE_SECONDS", 0.2)
    away = Intake(lake.lrdb, Bus("127.0.0.1:9", replication=1), lake.settings)
    watched = Watched(lake, away)
    put(lake, lake.key())
    assert watched.settle() == 0
    assert watched.look(seconds_later=1.0) == 0
    assert watched.adapter.metrics.value("failed", "unavailable") == 2
    assert caplog.text.count("goes on trying") == 1
    monkeypatch.setattr(intake_module, "PRODUCE_SECONDS", patience)
    monkeypatch.setattr(watched.adapter, "_intake", lake.intake)
    assert watched.look(seconds_later=1.0) == 1
    assert watched.look(seconds_later=1.0) == 0


def test_while_the_directory_is_away_nothing_is_forgotten(
    lake: Lake, watched: Watched, caplog: pytest.LogCaptureFixture
) -> None:
    put(lake, lake.key())
    assert watched.settle() == 1
    lake.directory.rename(lake.directory.with_name("elsewhere"))
    assert [watched.look(seconds_later=1.0) for _ in range(2)] == [0, 0]
    assert caplog.text.count("is gone") == 1
    lake.directory.with_name("elsewhere").rename(lake.directory)
    put(lake, lake.key("logs/2"))
    assert watched.settle() == 1


def test_more_files_than_a_batch_are_all_told(lake: Lake, watched: Watched, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lakerunner_dagster.lake.notifications.directory.BATCH", 7)
    keys = [lake.key(f"logs/{number}") for number in range(30)]
    for key in keys:
        put(lake, key)
    assert watched.settle() == 30
    assert sorted(body["k"] for body in lake.bodies(TOPIC, 30)) == sorted(keys)


def test_it_runs_until_it_is_stopped(lake: Lake) -> None:
    quick = lake.settings.model_copy(update={"directory_poll_seconds": 0.01, "directory_settle_seconds": 0.05})
    adapter = DirectoryAdapter(lake.store, lake.intake, quick)
    stop = threading.Event()
    thread = threading.Thread(target=adapter.run, args=(stop,))
    thread.start()
    try:
        put(lake, lake.key())
        deadline = time.monotonic() + WAIT_SECONDS
        while adapter.metrics.value("produced") < 1 and time.monotonic() < deadline:
            stop.wait(0.01)
    finally:
        stop.set()
        thread.join(WAIT_SECONDS)
    assert not thread.is_alive()
    assert adapter.metrics.value("produced") == 1


def test_a_cloud_s_bucket_is_refused(lake: Lake) -> None:
    with pytest.raises(ConfigurationError, match="not a directory"):
        DirectoryAdapter(Store.open(BucketConfiguration("b", "aws")), lake.intake, lake.settings)


def test_the_listing_steps_over_the_segments_and_goes_on_where_it_was_left(lake: Lake) -> None:
    keys = ["a/1", "da/1", "db", "db-/1", "dba/1", "otel-raw/1", "z/1"]
    segments = ["db/0a/x", "db/ff/x", "db/zz/x"]
    for key in [*keys[:2], *keys[3:], *segments]:
        put(lake, key)
    listed = [key for key in keys if key != "db"]
    store = lake.store
    assert [found.key for found in raw_objects(store)] == listed
    for after in ["", "a/1", "db-/1", "db/0a/x", "db/zz/x", "dba/1", "z/1"]:
        assert [found.key for found in raw_objects(store, after)] == [key for key in listed if key > after]
