"""Spans → the columns of a trace segment (spec/segments.md, Traces).

What belongs here: what the fields of a span, its events and its links mean. What does not: attributes
(``attributes``), what all signals do alike (``records``), sorting and splitting (``segments``).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status

from lakerunner_dagster.lake.segments.columns import FILE, OVERFLOW
from lakerunner_dagster.lake.signals import Signal
from lakerunner_dagster.lake.telemetry.attributes import read_attributes
from lakerunner_dagster.lake.telemetry.fingerprints import span_fingerprints
from lakerunner_dagster.lake.telemetry.parents import (
    attribute_columns,
    read_parents,
    refuse_for_attributes,
    scope_columns,
)
from lakerunner_dagster.lake.telemetry.records import (
    NS_PER_MS,
    Rejections,
    Rows,
    Times,
    as_bigint,
    chosen,
    chq_ids,
    constant,
    flattened,
    hex_texts,
    null_if_empty,
)
from lakerunner_dagster.lake.telemetry.values import enclosed, object_jsons, quoted
from lakerunner_dagster.lake.telemetry.wire import Place, read_requests

if TYPE_CHECKING:
    from uuid import UUID

    from lakerunner_dagster.lake.settings import Limits
    from lakerunner_dagster.lake.telemetry.raw import RawPayload


_KINDS = {int(number): name for name, number in Span.SpanKind.items()}
_STATUS_CODES = {int(number): name for name, number in Status.StatusCode.items()}


def decode_traces(payloads: Sequence[RawPayload], organization_id: UUID, limits: Limits) -> Rows:
    """One row a span.

    A span's time is its start; without one it is refused as ``no_time``. The end may be any time: an absent one leaves
    the end and the durations NULL, one beyond 2^63 ns leaves the durations NULL.
    """
    everything = flattened(
        read_requests(Signal.TRACES, [payload.payload for payload in payloads]),
        "resource_spans",
        "scope_spans",
        "spans",
    )
    parents = read_parents(everything, limits)
    own = read_attributes(everything.records.field("attributes"), limits, Place.SPAN)
    starts: Times = everything.records.field("start_time_unix_nano").to_numpy()

    rejections = Rejections(len(everything.file))
    rejections.add("no_time", starts == 0)
    rejections.add_times_outside(starts, everything.file, payloads, limits)
    refuse_for_attributes(rejections, everything, parents, own)
    _refuse_for_parts(rejections, everything.records, limits)
    accepted = rejections.accepted

    found = everything.at(accepted)
    spans, rows = found.records, len(found.file)
    attributes = attribute_columns(found, parents, own, accepted, limits)
    starts = spans.field("start_time_unix_nano").to_numpy()
    status = spans.field("status")
    table = pa.table(
        {
            "chq_customer_id": constant(str(organization_id), rows),
            "chq_telemetry_type": constant(Signal.TRACES.value, rows),
            "chq_id": chq_ids(payloads, found.file, found.ordinal),
            "chq_timestamp": as_bigint(starts // np.uint64(NS_PER_MS)),
            "chq_tsns": as_bigint(starts),
            "chq_fingerprint": span_fingerprints(
                names=spans.field("name"),
                kinds=spans.field("kind"),
                own=own,
                own_rows=accepted,
                resources=parents.resources,
                resource_rows=found.resource,
            ),
            "span_trace_id": hex_texts(spans.field("trace_id")),
            "span_id": hex_texts(spans.field("span_id")),
            "span_parent_span_id": hex_texts(spans.field("parent_span_id")),
            "span_name": null_if_empty(spans.field("name")),
            "span_kind": _enum_names(spans.field("kind"), "SPAN_KIND_", _KINDS),
            "span_status_code": _enum_names(status.field("code"), "STATUS_CODE_", _STATUS_CODES),
            "span_status_message": null_if_empty(status.field("message")),
            **_end_columns(starts, spans.field("end_time_unix_nano").to_numpy()),
            **scope_columns(found, parents),
            "span_events": _event_jsons(spans.field("events")),
            "span_links": _link_jsons(spans.field("links")),
            "span_trace_state": null_if_empty(spans.field("trace_state")),
            **attributes.columns,
            OVERFLOW: attributes.overflow,
            FILE: pa.array(found.file, pa.int32()),
        }
    )
    return Rows(
        table=table,
        records_read=everything.per_file,
        rejected=rejections.per_file(everything.file, everything.files),
        original_keys=attributes.original_keys,
    )


def _refuse_for_parts(rejections: Rejections, spans: pa.StructArray, limits: Limits) -> None:
    """Refuse spans with an event or link that has more attributes or larger ones than allowed."""
    too_many, too_large = np.zeros((2, len(spans)), np.bool_)
    for lists in (spans.field("events"), spans.field("links")):
        if len(lists.values):
            parts = read_attributes(lists.values.field("attributes"), limits, Place.EVENT_OR_LINK)
            span_of_part = np.repeat(np.arange(len(spans)), np.diff(lists.offsets.to_numpy()))
            too_many[span_of_part[parts.too_many]] = True
            too_large[span_of_part[parts.too_large]] = True
    rejections.add("too_many_attributes", too_many)
    rejections.add("value_too_large", too_large)


def _end_columns(starts: Times, ends: Times) -> dict[str, pa.Array]:
    """The end (ms) and the durations (ms, cut towards zero, and ns), which are negative where the end comes first."""
    known = ends > 0
    countable = known & (ends <= np.uint64(np.iinfo(np.int64).max))
    durations = np.where(countable, ends.astype(np.int64) - starts.astype(np.int64), 0)
    return {
        "span_end_timestamp": as_bigint(ends // np.uint64(NS_PER_MS), known=known),
        "span_duration": pa.array(np.sign(durations) * (np.abs(durations) // NS_PER_MS), mask=~countable),
        "chq_duration_ns": pa.array(durations, mask=~countable),
    }


def _enum_names(numbers: pa.Int32Array, prefix: str, names: Mapping[int, str]) -> pa.DictionaryArray:
    """The name of each enum number, or prefix and number where the number has none."""
    distinct = numbers.dictionary_encode()
    shown = [names.get(number, f"{prefix}{number}") for number in distinct.dictionary.to_pylist()]
    return chosen(distinct.indices.to_numpy(), pa.array(shown, pa.string()))


def _event_jsons(events: pa.ListArray) -> pa.StringArray:
    """A JSON array of each span's events, times in ns as decimal strings; NULL where there are none."""
    each = events.values
    return _json_arrays(
        events,
        {
            "time_unix_nano": quoted(each.field("time_unix_nano").cast(pa.string())),
            "name": quoted(each.field("name")),
            "attributes": object_jsons(each.field("attributes")),
        },
    )


def _link_jsons(links: pa.ListArray) -> pa.StringArray:
    """A JSON array of each span's links, ids in hexadecimal; NULL where there are none."""
    each = links.values
    return _json_arrays(
        links,
        {
            "trace_id": quoted(hex_texts(each.field("trace_id"))),
            "span_id": quoted(hex_texts(each.field("span_id"))),
            "trace_state": quoted(each.field("trace_state")),
            "attributes": object_jsons(each.field("attributes")),
            "flags": each.field("flags").cast(pa.string()),
        },
    )


def _json_arrays(lists: pa.ListArray, members: dict[str, pa.StringArray]) -> pa.StringArray:
    """``[{name: json, …}, …]`` of each list, given its elements' members; NULL for an empty list."""
    named = [pc.binary_join_element_wise(f'"{name}"', json, ":") for name, json in members.items()]
    elements = enclosed("{", pc.binary_join_element_wise(*named, ","), "}")
    empty = np.diff(lists.offsets.to_numpy()) == 0
    nonempty = pa.ListArray.from_arrays(lists.offsets, elements, mask=pa.array(empty))
    return enclosed("[", pc.binary_join(nonempty, ","), "]")
