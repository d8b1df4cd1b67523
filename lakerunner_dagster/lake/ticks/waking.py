"""Letters that tell of published segments: what compaction and rollup hear, and what it wakes.

What belongs here: reading them. What does not: what is woken (``compacting``, ``rolling_up``).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from uuid import UUID

from lakerunner_dagster.lake.bodies import number_field, uuid_field
from lakerunner_dagster.lake.errors import InputError
from lakerunner_dagster.lake.lrdb.connection import Conn
from lakerunner_dagster.lake.ticks.letters import Illegible, Letter, TakenIn

LATEST_DATEINT = 99_991_231


def woken(
    conn: Conn, letters: Iterable[Letter], now_ms: int, wake: Callable[[UUID, int, Sequence[int]], int]
) -> TakenIn:
    """Wake what the letters tell of; what is no such letter is a dead one.

    ``wake(organization_id, dateint, segment_ids)`` says how much of it was not known.
    """
    unread = Illegible()
    told: defaultdict[tuple[UUID, int], list[int]] = defaultdict(list)
    for letter in letters:
        try:
            organization_id, dateint, segment_id = _segment_named(letter.body)
        except InputError as error:
            unread.add(letter.message, error)
        else:
            told[organization_id, dateint].append(segment_id)
    new = sum(wake(*day, ids) for day, ids in sorted(told.items()))
    return TakenIn(new=new, known=max(sum(map(len, told.values())) - new, 0), dead=unread.keep(conn, now_ms))


def _segment_named(body: object) -> tuple[UUID, int, int]:
    """Organization, dateint and id of the segment that a message tells of; InputError ``bad_notification``."""
    if not isinstance(body, Mapping):
        raise InputError("bad_notification", f"a notification is a JSON object, not {ascii(body)[:200]}")
    return uuid_field(body, "o"), number_field(body, "d", LATEST_DATEINT), number_field(body, "s", 2**63 - 1)
