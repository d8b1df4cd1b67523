"""The obvious decoder: upb, and a dict a row. The oracle of the product's, and the yardstick of the benchmark."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from bench.plain_loop.logs import log_rows
from bench.plain_loop.metrics import point_rows
from bench.plain_loop.traces import span_rows
from lakerunner_dagster.lake.signals import Signal

if TYPE_CHECKING:
    from collections import Counter
    from uuid import UUID

    from lakerunner_dagster.lake.settings import Limits
    from lakerunner_dagster.lake.telemetry.raw import RawPayload

_LOOPS = {
    Signal.LOGS: log_rows,
    Signal.METRICS: point_rows,
    Signal.TRACES: span_rows,
}


def decode_rows(
    signal: Signal, payload: RawPayload, organization_id: UUID, limits: Limits
) -> tuple[list[dict[str, Any]], Counter[str]]:
    """A dict for each accepted record (absent keys are NULL), and the refused ones counted by reason.

    Raises ``google.protobuf.message.DecodeError`` for a payload that is none.
    """
    return _LOOPS[signal](payload, organization_id, limits)
