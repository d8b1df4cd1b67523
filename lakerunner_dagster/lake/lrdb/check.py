"""The invariants of spec/lrdb.md, attacked on live data: what is read here can only be there when one was broken.

What belongs here: queries that find breaches. What does not: keeping the invariants (``publish``), repairing anything.

Whether a run that is killed and run again ends alike (3), or the swap is one transaction (4), shows in no row; their
traces do: work that is booked twice, and halves of a transaction without the other.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from psycopg import sql

from lakerunner_dagster.lake.lrdb import coverage, expiry
from lakerunner_dagster.lake.lrdb.profiles import Organization, organizations
from lakerunner_dagster.lake.signals import SIGNALS
from lakerunner_dagster.lake.tiers import TIERS

if TYPE_CHECKING:
    from lakerunner_dagster.lake.lrdb.connection import Conn


@dataclass(frozen=True, slots=True)
class Breach:
    """An invariant (1 to 6) that does not hold: what is wrong, how often, and one case in words."""

    invariant: int
    what: str
    cases: int
    example: str


@dataclass(frozen=True, slots=True)
class _Check:
    """``finds`` is SQL for one text column: a row for each case of a breach."""

    invariant: int
    what: str
    finds: str


_VISIBLE = """
    WITH RECURSIVE visible AS (
        SELECT segment_id, instance_num, dateint, records, record_count FROM {table}
        WHERE organization_id = %(organization)s AND published AND {tier}
    ), standing (segment_id) AS (
        SELECT segment_id FROM visible
        UNION
        SELECT l.input_id FROM standing s
        JOIN lineage l ON l.organization_id = %(organization)s AND l.segment_id = s.segment_id
            AND l.input_kind = 'segment'
    ), expired AS (
        SELECT s.segment_id FROM supersessions s
        WHERE s.organization_id = %(organization)s AND s.signal = %(signal)s AND s.frequency_ms = %(frequency)s
          AND s.operation = %(expiry)s
        UNION
        SELECT l.input_id FROM expired e
        JOIN lineage l ON l.organization_id = %(organization)s AND l.segment_id = e.segment_id
            AND l.input_kind = 'segment'
    ), gone AS (
        SELECT l.input_kind, l.input_id, sum(l.records) AS records FROM expired e
        JOIN lineage l ON l.organization_id = %(organization)s AND l.segment_id = e.segment_id
        WHERE e.segment_id NOT IN (SELECT segment_id FROM standing)
        GROUP BY l.input_kind, l.input_id
    ), edge AS (
        SELECT l.segment_id, l.input_kind, l.input_id, l.records FROM standing s
        JOIN lineage l ON l.organization_id = %(organization)s AND l.segment_id = s.segment_id
    ), owned AS (
        SELECT segment_id, sum(records) AS records FROM edge GROUP BY segment_id
    ), given AS (
        SELECT input_kind, input_id, sum(records) AS records FROM edge GROUP BY input_kind, input_id
    ), raw AS (
        SELECT r.bucket || '/' || r.key AS name, r.state, coalesce(g.records, 0) AS seen,
               coalesce(e.records, 0) AS expired,
               CASE r.state WHEN 'ingested' THEN r.records_read - r.records_rejected ELSE 0 END AS accepted
        FROM raw_objects r
        LEFT JOIN given g ON g.input_kind = 'raw' AND g.input_id = r.raw_object_id
        LEFT JOIN gone e ON e.input_kind = 'raw' AND e.input_id = r.raw_object_id
        WHERE r.organization_id = %(organization)s AND r.signal = %(signal)s
    ), merged AS (
        SELECT o.segment_id, o.records AS owned,
               coalesce(g.records, 0) + CASE WHEN v.segment_id IS NULL THEN 0 ELSE o.records END AS seen,
               coalesce(e.records, 0) AS expired
        FROM owned o
        LEFT JOIN gone e ON e.input_kind = 'segment' AND e.input_id = o.segment_id
        LEFT JOIN given g ON g.input_kind = 'segment' AND g.input_id = o.segment_id
        LEFT JOIN visible v ON v.segment_id = o.segment_id
    )
"""
"""What readers see of an organization and signal in its ingest tier, followed to where it comes from: segments and raw
objects that published segments stand on, and how many records of each are seen through them, or were until retention
took them out of sight. What expired was noted segment by segment, so that nothing else can pass for it."""

_OF_SIGNAL = (
    _Check(
        1,
        "records of a raw object are published more than once",
        """SELECT format('%%s (%%s): %%s records accepted, %%s published', name, state, accepted, seen)
        FROM raw WHERE seen > accepted""",
    ),
    _Check(
        1,
        "a segment is published beside those that were made of it",
        """SELECT format('segment %%s: of its %%s records %%s are published', segment_id, owned, seen)
        FROM merged WHERE seen > owned""",
    ),
    _Check(
        2,
        "accepted records of a raw object are published nowhere",
        """SELECT format('%%s (%%s): %%s records accepted, %%s published, %%s expired', name, state, accepted, seen,
                         expired)
        FROM raw WHERE seen + expired < accepted""",
    ),
    _Check(
        2,
        "a segment was merged into others that do not hold all its records",
        """SELECT format('segment %%s: of its %%s records %%s are published', segment_id, owned, seen)
        FROM merged WHERE seen + expired < owned""",
    ),
    _Check(
        2,
        "a published segment has other records than its inputs gave it",
        """SELECT format('segment %%s: %%s records (%%s rows), %%s from its inputs', segment_id, v.records,
                                     v.record_count, o.records)
        FROM visible v JOIN owned o USING (segment_id)
        WHERE v.records <> o.records OR (NOT %(merges)s AND v.record_count <> o.records)""",
    ),
    _Check(
        3,
        "one segment id is published more than once",
        """SELECT format('segment %%s: on the days %%s', segment_id, string_agg(dateint::text, ', '))
        FROM visible GROUP BY segment_id HAVING count(*) > 1""",
    ),
    _Check(
        4,
        "a published segment has no lineage",
        """SELECT format('segment %%s of %%s', segment_id, dateint)
        FROM visible v LEFT JOIN owned o USING (segment_id) WHERE o.segment_id IS NULL""",
    ),
    _Check(
        4,
        "a segment was unpublished, and nothing says when and by what",
        """SELECT format('segment %%s of %%s', t.segment_id, t.dateint) FROM {table} t
        WHERE t.organization_id = %(organization)s AND NOT t.published AND NOT EXISTS (
            SELECT FROM supersessions s
            WHERE s.organization_id = %(organization)s AND s.segment_id = t.segment_id)""",
    ),
    _Check(
        4,
        "a segment is published and superseded at once",
        """SELECT format('segment %%s of %%s', t.segment_id, t.dateint) FROM {table} t
        JOIN supersessions s ON s.organization_id = %(organization)s AND s.segment_id = t.segment_id
        WHERE t.organization_id = %(organization)s AND t.published""",
    ),
    _Check(
        4,
        "a segment is published whose object is about to be deleted",
        """SELECT format('%%s, since %%s', d.key, d.intended_at) FROM {table} t
        JOIN deletions d ON d.organization_id = %(organization)s AND d.segment_id = t.segment_id
        WHERE t.organization_id = %(organization)s AND t.published AND d.confirmed_at IS NULL""",
    ),
    _Check(
        6,
        "a segment is of a collector that its organization has not",
        """SELECT format('segment %%s of %%s: instance %%s', t.segment_id, t.dateint, t.instance_num) FROM {table} t
        WHERE t.organization_id = %(organization)s AND NOT EXISTS (
            SELECT FROM organization_buckets s
            WHERE s.organization_id = %(organization)s AND s.instance_num = t.instance_num)""",
    ),
)
"""Asked of each organization and signal, of the tables of ``_VISIBLE``."""

_OF_ALL = (
    _Check(
        2,
        "a step of a run has booked more or fewer records than it read",
        """SELECT format('run %%s, %%s: %%s read, %%s written, %%s rejected', run_id, operation, records_read,
                         records_written, records_rejected)
        FROM ledger WHERE records_read <> records_written + records_rejected""",
    ),
    _Check(
        3,
        "a box is booked more than once",
        """SELECT format('box %%s: by the runs %%s', box_id, string_agg(run_id, ', '))
        FROM ledger WHERE box_id IS NOT NULL GROUP BY box_id HAVING count(*) > 1""",
    ),
    _Check(
        3,
        "the totals of a source's boxes are not what its boxes have made",
        """SELECT format('instance %%s of %%s, %%s: %%s objects, %%s segments and %%s records by its boxes, %%s, %%s '
                         'and %%s by its totals', instance_num, organization_id, stage, b.ingested, b.segments,
                         b.records, t.ingested, t.segments, t.records)
        FROM (SELECT organization_id, instance_num, stage, sum(ingested) AS ingested, sum(segments) AS segments,
                     sum(records) AS records
              FROM boxes WHERE state = 'done' GROUP BY 1, 2, 3) AS b
        FULL JOIN box_totals t USING (organization_id, instance_num, stage)
        WHERE coalesce(b.ingested, 0) <> coalesce(t.ingested, 0)
           OR coalesce(b.segments, 0) <> coalesce(t.segments, 0)
           OR coalesce(b.records, 0) <> coalesce(t.records, 0)""",
    ),
    _Check(
        3,
        "one raw object has more than one row",
        """SELECT format('%%s/%%s (%%s): rows %%s', bucket, key, etag, string_agg(raw_object_id::text, ', '))
        FROM raw_objects GROUP BY bucket, key, etag HAVING count(*) > 1""",
    ),
    _Check(
        4,
        "a box is done without a line in the ledger",
        """SELECT format('box %%s of %%s, run %%s', b.box_id, b.stage, b.run_id) FROM boxes b
        WHERE b.state = 'done' AND b.stage LIKE '%%.ingest'
          AND NOT EXISTS (SELECT FROM ledger l WHERE l.box_id = b.box_id)""",
    ),
    _Check(
        4,
        "a raw object has ended in a box that has not",
        """SELECT format('%%s/%%s is %%s, box %%s is %%s', r.bucket, r.key, r.state, r.box_id, b.state)
        FROM boxes b JOIN raw_objects r ON r.box_id = b.box_id
        WHERE b.state <> 'done' AND r.state IN ('ingested', 'quarantined', 'missing')""",
    ),
    _Check(
        5,
        "a box is done and a raw object in it has not ended",
        """SELECT format('%%s/%%s is %%s, box %%s is done', r.bucket, r.key, r.state, r.box_id)
        FROM raw_objects r JOIN boxes b ON b.box_id = r.box_id WHERE b.state = 'done' AND r.state = 'boxed'""",
    ),
    _Check(
        5,
        "a box has lost members",
        """SELECT format('box %%s (%%s): %%s members, %%s objects in it', b.box_id, b.state, b.members, count(r.*))
        FROM boxes b LEFT JOIN raw_objects r ON r.box_id = b.box_id AND r.state = 'boxed'
        WHERE b.state <> 'done' AND b.stage LIKE '%%.ingest' GROUP BY b.box_id HAVING count(r.*) <> b.members""",
    ),
    _Check(
        5,
        "a raw object was set aside without a reason",
        """SELECT format('%%s/%%s is %%s', bucket, key, state)
        FROM raw_objects WHERE state IN ('quarantined', 'missing') AND error_class IS NULL""",
    ),
    _Check(
        6,
        "a raw object is in a box of another organization",
        """SELECT format('%%s/%%s of %%s, box %%s of %%s', r.bucket, r.key, r.organization_id, b.box_id,
                         b.organization_id)
        FROM raw_objects r JOIN boxes b ON b.box_id = r.box_id
        WHERE (r.organization_id, r.instance_num) <> (b.organization_id, b.instance_num)""",
    ),
    _Check(
        6,
        "a segment was made of another organization's raw object",
        """SELECT format('segment %%s of %%s stands on %%s/%%s of %%s', l.segment_id, l.organization_id, r.bucket,
                         r.key, r.organization_id)
        FROM lineage l JOIN raw_objects r ON l.input_kind = 'raw' AND r.raw_object_id = l.input_id
        WHERE (r.organization_id, r.instance_num) <> (l.organization_id, l.instance_num)""",
    ),
    _Check(
        6,
        "a raw object's key names another organization",
        """SELECT format('%%s/%%s is held for %%s', bucket, key, organization_id) FROM raw_objects
        WHERE key ~* '^otel-raw/[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}/'
          AND lower(split_part(key, '/', 2)) <> organization_id::text""",
    ),
)
"""Asked once, across organizations: a meeting of two is what some of them look for."""


def breaches(conn: Conn) -> list[Breach]:
    """Every breach that can be seen, by invariant. Read-only; best in ``Lrdb.snapshot``, which is of one moment."""
    return sorted(_found(conn), key=lambda breach: (breach.invariant, breach.what, breach.example))


def _found(conn: Conn) -> Iterator[Breach]:
    for check in _OF_ALL:
        yield from _run(conn, check, sql.SQL(check.finds), {})
    for organization in organizations(conn):
        yield from _holes(conn, organization)
        for signal, spec in SIGNALS.items():
            visible = sql.SQL(_VISIBLE).format(
                table=sql.Identifier(spec.segment_table),
                tier=sql.SQL("frequency_ms = %(frequency)s" if spec.frequency_ms else "true"),
            )
            parameters = {
                "organization": organization.organization_id,
                "signal": str(signal),
                "frequency": spec.frequency_ms,
                "expiry": expiry.OPERATION,
                "merges": bool(spec.frequency_ms),
            }
            for check in _OF_SIGNAL:
                finds = sql.SQL(check.finds).format(table=sql.Identifier(spec.segment_table))
                yield from _run(conn, check, visible + finds, parameters)


def _holes(conn: Conn, organization: Organization) -> Iterator[Breach]:
    """Hours of tiers that lack what the finer tier has, though no slot of them waits to be computed."""
    found = coverage.holes(conn, organization.organization_id, since_dateint=0)
    if found:
        hole = found[0]
        yield Breach(
            2,
            "an hour of a tier stands for other points than the finer tier, and nobody knows of it",
            cases=len(found),
            example=f"{organization.name}, instance {hole.instance_num}, {TIERS[hole.frequency_ms].label} tier, "
            f"{hole.dateint} {hole.hour:02d}h: {hole.records} points, {hole.finer_records} in the finer tier",
        )


def _run(conn: Conn, check: _Check, finds: sql.Composable, parameters: dict[str, Any]) -> Iterator[Breach]:
    query = sql.SQL("SELECT count(*), min(example) FROM ({finds}) AS found (example)").format(finds=finds)
    row = conn.execute(query, parameters).fetchone()
    if row is not None and row[0]:
        yield Breach(check.invariant, check.what, cases=row[0], example=row[1])
