"""Sorted segments → fewer, larger ones of the same hour, without a row more or less: what compaction does.

What belongs here: which segments may merge, the order of the steps, how much memory each gets, and that nothing is lost
between the first and the last. What does not: the steps (the modules beside this one), what is worth merging
(``planning``), fetching files and publishing segments.

Everything about the outputs is a function of the set of inputs, the size aimed at and the operation: neither the order
in which inputs are named nor the memory allowed changes a byte.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from lakerunner_dagster.lake.errors import ConservationBreach, ContractBreach, InputError
from lakerunner_dagster.lake.model import CreatedBy, Segment, Source
from lakerunner_dagster.lake.segments import parquet
from lakerunner_dagster.lake.segments.buckets import COUNT_TOLERANCE, culprit, ordered
from lakerunner_dagster.lake.segments.budget import merged_streams, stream_of
from lakerunner_dagster.lake.segments.columns import FILE, POINTS
from lakerunner_dagster.lake.segments.output import Made, MergedSegment, Outputs, Shares
from lakerunner_dagster.lake.segments.reading import MergeInput, Reader, opened
from lakerunner_dagster.lake.segments.union import Union, union_of
from lakerunner_dagster.lake.segments.work import Work
from lakerunner_dagster.lake.settings import Limits, MiB
from lakerunner_dagster.lake.signals import COMPACTION_CODE_VERSION, SIGNALS
from lakerunner_dagster.lake.telemetry.metric_rows import merge_rows_tracked

if TYPE_CHECKING:
    import numpy.typing as npt

    Ints = npt.NDArray[np.int64]

__all__ = ["MERGE_MEMORY", "MergeInput", "MergedSegment", "merge"]

MERGE_MEMORY = 640 * MiB
"""Bytes of rows and pages that are held at once by default: with it a process stays below 1.5 GB."""

MOST_COLUMNS: int = Limits.model_fields["columns"].default
"""Attribute columns of an output, at most; of more, the rarest overflow."""


def merge(
    inputs: Sequence[MergeInput],
    *,
    source: Source,
    target_bytes: int,
    operation: str,
    directory: Path,
    memory_bytes: int = MERGE_MEMORY,
    most_columns: int = MOST_COLUMNS,
) -> Iterator[MergedSegment]:
    """Merge published segments of one source, signal, tier and UTC hour into files of about ``target_bytes``.

    Each output but the last is as large as the target or larger, by less than a row group. Its file is in
    ``directory``, where rows go too that ``memory_bytes`` has no room for. Outputs stand or fall together: what was
    handed out before an error is of no use.

    :raises SegmentUnusable: an input is not what its index row says; merge the others without it.
    :raises ContractBreach: the inputs are not of one hour of the source, or one is named twice.
    :raises ConservationBreach: what would come out is not what went in.
    """
    given = sorted(inputs, key=lambda one: one.segment.segment_id)
    segments = [one.segment for one in given]
    _check_mergeable(segments, source)
    files = [opened(one) for one in given]
    spec = SIGNALS[segments[0].signal]
    union = union_of(files, spec.signal, most_columns)
    readers = [Reader(file, number, union) for number, file in enumerate(files)]
    work = Work(
        source=source,
        signal=spec.signal,
        frequency_ms=segments[0].frequency_ms,
        hour_ms=segments[0].start_ms,
        inputs=[str(segment.segment_id) for segment in segments],
        operation=operation,
        code_version=COMPACTION_CODE_VERSION,
    )
    written: Counter[int] = Counter()
    with (
        TemporaryDirectory(prefix="merge-", dir=directory) as passes,
        Outputs(work, union, segments, _made(segments), directory=directory, target_bytes=target_bytes) as outputs,
    ):
        tables = merged_streams(
            [stream_of(reader, file, union) for reader, file in zip(readers, files, strict=True)],
            [key for key in spec.sort_keys if key in union.schema.names],
            together=bool(work.frequency_ms),
            memory_bytes=memory_bytes,
            directory=Path(passes),
        )
        for table in tables:
            rows, shares = _buckets(table, union, segments) if work.frequency_ms else _records(table)
            yield from _tallied(outputs.add(rows, shares), written)
        last = list(_tallied(outputs.finish(), written))
        _check_conserved(readers, outputs, written)
        yield from last


def _check_mergeable(segments: Sequence[Segment], source: Source) -> None:
    """ContractBreach unless they are different segments of one hour."""
    places = {
        (one.organization_id, one.instance_num, one.collector, one.signal, one.dateint, one.hour, one.frequency_ms)
        for one in segments
    }
    states = {one.rolledup for one in segments}
    different = len({one.segment_id for one in segments})
    own = (source.organization_id, source.instance_num, source.collector)
    if len(places) != 1 or len(states) != 1 or different < len(segments) or next(iter(places))[:3] != own:
        raise ContractBreach(
            f"Segments {[one.key for one in segments]} cannot merge for {source.key}: they must be different ones of "
            "its own, of one signal, UTC hour and tier, all rolled up or none."
        )


def _made(segments: Sequence[Segment]) -> Made:
    """What the outputs are: as far as any of the inputs reaches back, so do they."""
    return Made(
        created_by=CreatedBy.COMPACTION,
        compacted=True,
        rolledup=segments[0].rolledup,
        reach_ms=min((one.reach_ms for one in segments if one.reach_ms is not None), default=None),
        level=parquet.COMPACTION_LEVEL,
    )


def _records(table: pa.Table) -> tuple[pa.Table, Shares]:
    """Rows that are records themselves."""
    inputs = table.column(FILE).to_numpy()
    each = np.ones(len(inputs), np.int64)
    return table.drop_columns([FILE]), Shares(np.arange(len(inputs)), inputs, each)


def _buckets(table: pa.Table, union: Union, segments: Sequence[Segment]) -> tuple[pa.Table, Shares]:
    """Rows of series and buckets, all of each: one of those that belong together, in the order of a segment."""
    inputs, points = table.column(FILE).to_numpy(), table.column(POINTS).to_numpy()
    rows = table.drop_columns([FILE])
    try:
        rows, became = merge_rows_tracked(rows)
    except InputError as error:
        raise culprit(rows, inputs, segments) from error
    return ordered(rows, became, inputs, points, union)


def _tallied(merged: Iterator[MergedSegment], written: Counter[int]) -> Iterator[MergedSegment]:
    """The segments, their contributions counted."""
    for one in merged:
        for given in one.output.inputs:
            written[given.input_id] += given.records
        yield one


def _check_conserved(readers: Sequence[Reader], outputs: Outputs, written: Counter[int]) -> None:
    """ConservationBreach unless every record of every input is in the outputs, and counts are what they were."""
    missing = {
        reader.segment.segment_id: reader.segment.records - written[reader.segment.segment_id]
        for reader in readers
        if reader.segment.records != written[reader.segment.segment_id]
    }
    counted = sum(reader.added_count for reader in readers)
    if missing or not math.isclose(counted, outputs.added_count, rel_tol=COUNT_TOLERANCE):
        raise ConservationBreach(
            f"Merging lost records (by segment: {missing}) or counts ({counted!r} in, {outputs.added_count!r} out): "
            "nothing may be published; report it with the segments."
        )
