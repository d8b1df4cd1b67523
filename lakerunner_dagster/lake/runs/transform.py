"""Raw bytes to segments: decompress, decode, split by hour, build; the part that ingest and rebuild share.

What belongs here: the order of these steps, and that no record is lost between them. What does not: any of the steps
themselves (``telemetry``, ``segments``), reading, writing and publishing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from lakerunner_dagster.lake.errors import ConservationBreach
from lakerunner_dagster.lake.model import RawObject, Source
from lakerunner_dagster.lake.segments.build import Built, build
from lakerunner_dagster.lake.segments.columns import FILE
from lakerunner_dagster.lake.segments.ids import raw_identity
from lakerunner_dagster.lake.segments.split import split_by_hour
from lakerunner_dagster.lake.settings import Limits
from lakerunner_dagster.lake.signals import Signal
from lakerunner_dagster.lake.telemetry.compression import decompress
from lakerunner_dagster.lake.telemetry.decode import Decoded
from lakerunner_dagster.lake.telemetry.raw import RawPayload

if TYPE_CHECKING:
    import pyarrow as pa

CHUNK_BYTES = 64 * 1024 * 1024
"""Decompressed bytes that are decoded in one call: a full box. It bounds a run's memory and the rows of a segment."""


@dataclass(frozen=True, slots=True)
class HourRows:
    """The decoded rows of one UTC hour, and how many of them come from each payload of the chunk."""

    dateint: int
    hour: int
    table: pa.Table
    by_payload: tuple[int, ...]

    @property
    def rollup_count(self) -> float:
        """Sum of chq_rollup_count over the rows, 0.0 for signals that have none."""
        counted = "chq_rollup_count" in self.table.column_names
        return float(np.sum(self.table.column("chq_rollup_count").to_numpy())) if counted else 0.0


@dataclass(frozen=True, slots=True)
class Recipe:
    """What is the same for every segment of a step: whose it is, by which operation, and its day of ingest."""

    source: Source
    signal: Signal
    operation: str
    ingest_dateint: int


def payload_of(raw: RawObject, data: bytes, limits: Limits) -> RawPayload:
    """A raw object's stored bytes, decompressed; InputError when they are corrupt, or too many."""
    return RawPayload(
        raw_object_id=raw.raw_object_id,
        key=raw.key,
        identity=raw_identity(raw.bucket, raw.key, raw.etag),
        event_time_ms=raw.event_time_ms,
        payload=decompress(data, raw.key, limits),
    )


def chunked(payloads: Iterable[RawPayload], max_bytes: int) -> Iterator[list[RawPayload]]:
    """Payloads in order, in lists of at most ``max_bytes`` decompressed bytes; a larger payload has its own."""
    chunk: list[RawPayload] = []
    size = 0
    for payload in payloads:
        if chunk and size + len(payload.payload) > max_bytes:
            yield chunk
            chunk, size = [], 0
        chunk.append(payload)
        size += len(payload.payload)
    if chunk:
        yield chunk


def rows_by_hour(decoded: Decoded, chunk: Sequence[RawPayload]) -> list[HourRows]:
    """The decoded rows, split; ConservationBreach unless each payload's records are all there or rejected."""
    hours = [
        HourRows(dateint, hour, table, _rows_by_payload(table, len(chunk)))
        for dateint, hour, table in split_by_hour(decoded.table)
    ]
    for ordinal, payload in enumerate(chunk):
        rows = sum(rows.by_payload[ordinal] for rows in hours)
        rejected = sum(decoded.rejected[ordinal].values())
        if decoded.records_read[ordinal] != rows + rejected:
            raise ConservationBreach(
                f"{payload.key}: {decoded.records_read[ordinal]} records read, but {rows} rows and {rejected} "
                "rejected; nothing was published: this is a fault of the decoder, report it with the object"
            )
    return hours


def build_segment(rows: HourRows, decoded: Decoded, chunk: Sequence[RawPayload], recipe: Recipe, ordinal: int) -> Built:
    """One hour's rows as a segment; ConservationBreach unless it stands for each payload's records of that hour."""
    built = build(
        rows.table,
        source=recipe.source,
        signal=recipe.signal,
        payload_ids=[payload.raw_object_id for payload in chunk],
        inputs=[payload.identity for index, payload in enumerate(chunk) if index not in decoded.failures],
        operation=recipe.operation,
        original_keys=decoded.original_keys,
        ingest_dateint=recipe.ingest_dateint,
        ordinal=ordinal,
    )
    expected = Counter(
        {payload.raw_object_id: count for payload, count in zip(chunk, rows.by_payload, strict=True) if count}
    )
    written = Counter({given.input_id: given.records for given in built.output.inputs if given.records})
    if written != expected or built.output.segment.records != written.total():
        raise ConservationBreach(
            f"{built.output.segment.key}: stands for {built.output.segment.records} records, of raw objects "
            f"{dict(written)}, but was built from {dict(expected)}; nothing was published: report it with the objects"
        )
    return built


def _rows_by_payload(table: pa.Table, payloads: int) -> tuple[int, ...]:
    counts = np.bincount(table.column(FILE).to_numpy(), minlength=payloads)
    return tuple(int(count) for count in counts)
