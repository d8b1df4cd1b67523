"""What a test needs of a registry and the project does not install: fetched once into the user's cache.

What belongs here: fetching once, also when several test processes ask at the same time. What does not: what is fetched.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import pytest

from lakerunner_dagster.local.errors import AlreadyRunning
from lakerunner_dagster.local.lock import ProcessLock

FETCH_SECONDS = 900.0

CACHE = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "lakerunner-dagster"


def cached(name: str, fetch: Callable[[Path], Sequence[str]], environment: Mapping[str, str] | None = None) -> Path:
    """The directory ``name`` in the cache; where it is not there, the command ``fetch(directory)`` fills it.

    The test is skipped where the command fails: a bare machine may not reach the registry.
    """
    directory = CACHE / name
    if not directory.exists():
        lock = _locked(name)
        try:
            if not directory.exists():
                _fill(directory, fetch, {**os.environ, **(environment or {})})
        finally:
            lock.release()
    return directory


def needed(*programs: str) -> None:
    """Skip the test, saying why, where one of the programs is not on PATH."""
    missing = [program for program in programs if not shutil.which(program)]
    if missing:
        pytest.skip(f"needs {', '.join(missing)} on PATH")


def _locked(name: str) -> ProcessLock:
    lock = ProcessLock(CACHE / f"{name}.lock", f"the fetching of {name}")
    deadline = time.monotonic() + FETCH_SECONDS
    while True:
        try:
            lock.acquire()
        except AlreadyRunning:
            assert time.monotonic() < deadline, f"another process has been fetching {name} for too long"
            time.sleep(0.2)
        else:
            return lock


def _fill(directory: Path, fetch: Callable[[Path], Sequence[str]], environment: Mapping[str, str]) -> None:
    partial = directory.with_suffix(".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    done = subprocess.run(
        list(fetch(partial)), check=False, capture_output=True, text=True, timeout=FETCH_SECONDS, env=environment
    )
    if done.returncode:
        pytest.skip(f"cannot fetch {directory.name}: {(done.stdout + done.stderr)[-300:]}")
    partial.rename(directory)
