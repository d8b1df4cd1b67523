"""Stored bytes → raw bytes: gzip and zstd by their magic, anything else as it is. Bounded, whatever the input claims.

What belongs here: telling and undoing compression. What does not: what the raw bytes say.

gzip's trailer states the decompressed size, so libdeflate, three times as fast as zlib, can write into a buffer of it.
The trailer is only a claim: where it is not one that we would grant, where it does not hold, or where a second member
may follow, zlib decides, in bounded steps.
"""

from __future__ import annotations

import zlib
from typing import NoReturn

import deflate
import zstandard

from lakerunner_dagster.lake.errors import InputError
from lakerunner_dagster.lake.settings import Limits, MiB

GZIP_MAGIC = b"\x1f\x8b"
_GZIP_MEMBER = b"\x1f\x8b\x08"
_GZIP_MINIMUM = 18
ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"
_ZSTD_STEP = 1024
"""Stored bytes of zstd taken in one step: four of them can stand for 128 KiB, so a step yields at most 32 MiB."""


def decompress(data: bytes, key: str, limits: Limits) -> bytes:
    """The raw bytes of an object.

    Raises InputError, naming the object ``key``: ``empty_object``, ``object_too_large`` (as stored, or uncompressed),
    ``decompression_bomb`` (beyond the size or the ratio allowed), ``truncated_gzip``, ``corrupt_gzip``,
    ``truncated_zstd``, ``corrupt_zstd``.
    """
    if not data:
        raise InputError("empty_object", f"{key}: the object has 0 bytes; send it again with content")
    if len(data) > limits.object_bytes:
        raise InputError(
            "object_too_large",
            f"{key}: {len(data)} stored bytes, at most {limits.object_bytes} are taken; "
            "send smaller batches, or raise LAKERUNNER_LIMIT_OBJECT_BYTES",
        )
    allowed = min(limits.decompressed_bytes, max(MiB, limits.decompression_ratio * len(data)))
    if data.startswith(GZIP_MAGIC):
        return _by_libdeflate(data, allowed) or _by_zlib(data, key, allowed)
    if data.startswith(ZSTD_MAGIC):
        return _by_zstd(data, key, allowed)
    if len(data) > limits.decompressed_bytes:
        raise InputError(
            "object_too_large",
            f"{key}: {len(data)} raw bytes, at most {limits.decompressed_bytes} are taken; "
            "send smaller batches, or raise LAKERUNNER_LIMIT_DECOMPRESSED_BYTES",
        )
    return data


def _by_libdeflate(data: bytes, allowed: int) -> bytes | None:
    """The content of a single member whose trailer states its size truly; None for all that zlib must decide."""
    stated = int.from_bytes(data[-4:], "little")
    if len(data) < _GZIP_MINIMUM or not 0 < stated <= allowed or data.find(_GZIP_MEMBER, 1) >= 0:
        return None
    try:
        content = deflate.gzip_decompress(data, stated)
    except deflate.DeflateError:
        return None
    return bytes(content) if len(content) == stated else None


def _by_zlib(data: bytes, key: str, allowed: int) -> bytes:
    """The content of all members; zero bytes after the last are padding, as for gzip."""
    content = bytearray()
    rest = data
    while rest.strip(b"\0"):
        member = zlib.decompressobj(zlib.MAX_WBITS | 16)
        try:
            content += member.decompress(rest, allowed + 1 - len(content))
        except zlib.error as error:
            raise InputError(
                "corrupt_gzip", f"{key}: {len(data)} bytes that open as gzip are none ({error}); send the object again"
            ) from error
        if len(content) > allowed:
            _refuse_bomb(key, len(data), allowed)
        if not member.eof:
            raise InputError(
                "truncated_gzip",
                f"{key}: its {len(data)} bytes of gzip end in the middle; send the object again, whole",
            )
        rest = member.unused_data
    return bytes(content)


def _by_zstd(data: bytes, key: str, allowed: int) -> bytes:
    """The content of all frames."""
    content = bytearray()
    frame = zstandard.ZstdDecompressor().decompressobj()
    position = 0
    while position < len(data):
        step = data[position : position + _ZSTD_STEP]
        try:
            content += frame.decompress(step)
        except zstandard.ZstdError as error:
            raise InputError(
                "corrupt_zstd", f"{key}: {len(data)} bytes that open as zstd are none ({error}); send the object again"
            ) from error
        if len(content) > allowed:
            _refuse_bomb(key, len(data), allowed)
        position += len(step) - len(frame.unused_data)
        if frame.eof and position < len(data):
            frame = zstandard.ZstdDecompressor().decompressobj()
    if not frame.eof:
        raise InputError(
            "truncated_zstd", f"{key}: its {len(data)} bytes of zstd end in the middle; send the object again, whole"
        )
    return bytes(content)


def _refuse_bomb(key: str, stored: int, allowed: int) -> NoReturn:
    raise InputError(
        "decompression_bomb",
        f"{key}: its {stored} stored bytes hold more than the {allowed} that may come of them; where that is meant, "
        "raise LAKERUNNER_LIMIT_DECOMPRESSION_RATIO or LAKERUNNER_LIMIT_DECOMPRESSED_BYTES",
    )
