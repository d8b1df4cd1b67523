"""What was set aside, for a person: raw objects that are quarantined, missing or lost records, and segments that cannot
be read.

What belongs here: finding them by one kind of id (``raw:12``, ``segment:7``) and sending them round again. What does
not: how they came to be set aside (``publish``, ``faults``), notifications that lead nowhere (``dead_letters``).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any
from uuid import UUID

from psycopg import sql

from lakerunner_dagster.lake.errors import RequestRefused
from lakerunner_dagster.lake.lrdb import faults, intake
from lakerunner_dagster.lake.lrdb.faults import Fault
from lakerunner_dagster.lake.lrdb.rows import RAW_OBJECT, raw_object
from lakerunner_dagster.lake.model import RawObject, RawState

if TYPE_CHECKING:
    from lakerunner_dagster.lake.lrdb.connection import Conn

ITEM_ID = re.compile(r"(raw|segment):([1-9][0-9]{0,18})")

LARGEST_ID = 2**63 - 1


@dataclass(frozen=True, slots=True)
class SetAside:
    """A raw object that ended otherwise than whole. ``rejected`` counts records by reason."""

    raw: RawObject
    organization_name: str
    state: RawState
    error_class: str | None
    error_text: str | None
    records_read: int
    rejected: Mapping[str, int]
    adapter: str
    notified_at: datetime
    ended_at: datetime
    box_id: int | None

    @property
    def item_id(self) -> str:
        """What a person names it by."""
        return f"raw:{self.raw.raw_object_id}"

    @property
    def reason(self) -> str:
        """Why the object, or most of its records, were set aside."""
        return self.error_class or max(self.rejected, key=lambda reason: self.rejected[reason])


@dataclass(frozen=True, slots=True)
class Retried:
    """What a retry has done: objects that are pending again, and segments that will be read again at once."""

    pending: tuple[int, ...]
    due: tuple[int, ...]


_ATTENTION = sql.SQL("(r.state IN ('quarantined', 'missing') OR r.records_rejected > 0)")

_SET_ASIDE = sql.SQL("""
    SELECT {columns}, o.name, r.state, r.error_class, r.error_text, r.records_read, r.rejected, r.adapter,
           r.notified_at, r.ended_at, r.box_id
    FROM raw_objects r JOIN organizations o ON o.id = r.organization_id
""").format(columns=RAW_OBJECT)


def set_aside(conn: Conn, organization_id: UUID, limit: int) -> list[SetAside]:
    """An organization's raw objects that need attention, the latest first."""
    query = sql.SQL("{rows} WHERE r.organization_id = %s AND {attention} ORDER BY r.raw_object_id DESC LIMIT %s")
    return [
        _set_aside(row)
        for row in conn.execute(query.format(rows=_SET_ASIDE, attention=_ATTENTION), (organization_id, limit))
    ]


def show(conn: Conn, item_id: str) -> SetAside | Fault:
    """Everything that is known of an item; RequestRefused when there is none of that id."""
    kind, number = _parsed(item_id)
    found = _SHOWN[kind](conn, number) if number <= LARGEST_ID else None
    if found is None:
        raise RequestRefused(f"nothing is set aside as {item_id}: `lakerunner quarantine list` shows what is")
    return found


def retry(conn: Conn, item_ids: Iterable[str]) -> Retried:
    """Send items round again: objects wait to be boxed, segments may be read at once.

    RequestRefused, and nothing done, when one of them is not there, or is an object that is ingested already: its
    rejected records come with a rebuild of their day, once what rejects them has changed.
    """
    items = [show(conn, item_id) for item_id in item_ids]
    objects = [item for item in items if isinstance(item, SetAside)]
    for item in objects:
        if item.state is RawState.INGESTED:
            raise RequestRefused(
                f"{item.item_id} is ingested, but for {dict(item.rejected)}: retrying would ingest the rest twice. "
                "Materialise its day (a rebuild) once what rejects these records has changed"
            )
    for item in objects:
        intake.requeue(conn, item.raw.organization_id, [item.raw.raw_object_id])
    faulty = [item for item in items if isinstance(item, Fault)]
    for fault in faulty:
        faults.make_due(conn, fault.organization_id, fault.segment_id)
    return Retried(
        pending=tuple(item.raw.raw_object_id for item in objects),
        due=tuple(fault.segment_id for fault in faulty),
    )


def _parsed(item_id: str) -> tuple[str, int]:
    match = ITEM_ID.fullmatch(item_id)
    if match is None:
        raise RequestRefused(f"{item_id!r} is no item of the quarantine: they are called raw:12 or segment:7")
    return match[1], int(match[2])


def _raw_set_aside(conn: Conn, raw_object_id: int) -> SetAside | None:
    query = sql.SQL("{rows} WHERE r.raw_object_id = %s AND {attention}").format(rows=_SET_ASIDE, attention=_ATTENTION)
    row = conn.execute(query, (raw_object_id,)).fetchone()
    return None if row is None else _set_aside(row)


_SHOWN: Mapping[str, Callable[[Conn, int], SetAside | Fault | None]] = {
    "raw": _raw_set_aside,
    "segment": faults.show,
}


def _set_aside(row: Sequence[Any]) -> SetAside:
    name, state, error_class, error_text, records_read, rejected, adapter, notified_at, ended_at, box_id = row[-10:]
    return SetAside(
        raw=raw_object(row[:-10]),
        organization_name=name,
        state=RawState(state),
        error_class=error_class,
        error_text=error_text,
        records_read=records_read,
        rejected=rejected,
        adapter=adapter,
        notified_at=notified_at,
        ended_at=ended_at,
        box_id=box_id,
    )
