"""One holder at a time for a directory, across processes, and never stale.

What belongs here: the lock. What does not: what is done under it.
"""

from __future__ import annotations

import fcntl
import os
import time
from typing import TYPE_CHECKING

from lakerunner_dagster.local.errors import AlreadyRunning

if TYPE_CHECKING:
    from pathlib import Path


ATTEMPTS = 5
"""Somebody who asks for the holder takes the lock for a moment."""


class ProcessLock:
    """An exclusive lock on ``path``. The kernel releases it when its holder ends, however it ends."""

    def __init__(self, path: Path, what: str) -> None:
        self._path = path
        self._what = what
        self._descriptor: int | None = None

    def acquire(self) -> None:
        """Take the lock and note our process id in it. Raises AlreadyRunning, naming the holder's process id."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            self._lock(descriptor)
        except BlockingIOError:
            holder = os.read(descriptor, 32).decode("ascii", "replace").strip() or "unknown"
            os.close(descriptor)
            raise AlreadyRunning(
                f"{self._what} is already running under {self._path.parent} (process {holder}): use that one, or stop "
                "it first"
            ) from None
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
        self._descriptor = descriptor

    def _lock(self, descriptor: int) -> None:
        for attempt in range(ATTEMPTS):
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if attempt == ATTEMPTS - 1:
                    raise
                time.sleep(0.05)
            else:
                return

    def release(self) -> None:
        """Give the lock back; nothing happens when it is not held."""
        if self._descriptor is not None:
            os.ftruncate(self._descriptor, 0)
            os.close(self._descriptor)
            self._descriptor = None

    def holder(self) -> int | None:
        """Process id of whoever holds the lock now, or None."""
        try:
            descriptor = os.open(self._path, os.O_RDWR | os.O_CLOEXEC)
        except FileNotFoundError:
            return None
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            text = os.read(descriptor, 32).decode("ascii", "replace").strip()
            return int(text) if text.isdigit() else None
        finally:
            os.close(descriptor)
        return None
