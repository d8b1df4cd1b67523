"""Whether this process has one thread, and where another one comes from.

What belongs here: looking. What does not: what to do about it.

A fork copies the thread that calls it and no other: what another one holds (a lock of the allocator, of a pool) is held
for ever in the child. So a zygote forks only while it has one thread, whatever has started the others.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType

QUIET_ENVIRONMENT = {
    "OPENBLAS_NUM_THREADS": "1",
    "JE_ARROW_MALLOC_CONF": "background_thread:false",
}
"""What keeps numpy's OpenBLAS and pyarrow's jemalloc from starting threads as soon as they are imported.

pyarrow's own pools, DuckDB, librdkafka, gRPC and obstore start theirs when they are first used.
"""


def count() -> int:
    """Threads of this process, those of libraries included."""
    return len(os.listdir("/proc/self/task"))  # noqa: PTH208  # once an import: four times as fast as a Path's


class ThreadWatch:
    """Notes which module was imported when the number of threads grew: a finder that finds nothing."""

    def __init__(self) -> None:
        self._threads = count()
        self._last = "the interpreter's start"
        self._grown_at: list[str] = []

    def find_spec(
        self,
        name: str,
        _path: Sequence[str] | None = None,
        _target: ModuleType | None = None,
    ) -> ModuleSpec | None:
        """Look before a module is searched for: what has grown since then has grown with the one before."""
        self._look()
        self._last = name
        return None

    def _look(self) -> None:
        threads = count()
        if threads > self._threads:
            self._grown_at.append(self._last)
        self._threads = threads

    def culprits(self) -> str:
        """The other threads, by name, and the modules with which they came."""
        self._look()
        python = {f"{thread.name} (of Python)" for thread in threading.enumerate()[1:]}
        names = {
            (task / "comm").read_text().strip()
            for task in Path("/proc/self/task").iterdir()
            if task.name != str(threading.main_thread().native_id)
        }
        came = f", begun with the import of {', '.join(dict.fromkeys(self._grown_at))}" if self._grown_at else ""
        return f"{', '.join(sorted(python or names))}{came}"

    def begin(self) -> None:
        """Watch imports from here on."""
        sys.meta_path.insert(0, self)

    def end(self) -> None:
        """Watch them no more."""
        sys.meta_path.remove(self)
