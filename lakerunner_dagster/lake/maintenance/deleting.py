"""Deleting segments' objects by the protocol of ``lrdb.deletions``: intended, done, confirmed.

What belongs here: the order of these, and one deleter at a time. What does not: which objects may go
(``superseded``, ``orphans``).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from lakerunner_dagster.lake.lrdb import deletions
from lakerunner_dagster.lake.lrdb.connection import Conn
from lakerunner_dagster.lake.lrdb.deletions import Deletion
from lakerunner_dagster.lake.maintenance.report import Findings
from lakerunner_dagster.lake.model import Source
from lakerunner_dagster.lake.runs.context import Lake

BATCH = 200
"""Objects that are intended, deleted and confirmed together."""

DELETED = "deleted"


class Deleter:
    """Who may delete objects of a source at the moment."""

    def __init__(self, lake: Lake, source: Source, held: Conn, findings: Findings) -> None:
        self._lake = lake
        self._source = source
        self._held = held
        self._findings = findings

    def take_up(self) -> None:
        """End what deleters before have begun: they were killed, or the store refused."""
        after = 0
        while True:
            with self._lake.lrdb.connection() as conn:
                batch = deletions.unconfirmed(conn, self._source, BATCH, after)
            if not batch:
                return
            self._delete(batch)
            after = batch[-1].segment_id

    def delete(self, candidates: Sequence[Deletion], grace_seconds: float) -> None:
        """Delete those of at most ``BATCH`` objects that still may be deleted."""
        with self._lake.lrdb.transaction() as conn:
            intended = deletions.intend(conn, self._source, candidates, grace_seconds)
        if intended:
            self._delete(intended)

    def _delete(self, intended: Sequence[Deletion]) -> None:
        self._held.execute("SELECT 1")  # cut off from lrdb, our turn may be another's by now
        outcomes = self._lake.stores.of(self._source.bucket).delete([deletion.key for deletion in intended])
        gone = [deletion for deletion in intended if outcomes[deletion.key] is None]
        if gone:
            with self._lake.lrdb.transaction() as conn:
                deletions.confirm(conn, self._source, gone)
        for deletion in gone:
            self._findings.add(DELETED, deletion.key, str(deletion.reason))
        for deletion in intended:
            error = outcomes[deletion.key]
            if error is not None:
                self._findings.fail(deletion.key, error)


@contextmanager
def deleter(lake: Lake, source: Source, findings: Findings) -> Iterator[Deleter | None]:
    """The deleter of a source's objects, until the block ends; None, and told, while another is at work there."""
    with deletions.turn(lake.lrdb, source) as held:
        if held is None:
            findings.add("left to another deleter", source.key)
            yield None
        else:
            yield Deleter(lake, source, held, findings)
