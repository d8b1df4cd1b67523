"""Stored bytes of raw objects → what is decoded at once: small objects together, a large one by itself, in pieces.

What belongs here: decompressing within bounded memory, and what goes together. What does not: reading (``reading``),
how either is undone or cut (``telemetry``), decoding (``transform``).

An object that is larger than what is decoded at once, decompressed, goes through a file. Of such files there is one at
a time, no larger than the limits allow an object to be: who asks for the next object has done with this one.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

from lakerunner_dagster.lake.byte_ranges import FileRanges
from lakerunner_dagster.lake.segments.ids import raw_identity
from lakerunner_dagster.lake.telemetry.compression import decompressed
from lakerunner_dagster.lake.telemetry.cutting import cut
from lakerunner_dagster.lake.telemetry.raw import RawPayload

if TYPE_CHECKING:
    from lakerunner_dagster.lake.model import RawObject
    from lakerunner_dagster.lake.runs.scratch import NewFile
    from lakerunner_dagster.lake.settings import Limits

CHUNK_BYTES = 64 * 1024 * 1024
"""Decompressed bytes that are decoded in one call: a full box. It bounds a run's memory and the rows of a segment."""


@dataclass(frozen=True, slots=True)
class LargeObject:
    """A raw object of more than ``CHUNK_BYTES``, decompressed: ``size`` bytes in a file that is removed with it.

    ``blank`` is what is common to all its pieces, without bytes.
    """

    raw: RawObject
    blank: RawPayload
    path: Path
    size: int

    def pieces(self) -> Iterator[RawPayload]:
        """Payloads of at most ``CHUNK_BYTES`` that have its records between them; ``first_ordinal`` is left open.

        InputError where it cannot be cut to the end.
        """
        with FileRanges(self.path) as request:
            pieces = cut(self.raw.signal, request, self.raw.key, CHUNK_BYTES)
            for number, piece in enumerate(pieces, start=1):
                yield replace(self.blank, payload=piece, piece=number)

    def remove(self) -> None:
        """Give the room back."""
        self.path.unlink()


def content_of(raw: RawObject, data: bytes | Path, limits: Limits, new_file: NewFile) -> RawPayload | LargeObject:
    """A raw object's stored bytes, or the file that has them, decompressed.

    InputError when they are corrupt, or too many.
    """
    blank = RawPayload(
        raw_object_id=raw.raw_object_id,
        key=raw.key,
        identity=raw_identity(raw.bucket, raw.key, raw.etag),
        event_time_ms=raw.event_time_ms,
        payload=b"",
    )
    if isinstance(data, bytes):
        content = _held_or_written(decompressed(data, raw.key, limits, CHUNK_BYTES), new_file)
    else:
        with FileRanges(data) as stored:
            content = _held_or_written(decompressed(stored, raw.key, limits, CHUNK_BYTES), new_file)
    if isinstance(content, bytes):
        return replace(blank, payload=content)
    return LargeObject(raw, blank, content, content.stat().st_size)


def _held_or_written(steps: Iterator[bytes], new_file: NewFile) -> bytes | Path:
    """All steps as bytes where these are at most ``CHUNK_BYTES``, else in a file."""
    held: list[bytes] = []
    size = 0
    for step in steps:
        held.append(step)
        size += len(step)
        if size > CHUNK_BYTES:
            return _written(chain(held, steps), new_file())
    return b"".join(held)


def _written(steps: Iterable[bytes], path: Path) -> Path:
    """The file, which is there only if all steps were."""
    try:
        with path.open("xb") as file:
            file.writelines(steps)
    except BaseException:
        path.unlink(missing_ok=True)
        raise
    return path


def gathered(contents: Iterable[RawPayload | LargeObject]) -> Iterator[list[RawPayload] | LargeObject]:
    """Payloads in order, in lists of at most ``CHUNK_BYTES`` decompressed bytes; a large object stands alone."""
    chunk: list[RawPayload] = []
    size = 0
    for content in contents:
        length = content.size if isinstance(content, LargeObject) else len(content.payload)
        if chunk and size + length > CHUNK_BYTES:
            yield chunk
            chunk, size = [], 0
        if isinstance(content, LargeObject):
            yield content
        else:
            chunk.append(content)
            size += length
    if chunk:
        yield chunk
