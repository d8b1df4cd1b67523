"""Stored bytes → raw bytes: gzip and zstd by their magic, anything else as it is. Bounded, whatever the input claims.

What belongs here: telling and undoing compression. What does not: what the raw bytes say.

gzip's trailer states the decompressed size, so libdeflate, three times as fast as zlib, can write into a buffer of it.
The trailer is only a claim: where it is not one that we would grant, where it does not hold, or where a second member
may follow, zlib decides, in bounded steps.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import deflate
import zstandard

from lakerunner_dagster.lake.errors import InputError
from lakerunner_dagster.lake.settings import Limits, MiB

if TYPE_CHECKING:
    from lakerunner_dagster.lake.byte_ranges import ByteRanges

GZIP_MAGIC = b"\x1f\x8b"
ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"

_MAGIC_BYTES = 4
_GZIP_MEMBER = b"\x1f\x8b\x08"
_GZIP_MINIMUM = 18
_SLICE_BYTES = 256 * 1024
_MOST_MEMBERS = 65_536
"""Members or frames in one object: each costs time, however little it holds."""


class _Member(Protocol):
    """A decompressor of one gzip member or zstd frame."""

    @property
    def eof(self) -> bool: ...

    @property
    def unused_data(self) -> bytes: ...

    def decompress(self, data: bytes, /) -> bytes: ...


@dataclass(frozen=True, slots=True)
class _Format:
    """A format in bounded steps of ``step`` stored bytes, none of which yields more than 32 MiB."""

    name: str
    step: int
    member: Callable[[], _Member]
    error: type[Exception]


_GZIP = _Format("gzip", 16_384, lambda: zlib.decompressobj(zlib.MAX_WBITS | 16), zlib.error)
_ZSTD = _Format("zstd", 1024, lambda: zstandard.ZstdDecompressor().decompressobj(), zstandard.ZstdError)


def decompress(data: bytes, key: str, limits: Limits) -> bytes:
    """The raw bytes of an object, whole; InputError as of :func:`decompressed`."""
    return b"".join(decompressed(data, key, limits, at_once=limits.decompressed_bytes))


def decompressed(data: ByteRanges, key: str, limits: Limits, at_once: int) -> Iterator[bytes]:
    """The raw bytes of an object in steps: one of up to ``at_once`` bytes where that is fastest, or many small ones.

    Raises InputError, naming the object ``key``: ``empty_object``, ``object_too_large`` (as stored, or uncompressed),
    ``decompression_bomb`` (beyond the size or the ratio allowed, before a step beyond it is given), ``truncated_gzip``,
    ``corrupt_gzip``, ``truncated_zstd``, ``corrupt_zstd``: only after the last step are the bytes known to be whole.
    """
    if not len(data):
        raise InputError("empty_object", f"{key}: the object has 0 bytes; send it again with content")
    if len(data) > limits.object_bytes:
        raise InputError(
            "object_too_large",
            f"{key}: {len(data)} stored bytes, at most {limits.object_bytes} are taken; "
            "send smaller batches, or raise LAKERUNNER_LIMIT_OBJECT_BYTES",
        )
    allowed = min(limits.decompressed_bytes, max(MiB, limits.decompression_ratio * len(data)))
    magic = data[:_MAGIC_BYTES]
    if magic.startswith(GZIP_MAGIC):
        content = _by_libdeflate(data, min(allowed, at_once)) if isinstance(data, bytes) else None
        yield from _by_steps(data, key, allowed, _GZIP) if content is None else [content]
    elif magic.startswith(ZSTD_MAGIC):
        yield from _by_steps(data, key, allowed, _ZSTD)
    elif len(data) > limits.decompressed_bytes:
        raise InputError(
            "object_too_large",
            f"{key}: {len(data)} raw bytes, at most {limits.decompressed_bytes} are taken; "
            "send smaller batches, or raise LAKERUNNER_LIMIT_DECOMPRESSED_BYTES",
        )
    elif len(data) <= at_once:
        yield data[: len(data)]
    else:
        yield from _slices(data, 0)


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


def _by_steps(data: ByteRanges, key: str, allowed: int, form: _Format) -> Iterator[bytes]:
    """The content of all members; zero bytes after the last one of gzip are padding."""
    size = position = members = 0
    member: _Member | None = None
    while position < len(data):
        if member is None or member.eof:
            if members and form is _GZIP and _is_padding(data, position):
                break
            member, members = form.member(), members + 1
        step = data[position : position + form.step]
        try:
            content = member.decompress(step)
        except form.error as error:
            raise InputError(
                f"corrupt_{form.name}",
                f"{key}: {len(data)} bytes that open as {form.name} are none ({error}); send the object again",
            ) from error
        size += len(content)
        if size > allowed or members > _MOST_MEMBERS:
            raise InputError(
                "decompression_bomb",
                f"{key}: its {len(data)} stored bytes hold more than the {allowed} that may come of them, or more than "
                f"{_MOST_MEMBERS} members; where that is meant, raise LAKERUNNER_LIMIT_DECOMPRESSION_RATIO or "
                "LAKERUNNER_LIMIT_DECOMPRESSED_BYTES",
            )
        yield content
        position += len(step) - len(member.unused_data)
    if member is None or not member.eof:
        raise InputError(
            f"truncated_{form.name}",
            f"{key}: its {len(data)} bytes of {form.name} end in the middle; send the object again, whole",
        )


def _is_padding(data: ByteRanges, begin: int) -> bool:
    """Whether nothing but zero bytes follows; a first byte that is none, as each member's, settles it."""
    return data[begin : begin + 1] == b"\0" and not any(part.strip(b"\0") for part in _slices(data, begin))


def _slices(data: ByteRanges, begin: int) -> Iterator[bytes]:
    """What follows a position, in small pieces."""
    return (data[at : at + _SLICE_BYTES] for at in range(begin, len(data), _SLICE_BYTES))
