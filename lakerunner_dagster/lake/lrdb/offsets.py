"""Kafka offsets up to which everything is in lrdb: written in the transactions that made it so.

What belongs here: their rows. What does not: Kafka's own committed offsets (``bus``).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lakerunner_dagster.lake.lrdb.connection import Conn


def record(conn: Conn, group: str, cluster_id: str, next_offsets: Mapping[tuple[str, int], int]) -> None:
    """The next offsets to read by (topic without prefix, partition), also where lower than before.

    Going back repeats messages, which changes nothing; staying ahead of a topic that was made anew would skip some.
    """
    with conn.cursor() as cursor:
        cursor.executemany(
            """
            INSERT INTO consumed_offsets (consumer_group, cluster_id, topic, partition, next_offset)
            VALUES (%s, %s, %s, %s, %s)
            ON CONFLICT (consumer_group, cluster_id, topic, partition)
                DO UPDATE SET next_offset = excluded.next_offset, updated_at = now()
            """,
            [
                (group, cluster_id, topic, partition, offset)
                for (topic, partition), offset in sorted(next_offsets.items())
            ],
        )


def load(conn: Conn, group: str, cluster_id: str) -> dict[tuple[str, int], int]:
    """A group's next offsets in a cluster by (topic without prefix, partition)."""
    rows = conn.execute(
        "SELECT topic, partition, next_offset FROM consumed_offsets WHERE consumer_group = %s AND cluster_id = %s",
        (group, cluster_id),
    )
    return {(topic, partition): next_offset for topic, partition, next_offset in rows}
