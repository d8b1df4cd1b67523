"""``lakerunner doctor``: every setting, and whether what it names can be reached.

What belongs here: the checks and what to do when one fails. What does not: the settings (``lake.settings``).
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import psycopg
from pydantic import SecretStr
from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from lakerunner_dagster.commands.session import console, reachable_url, require_schema, say, shown
from lakerunner_dagster.lake.errors import (
    ConfigurationError,
    LakeDatabaseUnavailable,
    LakeError,
    StoreDenied,
    WorkIncomplete,
)
from lakerunner_dagster.lake.lrdb import partitions, profiles
from lakerunner_dagster.lake.lrdb.connection import Lrdb
from lakerunner_dagster.lake.probe import probe
from lakerunner_dagster.lake.runs.context import lrdb_url, open_bus
from lakerunner_dagster.lake.settings import (
    BoxPolicy,
    CompactionPolicy,
    HistoryPolicy,
    Limits,
    MaintenancePolicy,
    RollupPolicy,
    Settings,
    meaning_of,
    variable_of,
)
from lakerunner_dagster.lake.store import BucketConfiguration, Store

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from pydantic_settings import BaseSettings

    from lakerunner_dagster.lake.lrdb.connection import Conn

SERVERS = ("database_url", "dagster_database_url", "kafka_bootstrap_servers")
"""The settings that name what must be there."""

CLOCK_SECONDS = 5.0
"""How far apart two clocks may be before a person hears of it."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was tried: how it went, in a sentence; ``well`` when nothing is to be done."""

    what: str
    well: bool
    sentence: str


def doctor() -> None:
    """Show every setting with its value, and try each connection and bucket; topics that Kafka lacks are created."""
    settings = Settings()
    console.print(
        settings_table(
            [settings, BoxPolicy(), CompactionPolicy(), RollupPolicy(), MaintenancePolicy(), HistoryPolicy(), Limits()]
        )
    )
    if all(getattr(settings, name) is None for name in SERVERS):
        raise ConfigurationError(
            "no services are configured: `lakerunner services up` starts embedded ones and writes .env; to use your "
            f"own, set {', '.join(variable_of(Settings, name) for name in SERVERS)}"
        )
    ill = []
    for finding in examined(settings):
        say((" well " if finding.well else " ill  ", "green" if finding.well else "bold red"), _line(finding))
        if not finding.well:
            ill.append(finding.what)
    if ill:
        raise WorkIncomplete(f"needs attention: {', '.join(ill)}")


def settings_table(groups: Iterable[BaseSettings]) -> Table:
    """Name, value and meaning of every setting; what is set is bold, a secret shows only that it is set."""
    table = Table("setting", "value", "meaning", box=SIMPLE_HEAD, pad_edge=False)
    for group in groups:
        for name in type(group).model_fields:
            value = shown(_masked(getattr(group, name)))
            value.stylize("bold" if name in group.model_fields_set else "")
            table.add_row(Text(variable_of(type(group), name)), value, Text(meaning_of(type(group), name)))
    return table


def _masked(value: object) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{name}={_masked(one)}" for name, one in value.items())
    return "(set)" if isinstance(value, SecretStr) else "" if value is None else str(value)


def _line(finding: Finding) -> str:
    return f"{finding.what}: {' '.join(finding.sentence.split())}"


def examined(settings: Settings) -> Iterator[Finding]:
    """A finding for lrdb, its clock and its lock table, Dagster's storage, Kafka and each bucket."""
    yield _tried("lrdb", lambda: _lrdb(settings))
    yield _tried("Dagster's storage", lambda: _dagster_storage(settings))
    yield _tried("Kafka", lambda: _kafka(settings))
    try:
        with Lrdb(require_schema(settings), max_size=1) as lrdb, lrdb.connection() as conn:
            buckets = profiles.buckets(conn)
            yield _tried("clock", partial(_clock, conn))
            yield _tried("lock table", partial(_lock_table, conn))
    except LakeError:
        return  # said above
    if not buckets:
        yield Finding("buckets", well=False, sentence="none is registered: `lakerunner profile add NAME --provider …`")
    for bucket in buckets:
        yield _tried(f"bucket {bucket.bucket_name}", partial(_bucket, bucket))


def _tried(what: str, examine: Callable[[], str]) -> Finding:
    try:
        return Finding(what, well=True, sentence=examine())
    except LakeError as error:
        return Finding(what, well=False, sentence=str(error))


def _lrdb(settings: Settings) -> str:
    server = _server(lrdb_url(settings), "LAKERUNNER_DATABASE_URL")
    require_schema(settings)
    return f"{server}, with the schema of this version"


def _dagster_storage(settings: Settings) -> str:
    if settings.dagster_database_url is None:
        raise ConfigurationError(
            "LAKERUNNER_DAGSTER_DATABASE_URL is not set: run `lakerunner services up`, which writes it into .env, "
            "or name a database of your own server"
        )
    url = settings.dagster_database_url.get_secret_value().replace("postgresql+psycopg2:", "postgresql:", 1)
    return _server(url, "LAKERUNNER_DAGSTER_DATABASE_URL")


def _server(url: str, variable: str) -> str:
    try:
        with psycopg.connect(reachable_url(url), application_name="lakerunner-doctor") as conn:
            row = conn.execute("SHOW server_version").fetchone()
            place = f"{conn.info.host}:{conn.info.port}/{conn.info.dbname}"
    except psycopg.OperationalError as error:
        raise LakeDatabaseUnavailable(f"{error}; start PostgreSQL, or correct {variable}") from error
    return f"PostgreSQL {row[0] if row else ''} answers at {place}"


def _kafka(settings: Settings) -> str:
    bus = open_bus(settings)
    try:
        cluster = bus.cluster_id()
        bus.ensure_topics()
    finally:
        bus.close()
    return f"cluster {cluster} answers at {settings.kafka_bootstrap_servers}, every topic is there"


def _clock(conn: psycopg.Connection[tuple[float, ...]]) -> str:
    """What is waiting is dated by PostgreSQL, what is notified by this machine."""
    row = conn.execute("SELECT extract(epoch FROM clock_timestamp())::float").fetchone()
    ahead = time.time() - (row[0] if row else 0.0)
    if abs(ahead) > CLOCK_SECONDS:
        raise ConfigurationError(
            f"this machine's clock is {abs(ahead):,.0f} s {'ahead of' if ahead > 0 else 'behind'} PostgreSQL's: "
            "set the wrong one, and keep both with NTP"
        )
    return "this machine's clock agrees with PostgreSQL's"


def _lock_table(conn: Conn) -> str:
    """PostgreSQL's room for locks is fixed when it starts, and what looks at every day locks every leaf."""
    room = partitions.lock_room(conn)
    have = f"PostgreSQL has room for {room.per_transaction * room.connections:,} locks"
    need = f"looking at every day (`lakerunner lrdb check`, a migration) takes {room.needed:,} of them"
    if not room.enough:
        raise ConfigurationError(
            f"{have}, and {need}: set max_locks_per_transaction to {room.advised} or more (it is "
            f"{room.per_transaction}) and restart PostgreSQL, before work fails with 'out of shared memory'"
        )
    return f"{have}; {need}"


def _bucket(bucket: BucketConfiguration) -> str:
    store = Store.open(bucket)
    ill = {step.name: step.trouble for step in probe(store, bucket.cloud_provider) if step.trouble is not None}
    if ill:
        raise StoreDenied(f"cannot be used: {'; '.join(f'{name}: {trouble}' for name, trouble in ill.items())}")
    first = next(iter(store.list("otel-raw")), None)
    can = "can be written, read, listed and deleted from"
    return can if first else f"{can}, and holds nothing under otel-raw/ yet"
