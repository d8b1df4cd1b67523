"""Tier coverage: what each tier of a source lacks of what the finer one has.

What belongs here: counting it. What does not: judging it (``checks.coverage``), showing it, mending it (a slot that is
marked dirty is computed anew).

Every row stands for so many raw points, whatever its tier: an hour lacks nothing when all its tiers stand for as many.
Its counts are the same too, from the first tier that is computed on (an ingested row of a cumulative histogram repeats
what came before). A slot that is dirty is known to lack something and waits for its turn; an hour that lacks something
without a dirty slot is a hole: nobody knows of it but this.
"""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple
from uuid import UUID

from psycopg import sql

from lakerunner_dagster.lake.lrdb import expiry, profiles
from lakerunner_dagster.lake.model import HOUR_MS
from lakerunner_dagster.lake.signals import SIGNALS
from lakerunner_dagster.lake.stages import rollup_stage
from lakerunner_dagster.lake.tiers import ROLLED_UP, TIERS

if TYPE_CHECKING:
    from lakerunner_dagster.lake.lrdb.connection import Conn

LOOK_BACK_MS = 48 * HOUR_MS
"""Checks and status look for holes so far back; ``check`` looks at all days."""

PACE_SECONDS = 3600
"""Read amplification is that of the rollups of the last hour."""


class Hole(NamedTuple):
    """An hour of a tier, none of its slots dirty, that stands for other points than the same hour of the finer tier."""

    instance_num: int
    frequency_ms: int
    dateint: int
    hour: int
    finer_records: int
    records: int


@dataclass(frozen=True, slots=True)
class TierCoverage:
    """How far a tier of a source is behind the finer one.

    ``dirty`` slots wait for their turn, the longest since ``oldest_seconds`` (None: there is none). ``holes`` are
    hours. ``boxes_failed`` wait for a person. ``amplification``: bytes that this tier's rollups have read in the last
    hour, for each byte that the finer tier has got meanwhile (None: it got none).
    """

    source: str
    frequency_ms: int
    dirty: int
    oldest_seconds: float | None
    holes: int
    boxes_failed: int
    amplification: float | None

    @property
    def label(self) -> str:
        """What people call the tier."""
        return TIERS[self.frequency_ms].label


def coverage(conn: Conn, since_dateint: int) -> list[TierCoverage]:
    """A row for every source with metrics and every tier, by source and tier; holes are looked for from a day on."""
    return [
        row
        for organization in profiles.organizations(conn)
        for row in _of_organization(conn, organization, since_dateint)
    ]


def holes(conn: Conn, organization_id: UUID, since_dateint: int) -> list[Hole]:
    """The holes of an organization from a day (YYYYMMDD) on, in order.

    A day of which the finer tier is past its retention has none: what comes late of it is not computed any more. Nor
    has one of which retention had taken that tier before its rule was made longer. Where tiers between have nothing
    either, the hole is in the finest of them.
    """
    now_ms = time.time_ns() // 1_000_000
    tiers = list(TIERS.values())
    rows = conn.execute(
        sql.SQL("""
        WITH held AS (
            SELECT instance_num, frequency_ms, dateint, (lower(ts_range) / 3600000 %% 24)::int AS hour,
                   sum(records)::bigint AS records, sum(rollup_count) AS counted
            FROM {table} WHERE organization_id = %(organization)s AND dateint >= %(since)s AND published
            GROUP BY 1, 2, 3, 4
        ), compared AS (
            SELECT t.finer_ms, t.frequency_ms, h.instance_num, h.dateint, h.hour,
                   coalesce(max(h.records) FILTER (WHERE h.frequency_ms = t.finer_ms), 0) AS finer_records,
                   coalesce(max(h.records) FILTER (WHERE h.frequency_ms = t.frequency_ms), 0) AS records,
                   max(h.counted) FILTER (WHERE h.frequency_ms = t.finer_ms) AS finer_counted,
                   max(h.counted) FILTER (WHERE h.frequency_ms = t.frequency_ms) AS counted
            FROM unnest(%(finer)s::int[], %(tiers)s::int[], %(kept)s::int[]) AS t (finer_ms, frequency_ms, kept)
            JOIN held h ON h.frequency_ms IN (t.finer_ms, t.frequency_ms) AND h.dateint >= t.kept
            GROUP BY 1, 2, 3, 4, 5
        )
        SELECT c.instance_num, c.frequency_ms, c.dateint, c.hour, c.finer_records, c.records
        FROM compared c
        CROSS JOIN LATERAL (SELECT extract(epoch FROM make_date(c.dateint / 10000, c.dateint / 100 %% 100,
                                                                c.dateint %% 100))::bigint * 1000
                                   + c.hour * 3600000 AS start_ms) AS h
        WHERE (c.finer_records <> c.records
               OR c.finer_ms <> %(ingested)s
                  AND abs(c.finer_counted - c.counted) > 1e-9 * greatest(c.finer_counted, c.counted))
          AND NOT EXISTS (
            SELECT FROM dirty_slots d
            WHERE d.organization_id = %(organization)s AND d.instance_num = c.instance_num
              AND d.frequency_ms = c.frequency_ms AND d.slot_ms >= h.start_ms AND d.slot_ms < h.start_ms + 3600000)
          AND CASE WHEN c.finer_records = 0 THEN NOT EXISTS (
            SELECT FROM held f WHERE f.frequency_ms < c.finer_ms
              AND (f.instance_num, f.dateint, f.hour) = (c.instance_num, c.dateint, c.hour)
          ) AND NOT EXISTS (
            SELECT FROM supersessions s
            WHERE s.organization_id = %(organization)s AND s.instance_num = c.instance_num AND s.signal = %(signal)s
              AND s.frequency_ms = c.finer_ms AND s.dateint = c.dateint AND s.operation = %(expiry)s) ELSE true END
        ORDER BY 1, 2, 3, 4
        """).format(table=sql.Identifier(SIGNALS[ROLLED_UP].segment_table)),
        {
            "organization": organization_id,
            "since": since_dateint,
            "signal": str(ROLLED_UP),
            "expiry": expiry.OPERATION,
            "ingested": SIGNALS[ROLLED_UP].frequency_ms,
            "kept": [expiry.first_kept(conn, organization_id, ROLLED_UP, tier.finer_ms, now_ms) for tier in tiers],
            "finer": [tier.finer_ms for tier in tiers],
            "tiers": [tier.frequency_ms for tier in tiers],
        },
    )
    return [Hole(*row) for row in rows]


def _of_organization(conn: Conn, organization: profiles.Organization, since_dateint: int) -> list[TierCoverage]:
    organization_id = organization.organization_id
    lacking = Counter((hole.instance_num, hole.frequency_ms) for hole in holes(conn, organization_id, since_dateint))
    parameters = {
        "organization": organization_id,
        "name": organization.name,
        "signal": str(ROLLED_UP),
        "stage": rollup_stage().name,
        "finer": [tier.finer_ms for tier in TIERS.values()],
        "tiers": list(TIERS),
        "pace": PACE_SECONDS,
    }
    rows = conn.execute(_BEHIND, parameters)
    return [
        TierCoverage(
            source=source,
            frequency_ms=frequency_ms,
            dirty=dirty,
            oldest_seconds=oldest_seconds,
            holes=lacking[instance_num, frequency_ms],
            boxes_failed=failed,
            amplification=read / got if got else None,
        )
        for instance_num, source, frequency_ms, dirty, oldest_seconds, failed, read, got in rows
    ]


_BEHIND = """
    WITH dirty AS (
        SELECT instance_num, frequency_ms, count(*) AS slots, min(dirty_at) AS since FROM dirty_slots
        WHERE organization_id = %(organization)s GROUP BY 1, 2
    ), failed AS (
        SELECT instance_num, frequency_ms, count(*) AS boxes FROM boxes
        WHERE organization_id = %(organization)s AND stage = %(stage)s AND state = 'failed' GROUP BY 1, 2
    ), booked AS (
        SELECT instance_num, frequency_ms, sum(bytes_in) FILTER (WHERE operation = 'rollup') AS read,
               sum(bytes_out) FILTER (WHERE operation IN ('ingest', 'rollup')) AS got
        FROM ledger
        WHERE organization_id = %(organization)s AND signal = %(signal)s
          AND committed_at > now() - %(pace)s * interval '1 second'
        GROUP BY 1, 2
    )
    SELECT s.instance_num, %(name)s || '/' || s.collector_name, t.frequency_ms, coalesce(d.slots, 0),
           CASE WHEN d.slots > 0 THEN greatest(extract(epoch FROM now() - d.since), 0) END::float,
           coalesce(f.boxes, 0), coalesce(r.read, 0)::float,
           coalesce(g.got, 0)::float
    FROM organization_buckets s
    CROSS JOIN unnest(%(finer)s::int[], %(tiers)s::int[]) AS t (finer_ms, frequency_ms)
    LEFT JOIN dirty d USING (instance_num, frequency_ms)
    LEFT JOIN failed f USING (instance_num, frequency_ms)
    LEFT JOIN booked r USING (instance_num, frequency_ms)
    LEFT JOIN booked g ON g.instance_num = s.instance_num AND g.frequency_ms = t.finer_ms
    WHERE s.organization_id = %(organization)s AND EXISTS (
        SELECT FROM compression_ratios c
        WHERE c.organization_id = s.organization_id AND c.instance_num = s.instance_num AND c.signal = %(signal)s)
    ORDER BY 2, 3
"""
"""A row for each source that has ingested any metrics, and each tier."""
