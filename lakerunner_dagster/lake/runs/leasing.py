"""Keeping a lease alive while its box is worked on, and knowing when it is lost.

What belongs here: the heartbeat. What does not: who may claim a box and when (``lrdb.boxes``).
"""

from __future__ import annotations

import threading
import time
from types import TracebackType
from typing import Self

from lakerunner_dagster.lake.errors import LakeDatabaseUnavailable, LeaseLost
from lakerunner_dagster.lake.lrdb import boxes
from lakerunner_dagster.lake.lrdb.connection import Lrdb
from lakerunner_dagster.lake.model import Lease

BEATS = 3
"""Heartbeats in the time that a lease lives: two of them may be lost."""


class Heartbeat:
    """Renews a lease from a thread of its own, for as long as it is entered.

    The thread saves work, not correctness: a run that was stalled past its lease is refused by the publishing
    transaction, which checks the token.
    """

    def __init__(self, lrdb: Lrdb, lease: Lease, lease_seconds: float) -> None:
        self._lrdb = lrdb
        self._lease = lease
        self._lease_seconds = lease_seconds
        self._renewed = time.monotonic()
        self._lost: LeaseLost | None = None
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._beat, name=f"lease-of-box-{lease.box_id}", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()

    def check(self) -> None:
        """LeaseLost, when lrdb said so or could not be asked for as long as a lease lives."""
        if self._lost is not None:
            raise self._lost
        if time.monotonic() - self._renewed > self._lease_seconds:
            raise LeaseLost(
                f"box {self._lease.box_id}: lrdb took no heartbeat for {self._lease_seconds:g} s, so another run may "
                "hold it: this one stops without publishing"
            )

    def _beat(self) -> None:
        while not self._stop.wait(self._lease_seconds / BEATS):
            try:
                with self._lrdb.transaction() as conn:
                    boxes.heartbeat(conn, self._lease)
            except LakeDatabaseUnavailable:
                continue  # the next beat may get through; check() counts the time
            except LeaseLost as lost:
                self._lost = lost
                return
            self._renewed = time.monotonic()
