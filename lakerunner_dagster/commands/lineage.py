"""``lakerunner lineage``: which segments a raw object went into, or which raw objects a segment stands on.

What belongs here: telling the two kinds of key apart, and the text. What does not: the search (``lake.lrdb.lineage``).
"""

from __future__ import annotations

import re
from typing import Annotated

import typer

from lakerunner_dagster.commands.session import console, lrdb_snapshot
from lakerunner_dagster.lake.errors import RequestRefused
from lakerunner_dagster.lake.lrdb import lineage

SEGMENT = re.compile(r"(db/.*tbl_\d+\.parquet|\d+)")


def show_lineage(
    key: Annotated[str, typer.Argument(help="Key of a raw object, or key or id of a segment.")],
    bucket: Annotated[str | None, typer.Option(help="Bucket of the raw object, where several have that key.")] = None,
) -> None:
    """Where a raw object's records went, or where a segment's came from."""
    with lrdb_snapshot() as conn:
        if SEGMENT.fullmatch(key):
            links = lineage.raw_of_segment(conn, int(key) if key.isdigit() else key)
        else:
            known = lineage.raw_objects_at(conn, key, bucket)
            links = lineage.segments_of_raw(conn, key, bucket)
            if not known:
                raise RequestRefused(
                    f"no raw object {key!r} is known: check the key (as in the bucket, from its root), and that its "
                    "notification has arrived (`lakerunner status`, `lakerunner quarantine list`)"
                )
            for found in known:
                console.print(f"{found.raw.bucket}: [bold]{found.raw.key}[/] (etag {found.raw.etag}) is {found.state}")
    for link in links:
        segment = link.segment
        state = "published" if segment.published else "superseded"
        records = "its records" if link.records is None else f"{link.records:,} records"
        console.print(f"{link.known.raw.key}\n  {records} → [bold]{segment.key}[/]", soft_wrap=True)
        console.print(f"  {state}; {segment.operation}, code version {segment.code_version}, run {segment.run_id}")
    if not links:
        console.print("no segment stands on it")
