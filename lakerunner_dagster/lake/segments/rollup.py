"""Segments of one tier of metrics → segments of the next, for a slot of an hour, computed anew from all of its rows.

What belongs here: which rows make a slot, the order of the steps, and that nothing is lost between the first and the
last. What does not: the steps (the modules beside this one), which slots there are and when they are due
(``planning``), fetching files and publishing segments.

Rolling up is merging with wider buckets: latest rows become increments (``increments``), times are floored, and rows
that belong together merge. It goes a series at a time, so that memory does not grow with the hour. Everything about the
outputs is a function of the set of inputs, the rows before them, the slot, the size aimed at and the operation.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from lakerunner_dagster.lake.errors import ConservationBreach, ContractBreach, InputError
from lakerunner_dagster.lake.model import HOUR_MS, CreatedBy, Output, Segment, Source
from lakerunner_dagster.lake.segments import parquet
from lakerunner_dagster.lake.segments.buckets import COUNT_TOLERANCE, culprit, ordered
from lakerunner_dagster.lake.segments.budget import Stream, merged_streams, stream_of
from lakerunner_dagster.lake.segments.columns import FILE, POINTS
from lakerunner_dagster.lake.segments.increments import NOWHERE, additive
from lakerunner_dagster.lake.segments.merge import MOST_COLUMNS
from lakerunner_dagster.lake.segments.order import sort_codes
from lakerunner_dagster.lake.segments.output import Made, MergedSegment, Outputs
from lakerunner_dagster.lake.segments.reading import MergeInput, Reader, opened
from lakerunner_dagster.lake.segments.union import Union, in_form, plain_columns, union_of
from lakerunner_dagster.lake.segments.work import Work
from lakerunner_dagster.lake.settings import MiB
from lakerunner_dagster.lake.signals import ROLLUP_CODE_VERSION, Signal
from lakerunner_dagster.lake.telemetry.metric_rows import DERIVED, added_count, merge_rows_tracked

if TYPE_CHECKING:
    import numpy.typing as npt

    Bools = npt.NDArray[np.bool_]
    Ints = npt.NDArray[np.int64]

__all__ = ["ROLLUP_MEMORY", "MergeInput", "MergedSegment", "roll_up"]

ROLLUP_MEMORY = 512 * MiB
"""Bytes of rows and pages that are held at once by default: with it an hour of 10 M points takes less than 1 GB."""

_SERIES = ("metric_name", "chq_tid")
"""What all rows of a series have in common: segments are sorted by it, and rows are worked on by it."""


_NEW = ("chq_sketch", "chq_rollup_sum", *DERIVED)
"""Columns whose values are others in every bucket, however often those of single points repeat."""


@dataclass(frozen=True, slots=True)
class _Slot:
    """A piece of an hour, [start_ms, end_ms), in buckets of ``frequency_ms``; ``horizon_ms``: see ``increments``."""

    frequency_ms: int
    start_ms: int
    end_ms: int
    horizon_ms: int

    def holds(self, times: Ints) -> Bools:
        """Which times (ms) are in it."""
        return (times >= self.start_ms) & (times < self.end_ms)

    def floored(self, times: Ints) -> Ints:
        """The starts of the buckets that times are in."""
        return times // self.frequency_ms * self.frequency_ms


def roll_up(
    inputs: Sequence[MergeInput],
    *,
    source: Source,
    frequency_ms: int,
    start_ms: int,
    end_ms: int,
    preceding: pa.Table | None,
    preceding_ids: Collection[int],
    horizon_ms: int,
    reach_ms: int | None,
    target_bytes: int,
    operation: str,
    directory: Path,
    memory_bytes: int = ROLLUP_MEMORY,
    most_columns: int = MOST_COLUMNS,
) -> Iterator[MergedSegment]:
    """Roll up the rows in [start_ms, end_ms) to buckets of ``frequency_ms``, in files of about ``target_bytes``.

    ``inputs``: the published segments of the finer tier that overlap the range, all of one source, tier and UTC hour;
    the range is in that hour, and both of its ends are multiples of the frequency. Rows outside it are left out; where
    there are no others, or no inputs, nothing comes out.

    ``preceding``: the last row before ``start_ms`` of each cumulative sub-series that has one, and ``preceding_ids``
    the segments that they are from (see ``preceding.Sought``). A start before ``horizon_ms`` is older than what was
    looked at for them; it is part of what makes the outputs' ids. ``reach_ms`` is handed on to the outputs (see
    ``model.Segment``).

    The rest is as for ``merge.merge``: outputs stand or fall together.

    :raises SegmentUnusable: an input is not what its index row says; roll up the others without it.
    :raises ContractBreach: the inputs are not of one hour and tier of the source, one is named twice, or the range is
        no piece of their hour.
    :raises ConservationBreach: what would come out is not what went in.
    """
    if not inputs:
        return
    slot = _Slot(frequency_ms, start_ms, end_ms, horizon_ms)
    given = sorted(inputs, key=lambda one: one.segment.segment_id)
    segments = [one.segment for one in given]
    _check_rollable(segments, source, slot)
    files = [opened(one) for one in given]
    union = union_of(files, Signal.METRICS, most_columns)
    readers = [Reader(file, number, union) for number, file in enumerate(files)]
    form = _without_dictionaries(union, _NEW)
    seen = _Seen(slot)
    streams = [seen.watched(stream_of(reader, file, union)) for reader, file in zip(readers, files, strict=True)]
    if preceding is not None and preceding.num_rows:
        streams.append(_stream_before(preceding, readers[0].form, len(segments)))
    made = Made(CreatedBy.ROLLUP, compacted=False, rolledup=False, reach_ms=reach_ms, level=parquet.INGEST_LEVEL)
    work = _work(segments, source, slot, preceding_ids, operation)
    written: list[Output] = []
    count = 0.0
    with (
        TemporaryDirectory(prefix="rollup-", dir=directory) as passes,
        Outputs(work, form, segments, made, directory=directory, target_bytes=target_bytes) as outputs,
    ):
        for table in merged_streams(streams, _SERIES, together=True, memory_bytes=memory_bytes, directory=Path(passes)):
            rolled = _rolled(table, slot, segments)
            count += rolled.count
            if rolled.rows.num_rows:
                rows, shares = ordered(rolled.rows, rolled.became, rolled.inputs, rolled.points, form)
                yield from _listed(outputs.add(rows, shares), written)
        last = list(_listed(outputs.finish(), written))
        _check_conserved(seen, segments, written, counts=(count, outputs.added_count))
        yield from last


def _check_rollable(segments: Sequence[Segment], source: Source, slot: _Slot) -> None:
    """ContractBreach unless they are different segments of one tier and hour, and the slot is a piece of it."""
    places = {(one.organization_id, one.instance_num, one.collector, one.signal, one.frequency_ms) for one in segments}
    own = (source.organization_id, source.instance_num, source.collector, Signal.METRICS)
    hours = {one.start_ms // HOUR_MS for one in segments} | {slot.start_ms // HOUR_MS, (slot.end_ms - 1) // HOUR_MS}
    different = len({one.segment_id for one in segments})
    if len(places) != 1 or len(hours) != 1 or different < len(segments) or next(iter(places))[:-1] != own:
        raise ContractBreach(
            f"Segments {[one.key for one in segments]} cannot roll up for {source.key} to [{slot.start_ms}, "
            f"{slot.end_ms}) ms: they must be different ones of its own metrics, of one tier, and of the UTC hour that "
            "the range lies in."
        )
    finer_ms = segments[0].frequency_ms
    ends = (slot.start_ms % slot.frequency_ms, slot.end_ms % slot.frequency_ms)
    if slot.frequency_ms <= finer_ms or slot.frequency_ms % finer_ms or any(ends) or slot.start_ms >= slot.end_ms:
        raise ContractBreach(
            f"Buckets of {finer_ms} ms cannot roll up to [{slot.start_ms}, {slot.end_ms}) ms in buckets of "
            f"{slot.frequency_ms} ms: each must divide the next, and the last both ends."
        )


def _without_dictionaries(union: Union, names: Collection[str]) -> Union:
    """The form of rows in which values of some columns hardly repeat, though those that were read do."""
    return replace(
        union,
        schema=plain_columns(union.schema, names),
        repeating=union.repeating - set(names),
    )


def _work(
    segments: Sequence[Segment], source: Source, slot: _Slot, preceding_ids: Collection[int], operation: str
) -> Work:
    return Work(
        source=source,
        signal=Signal.METRICS,
        frequency_ms=slot.frequency_ms,
        hour_ms=slot.start_ms,
        inputs=[
            *(str(segment.segment_id) for segment in segments),
            *(f"before:{segment_id}" for segment_id in preceding_ids),
            f"range:{slot.start_ms}-{slot.end_ms}",
            f"horizon:{slot.horizon_ms}",
        ],
        operation=operation,
        code_version=ROLLUP_CODE_VERSION,
    )


class _Seen:
    """What was read of a slot: ``points`` by the number of the input, and the ``range`` of the rows."""

    def __init__(self, slot: _Slot) -> None:
        self.points: Counter[int] = Counter()
        self._slot = slot
        self._times: set[int] = set()

    @property
    def range(self) -> tuple[int, int] | None:
        """[start, end) of the buckets that rows of the slot are in, if there are any."""
        if not self._times:
            return None
        first, last = self._slot.floored(np.array([min(self._times), max(self._times)])).tolist()
        return first, last + self._slot.frequency_ms

    def watched(self, stream: Stream) -> Stream:
        """The same stream; what is read of it is counted."""
        return replace(stream, tables=lambda rows: map(self._counted, stream.tables(rows)))

    def _counted(self, table: pa.Table) -> pa.Table:
        times = table.column("chq_timestamp").to_numpy()
        inside = self._slot.holds(times)
        if inside.any():
            self._times |= {int(times[inside].min()), int(times[inside].max())}
            self.points[table.column(FILE)[0].as_py()] += int(table.column(POINTS).to_numpy()[inside].sum())
        return table


def _stream_before(preceding: pa.Table, form: pa.Schema, number: int) -> Stream:
    """Rows from before the slot as one more input, the last one."""
    rows = in_form(preceding, form)
    rows = rows.append_column(FILE, pa.array(np.full(rows.num_rows, number, np.int32)))
    rows = rows.take(np.argsort(sort_codes(rows, _SERIES), kind="stable"))
    return Stream(
        rows=rows.num_rows,
        fixed_bytes=rows.nbytes,
        row_bytes=rows.nbytes / max(rows.num_rows, 1),
        tables=lambda most: iter(rows.slice(begin, most) for begin in range(0, rows.num_rows, most)),
        unsorted=lambda: ContractBreach("Rows from before the slot are not in order: a fault of the rollup."),
    )


@dataclass(frozen=True, slots=True)
class _Rolled:
    """Rows of buckets of a slot. Row i of those that they were made from, of input ``inputs[i]`` and with ``points[i]``
    data points, went into row ``became[i]``. ``count``: what their counts should add up to.
    """

    rows: pa.Table
    became: Ints
    inputs: Ints
    points: Ints
    count: float


def _rolled(table: pa.Table, slot: _Slot, segments: Sequence[Segment]) -> _Rolled:
    """The buckets of some series. ``table``: all of their rows, those of number ``len(segments)`` from before it."""
    table = _of_slot(table, slot, len(segments))
    inputs, points = table.column(FILE).to_numpy(), table.column(POINTS).to_numpy()
    rows = table.drop_columns([FILE])
    try:
        finer, became = additive(rows, start_ms=slot.start_ms, horizon_ms=slot.horizon_ms)
        coarser, merged_into = merge_rows_tracked(_floored(finer, slot))
    except InputError as error:
        raise culprit(rows, inputs, segments) from error
    inside = became != NOWHERE
    return _Rolled(coarser, merged_into[became[inside]], inputs[inside], points[inside], added_count(finer))


def _of_slot(table: pa.Table, slot: _Slot, before: int) -> pa.Table:
    """The rows in the slot, and those of number ``before``."""
    kept = slot.holds(table.column("chq_timestamp").to_numpy()) | (table.column(FILE).to_numpy() == before)
    return table if kept.all() else table.filter(pa.array(kept))


def _floored(rows: pa.Table, slot: _Slot) -> pa.Table:
    at = rows.schema.get_field_index("chq_timestamp")
    return rows.set_column(at, "chq_timestamp", pa.array(slot.floored(rows.column(at).to_numpy())))


def _listed(merged: Iterator[MergedSegment], written: list[Output]) -> Iterator[MergedSegment]:
    """The segments, their outputs kept in mind."""
    for one in merged:
        written.append(one.output)
        yield one


def _check_conserved(
    seen: _Seen, segments: Sequence[Segment], written: Sequence[Output], *, counts: tuple[float, float]
) -> None:
    """ConservationBreach unless every point of the slot is in the outputs, where it should be, and counts (those that
    came in and went out) are what they were.
    """
    gave = {segments[number].segment_id: points for number, points in seen.points.items() if points}
    got: Counter[int] = Counter()
    for output in written:
        got.update({given.input_id: given.records for given in output.inputs})
    ends = [(one.segment.start_ms, one.segment.end_ms) for one in written]
    span = (min(start for start, _ in ends), max(end for _, end in ends)) if ends else None
    if gave != got or seen.range != span or not math.isclose(*counts, rel_tol=COUNT_TOLERANCE):
        raise ConservationBreach(
            f"Rolling up took the points {gave} (by segment) of {seen.range} ms and wrote {dict(got)} of {span}, with "
            f"counts of {counts[0]!r} and {counts[1]!r}: nothing may be published; report it with the segments."
        )
