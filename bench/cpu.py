"""CPU time of work that a process and its PostgreSQL share: what others do on the machine is hardly in it.

What belongs here: the clock. What does not: what is timed by it.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lakerunner_dagster.lake.lrdb.connection import Conn


class Clock:
    """CPU seconds of this process and of some of a server's, by their ids, to the nanosecond."""

    def __init__(self, server: Iterable[int]) -> None:
        self._server = {Path(f"/proc/{pid}/schedstat"): 0 for pid in server}

    def seconds(self) -> float:
        """So far. A process that has ended (a pool's connections do) took what it had when last looked at."""
        for path in self._server:
            with suppress(FileNotFoundError, ProcessLookupError):
                self._server[path] = int(path.read_text().split()[0])
        return time.process_time() + sum(self._server.values()) / 1e9


def backends(conn: Conn) -> list[int]:
    """The server's processes that serve connections to this database, this one's among them."""
    rows = conn.execute(
        "SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND backend_type = 'client backend'"
    )
    return [pid for (pid,) in rows]
