"""What tests do to a lrdb: sources, notified objects, boxes, and runs that publish without a store or a decoder."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any
from uuid import NAMESPACE_OID, UUID, uuid5

from lakerunner_dagster.lake.lrdb import boxes, check, intake, merging, profiles, publish, segments, swap
from lakerunner_dagster.lake.lrdb.connection import Conn, Lrdb
from lakerunner_dagster.lake.lrdb.intake import IngestGroup, Notification
from lakerunner_dagster.lake.lrdb.partitions import ensure_partitions
from lakerunner_dagster.lake.model import (
    HOUR_MS,
    ClaimedBox,
    Contribution,
    CreatedBy,
    InputKind,
    Lease,
    LedgerEntry,
    Message,
    ObjectOutcome,
    Output,
    RawState,
    Segment,
    Source,
    dateint_of,
    day_start_ms,
    hour_of,
)
from lakerunner_dagster.lake.planning.boxer import PlannedBox, plan
from lakerunner_dagster.lake.settings import BoxPolicy, Settings
from lakerunner_dagster.lake.signals import SIGNALS, Signal
from lakerunner_dagster.lake.stages import ingest_stage
from lakerunner_dagster.lake.store import BucketConfiguration

DAY = 20260105
NOON_MS = day_start_ms(DAY) + 12 * HOUR_MS
NOW_MS = NOON_MS + HOUR_MS
EVERYTHING = BoxPolicy(bytes=1 << 40, count=4000, age_seconds=0.0, window_seconds=3600)
SETTINGS = Settings(box_attempts=3, lease_seconds=60.0, retry_backoff_seconds=0.0)
CODE = "1"

_numbers = itertools.count(1)


def one(lrdb: Lrdb, query: str, *parameters: Any) -> Any:
    """The one value that a query gives."""
    with lrdb.connection() as conn:
        row = conn.execute(query, parameters).fetchone()
    assert row is not None, query
    return row[0]


def do(lrdb: Lrdb, statement: str, *parameters: Any) -> int:
    """Run a statement; the number of rows it touched."""
    with lrdb.connection() as conn:
        return conn.execute(statement, parameters).rowcount


def add_source(lrdb: Lrdb, organization: str, collector: str, bucket: str = "lake") -> Source:
    """A source, with its organization and bucket where they are new."""
    with lrdb.transaction() as conn:
        known = profiles.organization_named(conn, organization) or profiles.add_organization(
            conn, organization, uuid5(NAMESPACE_OID, organization)
        )
        profiles.put_bucket(conn, BucketConfiguration(bucket, "file", endpoint=f"/{bucket}"))
        return profiles.register_source(conn, known.organization_id, collector, bucket, limit=1000)


def notification(source: Source, signal: Signal = Signal.LOGS, **changes: Any) -> Notification:
    """A notification of an object that none before was of."""
    number = next(_numbers)
    plain = Notification(
        signal=signal,
        organization_id=source.organization_id,
        instance_num=source.instance_num,
        bucket=source.bucket,
        key=f"otel-raw/{source.organization_id}/{source.collector}/{signal}/{number}.binpb.gz",
        size=1000,
        queued="2026-01-05T12:00:01.000Z",
        event_time_ms=NOON_MS + number % 1000,
        etag=f"etag{number}",
        collector=source.collector,
        adapter="test",
    )
    return replace(plain, **changes)


def notify(lrdb: Lrdb, *notifications: Notification) -> intake.Upserted:
    """Take notifications in."""
    with lrdb.transaction() as conn:
        return intake.upsert_raw_objects(conn, notifications)


def box_pending(lrdb: Lrdb, signal: Signal = Signal.LOGS, policy: BoxPolicy = EVERYTHING) -> list[int]:
    """One boxer's transaction: close what the policy closes (by default everything); the boxes' ids."""
    far_ahead = 1 << 50
    with lrdb.transaction() as conn:
        planned = plan(intake.pending(conn, signal, 20_000, policy.window_seconds), policy, far_ahead)
        return [box_id for box in planned for box_id in boxes.open_boxes(conn, signal, box, NOW_MS)]


def open_box(lrdb: Lrdb, source: Source, signal: Signal = Signal.LOGS, objects: int = 3) -> int:
    """A box of new objects."""
    notify(lrdb, *(notification(source, signal) for _ in range(objects)))
    (box_id,) = box_pending(lrdb, signal)
    return box_id


def claim(
    lrdb: Lrdb, source: Source, signal: Signal = Signal.LOGS, *, run: str = "run", settings: Settings = SETTINGS
) -> ClaimedBox | None:
    """A run's claim of the day's next box."""
    with lrdb.transaction() as conn:
        return boxes.claim(conn, ingest_stage(signal).name, source, DAY, run_id=run, settings=settings)


def must_claim(lrdb: Lrdb, source: Source, signal: Signal = Signal.LOGS, *, run: str = "run") -> ClaimedBox:
    """As ``claim``, where a box is known to wait."""
    box = claim(lrdb, source, signal, run=run)
    assert box is not None
    return box


def expire(lrdb: Lrdb, box_id: int) -> None:
    """Let the time pass that a box's lease lives."""
    do(
        lrdb,
        "UPDATE boxes SET lease_until = now() - interval '1 second' WHERE box_id = %s AND state = 'claimed'",
        box_id,
    )


def output(
    source: Source,
    records: Mapping[int, int],
    signal: Signal = Signal.LOGS,
    *,
    start_ms: int = NOON_MS,
    segment_id: int | None = None,
    **changes: Any,
) -> Output:
    """A segment of ``records`` by raw object id, in the hour of ``start_ms``."""
    spec = SIGNALS[signal]
    total = sum(records.values())
    segment = Segment(
        organization_id=source.organization_id,
        instance_num=source.instance_num,
        collector=source.collector,
        signal=signal,
        dateint=dateint_of(start_ms),
        frequency_ms=spec.frequency_ms,
        segment_id=segment_id or next(_numbers),
        start_ms=start_ms,
        end_ms=start_ms + 10_000,
        record_count=total,
        file_size=4096,
        ingest_dateint=DAY,
        created_by=CreatedBy.INGEST,
        records=total,
        rollup_count=float(total) if spec.frequency_ms else 0.0,
        fingerprints=(-5, 7),
        label_name_map={"attr_http_method": "http.method"},
        stream_ids=("checkout",) if signal is Signal.LOGS else None,
        stream_id_field="resource_service_name" if signal is Signal.LOGS else None,
        metric_names=("requests",) if signal is Signal.METRICS else (),
        metric_types=(2,) if signal is Signal.METRICS else (),
    )
    inputs = tuple(Contribution(raw_object_id, count) for raw_object_id, count in records.items())
    return Output(replace(segment, **changes), inputs)


def ingested(raw_object_id: int, records: int = 10, **changes: Any) -> ObjectOutcome:
    """The outcome of an object whose records were all accepted."""
    whole = ObjectOutcome(raw_object_id, RawState.INGESTED, records_read=records, raw_bytes=8000)
    return replace(whole, **changes)


def quarantined(raw_object_id: int) -> ObjectOutcome:
    """The outcome of an object that could not be read at all."""
    return ObjectOutcome(
        raw_object_id, RawState.QUARANTINED, error_class="truncated_gzip", error_text="it ends before its end"
    )


def ledger(
    source: Source,
    signal: Signal,
    outputs: Sequence[Output],
    *,
    run: str,
    box_id: int | None = None,
    rejected: Mapping[str, int] | None = None,
    operation: str = "ingest",
    dateint: int = DAY,
) -> LedgerEntry:
    """The books of a step that wrote these outputs, and lost nothing."""
    written = sum(out.segment.records for out in outputs)
    return LedgerEntry(
        run_id=run,
        operation=operation,
        code_version=CODE,
        organization_id=source.organization_id,
        instance_num=source.instance_num,
        signal=signal,
        dateint=dateint,
        frequency_ms=SIGNALS[signal].frequency_ms,
        box_id=box_id,
        records_read=written + sum((rejected or {}).values()),
        records_written=written,
        rejected=rejected or {},
        bytes_in=1000,
        bytes_out=4096,
        seconds=0.5,
        peak_memory_bytes=1 << 20,
        rollup_count_read=float(written),
    )


def publish_box(
    lrdb: Lrdb,
    box: ClaimedBox,
    outputs: Sequence[Output] | None = None,
    outcomes: Sequence[ObjectOutcome] | None = None,
    *,
    messages: Iterable[Message] = (),
    entry: LedgerEntry | None = None,
    written_since: datetime | None = None,
) -> list[Output]:
    """A run's end of a box; by default every member gave ten records to one segment. The outputs."""
    ids = [member.raw_object_id for member in box.members]
    outcomes = [ingested(raw_object_id) for raw_object_id in ids] if outcomes is None else outcomes
    if outputs is None:
        outputs = [output(box.source, dict.fromkeys(ids, 10), box.signal)] if ids else []
    rejected: dict[str, int] = {}
    for outcome in outcomes:
        for reason, count in outcome.rejected.items():
            rejected[reason] = rejected.get(reason, 0) + count
    booked = ledger(box.source, box.signal, outputs, run=box.lease.run_id, box_id=box.lease.box_id, rejected=rejected)
    days = {out.segment.dateint for out in outputs}
    ensure_partitions(lrdb, box.signal, box.source.organization_id, days)
    began = written_since or lrdb.clock()
    with lrdb.transaction() as conn:
        publish.publish_ingest(
            conn,
            box,
            outputs,
            outcomes,
            ledger=entry or booked,
            code_version=CODE,
            written_since=began,
            messages=list(messages),
        )
    return list(outputs)


def ingest(lrdb: Lrdb, source: Source, signal: Signal = Signal.LOGS, objects: int = 3) -> tuple[ClaimedBox, Output]:
    """New objects through a box to one published segment, ten records each."""
    open_box(lrdb, source, signal, objects)
    box = must_claim(lrdb, source, signal)
    (out,) = publish_box(lrdb, box)
    return box, out


def swap_hour(
    conn: Conn,
    source: Source,
    outputs: Sequence[Output],
    read: Iterable[int],
    signal: Signal = Signal.LOGS,
    *,
    run: str = "rebuild",
    start_ms: int = NOON_MS,
    messages: Iterable[Message] = (),
    written_since: datetime | None = None,
) -> swap.Replaced:
    """A rebuild's swap of the hour of ``start_ms``, in a transaction of the caller's."""
    return publish.replace_hour(
        conn,
        source,
        signal,
        dateint=dateint_of(start_ms),
        hour=hour_of(start_ms),
        frequency_ms=SIGNALS[signal].frequency_ms,
        read_inputs=set(read),
        outputs=outputs,
        ledger=ledger(source, signal, outputs, run=run, operation="rebuild", dateint=dateint_of(start_ms)),
        code_version=CODE,
        run_id=run,
        written_since=written_since or datetime.now(UTC),
        messages=list(messages),
    )


def replace_hour(
    lrdb: Lrdb,
    source: Source,
    outputs: Sequence[Output],
    read: Iterable[int],
    signal: Signal = Signal.LOGS,
    **rest: Any,
) -> swap.Replaced:
    """A rebuild's swap of one hour."""
    with lrdb.transaction() as conn:
        return swap_hour(conn, source, outputs, read, signal, **rest)


def merged(source: Source, inputs: Sequence[Segment], **changes: Any) -> Output:
    """The one segment that takes the place of others, as compaction writes it."""
    first = inputs[0]
    whole = replace(
        first,
        segment_id=next(_numbers),
        start_ms=min(segment.start_ms for segment in inputs),
        end_ms=max(segment.end_ms for segment in inputs),
        record_count=sum(segment.record_count for segment in inputs),
        records=sum(segment.records for segment in inputs),
        rollup_count=sum(segment.rollup_count for segment in inputs),
        compacted=True,
        created_by=CreatedBy.COMPACTION,
    )
    given = tuple(Contribution(segment.segment_id, segment.records) for segment in inputs)
    assert first.organization_id == source.organization_id
    return Output(replace(whole, **changes), given, InputKind.SEGMENT)


def publish_merge(
    lrdb: Lrdb,
    source: Source,
    inputs: Sequence[Segment],
    outputs: Sequence[Output],
    *,
    lease: Lease | None = None,
    messages: Iterable[Message] = (),
) -> swap.Replaced:
    """A compaction's swap."""
    entry = ledger(source, inputs[0].signal, outputs, run="compaction", operation="compact")
    written_since = lrdb.clock()
    with lrdb.transaction() as conn:
        return merging.publish_merge(
            conn,
            source,
            inputs,
            outputs,
            ledger=entry,
            messages=list(messages),
            lease=lease,
            written_since=written_since,
        )


def published(lrdb: Lrdb, source: Source, signal: Signal = Signal.LOGS) -> list[Segment]:
    """What readers see of the day in the tier of ingest."""
    with lrdb.connection() as conn:
        return segments.published_segments(conn, source, signal, DAY, frequency_ms=SIGNALS[signal].frequency_ms)


def no_breaches(lrdb: Lrdb) -> bool:
    """Whether lrdb's own attack on its invariants finds nothing; it says what it finds."""
    with lrdb.snapshot() as conn:
        found = check.breaches(conn)
    assert not found, found
    return True


def compact(lrdb: Lrdb, source: Source, segment_ids: Sequence[int]) -> int:
    """One segment in place of others of the day, all of one hour; its id."""
    inputs = [segment for segment in published(lrdb, source) if segment.segment_id in segment_ids]
    out = merged(source, inputs)
    publish_merge(lrdb, source, inputs, [out])
    return out.segment.segment_id


def planned(box_of: Sequence[int], source: Source, size: int = 8000) -> PlannedBox:
    """A plan of one box, made without the planner."""
    group = IngestGroup(source.organization_id, source.instance_num, DAY, NOON_MS)
    return PlannedBox(group, tuple(box_of), size, "age")


def pending_ids(lrdb: Lrdb, signal: Signal = Signal.LOGS) -> list[int]:
    """The objects that wait, as the boxer sees them."""
    with lrdb.transaction() as conn:
        return [item.item_id for item in intake.pending(conn, signal, 20_000, 3600)]


def states(lrdb: Lrdb, organization_id: UUID) -> dict[int, str]:
    """The state of every raw object of an organization."""
    with lrdb.connection() as conn:
        rows = conn.execute(
            "SELECT raw_object_id, state FROM raw_objects WHERE organization_id = %s", (organization_id,)
        )
        return dict(rows.fetchall())


def visible_records(lrdb: Lrdb, signal: Signal = Signal.LOGS) -> int:
    """The records of published segments."""
    return int(one(lrdb, f"SELECT coalesce(sum(records), 0) FROM {SIGNALS[signal].segment_table} WHERE published"))
