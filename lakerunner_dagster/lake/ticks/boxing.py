"""What differs between stages in the one boxer and the one dispatcher: how messages become work, and work boxes.

What belongs here: the form of a stage's part, and which stage has which. What does not: the parts (``ingesting``,
``rolling_up``, ``compacting``).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType
from typing import Protocol

from lakerunner_dagster.lake.lrdb.connection import Conn
from lakerunner_dagster.lake.runs.context import Lake
from lakerunner_dagster.lake.signals import Signal
from lakerunner_dagster.lake.stages import Operation, Stage
from lakerunner_dagster.lake.ticks.closing import Closed
from lakerunner_dagster.lake.ticks.compacting import CompactionBoxing
from lakerunner_dagster.lake.ticks.ingesting import IngestBoxing
from lakerunner_dagster.lake.ticks.letters import Letter, TakenIn
from lakerunner_dagster.lake.ticks.rolling_up import RollupBoxing


class Boxing(Protocol):
    """One stage's part in a tick; both steps are inside the tick's transaction."""

    def take_in(self, conn: Conn, letters: Iterable[Letter], now_ms: int) -> TakenIn:
        """Whatever the letters say is known to lrdb afterwards, or kept as dead."""

    def close_boxes(self, conn: Conn, now_ms: int, *, at_once: bool = False) -> Closed:
        """Close the boxes that are due, or all that there may be ``at_once``."""


_BOXINGS: Mapping[Operation, Callable[[Lake, Signal], Boxing]] = MappingProxyType(
    {Operation.INGEST: IngestBoxing, Operation.ROLLUP: RollupBoxing, Operation.COMPACT: CompactionBoxing}
)


def boxing_of(lake: Lake, stage: Stage) -> Boxing:
    """The stage's part."""
    return _BOXINGS[stage.operation](lake, stage.signal)
