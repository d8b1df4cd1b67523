"""The books: what each committed step of a run read, wrote, merged and rejected, and what it took.

What belongs here: the ledger's rows. What does not: whether the numbers are right (``publish``).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from psycopg.types.json import Jsonb

from lakerunner_dagster.lake.model import LedgerEntry, Segment

if TYPE_CHECKING:
    from lakerunner_dagster.lake.lrdb.connection import Conn


def add(conn: Conn, entry: LedgerEntry, segments: Sequence[Segment]) -> None:
    """Book a step and the segments that it wrote, in the transaction that publishes them."""
    conn.execute(
        """
        INSERT INTO ledger (run_id, operation, code_version, organization_id, instance_num, signal, dateint,
                            frequency_ms, box_id, records_read, records_written, records_rejected, rejected,
                            rows_written, rollup_count_read, rollup_count_written, bytes_in, bytes_out, seconds,
                            peak_memory_bytes)
        VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s)
        """,
        (
            entry.run_id,
            entry.operation,
            entry.code_version,
            entry.organization_id,
            entry.instance_num,
            str(entry.signal),
            entry.dateint,
            entry.frequency_ms,
            entry.box_id,
            entry.records_read,
            entry.records_written,
            sum(entry.rejected.values()),
            Jsonb(dict(entry.rejected)),
            sum(segment.record_count for segment in segments),
            entry.rollup_count_read,
            sum(segment.rollup_count for segment in segments),
            entry.bytes_in,
            entry.bytes_out,
            entry.seconds,
            entry.peak_memory_bytes,
        ),
    )
