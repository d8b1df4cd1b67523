"""An hour computed anew from the raw objects that its segments stand on, and swapped.

What belongs here: which objects and hours go together, and the swap's preparation. What does not: bytes to segments
(``transform``), the swap itself (``lrdb.publish``), which hours are to be computed (``rebuild``).

A decoder that was changed may put a record into another hour, take one that it rejected, or reject one that it took. So
what an object gives to **every** hour is compared with what readers see of it. Where that differs, those hours too are
computed, and all of them are swapped in one transaction: at any commit each record is visible exactly once.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace

from lakerunner_dagster.lake.errors import InputError, LakeError, ObjectMissing, StoreDenied, SwapConflict
from lakerunner_dagster.lake.lrdb import publish, standing
from lakerunner_dagster.lake.lrdb.connection import Conn
from lakerunner_dagster.lake.lrdb.partitions import ensure_partitions
from lakerunner_dagster.lake.lrdb.standing import Hour
from lakerunner_dagster.lake.model import ObjectOutcome, Output, RawObject, Source, dateint_of
from lakerunner_dagster.lake.runs import segment_files
from lakerunner_dagster.lake.runs.announce import announcements
from lakerunner_dagster.lake.runs.contents import LargeObject, content_of, gathered
from lakerunner_dagster.lake.runs.context import Lake
from lakerunner_dagster.lake.runs.memory import peak_memory_bytes
from lakerunner_dagster.lake.runs.reading import Fetched, Unreadable, fetch
from lakerunner_dagster.lake.runs.report import Step
from lakerunner_dagster.lake.runs.scratch import NewFile, scratch_files
from lakerunner_dagster.lake.runs.transform import (
    Chunk,
    Recipe,
    build_segment,
    decoded_chunk,
    decoded_pieces,
    outcome_of_pieces,
)
from lakerunner_dagster.lake.segments.ids import raw_identity
from lakerunner_dagster.lake.signals import Signal
from lakerunner_dagster.lake.telemetry.raw import RawPayload

OPERATION = "rebuild"
"""What lineage and ledger call this work; it enters segment ids."""

TRIES = 3
"""How often an hour is computed again because others have published into it meanwhile."""


@dataclass(frozen=True, slots=True)
class Task:
    """The partition that is rebuilt, and by which run."""

    source: Source
    signal: Signal
    dateint: int
    run_id: str


@dataclass(frozen=True, slots=True)
class Reading:
    """What a raw object gives now: records by hour, and what was read and rejected of it."""

    raw: RawObject
    spread: Counter[Hour]
    outcome: ObjectOutcome


@dataclass(frozen=True, slots=True)
class Strays:
    """Objects, by id, that give records to other hours than those where readers see them, and all these hours.

    ``unreadable``: why others, by id, could not be read.
    """

    readings: Mapping[int, Reading]
    hours: frozenset[Hour]
    unreadable: Mapping[int, LakeError]


@dataclass(slots=True)
class _Computed:
    """An hour as it was computed: from which objects, and what came of it."""

    members: frozenset[int]
    outputs: list[Output] = field(default_factory=list)
    bytes_in: int = 0
    rollup_count: float = 0.0
    seconds: float = 0.0


def replace_hour(lake: Lake, task: Task, hour: Hour, strays: Mapping[int, Reading]) -> dict[Hour, Step]:
    """Compute an hour from what its segments stand on and swap it, with the hours that records move from or to.

    ``strays`` are objects, read already, that give records to hours where readers see none of them. There is a step for
    each hour that was swapped. Raises ObjectMissing, InputError or StoreDenied when an object cannot be read any more,
    SwapConflict when others publish into it again and again: every hour is as it was then.
    """
    tries = 0
    while True:
        tries += 1
        work = _Recomputation(lake, task, strays)
        work.compute(hour)
        try:
            return work.swap()
        except SwapConflict:
            if tries == TRIES:
                raise


def find_strays(lake: Lake, task: Task, objects: Iterable[RawObject]) -> Strays:
    """Those of the objects that give to any hour another number of records than readers see of them.

    What readers see of an object that cannot be read stays.
    """
    unreadable: dict[int, LakeError] = {}
    reader = _Reader(lake, task, lambda raw, error: unreadable.update({raw.raw_object_id: error}))
    for _ in reader.chunks(objects):
        pass
    with lake.lrdb.connection() as conn:
        seen = standing.records_by_hour(conn, task.source, task.signal, reader.read)
    moved = {id_: _moved(reading, seen[id_]) for id_, reading in reader.read.items()}
    return Strays(
        {id_: reading for id_, reading in reader.read.items() if moved[id_]},
        frozenset().union(*moved.values()),
        unreadable,
    )


class _Reader:
    """Reads and decodes raw objects, and remembers what each of them gives."""

    def __init__(self, lake: Lake, task: Task, unreadable: Callable[[RawObject, LakeError], None]) -> None:
        self._lake = lake
        self._task = task
        self._unreadable = unreadable
        self.read: dict[int, Reading] = {}
        self.bytes_in = 0

    def chunks(self, objects: Iterable[RawObject]) -> Iterator[tuple[int, Chunk]]:
        """The objects, decoded a bounded chunk at a time, with the ordinal that its segments have.

        By identity: which share a chunk depends on nothing else. Pieces of a large object share an ordinal; where one
        of them is corrupt, those before it were given in vain.
        """
        ordered = sorted(objects, key=lambda raw: raw_identity(raw.bucket, raw.key, raw.etag))
        known = {raw.raw_object_id: raw for raw in ordered}
        with scratch_files() as new_file:
            for ordinal, contents in enumerate(gathered(self._contents(ordered, new_file))):
                if isinstance(contents, LargeObject):
                    chunks = self._pieces(contents)
                else:
                    chunks = iter([self._together(contents, known)])
                for chunk in chunks:
                    yield ordinal, chunk

    def _together(self, payloads: list[RawPayload], known: Mapping[int, RawObject]) -> Chunk:
        chunk = decoded_chunk(self._task.signal, payloads, self._task.source.organization_id, self._lake.limits)
        for ordinal, payload in enumerate(payloads):
            raw = known[payload.raw_object_id]
            if ordinal in chunk.failures:
                self._unreadable(raw, chunk.failures[ordinal])
            else:
                self.read[raw.raw_object_id] = Reading(raw, _spread(chunk, ordinal), chunk.outcome(ordinal))
        return chunk

    def _pieces(self, large: LargeObject) -> Iterator[Chunk]:
        spread: Counter[Hour] = Counter()
        outcomes: list[ObjectOutcome] = []
        try:
            for chunk in decoded_pieces(large, self._task.source.organization_id, self._lake.limits):
                spread += _spread(chunk, 0)
                outcomes.append(chunk.outcome(0))
                yield chunk
        except InputError as error:
            self._unreadable(large.raw, error)
        else:
            self.read[large.raw.raw_object_id] = Reading(large.raw, spread, outcome_of_pieces(large, outcomes))

    def _contents(self, objects: Iterable[RawObject], new_file: NewFile) -> Iterator[RawPayload | LargeObject]:
        for found in fetch(self._lake.stores, objects, self._lake.limits.object_bytes, new_file):
            try:
                yield self._content(found, new_file)
            except (ObjectMissing, InputError, StoreDenied) as error:
                self._unreadable(found.raw, error)

    def _content(self, found: Fetched | Unreadable, new_file: NewFile) -> RawPayload | LargeObject:
        if isinstance(found, Unreadable):
            raise found.error
        raw = found.raw
        if found.stored.etag != raw.etag:
            raise ObjectMissing(
                f"{raw.bucket}/{raw.key} was ingested with etag {raw.etag} and has {found.stored.etag} now: "
                "what it was is gone from the store"
            )
        self.bytes_in += found.stored.size
        return content_of(raw, found.data, self._lake.limits, new_file)


def _spread(chunk: Chunk, ordinal: int) -> Counter[Hour]:
    """The rows that a payload has in each hour."""
    return +Counter({Hour(rows.dateint, rows.hour): rows.by_payload[ordinal] for rows in chunk.hours})


def _moved(reading: Reading, seen: Counter[Hour]) -> set[Hour]:
    """The hours to which an object gives another number of records than readers see of it there."""
    return {hour for hour in reading.spread.keys() | seen.keys() if reading.spread[hour] != seen[hour]}


def _refuse(_raw: RawObject, error: LakeError) -> None:
    """What readers see of an object that cannot be read again must stay: nothing may be swapped without it."""
    raise error


class _Recomputation:
    """Hours that must be swapped together, as they are computed from one reading of their objects."""

    def __init__(self, lake: Lake, task: Task, strays: Mapping[int, Reading]) -> None:
        self._lake = lake
        self._task = task
        self._reader = _Reader(lake, task, _refuse)
        self._reader.read.update(strays)
        self._standing: dict[Hour, dict[int, RawObject]] = {}
        self._computed: dict[Hour, _Computed] = {}
        self._written_since = lake.lrdb.clock()

    def compute(self, first: Hour) -> None:
        """Compute hours, from ``first`` on, until what all their objects give is what readers would see of them."""
        due = {first}
        while due:
            hour = min(due)
            self._computed[hour] = self._compute(hour)
            due = self._due()

    def swap(self) -> dict[Hour, Step]:
        """Make all of it visible in one transaction. SwapConflict."""
        lake, task = self._lake, self._task
        steps = {hour: self._step(hour, computed) for hour, computed in sorted(self._computed.items())}
        ensure_partitions(lake.lrdb, task.signal, task.source.organization_id, {hour.dateint for hour in steps})
        with lake.lrdb.transaction() as conn:
            # In one order everywhere, so that two that swap the same hours wait for each other and not in a circle.
            superseded = {hour: self._replace(conn, hour, step) for hour, step in steps.items()}
            publish.recount(conn, task.source, [reading.outcome for reading in self._reader.read.values()])
        return {hour: replace(step, superseded=superseded[hour]) for hour, step in steps.items()}

    def _members(self, hour: Hour) -> dict[int, RawObject]:
        """The objects that give records to an hour: as read, and as readers see it of those not read yet."""
        if hour not in self._standing:
            with self._lake.lrdb.connection() as conn:
                found = standing.objects_of_hour(conn, self._task.source, self._task.signal, hour)
            self._standing[hour] = {raw.raw_object_id: raw for raw in found}
        read = self._reader.read
        unread = {id_: raw for id_, raw in self._standing[hour].items() if id_ not in read}
        return unread | {id_: reading.raw for id_, reading in read.items() if reading.spread[hour]}

    def _due(self) -> set[Hour]:
        """The hours that are still to be computed, or to be computed again from other objects."""
        with self._lake.lrdb.connection() as conn:
            seen = standing.records_by_hour(conn, self._task.source, self._task.signal, self._reader.read)
        moved = [_moved(reading, seen[id_]) for id_, reading in self._reader.read.items()]
        return {
            hour
            for hour in self._computed.keys() | set().union(*moved)
            if hour not in self._computed or self._computed[hour].members != self._members(hour).keys()
        }

    def _compute(self, hour: Hour) -> _Computed:
        """Read the hour's objects, and put its segments into the store."""
        started, bytes_before = time.monotonic(), self._reader.bytes_in
        members = self._members(hour)
        recipe = Recipe(self._task.source, self._task.signal, OPERATION, dateint_of(time.time_ns() // 1_000_000))
        computed = _Computed(frozenset(members))
        for ordinal, chunk in self._reader.chunks(members.values()):
            for rows in chunk.hours:
                if Hour(rows.dateint, rows.hour) == hour:
                    built = build_segment(rows, chunk, recipe, ordinal)
                    computed.outputs.append(segment_files.put(self._lake, self._task.source, built.output, built.data))
                    computed.rollup_count += rows.rollup_count
        computed.bytes_in = self._reader.bytes_in - bytes_before
        computed.seconds = time.monotonic() - started
        return computed

    def _replace(self, conn: Conn, hour: Hour, step: Step) -> int:
        """Swap one hour; the number of segments that readers see no longer."""
        task, computed = self._task, self._computed[hour]
        ledger = step.ledger_entry(OPERATION, computed.rollup_count)
        replaced = publish.replace_hour(
            conn,
            task.source,
            task.signal,
            dateint=hour.dateint,
            hour=hour.hour,
            frequency_ms=ledger.frequency_ms,
            read_inputs=self._reader.read.keys(),
            outputs=computed.outputs,
            # What was rejected belongs to no hour: it is booked with the object, where it was ingested.
            ledger=replace(ledger, dateint=hour.dateint, records_read=step.records_written, rejected={}),
            code_version=ledger.code_version,
            run_id=task.run_id,
            written_since=self._written_since,
            messages=announcements(step.segments, time.time_ns() // 1_000_000),
        )
        return len(replaced.superseded)

    def _step(self, hour: Hour, computed: _Computed) -> Step:
        readings = [self._reader.read[id_] for id_ in sorted(computed.members)]
        rejected: Counter[str] = Counter()
        for reading in readings:
            rejected.update(reading.outcome.rejected)
        segments = tuple(output.segment for output in computed.outputs)
        return Step(
            source=self._task.source,
            signal=self._task.signal,
            dateint=self._task.dateint,
            run_id=self._task.run_id,
            box_id=None,
            hour=hour.hour,
            segments=segments,
            superseded=0,
            objects=len(readings),
            set_aside=(),
            records_read=sum(reading.outcome.records_read for reading in readings),
            records_written=sum(segment.records for segment in segments),
            rejected=rejected,
            elsewhere=sum(reading.spread.total() - reading.spread[hour] for reading in readings),
            raw_bytes=sum(reading.outcome.raw_bytes for reading in readings),
            bytes_in=computed.bytes_in,
            bytes_out=sum(segment.file_size for segment in segments),
            seconds=computed.seconds,
            peak_memory_bytes=peak_memory_bytes(),
        )
