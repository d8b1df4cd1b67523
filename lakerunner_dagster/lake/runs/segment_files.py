"""The files of segments: fetched from the store to be read, put there when they are made, set aside when unusable.

What belongs here: moving whole segments. What does not: reading and writing their rows (``segments``), whether they are
seen (``lrdb``).
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from mmap import ACCESS_READ, mmap
from pathlib import Path
from typing import TYPE_CHECKING

from lakerunner_dagster.lake.errors import ObjectMissing, SegmentUnusable
from lakerunner_dagster.lake.lrdb import faults, segments
from lakerunner_dagster.lake.model import Output, Segment, Source
from lakerunner_dagster.lake.runs.context import Lake
from lakerunner_dagster.lake.runs.scratch import scratch_directory
from lakerunner_dagster.lake.segments.output import MergedSegment
from lakerunner_dagster.lake.segments.reading import MergeInput, verify
from lakerunner_dagster.lake.store import Store

if TYPE_CHECKING:
    from typing_extensions import Buffer

logger = logging.getLogger(__name__)

DOWNLOADS = 8
"""Segments fetched at once."""

FAULT_RETRY_SECONDS = 600.0
"""How long a segment that cannot be read is left alone for the first time."""


def download(store: Store, inputs: Sequence[Segment], directory: Path) -> list[MergeInput]:
    """The segments with their files in ``directory``. SegmentUnusable where the object of one is gone."""

    def fetched(segment: Segment) -> MergeInput:
        path = directory / f"{segment.segment_id}.parquet"
        try:
            store.download(segment.key, path)
        except ObjectMissing as error:
            raise SegmentUnusable(segment, "object_missing", str(error)) from error
        return MergeInput(segment, path)

    with ThreadPoolExecutor(DOWNLOADS, thread_name_prefix="read-segment") as pool:
        return list(pool.map(fetched, inputs))


def upload(lake: Lake, source: Source, made: MergedSegment) -> Output:
    """Put a segment that was made into the store, as ``put`` does; its file is gone then."""
    with made.path.open("rb") as file, mmap(file.fileno(), 0, access=ACCESS_READ) as data:
        output = put(lake, source, made.output, data)
    made.path.unlink()
    return output


def put(lake: Lake, source: Source, output: Output, data: Buffer) -> Output:
    """Put a segment into the store, never over one that readers see and can read; the output as it stands there.

    Its id says what rows it has: other bytes of the same id are these rows as another version of a library wrote them,
    or what is left of them where the store has spoilt the object. So what stays was found whole.
    """
    store = lake.stores.of(source.bucket)
    segment = output.segment
    if store.create(segment.key, data):
        return output
    with lake.lrdb.connection() as conn:
        seen = segments.published_segments(
            conn,
            source,
            segment.signal,
            segment.dateint,
            frequency_ms=segment.frequency_ms,
            segment_ids=[segment.segment_id],
        )
        set_aside_before = faults.show(conn, segment.segment_id) is not None
    if not seen or set_aside_before or not _is_whole(store, segment):  # not seen: left by a run that was killed
        store.put(segment.key, data)
        return output
    logger.warning("%s is published in other bytes, and stays: it has the same rows", segment.key)
    return replace(output, segment=replace(segment, file_size=store.head(segment.key).size))


def _is_whole(store: Store, segment: Segment) -> bool:
    """Whether the object of a segment's key has the segment's rows, as far as reading all of it can tell."""
    with scratch_directory() as directory:
        try:
            (stored,) = download(store, [segment], directory)
            verify(stored)
        except SegmentUnusable as fault:
            logger.warning("segment %d is written anew: %s", segment.segment_id, fault)
            return False
    return True


def set_aside(lake: Lake, source: Source, fault: SegmentUnusable) -> None:
    """Leave a segment alone for a while: it is listed, tried again, and mended by a rebuild of its day."""
    unusable = fault.segment
    logger.warning("segment %d is set aside: %s", unusable.segment_id, fault)
    with lake.lrdb.transaction() as conn:
        found = segments.published_segments(
            conn,
            source,
            unusable.signal,
            unusable.dateint,
            frequency_ms=unusable.frequency_ms,
            segment_ids=[unusable.segment_id],
        )
        for segment in found:
            faults.mark(conn, segment, fault.reason, str(fault), FAULT_RETRY_SECONDS)
