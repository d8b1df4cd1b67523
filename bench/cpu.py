"""CPU time of work that a process and its PostgreSQL share: what others do on the machine is hardly in it.

What belongs here: the clock. What does not: what is timed by it.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lakerunner_dagster.lake.lrdb.connection import Conn


class Clock:
    """CPU seconds of this process and of some of a server's, by their ids, to the nanosecond."""

    def __init__(self, server: Iterable[int]) -> None:
        self._server = [Path(f"/proc/{pid}/schedstat") for pid in server]

    def seconds(self) -> float:
        """So far."""
        return time.process_time() + sum(int(path.read_text().split()[0]) for path in self._server) / 1e9


def backends(conn: Conn) -> list[int]:
    """The server's processes that serve connections to this database, this one's among them."""
    rows = conn.execute(
        "SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND backend_type = 'client backend'"
    )
    return [pid for (pid,) in rows]
