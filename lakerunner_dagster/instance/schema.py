"""What Dagster asks of its own tables before it uses them: whether they are as new as its code. Each is asked once.

What belongs here: which questions those are, and remembering what was answered. What does not: the storages
(``storage``), their connections (``pool``).

Before nearly every statement dagster-postgres looks into PostgreSQL's catalogue for a table or a column that some
version of Dagster has added. That costs more than the statement does. A schema only gains, so an answer that is yes
stays so for as long as the process lives; one that is no is asked again.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from weakref import WeakMethod

from dagster_postgres.event_log import PostgresEventLogStorage
from dagster_postgres.run_storage import PostgresRunStorage
from dagster_postgres.schedule_storage import PostgresScheduleStorage

Storage = PostgresRunStorage | PostgresEventLogStorage | PostgresScheduleStorage

QUESTIONS: Mapping[type[Storage], tuple[str, ...]] = MappingProxyType(
    {
        PostgresRunStorage: (
            "has_built_index",
            "has_run_stats_index_cols",
            "has_bulk_actions_selector_cols",
            "has_backfill_id_column",
            "has_bulk_action_job_name_column",
            "has_backfill_tags_table",
        ),
        PostgresEventLogStorage: ("has_table", "_has_asset_key_col_on_connection", "has_secondary_index"),
        PostgresScheduleStorage: (
            "has_instigators_table",
            "_has_instigators_table",
            "_has_asset_daemon_asset_evaluations_table",
            "has_secondary_index_table",
            "has_built_index",
        ),
    }
)
"""By storage the methods that ask; what they take besides a connection is the name of what they ask for."""

_yes: set[tuple[str, ...]] = set()
"""What was answered with yes: the database, the storage, the question and the name."""


def ask_once(storage: Storage) -> None:
    """Have a storage remember what its schema has, together with all others of this process and database."""
    for question in QUESTIONS[type(storage)]:
        place = (storage.postgres_url, type(storage).__name__, question)
        setattr(storage, question, _remembering(place, WeakMethod(getattr(storage, question))))


def _remembering(place: tuple[str, ...], asked: WeakMethod[Callable[..., bool]]) -> Callable[..., bool]:
    def answer(*of: object) -> bool:
        about = (*place, *(one for one in of if isinstance(one, str)))
        if about not in _yes:
            ask = asked()
            assert ask is not None  # noqa: S101  # whoever calls us holds the storage
            if not ask(*of):
                return False
            _yes.add(about)
        return True

    return answer
