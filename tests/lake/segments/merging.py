"""Segments to be merged, built as ingest builds them, and what is read of those that come out."""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from lakerunner_dagster.lake.segments.build import Built, build
from lakerunner_dagster.lake.segments.columns import FILE
from lakerunner_dagster.lake.segments.merge import MergedSegment, MergeInput, merge
from lakerunner_dagster.lake.signals import Signal
from tests.lake.segments.tables import LOG_KEYS, SOURCE, SPAN_KEYS

TARGET = 128 * 1024 * 1024
KEYS: dict[Signal, Mapping[str, str]] = {Signal.LOGS: LOG_KEYS, Signal.TRACES: SPAN_KEYS, Signal.METRICS: {}}


def parted(table: pa.Table, parts: int, seed: int = 0) -> list[pa.Table]:
    """The rows dealt out at random; no part is empty where there are rows enough."""
    order = list(range(table.num_rows))
    random.Random(seed).shuffle(order)
    return [table.take(pa.array(order[part::parts], pa.int64())) for part in range(parts)]


def built(signal: Signal, rows: pa.Table, name: str = "all", keys: Mapping[str, str] | None = None) -> Built:
    """The segment of some decoded rows, as of one raw object."""
    rows = rows.drop_columns([FILE]).append_column(FILE, pa.array(np.zeros(rows.num_rows, np.int32)))
    return build(
        rows,
        source=SOURCE,
        signal=signal,
        payload_ids=[7],
        inputs=[name],
        operation="ingest",
        original_keys=KEYS[signal] if keys is None else keys,
        ingest_dateint=20260105,
    )


def stored(segments: Iterable[Built], directory: Path) -> list[MergeInput]:
    """The segments in files."""
    inputs = []
    for one in segments:
        path = directory / f"in-{one.output.segment.segment_id}.parquet"
        path.write_bytes(one.data)
        inputs.append(MergeInput(one.output.segment, path))
    return inputs


def given(signal: Signal, parts: Sequence[pa.Table], directory: Path) -> list[MergeInput]:
    """A segment of each part."""
    return stored([built(signal, part, str(number)) for number, part in enumerate(parts)], directory)


def merged(inputs: Sequence[MergeInput], directory: Path, **other: Any) -> list[MergedSegment]:
    """What comes of merging them."""
    options: dict[str, Any] = {
        "source": SOURCE,
        "target_bytes": TARGET,
        "operation": "compact",
        "directory": directory,
    } | other
    return list(merge(inputs, **options))


def read(path: Path) -> pa.Table:
    """The rows of a file, in its order."""
    return pq.read_table(path)


def read_built(segment: Built) -> pa.Table:
    """The rows of a segment that is not in a file."""
    return pq.read_table(pa.BufferReader(segment.data))
