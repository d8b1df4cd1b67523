"""Which objects of a listing have a row already.

What belongs here: the question that an adapter or a reconciliation asks of what it has listed. What does not: the rows'
way through the lake (``intake``).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple
from uuid import UUID

if TYPE_CHECKING:
    from lakerunner_dagster.lake.lrdb.connection import Conn


class ObjectName(NamedTuple):
    """A raw object's identity: its etag says which content it is."""

    bucket: str
    key: str
    etag: str


def known_objects(conn: Conn, organization_id: UUID, names: Sequence[ObjectName]) -> set[ObjectName]:
    """Those of the organization's objects that have a row; not those that were missing, for they are there again."""
    rows = conn.execute(
        """
        SELECT r.bucket, r.key, r.etag
        FROM unnest(%s::text[], %s::text[], %s::text[]) AS n (bucket, key, etag)
        JOIN raw_objects r ON r.bucket = n.bucket AND r.key = n.key AND r.etag = n.etag
        WHERE r.organization_id = %s AND r.state <> 'missing'
        """,
        ([name.bucket for name in names], [name.key for name in names], [name.etag for name in names], organization_id),
    )
    return {ObjectName(*row) for row in rows}
