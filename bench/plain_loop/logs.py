"""The plain loop over log records: their columns, from the specification alone."""

from __future__ import annotations

import re
from collections import Counter
from typing import TYPE_CHECKING, Any

from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest

from bench.plain_loop.otlp import (
    BIGINT,
    NS_PER_MS,
    PINNED,
    SCOPE_FIELDS,
    Attribute,
    fingerprint,
    lay_out,
    masked,
    read_owner,
    refusal,
    value_text,
)

if TYPE_CHECKING:
    from uuid import UUID

    from opentelemetry.proto.logs.v1.logs_pb2 import LogRecord

    from lakerunner_dagster.lake.settings import Limits
    from lakerunner_dagster.lake.telemetry.raw import RawPayload

_STARS = re.compile(r"""\*(?:[ \t\n\f\r'",;:/|+-]*\*)+""")


def log_rows(payload: RawPayload, organization_id: UUID, limits: Limits) -> tuple[list[dict[str, Any]], Counter[str]]:
    """A dict for each accepted log record, and the refused ones by reason."""
    rows: list[dict[str, Any]] = []
    groups: list[dict[str, list[Attribute]]] = []
    rejected: Counter[str] = Counter()
    ordinal = -1
    latest = (payload.event_time_ms + limits.ahead_ms) * NS_PER_MS
    for resource_logs in ExportLogsServiceRequest.FromString(payload.payload).resource_logs:
        resource = read_owner(resource_logs.resource.attributes, limits)
        for scope_logs in resource_logs.scope_logs:
            scope = read_owner(scope_logs.scope.attributes, limits)
            for record in scope_logs.log_records:
                ordinal += 1
                own = read_owner(record.attributes, limits)
                message = value_text(record.body)
                time = record.time_unix_nano or record.observed_time_unix_nano or payload.event_time_ms * NS_PER_MS
                reason = refusal(time, latest, (resource, scope, own), limits)
                if reason is None and message is not None and len(message.encode()) > limits.value_bytes:
                    reason = "value_too_large"
                if reason is not None:
                    rejected[reason] += 1
                    continue
                rows.append(
                    {
                        "chq_id": f"{payload.identity}-{ordinal:08x}",
                        "chq_customer_id": str(organization_id),
                        "chq_telemetry_type": "logs",
                        "chq_timestamp": time // NS_PER_MS,
                        "chq_tsns": time,
                        "chq_fingerprint": None if message is None else fingerprint(_STARS.sub("*", masked(message))),
                        "log_level": _level(record),
                        "log_message": message,
                        "metric_name": "log_events",
                        "scope_name": scope_logs.scope.name or None,
                        "scope_version": scope_logs.scope.version or None,
                        "trace_id": record.trace_id.hex() or None,
                        "span_id": record.span_id.hex() or None,
                        "chq_severity_number": record.severity_number or None,
                        "chq_observed_tsns": _bigint(record.observed_time_unix_nano),
                        "chq_flags": record.flags,
                        "chq_event_name": record.event_name or None,
                    }
                )
                groups.append({"resource": resource.attributes, "scope": scope.attributes, "attr": own.attributes})
    lay_out(rows, groups, limits.columns, SCOPE_FIELDS, PINNED)
    return rows, rejected


def _level(record: LogRecord) -> str | None:
    if record.severity_text:
        return str(record.severity_text.upper())
    number = record.severity_number
    return ["TRACE", "DEBUG", "INFO", "WARN", "ERROR", "FATAL"][(number - 1) // 4] if 1 <= number <= 24 else None


def _bigint(time: int) -> int | None:
    return time if time and time in BIGINT else None
