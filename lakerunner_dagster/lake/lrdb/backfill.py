"""What a backfill has to do, and what it has changed: days of sources, as lrdb knows them.

What belongs here: which days there is anything to do for, how much, how fast it went before, and sums to compare. What
does not: launching (``instance.backfills``), the work itself (``runs``).
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from psycopg import sql

from lakerunner_dagster.lake.lrdb import expiry
from lakerunner_dagster.lake.model import Source
from lakerunner_dagster.lake.signals import SIGNALS
from lakerunner_dagster.lake.stages import Operation, Stage, StageAsset
from lakerunner_dagster.lake.tiers import TIERS

if TYPE_CHECKING:
    from lakerunner_dagster.lake.lrdb.connection import Conn

_OPERATIONS = {
    Operation.INGEST: ["ingest", "rebuild"],
    Operation.ROLLUP: ["rollup"],
    Operation.COMPACT: ["compact"],
}
"""What the ledger and lineage call the work of a stage."""


@dataclass(frozen=True, slots=True)
class Span:
    """Days (YYYYMMDD) from the first to the last, both included."""

    first: int
    last: int


@dataclass(frozen=True, slots=True)
class Target:
    """An asset of a source."""

    stage: Stage
    asset: StageAsset
    source: Source

    @property
    def frequency_ms(self) -> int | None:
        """The tier whose segments the asset holds; None where it holds all of the signal."""
        ingested = SIGNALS[self.stage.signal].frequency_ms if self.stage.operation is Operation.INGEST else None
        return self.asset.frequency_ms or ingested


class DayWork(NamedTuple):
    """A day of a source, and what materialising an asset's partition of it reads: objects or segments, and bytes."""

    dateint: int
    inputs: int
    bytes: int


class Sums(NamedTuple):
    """What readers see of some days: segments, rows, records that these stand for, and Σ chq_rollup_count."""

    segments: int
    rows: int
    records: int
    counted: float


def work(conn: Conn, target: Target, span: Span, now_ms: int, coming: Collection[int] = ()) -> list[DayWork]:
    """The days for which there is anything to do, in order; of a rollup, none whose finer tier has expired.

    ``coming``: days that the finer tier of a rollup is to have by then, whether or not it has anything now.
    """
    stage, source = target.stage, target.source
    if stage.operation is Operation.INGEST:
        return _raw_days(conn, stage, source, span)
    if stage.operation is Operation.COMPACT:
        return _segment_days(conn, stage, source, span, SIGNALS[stage.signal].tiers_ms)
    finer_ms = TIERS[target.asset.frequency_ms or 0].finer_ms
    kept = expiry.first_kept(conn, source.organization_id, stage.signal, finer_ms, now_ms)
    days = {day.dateint: day for day in _segment_days(conn, stage, source, span, (finer_ms,))}
    return [days.get(dateint, DayWork(dateint, 0, 0)) for dateint in sorted({*days, *coming}) if dateint >= kept]


def _raw_days(conn: Conn, stage: Stage, source: Source, span: Span) -> list[DayWork]:
    rows = conn.execute(
        """
        SELECT event_dateint, count(*), sum(size)::bigint FROM raw_objects
        WHERE organization_id = %s AND instance_num = %s AND signal = %s AND event_dateint BETWEEN %s AND %s
        GROUP BY 1 ORDER BY 1
        """,
        (source.organization_id, source.instance_num, str(stage.signal), span.first, span.last),
    )
    return [DayWork(*row) for row in rows]


def _segment_days(
    conn: Conn, stage: Stage, source: Source, span: Span, frequencies_ms: tuple[int, ...]
) -> list[DayWork]:
    rows = conn.execute(
        sql.SQL("""
        SELECT dateint, count(*), sum(file_size)::bigint FROM {table}
        WHERE organization_id = %(organization)s AND instance_num = %(instance)s AND published
          AND dateint BETWEEN %(first)s AND %(last)s AND {tier} = ANY(%(frequencies)s)
        GROUP BY 1 ORDER BY 1
        """).format(table=_table(stage), tier=_tier(stage)),
        _parameters(source, span) | {"frequencies": list(frequencies_ms)},
    )
    return [DayWork(*row) for row in rows]


def stale_days(conn: Conn, target: Target, span: Span) -> set[int]:
    """The days of which readers see anything that another code version of the stage has made.

    What compaction has merged is as old as what it was merged of.
    """
    rows = conn.execute(
        sql.SQL("""
        WITH RECURSIVE standing (segment_id, dateint) AS (
            SELECT segment_id, dateint FROM {table}
            WHERE organization_id = %(organization)s AND instance_num = %(instance)s AND published
              AND dateint BETWEEN %(first)s AND %(last)s
              AND (%(frequency)s::int IS NULL OR {tier} = %(frequency)s)
            UNION
            SELECT l.input_id, s.dateint FROM standing s
            JOIN lineage l ON l.organization_id = %(organization)s AND l.segment_id = s.segment_id
                AND l.input_kind = 'segment' AND l.operation = 'compact'
        )
        SELECT DISTINCT s.dateint FROM standing s
        JOIN lineage l ON l.organization_id = %(organization)s AND l.segment_id = s.segment_id
            AND l.operation = ANY(%(operations)s) AND l.code_version <> %(version)s
        """).format(table=_table(target.stage), tier=_tier(target.stage)),
        _parameters(target.source, span)
        | {
            "frequency": target.frequency_ms,
            "operations": _OPERATIONS[target.stage.operation],
            "version": target.stage.code_version,
        },
    )
    return {dateint for (dateint,) in rows}


def sums(conn: Conn, target: Target, span: Span) -> Sums:
    """What readers see of the asset's tier (of all, where it has none of its own)."""
    counted = "coalesce(sum(rollup_count), 0)" if SIGNALS[target.stage.signal].frequency_ms else "0"
    row = conn.execute(
        sql.SQL("""
        SELECT count(*), coalesce(sum(record_count), 0)::bigint, coalesce(sum(records), 0)::bigint, {counted}::float
        FROM {table}
        WHERE organization_id = %(organization)s AND instance_num = %(instance)s AND published
          AND dateint BETWEEN %(first)s AND %(last)s AND (%(frequency)s::int IS NULL OR {tier} = %(frequency)s)
        """).format(table=_table(target.stage), tier=_tier(target.stage), counted=sql.SQL(counted)),
        _parameters(target.source, span) | {"frequency": target.frequency_ms},
    ).fetchone()
    return Sums(*row) if row else Sums(0, 0, 0, 0.0)


def pace(conn: Conn, stage: Stage) -> float | None:
    """Bytes that a second of the stage's latest work has read; None where it has done none."""
    row = conn.execute(
        """
        SELECT sum(bytes_in)::float / nullif(sum(seconds), 0) FROM (
            SELECT bytes_in, seconds FROM ledger WHERE operation = ANY(%s) AND signal = %s
            ORDER BY ledger_id DESC LIMIT 500
        ) AS latest
        """,
        (_OPERATIONS[stage.operation], str(stage.signal)),
    ).fetchone()
    return row[0] if row else None


def _parameters(source: Source, span: Span) -> dict[str, object]:
    return {
        "organization": source.organization_id,
        "instance": source.instance_num,
        "first": span.first,
        "last": span.last,
    }


def _table(stage: Stage) -> sql.Identifier:
    return sql.Identifier(SIGNALS[stage.signal].segment_table)


def _tier(stage: Stage) -> sql.SQL:
    return sql.SQL("frequency_ms" if SIGNALS[stage.signal].frequency_ms else "0")
