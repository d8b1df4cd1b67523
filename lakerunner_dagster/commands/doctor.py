"""``lakerunner doctor``: every setting, and whether what it names can be reached.

What belongs here: the checks and what to do when one fails. What does not: the settings (``lake.settings``).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from pydantic import SecretStr
from rich.table import Table

from lakerunner_dagster.commands.session import console
from lakerunner_dagster.lake.errors import ConfigurationError, LakeError, WorkIncomplete
from lakerunner_dagster.lake.lrdb import profiles
from lakerunner_dagster.lake.lrdb.connection import Lrdb
from lakerunner_dagster.lake.lrdb.migrate import pending_migrations
from lakerunner_dagster.lake.runs.context import lrdb_url, open_lake
from lakerunner_dagster.lake.settings import BoxPolicy, Limits, Settings, variable_of
from lakerunner_dagster.lake.store import BucketConfiguration, Store

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from pydantic_settings import BaseSettings


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was tried: how it went, in a sentence; ``well`` when nothing is to be done."""

    what: str
    well: bool
    sentence: str


def doctor() -> None:
    """Show every setting with its value, and try each connection."""
    settings = Settings()
    console.print(settings_table([settings, BoxPolicy(), Limits()]))
    findings = list(examined(settings))
    table = Table("checked", "", "result")
    for finding in findings:
        table.add_row(finding.what, "[green]well[/]" if finding.well else "[red]ill[/]", finding.sentence)
    console.print(table)
    ill = [finding.what for finding in findings if not finding.well]
    if ill:
        raise WorkIncomplete(f"needs attention: {', '.join(ill)}")


def settings_table(groups: Iterable[BaseSettings]) -> Table:
    """Name, value and meaning of every setting; a secret shows only that it is set."""
    table = Table("setting", "value", "meaning")
    for group in groups:
        for name, field in type(group).model_fields.items():
            value = getattr(group, name)
            table.add_row(variable_of(type(group), name), _masked(value), field.description or "")
    return table


def _masked(value: object) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{name}={_masked(one)}" for name, one in value.items())
    return "(set)" if isinstance(value, SecretStr) else "" if value is None else str(value)


def examined(settings: Settings) -> Iterator[Finding]:
    """A finding for lrdb, its schema, Dagster's storage, Kafka and each bucket."""
    yield _tried("lrdb", lambda: _lrdb(settings))
    yield _tried("lrdb's schema", lambda: _schema(settings))
    yield _tried("Dagster's storage", lambda: _dagster_storage(settings))
    yield _tried("Kafka", lambda: _kafka(settings))
    try:
        with Lrdb(lrdb_url(settings), max_size=1) as lrdb, lrdb.connection() as conn:
            buckets = profiles.buckets(conn)
    except LakeError:
        return  # said above
    for bucket in buckets:
        yield _tried(f"bucket {bucket.bucket_name}", partial(_bucket, bucket))


def _tried(what: str, examine: Callable[[], str]) -> Finding:
    try:
        return Finding(what, well=True, sentence=examine())
    except LakeError as error:
        return Finding(what, well=False, sentence=str(error))


def _lrdb(settings: Settings) -> str:
    with Lrdb(lrdb_url(settings), max_size=1) as lrdb, lrdb.connection() as conn:
        row = conn.execute("SHOW server_version").fetchone()
    return f"PostgreSQL {row[0] if row else ''} answers"


def _schema(settings: Settings) -> str:
    pending = pending_migrations(lrdb_url(settings))
    if pending:
        raise ConfigurationError(f"{len(pending)} migrations are not applied: run `lakerunner lrdb migrate`")
    return "up to date"


def _dagster_storage(settings: Settings) -> str:
    if settings.dagster_database_url is None:
        raise ConfigurationError("LAKERUNNER_DAGSTER_DATABASE_URL is not set: run `lakerunner services up`, or set it")
    url = settings.dagster_database_url.get_secret_value()
    with (
        Lrdb(url.replace("postgresql+psycopg2:", "postgresql:", 1), max_size=1) as dagster,
        dagster.connection() as conn,
    ):
        conn.execute("SELECT 1")
    return "PostgreSQL answers"


def _kafka(settings: Settings) -> str:
    lake = open_lake(settings)
    try:
        cluster = lake.bus.cluster_id()
        lake.bus.ensure_topics()
    finally:
        lake.close()
    return f"cluster {cluster} answers, the topics are there"


def _bucket(bucket: BucketConfiguration) -> str:
    first = next(iter(Store.open(bucket).list("otel-raw")), None)
    return "can be listed" if first else "can be listed, and holds nothing under otel-raw/ yet"
