"""What sources send in virtual time: a file every ten seconds, some late, some corrupt, ingested as they come.

What belongs here: which segments an ingest would have published, and writing their rows. What does not: compaction.
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import count
from typing import TYPE_CHECKING

from psycopg.types.json import Jsonb
from psycopg.types.range import Int8Range

from lakerunner_dagster.lake.lrdb import lineage, slots, unsettled
from lakerunner_dagster.lake.lrdb.partitions import ensure_partitions
from lakerunner_dagster.lake.model import HOUR_MS, Contribution, CreatedBy, Output, Segment, Source, dateint_of
from lakerunner_dagster.lake.signals import SIGNALS, Signal

if TYPE_CHECKING:
    from lakerunner_dagster.lake.lrdb.connection import Conn, Lrdb

FILE_MS = 10_000
"""Each source writes a file of each signal so often."""

LATE, CORRUPT = 0.01, 0.001
"""Shares of the files that come late, and that cannot be read."""

LONGEST_DELAY_MS = 6 * HOUR_MS

FILE_BYTES, FILE_RECORDS = 20_000, 50
"""What a file of the smallest source gives: bytes of Parquet, and records. The largest gives 2^7 as much."""

SIZES = 8
"""Different sizes of sources, each twice the one before."""


@dataclass(frozen=True, slots=True)
class Arrival:
    """A raw file that is there to be ingested: of which event time, how large, and whether it can be read."""

    raw_object_id: int
    event_ms: int
    records: int
    bytes: int
    corrupt: bool


@dataclass(slots=True)
class Feed:
    """What one source sends of one signal. ``late`` files are under way, by the time at which they come."""

    source: Source
    signal: Signal
    scale: int
    rng: random.Random
    late: list[tuple[int, Arrival]] = field(default_factory=list)

    def arrivals(self, from_ms: int, to_ms: int, ids: Iterator[int]) -> list[Arrival]:
        """The files that come between two times, in the order of their coming."""
        come = []
        for event_ms in range(from_ms, to_ms, FILE_MS):
            size = self.scale * self.rng.uniform(0.5, 1.5)
            file = Arrival(
                next(ids),
                event_ms,
                records=max(int(FILE_RECORDS * size), 1),
                bytes=int(FILE_BYTES * size),
                corrupt=self.rng.random() < CORRUPT,
            )
            if self.rng.random() < LATE:
                self.late.append((event_ms + self.rng.randrange(LONGEST_DELAY_MS), file))
            else:
                come.append(file)
        come += [file for comes_ms, file in self.late if comes_ms < to_ms]
        self.late = [(comes_ms, file) for comes_ms, file in self.late if comes_ms >= to_ms]
        return come


@dataclass(frozen=True, slots=True)
class Ingested:
    """A segment that an ingest box gave, and the files that it stands on."""

    segment: Segment
    files: tuple[Arrival, ...]


class Ingest:
    """Boxes what comes by hour and age, and publishes a segment for each box."""

    def __init__(self, lrdb: Lrdb, box_seconds: float) -> None:
        self._lrdb = lrdb
        self._box_ms = int(box_seconds * 1000)
        self._ids = count(1)

    def publish(self, signal: Signal, arrivals: Sequence[tuple[Feed, Sequence[Arrival]]]) -> list[Ingested]:
        """Write the rows that ingest would have written for these files, all of one organization."""
        published = [one for feed, files in arrivals for one in self._ingested(feed, files)]
        days = {one.segment.dateint for one in published}
        ensure_partitions(self._lrdb, signal, arrivals[0][0].source.organization_id, days)
        with self._lrdb.transaction() as conn:
            _copy_raw(conn, arrivals)
            _copy_segments(conn, signal, [one.segment for one in published])
            _copy_lineage(conn, published)
            unsettled.touch(conn, [one.segment for one in published])
            slots.touch(conn, [one.segment for one in published])  # nobody rolls up here: they stay dirty
        return published

    def _ingested(self, feed: Feed, arrivals: Sequence[Arrival]) -> list[Ingested]:
        boxes: defaultdict[tuple[int, int], list[Arrival]] = defaultdict(list)
        for file in arrivals:
            if not file.corrupt:
                hour = file.event_ms // HOUR_MS
                boxes[hour, file.event_ms // self._box_ms].append(file)
        return [Ingested(self._segment(feed, files), tuple(files)) for _, files in sorted(boxes.items())]

    def _segment(self, feed: Feed, files: Sequence[Arrival]) -> Segment:
        frequency_ms = SIGNALS[feed.signal].frequency_ms
        start_ms = min(file.event_ms for file in files)
        records = sum(file.records for file in files)
        return Segment(
            organization_id=feed.source.organization_id,
            instance_num=feed.source.instance_num,
            collector=feed.source.collector,
            signal=feed.signal,
            dateint=dateint_of(start_ms),
            frequency_ms=frequency_ms,
            segment_id=next(self._ids),
            start_ms=start_ms,
            end_ms=start_ms + FILE_MS,
            record_count=records,
            file_size=sum(file.bytes for file in files),
            ingest_dateint=dateint_of(start_ms),
            created_by=CreatedBy.INGEST,
            records=records,
            rollup_count=float(records) if frequency_ms else 0.0,
            fingerprints=(1, 2, 3),
        )


def _copy_raw(conn: Conn, arrivals: Iterable[tuple[Feed, Sequence[Arrival]]]) -> None:
    columns = (
        "raw_object_id, organization_id, instance_num, collector, signal, bucket, key, etag, identity, size,"
        " event_time_ms, event_dateint, adapter, state, ended_at, raw_bytes, records_read, error_class"
    )
    with conn.cursor() as cursor, cursor.copy(f"COPY raw_objects ({columns}) FROM STDIN") as copy:
        for feed, files in arrivals:
            for file in files:
                copy.write_row(_raw_row(feed, file))


def _raw_row(feed: Feed, file: Arrival) -> tuple[object, ...]:
    source, name = feed.source, str(file.raw_object_id)
    ended = datetime.fromtimestamp(file.event_ms / 1000, UTC)
    return (
        file.raw_object_id,
        source.organization_id,
        source.instance_num,
        source.collector,
        str(feed.signal),
        source.bucket,
        f"otel-raw/{source.organization_id}/{source.collector}/{feed.signal}/{name}",
        name,
        name,
        file.bytes,
        file.event_ms,
        dateint_of(file.event_ms),
        "simulation",
        "quarantined" if file.corrupt else "ingested",
        ended,
        file.bytes,
        0 if file.corrupt else file.records,
        "corrupt_gzip" if file.corrupt else None,
    )


def _copy_segments(conn: Conn, signal: Signal, published: Iterable[Segment]) -> None:
    tier = ", frequency_ms, rollup_count" if SIGNALS[signal].frequency_ms else ""
    columns = (
        "organization_id, dateint, segment_id, instance_num, ts_range, record_count, file_size, ingest_dateint,"
        f" published, created_by, fingerprints, label_name_map, records{tier}"
    )
    with (
        conn.cursor() as cursor,
        cursor.copy(f"COPY {SIGNALS[signal].segment_table} ({columns}) FROM STDIN") as copy,
    ):
        for segment in published:
            copy.write_row(_segment_row(segment))


def _segment_row(segment: Segment) -> tuple[object, ...]:
    row: tuple[object, ...] = (
        segment.organization_id,
        segment.dateint,
        segment.segment_id,
        segment.instance_num,
        Int8Range(segment.start_ms, segment.end_ms),
        segment.record_count,
        segment.file_size,
        segment.ingest_dateint,
        True,
        int(segment.created_by),
        list(segment.fingerprints),
        Jsonb({}),
        segment.records,
    )
    return (*row, segment.frequency_ms, segment.rollup_count) if segment.frequency_ms else row


def _copy_lineage(conn: Conn, published: Iterable[Ingested]) -> None:
    outputs = [
        Output(one.segment, tuple(Contribution(file.raw_object_id, file.records) for file in one.files))
        for one in published
    ]
    lineage.add(conn, outputs, operation="ingest", run_id="simulation", code_version="1")
