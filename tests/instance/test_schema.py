"""What Dagster asks of its schema is asked once, and never answered otherwise than by PostgreSQL."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
import sqlalchemy
from dagster._core.instance.ref import InstanceRef

from lakerunner_dagster.instance import schema
from lakerunner_dagster.instance.schema import QUESTIONS
from lakerunner_dagster.instance.storage import SettingsPostgresStorage
from tests.conftest import TestDatabases
from tests.instance.past import DAGSTER_YAML


@pytest.fixture
def url(postgres: TestDatabases, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    url = postgres.create_database().replace("postgresql:", "postgresql+psycopg2:")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LAKERUNNER_DAGSTER_DATABASE_URL", url)
    return url


def _catalogue_looks(instance: dg.DagsterInstance) -> list[str]:
    """What an instance's connections ask the catalogue from now on."""
    looks: list[str] = []
    storage: Any = instance.run_storage
    engine = storage._engine

    def note(_conn: Any, _cursor: Any, statement: str, *_: Any) -> None:
        if "pg_catalog" in statement or "secondary_indexes" in statement:
            looks.append(statement)

    sqlalchemy.event.listen(engine, "before_cursor_execute", note)
    return looks


def _use(instance: dg.DagsterInstance) -> None:
    instance.get_run_records(limit=1)
    instance.all_instigator_state()
    instance.get_backfills()
    instance.all_asset_keys()
    instance.get_latest_materialization_event(dg.AssetKey("a"))


def test_a_second_instance_of_a_process_asks_the_catalogue_nothing(url: str, tmp_path: Path) -> None:
    assert url
    (tmp_path / "dagster.yaml").write_text(DAGSTER_YAML)
    ref = InstanceRef.from_dir(str(tmp_path))
    with dg.DagsterInstance.from_ref(ref):
        """Its tables are made."""
    with dg.DagsterInstance.from_ref(ref) as first:
        looks = _catalogue_looks(first)
        _use(first)
        assert looks, "Dagster asks nothing any more: schema.py is of no use"
        looks.clear()
        with dg.DagsterInstance.from_ref(ref) as second:
            _use(first)
            _use(second)
        assert looks == []


def test_a_column_that_was_missing_is_found_once_it_is_there(url: str) -> None:
    storage: Any = SettingsPostgresStorage(url, 1, None)
    with storage._run_storage.connect() as conn:
        conn.execute(sqlalchemy.text("ALTER TABLE runs RENAME COLUMN end_time TO ended"))
    assert not storage._run_storage.has_run_stats_index_cols()
    with storage._run_storage.connect() as conn:
        conn.execute(sqlalchemy.text("ALTER TABLE runs RENAME COLUMN ended TO end_time"))
    assert storage._run_storage.has_run_stats_index_cols()
    assert not storage._run_storage.has_built_index("none of Dagster's")


def test_databases_are_not_taken_for_each_other(url: str, postgres: TestDatabases) -> None:
    another = postgres.create_database().replace("postgresql:", "postgresql+psycopg2:")
    one: Any = SettingsPostgresStorage(url, 1, None)
    assert one._event_log_storage.has_table("runs")
    with one._run_storage.connect() as conn:
        conn.execute(sqlalchemy.text("DROP TABLE IF EXISTS ours"))
        conn.execute(sqlalchemy.text("CREATE TABLE ours ()"))
    assert one._event_log_storage.has_table("ours")
    other: Any = SettingsPostgresStorage(another, 1, None)
    assert other._event_log_storage.has_table("runs")
    assert not other._event_log_storage.has_table("ours")


@pytest.mark.parametrize("storage", QUESTIONS, ids=lambda storage: storage.__name__)
def test_every_question_is_one_that_dagster_asks(storage: type[schema.Storage]) -> None:
    for question in QUESTIONS[storage]:
        _self, *of = inspect.signature(getattr(storage, question)).parameters
        assert set(of) <= {"conn", "migration_name", "name", "table_name", "column_name"}
