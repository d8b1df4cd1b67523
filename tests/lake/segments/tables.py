"""Tables as decoders hand them over: the fixed columns of the spec, some attributes, ``_file``."""

from __future__ import annotations

import random
from typing import Any
from uuid import UUID

import pyarrow as pa

from lakerunner_dagster.lake.model import Source
from lakerunner_dagster.lake.segments.columns import FILE, FIXED_COLUMNS, OVERFLOW
from lakerunner_dagster.lake.signals import Signal

ORGANIZATION = UUID("6d5e1c3a-0b1c-4f7e-9a55-2f1f2f7f0001")
SOURCE = Source(ORGANIZATION, "acme", "collector-1", 3, "lake")
HOUR = 1_766_534_400_000
"""2025-12-24T00:00:00Z, in ms."""

LOG_KEYS = {
    "resource_service_name": "service.name",
    "resource_k8s_cluster_name": "k8s.cluster.name",
    "scope_build": "Build",
    "attr_http_status": "http/status",
    "attr_request_id": "request-id",
    "attr_never": "never",
}
SPAN_KEYS = {"resource_service_name": "service.name", "attr_db_system": "db.system"}


def table_of(signal: Signal, rows: list[dict[str, Any]], attributes: list[str]) -> pa.Table:
    """The rows as a decoded table: typed fixed columns, string attributes, the overflow and ``_file``."""
    fields = [
        *FIXED_COLUMNS[signal],
        *[pa.field(name, pa.string()) for name in [*attributes, OVERFLOW]],
        pa.field(FILE, pa.int32()),
    ]
    return pa.table({field.name: pa.array([row.get(field.name) for row in rows], field.type) for field in fields})


def log_rows(count: int, *, seed: int = 0, files: int = 3) -> pa.Table:
    """Log records of one hour, many of them in the same millisecond of the same service and fingerprint."""
    random_of = random.Random(seed)
    rows = []
    for number in range(count):
        time_ms = HOUR + random_of.randrange(3_600) * 1000
        service = random_of.choice(["cart", "checkout", "straße", None])
        file = random_of.randrange(files)
        message = random_of.choice(["started", "took 3 ms", f"user {random_of.randrange(50)}", None])
        rows.append(
            {
                "chq_id": f"{file:024x}-{number:08x}",
                "chq_customer_id": str(ORGANIZATION),
                "chq_telemetry_type": "logs",
                "chq_timestamp": time_ms,
                "chq_tsns": time_ms * 1_000_000 + random_of.randrange(3),
                "chq_fingerprint": None if message is None else random_of.choice([-(2**63), -5, 7, 2**63 - 1]),
                "log_level": random_of.choice(["INFO", "ERROR", None]),
                "log_message": message,
                "metric_name": "log_events",
                "trace_id": f"{random_of.getrandbits(128):032x}",
                "chq_severity_number": random_of.choice([9, 17]),
                "chq_flags": 0,
                "resource_service_name": service,
                "resource_k8s_cluster_name": "eu-1" if service else None,
                "scope_build": random_of.choice(["a", None]),
                "attr_http_status": random_of.choice(["200", "500", None]),
                "attr_request_id": f"{random_of.getrandbits(64):x}",
                "chq_overflow": '{"attr": {"odd": "1"}}' if number % 7 == 0 else None,
                "_file": file,
            }
        )
    return table_of(Signal.LOGS, rows, list(LOG_KEYS))


def span_rows(count: int, *, seed: int = 0, files: int = 2) -> pa.Table:
    """Spans of one hour, some four to a trace."""
    random_of = random.Random(seed)
    traces = [f"{random_of.getrandbits(128):032x}" for _ in range(max(1, count // 4))]
    rows = []
    for number in range(count):
        start_ns = HOUR * 1_000_000 + random_of.randrange(3_600_000_000_000)
        file = random_of.randrange(files)
        rows.append(
            {
                "chq_customer_id": str(ORGANIZATION),
                "chq_telemetry_type": "traces",
                "chq_id": f"{file:024x}-{number:08x}",
                "chq_timestamp": start_ns // 1_000_000,
                "chq_tsns": start_ns,
                "chq_fingerprint": random_of.getrandbits(63),
                "span_trace_id": random_of.choice(traces),
                "span_id": f"{random_of.getrandbits(64):016x}",
                "span_parent_span_id": "",
                "span_name": random_of.choice(["GET /", "POST /"]),
                "span_kind": "SPAN_KIND_SERVER",
                "span_status_code": "STATUS_CODE_UNSET",
                "span_end_timestamp": start_ns // 1_000_000 + 5,
                "span_duration": 5,
                "chq_duration_ns": 5_000_000,
                "resource_service_name": random_of.choice(["cart", "checkout"]),
                "attr_db_system": random_of.choice(["redis", None]),
                "_file": file,
            }
        )
    return table_of(Signal.TRACES, rows, list(SPAN_KEYS))


def shuffled(table: pa.Table, seed: int) -> pa.Table:
    """The same rows in another order."""
    order = list(range(table.num_rows))
    random.Random(seed).shuffle(order)
    return table.take(pa.array(order, pa.int64()))


def dictionaries(table: pa.Table, *, unused: tuple[str, ...] = ()) -> pa.Table:
    """The same rows with every string column dictionary-encoded, ``unused`` values standing first in its dictionary."""

    def encoded(column: pa.ChunkedArray) -> pa.Array:
        codes = column.combine_chunks().dictionary_encode()
        indices = pa.array([None if code is None else code + len(unused) for code in codes.indices.to_pylist()])
        values = pa.array([*unused, *codes.dictionary.to_pylist()], pa.string())
        return pa.DictionaryArray.from_arrays(indices.cast(pa.int32()), values)

    return pa.table(
        {
            name: encoded(column) if column.type == pa.string() else column
            for name, column in zip(table.column_names, table.columns, strict=True)
        }
    )
