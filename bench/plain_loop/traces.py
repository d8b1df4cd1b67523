"""The plain loop over spans: their columns, from the specification alone."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from bench.plain_loop.otlp import (
    BIGINT,
    NS_PER_MS,
    PINNED,
    SCOPE_FIELDS,
    Attribute,
    Owner,
    attributes_json,
    fingerprint,
    lay_out,
    masked,
    quoted,
    read_owner,
    refusal,
)

if TYPE_CHECKING:
    from uuid import UUID

    from opentelemetry.proto.trace.v1.trace_pb2 import Span

    from lakerunner_dagster.lake.settings import Limits
    from lakerunner_dagster.lake.telemetry.raw import RawPayload

KINDS = ["UNSPECIFIED", "INTERNAL", "SERVER", "CLIENT", "PRODUCER", "CONSUMER"]
CODES = ["UNSET", "OK", "ERROR"]

WORK = [
    {
        "messaging.system": ["messaging.system"],
        "messaging.operation.type": [
            "messaging.operation.type",
            "messaging.operation.name",
            "messaging.operation",
        ],
        "messaging.destination.name": ["messaging.destination.name", "messaging.destination"],
    },
    {
        "db.system.name": ["db.system.name", "db.system"],
        "db.namespace": ["db.namespace", "db.name"],
        "db.operation.name": ["db.operation.name", "db.operation"],
        "db.collection.name": ["db.collection.name", "db.sql.table"],
    },
    {
        "http.request.method": ["http.request.method", "http.method"],
        "http.route": ["http.route", "url.template"],
    },
]


def span_rows(payload: RawPayload, organization_id: UUID, limits: Limits) -> tuple[list[dict[str, Any]], Counter[str]]:
    """A dict for each accepted span, and the refused ones by reason."""
    rows: list[dict[str, Any]] = []
    groups: list[dict[str, list[Attribute]]] = []
    rejected: Counter[str] = Counter()
    ordinal = -1
    latest = (payload.event_time_ms + limits.ahead_ms) * NS_PER_MS
    for resource_spans in ExportTraceServiceRequest.FromString(payload.payload).resource_spans:
        resource = read_owner(resource_spans.resource.attributes, limits)
        for scope_spans in resource_spans.scope_spans:
            scope = read_owner(scope_spans.scope.attributes, limits)
            for span in scope_spans.spans:
                ordinal += 1
                own = read_owner(span.attributes, limits)
                reason = _refusal(span, latest, [resource, scope, own], limits)
                if reason is not None:
                    rejected[reason] += 1
                    continue
                start = span.start_time_unix_nano
                rows.append(
                    {
                        "chq_customer_id": str(organization_id),
                        "chq_telemetry_type": "traces",
                        "chq_id": f"{payload.identity}-{ordinal:08x}",
                        "chq_timestamp": start // NS_PER_MS,
                        "chq_tsns": start,
                        "chq_fingerprint": fingerprint(_description(span, resource, own)),
                        "span_trace_id": span.trace_id.hex(),
                        "span_id": span.span_id.hex(),
                        "span_parent_span_id": span.parent_span_id.hex(),
                        "span_name": span.name or None,
                        "span_kind": f"SPAN_KIND_{_named(KINDS, span.kind)}",
                        "span_status_code": f"STATUS_CODE_{_named(CODES, span.status.code)}",
                        "span_status_message": span.status.message or None,
                        **_end(start, span.end_time_unix_nano),
                        "scope_name": scope_spans.scope.name or None,
                        "scope_version": scope_spans.scope.version or None,
                        "span_events": _events(span),
                        "span_links": _links(span),
                        "span_trace_state": span.trace_state or None,
                    }
                )
                groups.append({"resource": resource.attributes, "scope": scope.attributes, "attr": own.attributes})
    lay_out(rows, groups, limits.columns, SCOPE_FIELDS, PINNED)
    return rows, rejected


def _refusal(span: Span, latest: int, owners: list[Owner], limits: Limits) -> str | None:
    if span.start_time_unix_nano == 0:
        return "no_time"
    parts = [read_owner(event.attributes, limits) for event in span.events]
    parts += [read_owner(link.attributes, limits) for link in span.links]
    return refusal(span.start_time_unix_nano, latest, owners, limits) or refusal(
        span.start_time_unix_nano, latest, parts, limits
    )


def _named(names: list[str], number: int) -> str:
    return names[number] if 0 <= number < len(names) else str(number)


def _end(start: int, end: int) -> dict[str, int]:
    if end == 0:
        return {}
    if end not in BIGINT:
        return {"span_end_timestamp": end // NS_PER_MS}
    return {
        "span_end_timestamp": end // NS_PER_MS,
        "span_duration": (end - start) // NS_PER_MS if end >= start else -((start - end) // NS_PER_MS),
        "chq_duration_ns": end - start,
    }


def _description(span: Span, resource: Owner, own: Owner) -> str:
    inherited = dict(reversed(resource.attributes))
    given = dict(reversed(own.attributes))
    parts: dict[str, str] = {
        key: inherited.get(key, "") for key in ("k8s.cluster.name", "k8s.namespace.name", "service.name")
    }
    parts["kind"] = str(span.kind)
    found = [{part: _first(given, keys) for part, keys in work.items()} for work in WORK]
    work = next((work for work in found if next(iter(work.values()))), {"name": masked(span.name)})
    return "\x1f".join(f"{part}={value}" for part, value in (parts | work).items())


def _first(given: dict[str, str], keys: list[str]) -> str:
    return next((given[key] for key in keys if key in given), "")


def _events(span: Span) -> str | None:
    events = [
        f'{{"time_unix_nano":"{event.time_unix_nano}","name":{quoted(event.name)},'
        f'"attributes":{attributes_json(event.attributes)}}}'
        for event in span.events
    ]
    return f"[{','.join(events)}]" if events else None


def _links(span: Span) -> str | None:
    links = [
        f'{{"trace_id":"{link.trace_id.hex()}","span_id":"{link.span_id.hex()}",'
        f'"trace_state":{quoted(link.trace_state)},"attributes":{attributes_json(link.attributes)},'
        f'"flags":{link.flags}}}'
        for link in span.links
    ]
    return f"[{','.join(links)}]" if links else None
