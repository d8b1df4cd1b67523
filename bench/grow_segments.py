"""Sorted segments grown from the real files: what compaction reads, millions of rows in a minute.

What belongs here: making segments to measure with. A few boxes go through the whole of ingest; the others are derived
from their rows, column at a time: times move within the hour, ids are drawn anew, as are the digits of log bodies.
"""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from bench.grow import grown_files
from bench.ingest import LIMITS, SOURCE, boxes_of, payload_of
from lakerunner_dagster.lake.model import HOUR_MS
from lakerunner_dagster.lake.segments.build import Built, build
from lakerunner_dagster.lake.segments.columns import FILE
from lakerunner_dagster.lake.segments.split import split_by_hour
from lakerunner_dagster.lake.settings import BoxPolicy
from lakerunner_dagster.lake.signals import Signal
from lakerunner_dagster.lake.telemetry.compression import decompress
from lakerunner_dagster.lake.telemetry.decode import decode
from lakerunner_dagster.lake.telemetry.raw import IDENTITY_DIGITS
from lakerunner_dagster.lake.telemetry.records import NS_PER_MS

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping


BOXES = 2
"""Boxes that are really decoded."""

_TRACE_ID_DIGITS = 32
_HEX = np.frombuffer(b"0123456789abcdef", np.uint8)


def grown_segments(rows: int, seed: int = 11) -> Iterator[Built]:
    """Segments of log records of one hour, of so many rows each, as ingest builds them, without end."""
    originals, original_keys = _decoded()
    rng = np.random.default_rng(seed)
    ordinal = 0
    while True:
        copies = -(-rows // originals.num_rows)
        table = pa.concat_tables([_derived(originals, rng) for _ in range(copies)])
        table = table.take(np.sort(rng.choice(table.num_rows, rows, replace=False)))
        yield build(
            table.append_column(FILE, pa.array(np.zeros(rows, np.int32))),
            source=SOURCE,
            signal=Signal.LOGS,
            payload_ids=[ordinal],
            inputs=[str(ordinal)],
            operation="ingest",
            original_keys=original_keys,
            ingest_dateint=20261101,
        )
        ordinal += 1


def _decoded() -> tuple[pa.Table, Mapping[str, str]]:
    """The rows of the first boxes that fall into the first hour, texts as they are."""
    files = [data for box in islice(boxes_of(grown_files(Signal.LOGS), BoxPolicy().bytes), BOXES) for data in box]
    payloads = [payload_of(decompress(data, "bench", LIMITS), ordinal) for ordinal, data in enumerate(files)]
    decoded = decode(Signal.LOGS, payloads, SOURCE.organization_id, LIMITS)
    _dateint, _hour, table = split_by_hour(decoded.table)[0]
    return table.drop_columns([FILE]), decoded.original_keys


def _derived(originals: pa.Table, rng: np.random.Generator) -> pa.Table:
    """Other records of the same shape."""
    shift_ms = _shift_ms(originals, rng)
    changed = {
        "chq_timestamp": pc.add(originals.column("chq_timestamp"), shift_ms),
        "chq_tsns": pc.add(originals.column("chq_tsns"), shift_ms * NS_PER_MS),
        "chq_observed_tsns": pc.add(originals.column("chq_observed_tsns"), shift_ms * NS_PER_MS),
        "chq_id": _other_objects(originals.column("chq_id"), rng),
        "trace_id": _other_ids(originals.column("trace_id"), rng),
        "log_message": _other_digits(originals.column("log_message"), rng),
    }
    return pa.table({name: changed.get(name, originals.column(name)) for name in originals.column_names})


def _shift_ms(originals: pa.Table, rng: np.random.Generator) -> int:
    """A shift that leaves every record in its hour."""
    times = pc.min_max(originals.column("chq_timestamp")).as_py()
    hour = times["min"] // HOUR_MS * HOUR_MS
    return int(rng.integers(hour - times["min"], hour + HOUR_MS - times["max"]))


def _other_objects(ids: pa.ChunkedArray, rng: np.random.Generator) -> pa.ChunkedArray:
    """The chq_ids as if their raw objects had been others."""
    objects = pc.utf8_slice_codeunits(ids, 0, IDENTITY_DIGITS).combine_chunks().dictionary_encode()
    others = _random_hex(len(objects.dictionary), IDENTITY_DIGITS, rng).take(objects.indices)
    return pc.binary_join_element_wise(others, pc.utf8_slice_codeunits(ids, IDENTITY_DIGITS), "")


def _other_ids(ids: pa.ChunkedArray, rng: np.random.Generator) -> pa.ChunkedArray:
    """Random trace ids where there are any."""
    return pc.if_else(ids.is_valid(), _random_hex(len(ids), _TRACE_ID_DIGITS, rng), None)


def _other_digits(texts: pa.ChunkedArray, rng: np.random.Generator) -> pa.Array:
    """The texts with each digit drawn anew."""
    texts = texts.combine_chunks()
    texts = texts.cast(pa.string()) if pa.types.is_dictionary(texts.type) else texts
    valid, offsets, data = texts.buffers()
    held = np.frombuffer(data, np.uint8).copy()
    digits = np.flatnonzero((held >= ord("0")) & (held <= ord("9")))
    held[digits] = rng.integers(ord("0"), ord("9") + 1, len(digits), np.uint8)
    return pa.StringArray.from_buffers(len(texts), offsets, pa.py_buffer(held), valid, texts.null_count, texts.offset)


def _random_hex(count: int, digits: int, rng: np.random.Generator) -> pa.StringArray:
    text = _HEX[rng.integers(0, len(_HEX), count * digits, np.uint8)]
    ends = np.arange(0, (count + 1) * digits, digits, dtype=np.int32)
    return pa.StringArray.from_buffers(count, pa.py_buffer(ends), pa.py_buffer(text))
