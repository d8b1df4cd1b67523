"""What a run writes to stdout and stderr: into the compute log, and from there to its process's own output.

What belongs here: how the second is done in a forked child. What does not: the compute log itself, which is Dagster's.

Dagster starts four processes for each run to do it, ``tail`` and an interpreter that watches it for either stream:
together they cost more than a forked run does. A thread for either is enough.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from dagster._core.execution.compute_logs import redirect_to_file
from dagster._core.storage import local_compute_log_manager

POLL_SECONDS = 0.2
_CHUNK_BYTES = 1024 * 1024


def mirror_by_threads() -> None:
    """Have every compute log of this process mirrored by threads, those kept in the cloud included."""
    local_compute_log_manager.mirror_stream_to_file = mirrored  # type: ignore[attr-defined, assignment]


@contextmanager
def mirrored(stream: IO[str], path: str) -> Iterator[None]:
    """Send what is written to ``stream`` into the file at ``path``, and copy it from there to where it went before."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    before = os.dup(stream.fileno())
    over = threading.Event()
    with redirect_to_file(stream, path), Path(path).open("rb", buffering=0) as written:
        copier = threading.Thread(target=_copy, args=(written, before, over), name="output-mirror", daemon=True)
        copier.start()
        try:
            yield
        finally:
            stream.flush()
            over.set()
            copier.join()
            os.close(before)


def _copy(written: IO[bytes], target: int, over: threading.Event) -> None:
    last = False
    while not last:
        last = over.wait(POLL_SECONDS)  # once more after the end: what was written last
        while chunk := written.read(_CHUNK_BYTES):
            _write(target, chunk)


def _write(target: int, data: bytes) -> None:
    try:
        while data:
            data = data[os.write(target, data) :]
    except OSError:
        return  # nobody reads our output any more: the compute log has it
