"""Log records → the columns of a log segment (spec/segments.md, Logs).

What belongs here: what the fields of a log record mean. What does not: attributes (``attributes``), what all signals
do alike (``records``), sorting and splitting (``segments``).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from lakerunner_dagster.lake.segments.columns import FILE, OVERFLOW
from lakerunner_dagster.lake.signals import Signal
from lakerunner_dagster.lake.telemetry.attributes import read_attributes
from lakerunner_dagster.lake.telemetry.fingerprints import message_fingerprints
from lakerunner_dagster.lake.telemetry.parents import (
    attribute_columns,
    read_parents,
    refuse_for_attributes,
    scope_columns,
)
from lakerunner_dagster.lake.telemetry.records import (
    NS_PER_MS,
    Records,
    Rejections,
    Rows,
    Times,
    as_bigint,
    chq_ids,
    constant,
    flattened,
    hex_texts,
    null_if_empty,
    own_times,
)
from lakerunner_dagster.lake.telemetry.values import texts
from lakerunner_dagster.lake.telemetry.wire import Place, read_requests

if TYPE_CHECKING:
    from uuid import UUID

    from lakerunner_dagster.lake.settings import Limits
    from lakerunner_dagster.lake.telemetry.raw import RawPayload

METRIC_NAME = "log_events"
"""The metric that log records count as (contract)."""

LEVELS = ("TRACE", "DEBUG", "INFO", "WARN", "ERROR", "FATAL")
"""Names of severity numbers: four numbers each, from 1."""

_NUMBERS_PER_LEVEL = 4


def decode_logs(payloads: Sequence[RawPayload], organization_id: UUID, limits: Limits) -> Rows:
    """One row a log record.

    A record's time is time_unix_nano, else observed_time_unix_nano, else its object's own.
    """
    everything = flattened(
        read_requests(Signal.LOGS, [payload.payload for payload in payloads]),
        "resource_logs",
        "scope_logs",
        "log_records",
    )
    parents = read_parents(everything, limits)
    own = read_attributes(everything.records.field("attributes"), limits, Place.LOG_RECORD)
    times = _times(everything, payloads)
    messages = texts(everything.records.field("body"))

    rejections = Rejections(len(everything.file))
    rejections.add_times_outside(times, everything.file, payloads, limits)
    refuse_for_attributes(rejections, everything, parents, own)
    rejections.add("value_too_large", _longer(messages, limits.value_bytes))
    accepted = rejections.accepted
    if accepted is not None:
        times, messages = times[accepted], messages.take(pa.array(accepted))

    found = everything.at(accepted)
    records, rows = found.records, len(found.file)
    attributes = attribute_columns(found, parents, own, accepted, limits)
    observed = records.field("observed_time_unix_nano").to_numpy()
    table = pa.table(
        {
            "chq_id": chq_ids(payloads, found.file, found.ordinal),
            "chq_customer_id": constant(str(organization_id), rows),
            "chq_telemetry_type": constant(Signal.LOGS.value, rows),
            "chq_timestamp": as_bigint(times // np.uint64(NS_PER_MS)),
            "chq_tsns": as_bigint(times),
            "chq_fingerprint": message_fingerprints(messages),
            "log_level": _levels(records),
            "log_message": messages,
            "metric_name": constant(METRIC_NAME, rows),
            **scope_columns(found, parents),
            "trace_id": null_if_empty(hex_texts(records.field("trace_id"))),
            "span_id": null_if_empty(hex_texts(records.field("span_id"))),
            "chq_severity_number": _severity_numbers(records),
            "chq_observed_tsns": as_bigint(observed, known=observed > 0),
            "chq_flags": records.field("flags").cast(pa.int64()),
            "chq_event_name": null_if_empty(records.field("event_name")),
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


def _times(everything: Records, payloads: Sequence[RawPayload]) -> Times:
    times: Times = everything.records.field("time_unix_nano").to_numpy()
    if times.all():
        return times
    observed: Times = everything.records.field("observed_time_unix_nano").to_numpy()
    own = own_times(payloads)[everything.file]
    return np.where(times > 0, times, np.where(observed > 0, observed, own))


def _longer(strings: pa.StringArray, size: int) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
    return np.asarray(pc.binary_length(strings).fill_null(0)) > size


def _levels(records: pa.StructArray) -> pa.StringArray:
    """severity_text in upper case, else the name of severity_number's level; NULL without either."""
    given = records.field("severity_text").dictionary_encode()
    upper = pa.array([text.upper() or None for text in given.dictionary.to_pylist()], pa.string())
    told = upper.take(given.indices)
    if told.null_count == 0:
        return told
    level = (records.field("severity_number").to_numpy() - 1) // _NUMBERS_PER_LEVEL
    named = (level >= 0) & (level < len(LEVELS))
    return pc.coalesce(told, pa.array(LEVELS).take(pa.array(level, mask=~named)))


def _severity_numbers(records: pa.StructArray) -> pa.Int32Array:
    numbers = records.field("severity_number").to_numpy()
    return pa.array(numbers, mask=numbers == 0)
