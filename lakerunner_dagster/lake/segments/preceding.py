"""The last row before a slot of each cumulative sub-series in it: what the slot's first increments are told from.

What belongs here: which sub-series need one, whether a segment may hold it, and how far back a slot then depends on
rows. What does not: which segments there are, and how far back they are fetched (the caller), what an increment is
(``increments``).
"""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from lakerunner_dagster.lake.segments.columns import FIXED_COLUMNS, whole
from lakerunner_dagster.lake.segments.increments import SUB_SERIES
from lakerunner_dagster.lake.segments.index import listed
from lakerunner_dagster.lake.segments.reading import blamed_on, opened
from lakerunner_dagster.lake.segments.union import in_form
from lakerunner_dagster.lake.signals import INGEST_FREQUENCY_MS, Signal
from lakerunner_dagster.lake.telemetry.metric_rows import CUMULATIVE, DERIVED, NO_TIME, is_latest, merge_rows, numbered
from lakerunner_dagster.lake.telemetry.records import NS_PER_MS

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from typing import Any

    from lakerunner_dagster.lake.model import Segment
    from lakerunner_dagster.lake.segments.reading import MergeInput
    from lakerunner_dagster.lake.telemetry.metric_rows import Bools
    from lakerunner_dagster.lake.telemetry.sketch import Ints

ANY_TIME = NO_TIME
"""Milliseconds before which nothing is."""

_SEGMENT = "_segment"
"""Working column of rows found: the id of their segment."""

_COLUMNS = pa.schema([field for field in FIXED_COLUMNS[Signal.METRICS] if field.name not in DERIVED])
_KEYS = pa.schema([_COLUMNS.field(name) for name in SUB_SERIES])
_TOLD_BY = pa.schema([*_KEYS, *(_COLUMNS.field(name) for name in ("metric_temporality", "chq_timestamp"))])
"""What tells whether a row is one that is sought."""


class Sought:
    """Sub-series of a slot whose rows may go on from one before ``start_ms``, and the rows found so far.

    Begin with :meth:`of`, then :meth:`look_into` segments, those before the slot first and then ever earlier ones, for
    as long as any are ``unresolved`` and there are segments that reach ``since_ms``. ``segment_ids``: the segments that
    gave a row.
    """

    def __init__(self, wanted: pa.Table, start_ms: int) -> None:
        self.segment_ids: set[int] = set()
        self._start_ms = start_ms
        self._wanted = wanted
        self._found: list[pa.Table] = []

    @classmethod
    def of(cls, inputs: Sequence[MergeInput], start_ms: int, end_ms: int) -> Self:
        """What is sought for the rows of these segments of the finest tier in [start_ms, end_ms).

        A sub-series that started in the slot has no row before it.

        :raises SegmentUnusable: an input is not what its index row says.
        """
        wanted = _KEYS.empty_table()
        for one in inputs:
            for group in _groups_of(one, start_ms, end_ms):
                rows = group.read(_TOLD_BY)
                chosen = is_latest(rows) & group.inside(rows) & (_buckets_of_starts(rows) < start_ms)
                wanted = _distinct(pa.concat_tables([wanted, rows.filter(pa.array(chosen)).select(_KEYS.names)]))
        return cls(wanted, start_ms)

    @property
    def unresolved(self) -> bool:
        """Whether a row is still to be found."""
        return bool(self._wanted.num_rows)

    @property
    def since_ms(self) -> int:
        """The earliest time (ms) of a row that is still to be found; ``start_ms`` if there is none."""
        return int(_buckets_of_starts(self._wanted).min(initial=self._start_ms))

    def look_into(self, inputs: Sequence[MergeInput], since_ms: int = ANY_TIME) -> None:
        """Keep the last row of each unresolved sub-series that these segments have before the slot.

        They are all those published of the finer tier that overlap a window of time from ``since_ms`` on, which ends
        where the window looked into before began. What they have before the window comes again with an earlier one.

        :raises SegmentUnusable: an input is not what its index row says.
        """
        candidates = _COLUMNS.append(pa.field(_SEGMENT, pa.int64())).empty_table()
        names = self._wanted.column("metric_name").unique().to_pylist()
        indexed = {listed(name) for name in names}
        for one in inputs:
            if indexed.isdisjoint(one.segment.metric_names):
                continue
            for group in _groups_of(one, since_ms, self._start_ms, names=sorted(names)):
                if (rows := self._sought_among(group)) is not None:
                    candidates = _last(pa.concat_tables([candidates, rows]))
        self._keep(candidates)

    def found(self) -> pa.Table | None:
        """The rows, one for each sub-series that has one, with the fixed columns of a segment; None without any."""
        return pa.concat_tables(self._found) if self._found else None

    def reach_ms(self, horizon_ms: int) -> int:
        """The earliest time (ms) at which a row of the finer tier could change the slot, were it published hereafter.

        ``horizon_ms``: what is before it is not looked at. Where nothing is sought it is ``start_ms``.
        """
        told = [int(pc.min(rows.column("chq_timestamp")).as_py()) for rows in self._found]
        open_since = [max(self.since_ms, horizon_ms)] if self.unresolved else []
        return min([*told, *open_since, self._start_ms])

    def _sought_among(self, group: _Group) -> pa.Table | None:
        """The rows of a row group that may be what is sought."""
        rows = group.read(_TOLD_BY)
        inside = np.flatnonzero(is_latest(rows) & group.inside(rows))
        at = inside[_among(rows.take(inside).select(_KEYS.names), self._wanted)]
        if not len(at):
            return None
        found = group.read(_COLUMNS).take(at)
        return found.append_column(_SEGMENT, pa.array(np.full(len(at), group.segment.segment_id)))

    def _keep(self, candidates: pa.Table) -> None:
        """Take the rows of a window as found, and seek their sub-series no longer."""
        if not candidates.num_rows:
            return
        self.segment_ids.update(candidates.column(_SEGMENT).to_pylist())
        self._found.append(in_form(merge_rows(candidates.drop_columns([_SEGMENT])), FIXED_COLUMNS[Signal.METRICS]))
        resolved = _among(self._wanted, candidates.select(_KEYS.names))
        self._wanted = self._wanted.filter(pa.array(~resolved))


@dataclass(frozen=True, slots=True)
class _Group:
    """A row group of a segment, which may have rows in [start_ms, end_ms)."""

    segment: Segment
    file: pq.ParquetFile
    number: int
    start_ms: int
    end_ms: int

    def read(self, schema: pa.Schema) -> pa.Table:
        """All rows, with these columns."""
        with blamed_on(self.segment, "corrupt_data"):
            names = [name for name in schema.names if name in self.file.schema_arrow.names]
            return in_form(self.file.read_row_group(self.number, names, use_threads=False), schema)

    def inside(self, rows: pa.Table) -> Bools:
        """Which of them are in the range."""
        times = rows.column("chq_timestamp").fill_null(NO_TIME).to_numpy()
        inside: Bools = (times >= self.start_ms) & (times < self.end_ms)
        return inside


def _groups_of(given: MergeInput, start_ms: int, end_ms: int, names: Sequence[str] | None = None) -> Iterator[_Group]:
    """The row groups that may have latest rows in [start_ms, end_ms), and of one of these names (sorted), if given."""
    metadata = opened(given).metadata
    with blamed_on(given.segment, "corrupt_data"):
        file = pq.ParquetFile(given.path, metadata=metadata, page_checksum_verification=True)
    for number in range(metadata.num_row_groups):
        extremes = _extremes(metadata.row_group(number))
        if (
            _overlaps(extremes.get("metric_temporality"), [CUMULATIVE])
            and _reaches_into(extremes.get("chq_timestamp"), start_ms, end_ms)
            and (names is None or _overlaps(extremes.get("metric_name"), names))
        ):
            yield _Group(given.segment, file, number, start_ms, end_ms)


def _extremes(group: pq.RowGroupMetaData) -> dict[str, tuple[Any, Any]]:
    """The least and the greatest value of each column that has statistics."""
    columns = [group.column(number) for number in range(group.num_columns)]
    return {
        column.path_in_schema: (column.statistics.min, column.statistics.max)
        for column in columns
        if column.statistics is not None and column.statistics.has_min_max
    }


def _reaches_into(extremes: tuple[int, int] | None, start_ms: int, end_ms: int) -> bool:
    """Whether times between the extremes may be in the range; so it is where none are known."""
    return extremes is None or (extremes[0] < end_ms and extremes[1] >= start_ms)


def _overlaps(extremes: tuple[str, str] | None, values: Sequence[str]) -> bool:
    """Whether any of some sorted texts is between the extremes; so it is where none are known."""
    if extremes is None:
        return True
    least, greatest = extremes
    at = bisect_left(values, least)
    return at < len(values) and values[at] <= greatest


def _buckets_of_starts(rows: pa.Table) -> Ints:
    """The bucket (ms) that the start of each row is in: no row of the sub-series is before it."""
    starts = rows.column("chq_start_tsns").fill_null(NO_TIME).to_numpy()
    buckets = starts // NS_PER_MS // INGEST_FREQUENCY_MS * INGEST_FREQUENCY_MS
    return np.where(starts == NO_TIME, ANY_TIME, buckets)


def _distinct(keys: pa.Table) -> pa.Table:
    """Each sub-series once."""
    _, first = np.unique(_numbers(keys), return_index=True)
    return keys.take(first)


def _among(keys: pa.Table, others: pa.Table) -> Bools:
    """Which sub-series are among others."""
    numbers = _numbers(pa.concat_tables([keys, others]))
    return np.isin(numbers[: keys.num_rows], numbers[keys.num_rows :])


def _last(rows: pa.Table) -> pa.Table:
    """The rows of the last bucket of each sub-series."""
    numbers, times = _numbers(rows), rows.column("chq_timestamp").to_numpy()
    _, group = np.unique(numbers, return_inverse=True)
    last = np.full(int(group.max(initial=-1)) + 1, NO_TIME)
    np.maximum.at(last, group, times)
    return rows.filter(pa.array(times == last[group]))


def _numbers(rows: pa.Table) -> Ints:
    return numbered([whole(rows.column(name)) for name in SUB_SERIES])
