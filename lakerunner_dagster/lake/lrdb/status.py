"""The backlog and its age, per stage and source: what ``lakerunner status`` shows.

What belongs here: counting. What does not: showing, judging.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING
from uuid import UUID

from psycopg.rows import class_row

from lakerunner_dagster.lake.lrdb.profiles import Organization, organizations
from lakerunner_dagster.lake.signals import Signal
from lakerunner_dagster.lake.stages import ingest_stage

if TYPE_CHECKING:
    from lakerunner_dagster.lake.lrdb.connection import Conn

LATENCY_BOXES = 200
"""So many of a source's latest boxes tell how long it takes from notification to queryable."""


@dataclass(frozen=True, slots=True)
class SourceStatus:
    """One source's way through one stage.

    ``segments`` and ``records`` are what its boxes have published, whatever became of it since. ``oldest_seconds`` is
    how long the longest waiting object (pending or boxed) has waited, the percentiles are of the seconds from
    notification to queryable; None where there is nothing to tell.
    """

    stage: str
    source: str
    pending: int
    boxed: int
    ingested: int
    quarantined: int
    missing: int
    boxes_open: int
    boxes_claimed: int
    boxes_failed: int
    segments: int
    records: int
    oldest_seconds: float | None
    p50_seconds: float | None
    p95_seconds: float | None

    @property
    def notified(self) -> int:
        """Raw objects known, in whichever state."""
        return self.pending + self.boxed + self.ingested + self.quarantined + self.missing


@dataclass(frozen=True, slots=True)
class FailedBox:
    """A box that waits for a person: materialising its partition tries it again."""

    box_id: int
    stage: str
    source: str
    dateint: int
    members: int
    attempts: int
    error_class: str
    error_text: str
    ended_at: datetime


def status(conn: Conn) -> list[SourceStatus]:
    """A row for every signal's ingest stage and every source that anything was notified of, by stage and source."""
    rows = [
        row
        for organization in organizations(conn)
        for signal in Signal
        for row in _of_organization(conn, organization, signal)
    ]
    return sorted(rows, key=lambda row: (row.stage, row.source))


def _of_organization(conn: Conn, organization: Organization, signal: Signal) -> list[SourceStatus]:
    query = """
        WITH pending AS (
            SELECT instance_num, count(*) AS pending, min(pending_since) AS since FROM raw_objects
            WHERE organization_id = %(organization)s AND signal = %(signal)s AND state = 'pending' GROUP BY instance_num
        ), boxed AS (
            SELECT b.instance_num, count(*) AS boxed, min(r.pending_since) AS since
            FROM boxes b JOIN raw_objects r ON r.box_id = b.box_id
            WHERE b.organization_id = %(organization)s AND b.stage = %(stage)s AND b.state <> 'done'
              AND r.organization_id = %(organization)s
            GROUP BY b.instance_num
        ), aside AS (
            SELECT instance_num, count(*) FILTER (WHERE state = 'quarantined') AS quarantined,
                   count(*) FILTER (WHERE state = 'missing') AS missing
            FROM raw_objects
            WHERE organization_id = %(organization)s AND signal = %(signal)s AND state IN ('quarantined', 'missing')
            GROUP BY instance_num
        ), done AS (
            SELECT instance_num, ingested, segments, records FROM box_totals
            WHERE organization_id = %(organization)s AND stage = %(stage)s
        ), box AS (
            SELECT instance_num, count(*) FILTER (WHERE state = 'open') AS boxes_open,
                   count(*) FILTER (WHERE state = 'claimed') AS boxes_claimed,
                   count(*) FILTER (WHERE state = 'failed') AS boxes_failed
            FROM boxes WHERE organization_id = %(organization)s AND stage = %(stage)s AND state <> 'done'
            GROUP BY instance_num
        )
        SELECT %(stage)s AS stage, %(name)s || '/' || s.collector_name AS source,
               coalesce(pending, 0) AS pending, coalesce(boxed, 0) AS boxed, coalesce(ingested, 0) AS ingested,
               coalesce(quarantined, 0) AS quarantined, coalesce(missing, 0) AS missing,
               coalesce(boxes_open, 0) AS boxes_open, coalesce(boxes_claimed, 0) AS boxes_claimed,
               coalesce(boxes_failed, 0) AS boxes_failed, coalesce(segments, 0) AS segments,
               coalesce(records, 0) AS records,
               extract(epoch FROM now() - least(pending.since, boxed.since))::float AS oldest_seconds,
               latency.seconds[1] AS p50_seconds, latency.seconds[2] AS p95_seconds
        FROM organization_buckets s
        LEFT JOIN pending USING (instance_num)
        LEFT JOIN boxed USING (instance_num)
        LEFT JOIN aside USING (instance_num)
        LEFT JOIN done USING (instance_num)
        LEFT JOIN box USING (instance_num)
        CROSS JOIN LATERAL (
            SELECT percentile_cont(ARRAY[0.5, 0.95]) WITHIN GROUP (
                       ORDER BY extract(epoch FROM r.ended_at - r.pending_since)::float) AS seconds
            FROM raw_objects r WHERE r.organization_id = %(organization)s AND r.state = 'ingested' AND r.box_id IN (
                SELECT b.box_id FROM boxes b
                WHERE b.organization_id = %(organization)s AND b.instance_num = s.instance_num
                  AND b.stage = %(stage)s AND b.state = 'done'
                ORDER BY b.ended_at DESC LIMIT %(boxes)s
            )
        ) AS latency
        WHERE s.organization_id = %(organization)s AND num_nonnulls(pending, boxed, quarantined, ingested) > 0
    """
    parameters = {
        "organization": organization.organization_id,
        "name": organization.name,
        "signal": str(signal),
        "stage": ingest_stage(signal).name,
        "boxes": LATENCY_BOXES,
    }
    with conn.cursor(row_factory=class_row(SourceStatus)) as cursor:
        return cursor.execute(query, parameters).fetchall()


def failed_boxes(conn: Conn, organization_id: UUID) -> list[FailedBox]:
    """An organization's failed boxes of every stage, the latest first."""
    with conn.cursor(row_factory=class_row(FailedBox)) as cursor:
        return cursor.execute(
            """
            SELECT b.box_id, b.stage, o.name || '/' || s.collector_name AS source, b.dateint, b.members, b.attempts,
                   b.error_class, b.error_text, b.ended_at
            FROM boxes b
            JOIN organizations o ON o.id = b.organization_id
            JOIN organization_buckets s ON s.organization_id = b.organization_id AND s.instance_num = b.instance_num
            WHERE b.organization_id = %s AND b.state = 'failed' ORDER BY b.box_id DESC
            """,
            (organization_id,),
        ).fetchall()
