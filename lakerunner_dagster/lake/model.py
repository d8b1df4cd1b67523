"""The nouns of the domain as frozen dataclasses: source, raw object, box, segment, outcome.

What belongs here: values that several packages exchange. What does not: how they are stored (``lrdb``),
computed (``segments``, ``telemetry``) or moved (``bus``, ``store``).
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from datetime import UTC, date, datetime
from enum import IntEnum, StrEnum
from typing import TYPE_CHECKING, Any

from lakerunner_dagster.lake.errors import InputError
from lakerunner_dagster.lake.signals import SIGNALS, Signal

if TYPE_CHECKING:
    from collections.abc import Mapping
    from uuid import UUID

HOUR_MS = 3_600_000

COLLECTOR = re.compile(r"(?!.*\.\.\.)[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
"""A collector stands in object keys and in partition keys, where Dagster reads ``...`` as a range."""


def dateint_of(ms: int) -> int:
    """UTC day of an epoch time in ms, as YYYYMMDD."""
    moment = datetime.fromtimestamp(ms / 1000, UTC)
    return moment.year * 10_000 + moment.month * 100 + moment.day


def hour_of(ms: int) -> int:
    """UTC hour (0-23) of an epoch time in ms."""
    return ms // HOUR_MS % 24


def date_of(dateint: int) -> date:
    """The calendar day of a YYYYMMDD integer."""
    return date(dateint // 10_000, dateint // 100 % 100, dateint % 100)


def day_start_ms(dateint: int) -> int:
    """Epoch ms of the UTC midnight that opens a YYYYMMDD day."""
    day = date_of(dateint)
    return int(datetime(day.year, day.month, day.day, tzinfo=UTC).timestamp()) * 1000


def rfc3339(ms: int) -> str:
    """An epoch time in ms as RFC 3339 text in UTC, as messages carry it."""
    return datetime.fromtimestamp(ms / 1000, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def check_collector(collector: str) -> None:
    """InputError ``bad_collector_name`` unless the name can stand in object keys and partition keys."""
    if not COLLECTOR.fullmatch(collector):
        raise InputError(
            "bad_collector_name",
            f"collector {collector[:200]!a} is no name for one: use letters, digits, '.', '_' and '-', at most 64 of "
            "them, a letter or digit first, and never '...'",
        )


@dataclass(frozen=True, slots=True)
class Source:
    """A collector instance of an organization: the unit of partitioning beside the day.

    ``instance_num`` numbers the collectors of an organization; ``bucket`` is where its raw objects and segments live.
    """

    organization_id: UUID
    organization_name: str
    collector: str
    instance_num: int
    bucket: str

    @property
    def key(self) -> str:
        """The partition key of the source dimension: ``{organization name}/{collector}``."""
        return f"{self.organization_name}/{self.collector}"


class RawState(StrEnum):
    """Where a raw object is on its way; the last three are ends (spec/lrdb.md, invariant 5)."""

    PENDING = "pending"
    BOXED = "boxed"
    INGESTED = "ingested"
    QUARANTINED = "quarantined"
    MISSING = "missing"


class BoxState(StrEnum):
    """Where a box is: open boxes wait, claimed ones are leased to a run, failed ones wait for a person."""

    OPEN = "open"
    CLAIMED = "claimed"
    DONE = "done"
    FAILED = "failed"


class CreatedBy(IntEnum):
    """Which stage wrote a segment (contract: column ``created_by``)."""

    INGEST = 1
    COMPACTION = 2
    ROLLUP = 3


@dataclass(frozen=True, slots=True)
class RawObject:
    """A raw telemetry object, identified by (bucket, key, etag). An empty etag is not known yet.

    ``size`` is in stored (compressed) bytes; ``event_time_ms`` is the store's or notification's time of the object.
    """

    raw_object_id: int
    organization_id: UUID
    instance_num: int
    collector: str
    signal: Signal
    bucket: str
    key: str
    etag: str
    size: int
    event_time_ms: int


@dataclass(frozen=True, slots=True)
class Lease:
    """A run's right to work on a box until ``lease_seconds`` after its last heartbeat; ``token`` proves it."""

    box_id: int
    token: UUID
    run_id: str
    attempt: int


@dataclass(frozen=True, slots=True)
class ClaimedBox:
    """A box and the right to work on it. ``dateint`` is its partition's day, ``grouping_key`` its group in it.

    ``members`` are the raw objects of an ingest box, ordered by id; a box of segments has none.
    """

    lease: Lease
    stage: str
    source: Source
    signal: Signal
    dateint: int
    grouping_key: str
    members: tuple[RawObject, ...]


def segment_key(
    organization_id: UUID, collector: str, *, dateint: int, signal: Signal, hour: int, segment_id: int
) -> str:
    """Object key of a segment (contract, spec/segments.md)."""
    return f"db/{organization_id}/{collector}/{dateint}/{signal}/{hour:02d}/tbl_{segment_id}.parquet"


@dataclass(frozen=True, slots=True)
class Segment:
    """One index row: an immutable Parquet file of one source, signal, UTC day, hour and frequency.

    Times are ms, ``[start_ms, end_ms)``. ``frequency_ms`` is 0 for logs and traces. ``records`` counts the raw
    records that the rows stand for: equal to ``record_count`` but for metrics, where it is the sum of chq_points.
    ``rollup_count`` is the sum of chq_rollup_count (metrics; 0.0 elsewhere). ``reach_ms``: of a rollup of cumulative
    series, the earliest ms of finer rows that its rows depend on, where that is before ``start_ms``.
    """

    organization_id: UUID
    instance_num: int
    collector: str
    signal: Signal
    dateint: int
    frequency_ms: int
    segment_id: int
    start_ms: int
    end_ms: int
    record_count: int
    file_size: int
    ingest_dateint: int
    created_by: CreatedBy
    records: int
    rollup_count: float = 0.0
    compacted: bool = False
    rolledup: bool = False
    fingerprints: tuple[int, ...] = ()
    label_name_map: Mapping[str, str] = field(default_factory=dict)
    stream_ids: tuple[str, ...] | None = None
    stream_id_field: str | None = None
    metric_names: tuple[str, ...] = ()
    metric_types: tuple[int, ...] = ()
    reach_ms: int | None = None

    @property
    def hour(self) -> int:
        """UTC hour of the segment's first timestamp."""
        return hour_of(self.start_ms)

    @property
    def key(self) -> str:
        """Object key (contract, spec/segments.md)."""
        return segment_key(
            self.organization_id,
            self.collector,
            dateint=self.dateint,
            signal=self.signal,
            hour=self.hour,
            segment_id=self.segment_id,
        )

    @property
    def sort_version(self) -> int | None:
        """The contract's number for the order of the rows."""
        return SIGNALS[self.signal].sort_version


class InputKind(StrEnum):
    """What an output was made from."""

    RAW = "raw"
    SEGMENT = "segment"


@dataclass(frozen=True, slots=True)
class Contribution:
    """How many records of one input went into an output; a lineage row.

    ``input_id`` is the id of a raw object or of a segment, as the output's ``input_kind`` says.
    """

    input_id: int
    records: int


@dataclass(frozen=True, slots=True)
class Output:
    """A segment whose object is in the store, and the raw objects or segments that made it."""

    segment: Segment
    inputs: tuple[Contribution, ...]
    input_kind: InputKind = InputKind.RAW


@dataclass(frozen=True, slots=True)
class ObjectOutcome:
    """How one raw object ended. ``rejected`` counts records by reason; ``raw_bytes`` is the decompressed size."""

    raw_object_id: int
    state: RawState
    records_read: int = 0
    rejected: Mapping[str, int] = field(default_factory=dict)
    raw_bytes: int = 0
    error_class: str | None = None
    error_text: str | None = None


@dataclass(frozen=True, slots=True)
class LedgerEntry:
    """What one atomic step of a run did (one box, or one hour of a rebuild). Bytes are stored bytes.

    ``rollup_count_read`` is the sum of chq_rollup_count over the points read (metrics).
    """

    run_id: str
    operation: str
    code_version: str
    organization_id: UUID
    instance_num: int
    signal: Signal
    dateint: int
    frequency_ms: int
    box_id: int | None
    records_read: int
    records_written: int
    rejected: Mapping[str, int]
    bytes_in: int
    bytes_out: int
    seconds: float
    peak_memory_bytes: int
    rollup_count_read: float = 0.0


@dataclass(frozen=True, slots=True)
class Message:
    """A Kafka message to be: topic without prefix, key, JSON body and string headers."""

    topic: str
    key: str
    body: Mapping[str, Any]
    headers: Mapping[str, str] = field(default_factory=dict)
