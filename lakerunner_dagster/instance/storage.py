"""Where Dagster keeps its runs and events: the PostgreSQL of our settings, and one sentence where there is none.

What belongs here: the storage that dagster.yaml names. What does not: lrdb, the lake's own database (``lake/lrdb``).
"""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile
from collections.abc import Mapping
from typing import Any

import click
import sqlalchemy
from dagster._config.config_schema import UserConfigSchema
from dagster._core.storage.base_storage import DagsterStorage
from dagster._core.storage.sqlite_storage import DagsterSqliteStorage
from dagster._serdes import ConfigurableClassData
from dagster_postgres import DagsterPostgresStorage
from dagster_postgres.utils import DagsterPostgresException, create_pg_connection

from lakerunner_dagster.instance.pool import pooled_engine
from lakerunner_dagster.instance.schema import ask_once
from lakerunner_dagster.lake.errors import ConfigurationError
from lakerunner_dagster.lake.settings import Settings

_TABLES = {"runs", "instance_info", "event_logs", "jobs"}
"""What dagster-postgres looks for to know whether it has made its tables."""


class NoDagsterStorage(ConfigurationError, click.ClickException):
    """Dagster has nowhere to keep its runs. Its command line shows a ClickException as one line, without a trace."""


class SettingsPostgresStorage(DagsterPostgresStorage):
    """dagster-postgres at ``LAKERUNNER_DAGSTER_DATABASE_URL``, whose password thus stands in no instance reference.

    Its three storages share the connections of their process (``pool``). Dagster's web server gives them engines of
    their own, with its statement timeout.
    """

    def __init__(self, postgres_url: str, kept_connections: int, inst_data: ConfigurableClassData | None) -> None:
        engine = pooled_engine(postgres_url, kept_connections)
        super().__init__(
            postgres_url, should_autocreate_tables=not _are_made(engine, postgres_url), inst_data=inst_data
        )
        for storage in (self._run_storage, self._event_log_storage, self._schedule_storage):
            storage._engine = engine  # noqa: SLF001  # what each opens its connections with
            ask_once(storage)

    @classmethod
    def config_type(cls) -> UserConfigSchema:
        """Nothing is configured in dagster.yaml."""
        return {}

    @classmethod
    def from_config_value(  # type: ignore[override]  # validation gets another storage
        cls,
        inst_data: ConfigurableClassData | None,
        config_value: Mapping[str, Any],  # noqa: ARG003  # empty, by config_type
    ) -> DagsterStorage:
        """The storage; NoDagsterStorage where it is not configured or does not answer."""
        settings = Settings.current()
        url = settings.dagster_database_url
        if url is None:
            if os.environ.get("DAGSTER_IS_DEFS_VALIDATION_CLI"):
                return _throw_away_storage()
            raise NoDagsterStorage(
                "no services: start `lakerunner services up`, which writes .env, "
                "or set LAKERUNNER_DATABASE_URL, LAKERUNNER_DAGSTER_DATABASE_URL and LAKERUNNER_KAFKA_BOOTSTRAP_SERVERS"
            )
        try:
            return cls(url.get_secret_value(), settings.dagster_connections, inst_data)
        except DagsterPostgresException as error:
            raise NoDagsterStorage(
                "PostgreSQL at LAKERUNNER_DAGSTER_DATABASE_URL does not answer: start `lakerunner services up`, "
                "or set the address of one that does"
            ) from error


_made: set[str] = set()


def _are_made(engine: sqlalchemy.Engine, postgres_url: str) -> bool:
    """Whether Dagster's tables are there: asked until they are, for each tick and run opens the storage anew."""
    if postgres_url not in _made:
        with create_pg_connection(engine) as connection:
            if _TABLES.difference(sqlalchemy.inspect(connection).get_table_names()):
                return False
        _made.add(postgres_url)
    return True


def _throw_away_storage() -> DagsterStorage:
    """What `dagster definitions validate` needs of a storage, which is to be there."""
    directory = tempfile.mkdtemp()
    atexit.register(shutil.rmtree, directory, ignore_errors=True)
    return DagsterSqliteStorage.from_local(directory)
