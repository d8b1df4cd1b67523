"""Room for a run's files on this machine, given back even when the run was killed.

What belongs here: directories of their own for runs, and removing those whose runs are gone. What does not: what is in
them.

Beside each directory stands a lock file that its owner holds for as long as it lives. Whoever needs a directory first
removes those whose lock nobody holds.
"""

from __future__ import annotations

import fcntl
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import cache
from itertools import count
from pathlib import Path
from typing import IO, TypeAlias

PREFIX = "lakerunner-run-"

NewFile: TypeAlias = Callable[[], Path]
"""Gives the path of a file that is not there yet."""


@contextmanager
def scratch_directory() -> Iterator[Path]:
    """An empty directory under the system's temporary one (``TMPDIR``), removed when the block ends."""
    _sweep(Path(tempfile.gettempdir()))
    lock = _own_lock()
    directory = Path(lock.name).with_suffix("")
    try:
        directory.mkdir(mode=0o700)
        yield directory
    finally:
        _remove(lock)


@contextmanager
def scratch_files() -> Iterator[NewFile]:
    """Files in a scratch directory, which is made when the first is asked for: not every run needs one."""
    with ExitStack() as stack:
        directory = cache(lambda: stack.enter_context(scratch_directory()))
        numbers = count()
        yield lambda: directory() / str(next(numbers))


def _own_lock() -> IO[bytes]:
    """A new lock file, held; one that a sweeper was faster to take is left to it."""
    while True:
        lock = tempfile.NamedTemporaryFile(prefix=PREFIX, suffix=".lock", delete=False)  # noqa: SIM115 - it outlives this
        if _held(lock):
            return lock
        lock.close()


def _sweep(parent: Path) -> None:
    """Remove what runs have left that are gone."""
    for path in parent.glob(f"{PREFIX}*.lock"):
        with suppress(FileNotFoundError, PermissionError):
            lock = path.open("rb")
            if _held(lock):
                _remove(lock)
            lock.close()


def _held(lock: IO[bytes]) -> bool:
    """Whether the lock is ours now."""
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _remove(lock: IO[bytes]) -> None:
    """Remove a directory and its lock, which is held."""
    path = Path(lock.name)
    shutil.rmtree(path.with_suffix(""), ignore_errors=True)
    path.unlink(missing_ok=True)
    lock.close()
