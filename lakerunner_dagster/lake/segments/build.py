"""One hour's decoded rows → a segment: the bytes of its file, its index row, and which raw objects it stands on.

What belongs here: the order of the steps. What does not: the steps (the modules beside this one), where the bytes go.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from lakerunner_dagster.lake.errors import ConservationBreach
from lakerunner_dagster.lake.model import Contribution, CreatedBy, Output, Source
from lakerunner_dagster.lake.segments import index, parquet
from lakerunner_dagster.lake.segments.columns import FILE, POINTS, conform
from lakerunner_dagster.lake.segments.order import ordered, sort_codes
from lakerunner_dagster.lake.segments.shared import spread
from lakerunner_dagster.lake.segments.work import Work
from lakerunner_dagster.lake.signals import SIGNALS, Signal
from lakerunner_dagster.lake.telemetry.metric_rows import merge_in_order

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import pyarrow as pa


@dataclass(frozen=True, slots=True)
class Built:
    """A segment that is not in the store yet: ``data`` belongs at ``output.segment.key``."""

    output: Output
    data: pa.Buffer


def build(
    decoded_rows: pa.Table,
    *,
    source: Source,
    signal: Signal,
    payload_ids: Sequence[int],
    inputs: Sequence[str],
    operation: str,
    original_keys: Mapping[str, str],
    ingest_dateint: int,
    ordinal: int = 0,
) -> Built:
    """A segment of one or more rows, all of one UTC hour (see ``split_by_hour``); metrics merge to one row a bucket.

    ``_file`` of a row is an index into ``payload_ids``, the raw objects' ids. ``inputs`` are the identities of every
    raw object read, whether or not it has a row here: with ``operation`` and ``ordinal`` they make the segment's id.
    The bytes depend on these and on the set of rows, never on their order.

    :raises ContractBreach: the rows span two hours, or their columns are not those of a segment.
    :raises ConservationBreach: merging changed the number of points.
    """
    spec = SIGNALS[signal]
    contributions = _contributions(decoded_rows, payload_ids)
    rows = decoded_rows.drop_columns([FILE])
    codes = sort_codes(rows, spec.sort_keys)
    if spec.frequency_ms:
        rows, codes = merge_in_order(rows, codes)
    rows = ordered(rows, spec.sort_keys, codes)
    rows = parquet.encode(conform(spread(rows), signal))
    _check_conserved(rows, contributions)

    contents = index.Contents(signal, spec.frequency_ms)
    contents.add(rows)
    labels = contents.labels(original_keys)
    work = Work(
        source=source,
        signal=signal,
        frequency_ms=spec.frequency_ms,
        hour_ms=contents.start_ms,
        inputs=inputs,
        operation=operation,
        code_version=spec.code_version,
        ordinal=ordinal,
    )
    data = parquet.write(rows, work.footer(labels))
    segment = work.segment(
        contents, labels, file_size=data.size, ingest_dateint=ingest_dateint, created_by=CreatedBy.INGEST
    )
    return Built(Output(segment, contributions), data)


def _contributions(rows: pa.Table, payload_ids: Sequence[int]) -> tuple[Contribution, ...]:
    """Records of each raw object that has any here, before rows merge."""
    points = rows.column(POINTS).to_numpy() if POINTS in rows.column_names else None
    counts = np.bincount(rows.column(FILE).to_numpy(), weights=points, minlength=len(payload_ids))
    return tuple(
        Contribution(input_id, int(count))
        for input_id, count in zip(payload_ids, counts.tolist(), strict=True)
        if count
    )


def _check_conserved(rows: pa.Table, contributions: Sequence[Contribution]) -> None:
    read, written = sum(contribution.records for contribution in contributions), index.records(rows)
    if read != written:
        raise ConservationBreach(
            f"{read} records went into a segment and {written} came out: nothing may be published."
        )
