"""Raw payloads to segments: decode, split by hour, build; the part that ingest and rebuild share.

What belongs here: the order of these steps, and that no record is lost between them. What does not: any of the steps
themselves (``telemetry``, ``segments``), reading, writing and publishing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from lakerunner_dagster.lake.errors import ConservationBreach, InputError
from lakerunner_dagster.lake.model import ObjectOutcome, RawState, Source
from lakerunner_dagster.lake.runs.contents import LargeObject
from lakerunner_dagster.lake.segments.build import Built, build
from lakerunner_dagster.lake.segments.columns import FILE
from lakerunner_dagster.lake.segments.split import split_by_hour
from lakerunner_dagster.lake.settings import Limits
from lakerunner_dagster.lake.signals import Signal
from lakerunner_dagster.lake.telemetry.decode import Decoded, decode
from lakerunner_dagster.lake.telemetry.raw import RawPayload

if TYPE_CHECKING:
    from uuid import UUID

    import pyarrow as pa


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
class Chunk:
    """Some payloads, decoded together; of those that could not be, why."""

    payloads: Sequence[RawPayload]
    decoded: Decoded
    hours: Sequence[HourRows]

    @property
    def rollup_count(self) -> float:
        """Sum of chq_rollup_count over all rows."""
        return sum((rows.rollup_count for rows in self.hours), 0.0)

    @property
    def failures(self) -> Mapping[int, InputError]:
        """Ordinal of a payload → why nothing of it is in the rows."""
        return self.decoded.failures

    def outcome(self, ordinal: int) -> ObjectOutcome:
        """How a payload that was decoded ends."""
        return ObjectOutcome(
            raw_object_id=self.payloads[ordinal].raw_object_id,
            state=RawState.INGESTED,
            records_read=self.decoded.records_read[ordinal],
            rejected=self.decoded.rejected[ordinal],
            raw_bytes=len(self.payloads[ordinal].payload),
        )


@dataclass(frozen=True, slots=True)
class Recipe:
    """What is the same for every segment of a step: whose it is, by which operation, and its day of ingest."""

    source: Source
    signal: Signal
    operation: str
    ingest_dateint: int


def decoded_chunk(signal: Signal, payloads: Sequence[RawPayload], organization_id: UUID, limits: Limits) -> Chunk:
    """Payloads decoded in one call. ConservationBreach as of ``rows_by_hour``."""
    decoded = decode(signal, payloads, organization_id, limits)
    return Chunk(payloads, decoded, rows_by_hour(decoded, payloads))


def decoded_pieces(large: LargeObject, organization_id: UUID, limits: Limits) -> Iterator[Chunk]:
    """The pieces of a large object, each decoded, its records numbered on from the piece before; then it is removed.

    Raises InputError where a piece is corrupt, or is not to be had: those before it stand for nothing then.
    """
    records = 0
    try:
        for piece in large.pieces():
            chunk = decoded_chunk(large.raw.signal, [replace(piece, first_ordinal=records)], organization_id, limits)
            for error in chunk.failures.values():
                raise error
            records += chunk.decoded.records_read[0]
            yield chunk
    finally:
        large.remove()


def outcome_of_pieces(large: LargeObject, pieces: Sequence[ObjectOutcome]) -> ObjectOutcome:
    """How a large object ends whose pieces have ended so."""
    rejected: Counter[str] = Counter()
    for piece in pieces:
        rejected.update(piece.rejected)
    return ObjectOutcome(
        raw_object_id=large.raw.raw_object_id,
        state=RawState.INGESTED,
        records_read=sum(piece.records_read for piece in pieces),
        rejected=rejected,
        raw_bytes=large.size,
    )


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


def build_segment(rows: HourRows, chunk: Chunk, recipe: Recipe, ordinal: int) -> Built:
    """One hour's rows as a segment; ConservationBreach unless it stands for each payload's records of that hour.

    ``ordinal`` numbers what is decoded at once; pieces of a large object share one.
    """
    built = build(
        rows.table,
        source=recipe.source,
        signal=recipe.signal,
        payload_ids=[payload.raw_object_id for payload in chunk.payloads],
        inputs=[payload.input for index, payload in enumerate(chunk.payloads) if index not in chunk.failures],
        operation=recipe.operation,
        original_keys=chunk.decoded.original_keys,
        ingest_dateint=recipe.ingest_dateint,
        ordinal=ordinal,
    )
    expected = Counter(
        {payload.raw_object_id: count for payload, count in zip(chunk.payloads, rows.by_payload, strict=True) if count}
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
