"""``lakerunner lineage``: which segments a raw object went into, or which raw objects a segment stands on.

What belongs here: telling the two kinds of key apart, and the text. What does not: the search (``lake.lrdb.lineage``).
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Annotated

import typer

from lakerunner_dagster.commands.session import lrdb_snapshot, say
from lakerunner_dagster.lake.errors import RequestRefused
from lakerunner_dagster.lake.lrdb import lineage
from lakerunner_dagster.lake.model import RawState

if TYPE_CHECKING:
    from lakerunner_dagster.lake.lrdb.connection import Conn
    from lakerunner_dagster.lake.lrdb.lineage import KnownObject, Link, MadeSegment

SEGMENT = re.compile(r"(?:db/.*tbl_)?([0-9]{1,19})(?:\.parquet)?")
"""A segment's id, or its key."""

LARGEST_ID = 2**63 - 1

_WITHOUT_SEGMENT = {
    RawState.PENDING: "waits for a box: `lakerunner status` shows the backlog",
    RawState.BOXED: "waits in a box for a run: `lakerunner status` shows the backlog",
    RawState.INGESTED: "none of its records is in a segment",
    RawState.QUARANTINED: "`lakerunner quarantine list` says why",
    RawState.MISSING: "`lakerunner quarantine list` says why",
}


def show_lineage(
    key: Annotated[str, typer.Argument(help="Key of a raw object, or key or id of a segment.")],
    bucket: Annotated[str | None, typer.Option(help="Bucket of the raw object, where several have that key.")] = None,
) -> None:
    """Where a raw object's records went, or where a segment's came from."""
    found = SEGMENT.fullmatch(key)
    with lrdb_snapshot() as conn:
        if found and int(found[1]) <= LARGEST_ID:
            _show_segment(conn, key)
        else:
            _show_raw(conn, key, bucket)


def _show_raw(conn: Conn, key: str, bucket: str | None) -> None:
    known = lineage.raw_objects_at(conn, key, bucket)
    if not known:
        raise RequestRefused(
            f"no raw object {key!r} is known: check the key (as in the bucket, from its root), and that its "
            "notification has arrived (`lakerunner status`, `lakerunner deadletter list`)"
        )
    links = lineage.segments_of_raw(conn, key, bucket)
    for version in known:
        say((f"{version.raw.bucket}/", "dim"), (version.raw.key, "bold"))
        own = [link for link in links if link.known.raw.raw_object_id == version.raw.raw_object_id]
        say("  ", _state(version), "" if own else f"; {_WITHOUT_SEGMENT[version.state]}")
        for link in own:
            say(f"  {_records(link)} → ", (link.segment.key, "bold"))
            say("    ", (_made(link.segment), "dim"))


def _show_segment(conn: Conn, segment: str) -> None:
    links = lineage.raw_of_segment(conn, int(segment) if segment.isdecimal() else segment)
    if not links:
        raise RequestRefused(
            f"no segment {segment} is known: its key is db/…/tbl_{{segment id}}.parquet, its id the number in it"
        )
    for made in dict.fromkeys(link.segment for link in links):
        say((made.key, "bold"))
        say("  ", (_made(made), "dim"))
        for link in links:
            if link.segment == made:
                say(f"  {_records(link)} ← ", (f"{link.known.raw.bucket}/", "dim"), (link.known.raw.key, "bold"))
                say("    ", (_state(link.known), "dim"))


def _state(known: KnownObject) -> str:
    etag = f"etag {known.raw.etag}" if known.raw.etag else "etag not known yet"
    return f"{known.state}; {etag}"


def _made(segment: MadeSegment) -> str:
    state = "published" if segment.published else "superseded"
    return f"{state}; by {segment.operation}, code version {segment.code_version}, run {segment.run_id}"


def _records(link: Link) -> str:
    if link.records is None:
        return "its records"
    return "1 record" if link.records == 1 else f"{link.records:,} records"
