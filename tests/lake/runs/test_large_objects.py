"""What would break where an object is too large to be decoded whole, and is ingested in pieces."""

from __future__ import annotations

import gzip
import random
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import zstandard

from lakerunner_dagster.lake.errors import InputError, WorkIncomplete
from lakerunner_dagster.lake.model import HOUR_MS, RawObject, RawState
from lakerunner_dagster.lake.runs import contents, reading
from lakerunner_dagster.lake.runs.context import Lake
from lakerunner_dagster.lake.runs.rebuild import rebuild
from lakerunner_dagster.lake.runs.scratch import PREFIX, scratch_files
from lakerunner_dagster.lake.settings import Limits, MiB
from lakerunner_dagster.lake.signals import Signal
from tests.lake.killing import kill_everywhere
from tests.lake.requests import expected, gauges, logs, minutes
from tests.lake.runs.test_killed_run import drain_day, send_days, unpublished_files
from tests.lake.telemetry.otlp import delimited
from tests.lake.world import BUCKET, COLLECTOR, DAY, NOON_MS, ORGANIZATION, World

PIECE_BYTES = 2000
RECORDS = 240
TIMES = minutes(NOON_MS - 4 * HOUR_MS, RECORDS)
"""Four hours."""

LARGE = logs("large", TIMES)
RAW_BYTES = len(gzip.decompress(LARGE))


@pytest.fixture(autouse=True)
def room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where scratch files are; what is large is small enough for a test."""
    directory = tmp_path / "scratch"
    directory.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(directory))
    monkeypatch.setattr(contents, "CHUNK_BYTES", PIECE_BYTES)
    return directory


def rebuilt(world: World) -> None:
    rebuild(world.lake, Signal.LOGS, world.source, DAY, run_id="rebuild", on_step=lambda _step: None)


def ids(world: World) -> list[str]:
    """The chq_id of every record that readers see."""
    return sorted(chq_id for (chq_id,) in world.select(Signal.LOGS, "chq_id"))


@pytest.mark.parametrize("stored", [LARGE, gzip.decompress(LARGE), zstandard.compress(gzip.decompress(LARGE))])
@pytest.mark.parametrize("in_memory_bytes", [reading.IN_MEMORY_BYTES, 100])
def test_a_large_object_is_ingested_in_pieces_as_one(
    world: World, room: Path, monkeypatch: pytest.MonkeyPatch, stored: bytes, in_memory_bytes: int
) -> None:
    monkeypatch.setattr(reading, "IN_MEMORY_BYTES", in_memory_bytes)
    keys = [
        world.put(Signal.LOGS, name, data)
        for name, data in (("a", logs("a", TIMES[:5])), ("large", stored), ("b", logs("b", TIMES[-5:])))
    ]
    world.notify(*keys)
    (step,) = world.ingest(Signal.LOGS)

    assert world.messages() == expected(a=5, large=RECORDS, b=5)
    assert step.records_read == RECORDS + 10
    assert (step.bytes_in, step.objects, step.set_aside) == (sum(world.event(key).size for key in keys), 3, ())
    assert step.raw_bytes == RAW_BYTES + sum(
        len(gzip.decompress(logs(name, times))) for name, times in (("a", TIMES[:5]), ("b", TIMES[-5:]))
    )
    assert len(step.segments) > RAW_BYTES // PIECE_BYTES
    large = [one for one in ids(world) if sum(one[:24] == other[:24] for other in ids(world)) == RECORDS]
    assert [int(one[25:], 16) for one in large] == list(range(RECORDS))
    assert world.query("SELECT records_read, records_rejected FROM raw_objects ORDER BY records_read DESC LIMIT 1") == [
        (RECORDS, 0)
    ]
    assert list(room.iterdir()) == []
    assert world.breaches() == []


def test_records_keep_the_ids_that_they_have_in_an_object_decoded_whole(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.send(Signal.LOGS, "large", LARGE)
    world.ingest(Signal.LOGS)
    in_pieces = ids(world)
    monkeypatch.setattr(contents, "CHUNK_BYTES", 64 * MiB)
    rebuilt(world)
    assert ids(world) == in_pieces
    assert world.messages() == expected(large=RECORDS)
    assert world.breaches() == []


def test_a_rebuild_gives_what_ingest_gave_and_the_same_bytes_each_time(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    too_early = NOON_MS - 800 * 24 * HOUR_MS
    large = logs("large", [*TIMES[:200], too_early, too_early, *TIMES[200:]])
    world.notify(world.put(Signal.LOGS, "large", large), world.put(Signal.LOGS, "small", logs("small", TIMES[::10])))
    (step,) = world.ingest(Signal.LOGS)
    assert step.rejected == {"time_before_first_date": 2}
    ingested, books = ids(world), "SELECT key, state, records_read, rejected FROM raw_objects ORDER BY key"
    known = world.query(books)

    rebuilt(world)
    assert ids(world) == ingested
    assert world.query(books) == known
    first = {path: path.read_bytes() for path in world.segment_files()}
    published = world.published(Signal.LOGS)
    rebuilt(world)
    assert world.published(Signal.LOGS) == published
    assert {path: path.read_bytes() for path in world.segment_files()} == first
    assert "in other bytes" not in caplog.text
    assert world.breaches() == []


def test_segments_of_a_large_object_that_was_ingested_whole_are_replaced_by_a_rebuild_in_pieces(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.send(Signal.LOGS, "large", LARGE)
    with monkeypatch.context() as patch:
        patch.setattr(contents, "CHUNK_BYTES", 64 * MiB)
        world.ingest(Signal.LOGS)
        rebuilt(world)
        whole = {segment_id for _, segment_id, _ in world.published(Signal.LOGS)}
    rebuilt(world)
    assert whole.isdisjoint(segment_id for _, segment_id, _ in world.published(Signal.LOGS))
    assert world.messages() == expected(large=RECORDS)
    assert world.breaches() == []


def test_points_of_a_large_object_are_all_there_and_roll_up(world: World) -> None:
    world.send(Signal.METRICS, "large", gauges("queue.length", TIMES))
    world.ingest(Signal.METRICS)
    assert world.records(Signal.METRICS) == RECORDS
    assert world.select(Signal.METRICS, "sum(chq_points)::bigint, sum(chq_rollup_sum)") == [
        (RECORDS, sum(range(RECORDS)))
    ]
    world.roll_up()
    assert world.select(Signal.METRICS, "sum(chq_rollup_count), sum(chq_rollup_sum)", 3_600_000) == [
        (RECORDS, sum(range(RECORDS)))
    ]
    assert world.breaches() == []


def broken_near_its_end() -> bytes:
    """A request whose last record has a text that is not UTF-8."""
    request = gzip.decompress(LARGE)
    at = request.rindex(b"large 239")
    return request[:at] + b"\xff" + request[at + 1 :]


CORRUPT = {
    "truncated_gzip": LARGE[:-1],
    "corrupt_gzip": LARGE[:-8] + bytes(4) + LARGE[-4:],
    "truncated_zstd": zstandard.compress(gzip.decompress(LARGE))[:-1],
    "corrupt_protobuf": gzip.compress(broken_near_its_end()),
    "part_too_large": gzip.compress(gzip.decompress(LARGE) + delimited(1, delimited(2, delimited(2, bytes(4000))))),
}


@pytest.mark.parametrize("in_memory_bytes", [reading.IN_MEMORY_BYTES, 100])
def test_a_large_object_that_is_corrupt_at_its_end_is_set_aside_alone_and_whole(
    world: World, room: Path, monkeypatch: pytest.MonkeyPatch, in_memory_bytes: int
) -> None:
    monkeypatch.setattr(reading, "IN_MEMORY_BYTES", in_memory_bytes)
    good = {"first": logs("first", TIMES[:3]), "last": logs("last", TIMES[:3])}
    sent = {"first": good["first"], **CORRUPT, "cut.gz": gzip.compress(gzip.decompress(LARGE)[:-3])}
    keys = [world.put(Signal.LOGS, name, data) for name, data in (sent | good).items()]
    world.notify(*keys)
    (step,) = world.ingest(Signal.LOGS)
    ended = {aside.raw.key.rpartition("/")[2]: aside.error_class for aside in step.set_aside}
    assert ended == {**{name: name for name in CORRUPT}, "cut.gz": "corrupt_protobuf"}
    assert {aside.state for aside in step.set_aside} == {RawState.QUARANTINED}
    assert all(aside.raw.key in aside.error_text for aside in step.set_aside)
    assert world.messages() == expected(first=3, last=3)
    assert (step.records_read, step.records_written) == (6, 6)
    assert list(room.iterdir()) == []
    assert world.breaches() == []


def test_a_large_object_that_has_become_corrupt_keeps_its_hours_as_they_were(world: World) -> None:
    key = world.send(Signal.LOGS, "large", LARGE)
    world.ingest(Signal.LOGS)
    published = world.published(Signal.LOGS)
    (world.place.bucket / key).write_bytes(CORRUPT["corrupt_protobuf"])
    with world.lake.lrdb.transaction() as conn:
        conn.execute("UPDATE raw_objects SET etag = %s", (world.event(key).etag,))
    with pytest.raises(WorkIncomplete, match=r"InputError: .*large: its .* bytes are no"):
        rebuilt(world)
    assert world.published(Signal.LOGS) == published
    assert world.messages() == expected(large=RECORDS)


def test_an_overwritten_large_object_leaves_no_file_behind(
    world: World, room: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reading, "IN_MEMORY_BYTES", 100)
    files: list[int] = []
    read_now = reading._read_now

    def counted(*arguments: Any) -> Any:
        files.append(len(list(room.glob("*/*"))))
        return read_now(*arguments)

    monkeypatch.setattr(reading, "_read_now", counted)
    keys = [world.put(Signal.LOGS, f"f{number}", logs(f"f{number}", TIMES)) for number in range(3)]
    world.notify(*keys)
    world.box(Signal.LOGS)
    for number in range(2):
        world.put(Signal.LOGS, f"f{number}", logs(f"g{number}", TIMES))
    (step,) = world.drain(Signal.LOGS)
    assert [aside.error_class for aside in step.set_aside] == ["overwritten"] * 2
    assert files == [0, 0, 0]
    world.ingest(Signal.LOGS)
    assert world.messages() == expected(g0=RECORDS, g1=RECORDS, f2=RECORDS)


BOMB = b"".join(noise + bytes(100_000) for noise in map(random.Random(1).randbytes, [2000] * 400))
"""40 MB that swell step by step."""


@pytest.mark.parametrize("compress", [gzip.compress, zstandard.compress])
@pytest.mark.parametrize("kind", [bytes, Path])
def test_a_bomb_is_refused_in_bounded_room(
    tmp_path: Path, room: Path, monkeypatch: pytest.MonkeyPatch, compress: Any, kind: type[bytes | Path]
) -> None:
    monkeypatch.setattr(contents, "CHUNK_BYTES", MiB)
    written = 0
    decompressed = contents.decompressed  # type: ignore[attr-defined]

    def watched(*arguments: Any) -> Any:
        nonlocal written
        for step in decompressed(*arguments):
            written += len(step)
            yield step

    monkeypatch.setattr(contents, "decompressed", watched)
    path = tmp_path / "bomb"
    path.write_bytes(compress(BOMB))
    raw = RawObject(1, ORGANIZATION, 1, COLLECTOR, Signal.LOGS, BUCKET, "bomb", "etag", 0, NOON_MS)
    data = path if kind is Path else path.read_bytes()
    with scratch_files() as new_file:
        with pytest.raises(InputError) as caught:
            contents.content_of(raw, data, Limits.model_construct(decompressed_bytes=4 * MiB), new_file)
        assert caught.value.reason == "decompression_bomb"
        assert len(list(room.iterdir())) == 2, (
            "it was never written to a file: the directory and its lock are not there"
        )
        assert list(room.glob("*/*")) == []
    assert MiB < written <= 4 * MiB


def drain_large(lake: Lake, number: int) -> None:
    """In a process of its own, which is told what is large and where its files go."""
    bucket = Path(lake.stores.of(BUCKET)._inner._files.root)  # type: ignore[attr-defined]
    tempfile.tempdir = str(bucket.with_name("scratch"))
    contents.CHUNK_BYTES, reading.IN_MEMORY_BYTES = 160, 10
    drain_day(lake, number)


def test_a_run_killed_in_the_middle_of_a_large_object_leaves_nothing_visible_and_no_file(
    world: World, room: Path
) -> None:
    sent = send_days(world, ("large",), hours=6)
    world.box(Signal.LOGS)

    def nothing_new_is_visible(_number: int) -> None:
        seen = world.messages()
        assert seen <= sent
        assert all(count % 6 == 0 for count in Counter(message.split()[0] for message in seen).values())

    boundaries = kill_everywhere(world.place, drain_large, nothing_new_is_visible)
    assert boundaries.count("after an upload") > 5
    assert "after a read" in boundaries
    world.expire_leases()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(contents, "CHUNK_BYTES", 160)
        world.drain(Signal.LOGS)
    assert world.messages() == sent
    assert unpublished_files(world) == set()
    assert list(room.glob(f"{PREFIX}*")) == []
    assert world.breaches() == []
