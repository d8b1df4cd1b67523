"""One attempt at a claimed box: read, decode, write segments, publish.

What belongs here: the order of these, and how each raw object of the box ends. What does not: bytes to segments
(``transform``), what the publishing transaction does (``lrdb.publish``), what follows a failure (``drain``).

Until the transaction nobody sees anything of it: killed before, the next attempt writes the same objects again; killed
after, the box is done.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator, Sequence

from lakerunner_dagster.lake.errors import InputError, ObjectMissing, StoreDenied
from lakerunner_dagster.lake.lrdb import intake, publish
from lakerunner_dagster.lake.lrdb.intake import Resolution
from lakerunner_dagster.lake.lrdb.partitions import ensure_partitions
from lakerunner_dagster.lake.model import ClaimedBox, ObjectOutcome, Output, RawObject, RawState, dateint_of
from lakerunner_dagster.lake.runs import segment_files
from lakerunner_dagster.lake.runs.announce import announcements
from lakerunner_dagster.lake.runs.contents import LargeObject, content_of, gathered
from lakerunner_dagster.lake.runs.context import Lake
from lakerunner_dagster.lake.runs.leasing import Heartbeat
from lakerunner_dagster.lake.runs.memory import peak_memory_bytes
from lakerunner_dagster.lake.runs.reading import Fetched, Unreadable, fetch
from lakerunner_dagster.lake.runs.report import OnStep, SetAside, Step
from lakerunner_dagster.lake.runs.scratch import NewFile, scratch_files
from lakerunner_dagster.lake.runs.transform import (
    Chunk,
    Recipe,
    build_segment,
    decoded_chunk,
    decoded_pieces,
    outcome_of_pieces,
)
from lakerunner_dagster.lake.signals import SIGNALS
from lakerunner_dagster.lake.telemetry.raw import RawPayload

OPERATION = "ingest"
"""What lineage and ledger call this work; it enters segment ids."""


def ingest(lake: Lake, box: ClaimedBox, on_step: OnStep) -> None:
    """Work on a claimed box, through to its one commit. Raises what prevents that; nothing is visible then.

    An object that is corrupt or missing prevents nothing: it ends as quarantined or missing, alone. So does one that
    the store denies, where it gives another of the box.
    """
    with Heartbeat(lake.lrdb, box.lease, lake.settings.lease_seconds) as heartbeat:
        attempt = _Attempt(lake, box, heartbeat)
        attempt.write_segments()
        step = attempt.publish()
    on_step(step)


class _Attempt:
    """What an attempt has found and written so far."""

    def __init__(self, lake: Lake, box: ClaimedBox, heartbeat: Heartbeat) -> None:
        self._lake = lake
        self._box = box
        self._heartbeat = heartbeat
        self._started = time.monotonic()
        self._now_ms = int(time.time() * 1000)
        self._written_since = lake.lrdb.clock()
        self._recipe = Recipe(box.source, box.signal, OPERATION, ingest_dateint=dateint_of(self._now_ms))
        self._members = {member.raw_object_id: member for member in box.members}
        self._ingested: list[ObjectOutcome] = []
        self._aside: list[SetAside] = []
        self._outputs: list[Output] = []
        self._bytes_in = 0
        self._rollup_count = 0.0

    def write_segments(self) -> None:
        """Read the members and put their segments into the store, a bounded chunk at a time."""
        with scratch_files() as new_file:
            for ordinal, contents in enumerate(gathered(self._contents(new_file))):
                if isinstance(contents, LargeObject):
                    self._write_large(contents, ordinal)
                else:
                    self._write_chunk(contents, ordinal)

    def publish(self) -> Step:
        """Make all of it visible in one transaction; LeaseLost when the box is another run's by now."""
        self._heartbeat.check()
        lake, box, step = self._lake, self._box, self._step()
        ensure_partitions(lake.lrdb, box.signal, box.source.organization_id, step.days)
        with lake.lrdb.transaction() as conn:
            publish.publish_ingest(
                conn,
                box,
                self._outputs,
                [*self._ingested, *(aside.outcome for aside in self._aside)],
                ledger=step.ledger_entry(OPERATION, self._rollup_count),
                code_version=SIGNALS[box.signal].code_version,
                written_since=self._written_since,
                messages=announcements(step.segments, self._now_ms),
            )
        return step

    def _step(self) -> Step:
        rejected: Counter[str] = Counter()
        for outcome in self._ingested:
            rejected.update(outcome.rejected)
        segments = tuple(output.segment for output in self._outputs)
        return Step(
            source=self._box.source,
            signal=self._box.signal,
            dateint=self._box.dateint,
            run_id=self._box.lease.run_id,
            box_id=self._box.lease.box_id,
            hour=None,
            segments=segments,
            superseded=0,
            objects=len(self._ingested),
            set_aside=tuple(self._aside),
            records_read=sum(outcome.records_read for outcome in self._ingested),
            records_written=sum(segment.records for segment in segments),
            rejected=rejected,
            elsewhere=0,
            raw_bytes=sum(outcome.raw_bytes for outcome in self._ingested),
            bytes_in=self._bytes_in,
            bytes_out=sum(segment.file_size for segment in segments),
            seconds=time.monotonic() - self._started,
            peak_memory_bytes=peak_memory_bytes(),
        )

    def _contents(self, new_file: NewFile) -> Iterator[RawPayload | LargeObject]:
        """The members' contents, decompressed; of a member that has none, its end is noted instead.

        StoreDenied at the end, where the store has denied some and given none: it may well deny all that we ask for.
        """
        denied: dict[RawObject, StoreDenied] = {}
        given = False
        for found in fetch(self._lake.stores, self._box.members, self._lake.limits.object_bytes, new_file):
            self._heartbeat.check()
            try:
                if isinstance(found, Unreadable):
                    raise found.error
                given = True
                self._bytes_in += found.stored.size
                raw = self._resolved(found)
                if raw is not None:
                    self._members[raw.raw_object_id] = raw
                    yield content_of(raw, found.data, self._lake.limits, new_file)
            except StoreDenied as error:
                denied[found.raw] = error
            except ObjectMissing as error:
                self._set_aside(found.raw, RawState.MISSING, "object_missing", str(error))
            except InputError as error:
                self._set_aside(found.raw, RawState.QUARANTINED, error.reason, str(error))
        for raw, denial in denied.items():
            if not given:
                raise denial
            self._set_aside(raw, RawState.QUARANTINED, "object_denied", str(denial))

    def _resolved(self, fetched: Fetched) -> RawObject | None:
        """The member as it is known by what was read; None when that is another row's content."""
        if fetched.stored.etag == fetched.raw.etag:
            return fetched.raw
        with self._lake.lrdb.transaction() as conn:
            resolution, raw = intake.resolve_etag(conn, self._box.lease, fetched.raw, fetched.stored)
        if resolution is Resolution.OVERWRITTEN:
            self._set_aside(
                raw,
                RawState.MISSING,
                "overwritten",
                f"{raw.bucket}/{raw.key} was notified with etag {raw.etag} and has {fetched.stored.etag} now: "
                "what it was is gone, what it is now is ingested as an object of its own",
            )
            return None
        return None if resolution is Resolution.ABSORBED else raw

    def _set_aside(self, raw: RawObject, state: RawState, error_class: str, error_text: str) -> None:
        self._aside.append(SetAside(raw, state, error_class, error_text))

    def _write_chunk(self, payloads: Sequence[RawPayload], ordinal: int) -> None:
        """Decode some payloads, note how each of their objects ends, and put their segments."""
        chunk = decoded_chunk(self._box.signal, payloads, self._box.source.organization_id, self._lake.limits)
        for index, payload in enumerate(payloads):
            failure = chunk.failures.get(index)
            if failure is not None:
                raw = self._members[payload.raw_object_id]
                self._set_aside(raw, RawState.QUARANTINED, failure.reason, str(failure))
            else:
                self._ingested.append(chunk.outcome(index))
        self._outputs += self._put(chunk, ordinal)
        self._rollup_count += chunk.rollup_count

    def _write_large(self, large: LargeObject, ordinal: int) -> None:
        """As ``_write_chunk``, piece by piece. Segments of a large object that proves corrupt count for nothing."""
        pieces: list[ObjectOutcome] = []
        outputs: list[Output] = []
        rollup_count = 0.0
        try:
            for chunk in decoded_pieces(large, self._box.source.organization_id, self._lake.limits):
                pieces.append(chunk.outcome(0))
                outputs += self._put(chunk, ordinal)
                rollup_count += chunk.rollup_count
        except InputError as error:
            self._set_aside(large.raw, RawState.QUARANTINED, error.reason, str(error))
            return
        self._ingested.append(outcome_of_pieces(large, pieces))
        self._outputs += outputs
        self._rollup_count += rollup_count

    def _put(self, chunk: Chunk, ordinal: int) -> Iterator[Output]:
        """The segments of a chunk, each put into the store."""
        for rows in chunk.hours:
            self._heartbeat.check()
            built = build_segment(rows, chunk, self._recipe, ordinal)
            yield segment_files.put(self._lake, self._box.source, built.output, built.data)
