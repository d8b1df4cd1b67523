"""Decompression gives back what was compressed, and refuses what lies, breaks off, or would fill the memory."""

from __future__ import annotations

import gzip
import zlib
from random import Random

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from lakerunner_dagster.lake.errors import InputError
from lakerunner_dagster.lake.settings import Limits, MiB
from lakerunner_dagster.lake.telemetry.compression import GZIP_MAGIC, ZSTD_MAGIC, decompress

DEFAULT = Limits.model_construct()
CONTENT = Random(1).randbytes(300_000) + b"telemetry " * 10_000
BOMB = bytes(64 * MiB)


def refusal(data: bytes, limits: Limits = DEFAULT) -> InputError:
    with pytest.raises(InputError) as caught:
        decompress(data, "otel-raw/a/b/logs/x y.gz", limits)
    assert "otel-raw/a/b/logs/x y.gz" in str(caught.value)
    return caught.value


@pytest.mark.parametrize(
    "stored",
    [
        CONTENT,
        gzip.compress(CONTENT),
        gzip.compress(CONTENT) + gzip.compress(b""),
        gzip.compress(CONTENT[:1000]) + gzip.compress(CONTENT[1000:]),
        gzip.compress(CONTENT) + bytes(512),
        zstandard.compress(CONTENT),
        zstandard.compress(CONTENT[:1000]) + zstandard.compress(CONTENT[1000:]),
        zstandard.ZstdCompressor(write_content_size=False).compress(CONTENT),
    ],
    ids=["plain", "gzip", "empty member", "two members", "padded", "zstd", "two frames", "no size stated"],
)
def test_what_was_stored_comes_back(stored: bytes) -> None:
    assert decompress(stored, "key", DEFAULT) == CONTENT


def test_a_member_twice_is_not_taken_for_once() -> None:
    assert decompress(gzip.compress(CONTENT) * 2, "key", DEFAULT) == CONTENT * 2


@given(content=st.binary(max_size=200), level=st.integers(0, 9))
def test_any_gzip_comes_back(content: bytes, level: int) -> None:
    assert decompress(gzip.compress(content, level), "key", DEFAULT) == content


def test_an_object_of_no_bytes_is_refused_but_one_of_no_content_is_not() -> None:
    assert refusal(b"").reason == "empty_object"
    assert decompress(gzip.compress(b""), "key", DEFAULT) == b""


@pytest.mark.parametrize("kept", [2, 9, 17, 18, 1000, -1, -8])
def test_gzip_that_breaks_off_is_told_as_truncated(kept: int) -> None:
    assert refusal(gzip.compress(CONTENT)[:kept]).reason == "truncated_gzip"


@pytest.mark.parametrize("kept", [4, 6, 1000, -1])
def test_zstd_that_breaks_off_is_told_as_truncated(kept: int) -> None:
    assert refusal(zstandard.compress(CONTENT)[:kept]).reason == "truncated_zstd"


@pytest.mark.parametrize(
    "stored",
    [
        GZIP_MAGIC + bytes(100),
        gzip.compress(CONTENT) + b"tail",
        gzip.compress(CONTENT)[:-4] + b"\1\2\3\4",
        gzip.compress(CONTENT)[:-8] + b"\1\2\3\4" + gzip.compress(CONTENT)[-4:],
        gzip.compress(CONTENT)[:-4] + (4).to_bytes(4, "little"),
    ],
    ids=["no header", "tail", "size too large", "checksum", "size too small"],
)
def test_gzip_that_is_none_or_whose_trailer_lies_is_corrupt(stored: bytes) -> None:
    assert refusal(stored).reason == "corrupt_gzip"


@pytest.mark.parametrize("stored", [ZSTD_MAGIC + b"\xff" * 100, zstandard.compress(CONTENT) + b"tail"])
def test_zstd_that_is_none_is_corrupt(stored: bytes) -> None:
    assert refusal(stored).reason == "corrupt_zstd"


@pytest.mark.parametrize(
    "bomb",
    [
        gzip.compress(BOMB),
        gzip.compress(BOMB)[:-4] + (1000).to_bytes(4, "little"),
        gzip.compress(bytes(MiB)) * 64,
        zstandard.compress(BOMB),
        zstandard.ZstdCompressor(write_content_size=False).compress(BOMB),
    ],
    ids=["gzip", "gzip that lies", "gzip in members", "zstd", "zstd of no size"],
)
def test_a_bomb_is_refused_for_its_ratio(bomb: bytes) -> None:
    assert refusal(bomb).reason == "decompression_bomb"


def test_a_flood_of_empty_members_is_refused_before_it_costs_hours() -> None:
    assert refusal(gzip.compress(b"") * 70_000).reason == "decompression_bomb"


def test_sizes_are_bounded_stored_and_decompressed() -> None:
    limits = Limits.model_construct(object_bytes=150_000, decompressed_bytes=100_000)
    assert refusal(Random(2).randbytes(200_000), limits).reason == "object_too_large"
    assert refusal(Random(2).randbytes(120_000), limits).reason == "object_too_large"
    assert refusal(gzip.compress(bytes(120_000)), limits).reason == "decompression_bomb"
    assert len(decompress(gzip.compress(bytes(100_000)), "key", limits)) == 100_000


def test_a_small_object_may_have_any_ratio() -> None:
    assert decompress(gzip.compress(bytes(MiB)), "key", DEFAULT) == bytes(MiB)
    assert zlib.crc32(bytes(MiB)) == zlib.crc32(decompress(zstandard.compress(bytes(MiB)), "key", DEFAULT))
