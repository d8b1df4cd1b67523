"""Bytes of which ranges are taken, whether they are in memory or too many for it.

What belongs here: a file that is read as ``bytes`` are. What does not: where the file came from (``runs``), what its
bytes say (``telemetry``).

Ranges are read, not mapped: pages of a mapped file that were touched count as memory of the process.
"""

from __future__ import annotations

import os
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Protocol, Self

if TYPE_CHECKING:
    from pathlib import Path


class ByteRanges(Protocol):
    """What ``bytes`` and a file have in common; a range beyond the end is cut short."""

    def __len__(self) -> int: ...

    def __getitem__(self, span: slice, /) -> bytes: ...


class FileRanges(AbstractContextManager["FileRanges"]):
    """The bytes of a file that does not change, read range by range. Ranges go forward and count from the beginning."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("rb", buffering=0)
        self._size = path.stat().st_size

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def __len__(self) -> int:
        return self._size

    def __getitem__(self, span: slice, /) -> bytes:
        begin, end, _ = span.indices(self._size)
        return os.pread(self._file.fileno(), max(0, end - begin), begin)
