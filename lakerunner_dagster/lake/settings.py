"""Every setting, typed, documented and bounded in one place: environment variables ``LAKERUNNER_*`` or a ``.env``.

What belongs here: names, types, defaults and what they mean (``docs/configuration.md`` and
``lakerunner doctor`` are made from these descriptions). What does not: how a setting is used.
"""

from __future__ import annotations

import os
from datetime import date
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, Literal, Self, cast

from pydantic import Field, SecretStr, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict, SettingsError

from lakerunner_dagster.lake.errors import ConfigurationError

MiB = 1024 * 1024

MOST_LOOK_BACK_HOURS = 168
"""So many hours later than a late row, at most, a rollup can depend on it."""


def variable_of(group: type[BaseSettings], name: str) -> str:
    """The environment variable of a setting."""
    alias = group.model_fields[name].validation_alias
    return alias if isinstance(alias, str) else f"{group.model_config.get('env_prefix', '')}{name}".upper()


def meaning_of(group: type[BaseSettings], name: str) -> str:
    """What a setting means, and its bounds where they are not plain from that."""
    field = group.model_fields[name]
    description = field.description or ""
    words = {"ge": "at least", "le": "at most"}  # of a value that must be positive or not negative no word is made
    bounds = [f"{words[on]} {getattr(one, on)}" for one in field.metadata for on in words if getattr(one, on, None)]
    return f"{description.removesuffix('.')}; {', '.join(bounds)}." if bounds else description


class _Group(BaseSettings):
    """Some settings; ConfigurationError, naming the variables, where what is set cannot be used."""

    def __init__(self, **values: Any) -> None:  # noqa: ANN401  # as pydantic has it
        try:
            super().__init__(**values)
        except (ValidationError, SettingsError) as error:
            # Neither the value nor the error is passed on: either may hold a secret.
            raise ConfigurationError(
                f"{_unusable(type(self), error)}; docs/configuration.md tells what each setting may be"
            ) from None

    @classmethod
    def current(cls) -> Self:
        """What is set now; read again only where the environment or ``.env`` has changed, for reading takes ms."""
        return cast("Self", _read(cls, frozenset(os.environ.items()), _dotenv()))


@lru_cache(maxsize=64)
def _read(group: type[_Group], _environment: frozenset[tuple[str, str]], _file: tuple[object, ...]) -> _Group:
    return group()


def _dotenv() -> tuple[object, ...]:
    """Which ``.env`` counts, and what tells that it has changed; it is replaced as a whole by who writes it here."""
    path = Path(".env").absolute()
    try:
        found = path.stat()
    except FileNotFoundError:
        return (path,)
    return (path, found.st_ino, found.st_mtime_ns, found.st_size)


def _unusable(group: type[BaseSettings], error: ValidationError | SettingsError) -> str:
    """Which variables cannot be used, and why."""
    if isinstance(error, ValidationError):
        places = [(str(one["loc"][0]), one["msg"]) for one in error.errors(include_input=False)]
        return "; ".join(
            f"{variable_of(group, name) if name in group.model_fields else name}: {why}" for name, why in places
        )
    unread = [variable_of(group, name) for name in group.model_fields if f'"{name}"' in str(error)]
    return f"{', '.join(unread)}: cannot be read as JSON"


class Limits(_Group):
    """Bounds on hostile input. What passes one is refused with the reason, never cut short."""

    model_config = SettingsConfigDict(env_prefix="LAKERUNNER_LIMIT_", env_file=".env", extra="ignore", frozen=True)

    object_bytes: Annotated[int, Field(gt=0, description="Largest raw object, in stored bytes.")] = 512 * MiB
    decompressed_bytes: Annotated[int, Field(gt=0, description="Largest raw object once decompressed, in bytes.")] = (
        1024 * MiB
    )
    decompression_ratio: Annotated[
        int,
        Field(gt=0, description="Highest ratio of decompressed to stored bytes, above 1 MiB decompressed."),
    ] = 500
    attributes: Annotated[int, Field(gt=0, description="Most attributes on one record, its resource or its scope.")] = (
        4096
    )
    value_bytes: Annotated[int, Field(gt=0, description="Largest attribute value or log body, in bytes.")] = MiB
    columns: Annotated[int, Field(gt=0, description="Most attribute columns in a segment; the rarest overflow.")] = 250
    ahead_ms: Annotated[int, Field(ge=0, description="How far ahead of now an event time may be, in ms.")] = 3_600_000
    first_date: Annotated[
        date,
        Field(
            validation_alias="LAKERUNNER_FIRST_DATE",
            description="First day of the lake: earlier event times are rejected, and partitions begin here.",
        ),
    ] = date(2025, 1, 1)


class BoxPolicy(_Group):
    """When a gathering box is closed: whichever bound is reached first."""

    model_config = SettingsConfigDict(env_prefix="LAKERUNNER_BOX_", env_file=".env", extra="ignore", frozen=True)

    bytes: Annotated[
        int, Field(gt=0, description="Decompressed bytes that fill a box (estimated by learned ratios).")
    ] = 64 * MiB
    count: Annotated[int, Field(gt=0, le=4000, description="Objects that fill a box.")] = 1000
    age_seconds: Annotated[float, Field(ge=0, description="Longest wait of a box's first object, in seconds.")] = 20.0
    window_seconds: Annotated[int, Field(gt=0, description="Event-time window that a box never spans, in seconds.")] = (
        3600
    )


class CompactionPolicy(_Group):
    """When small segments are merged, and into what (``planning/compaction.py`` has the rules)."""

    model_config = SettingsConfigDict(env_prefix="LAKERUNNER_COMPACTION_", env_file=".env", extra="ignore", frozen=True)

    target_bytes: Annotated[
        int, Field(gt=0, description="Size that merged segments are filled up to, in bytes of Parquet.")
    ] = 128 * MiB
    fanout: Annotated[
        int,
        Field(ge=2, description="Segments of about one size that a hot hour gathers before they are merged."),
    ] = 8
    cold_seconds: Annotated[
        float, Field(ge=0, description="How long after its end an hour is cold: merged to its final files, then left.")
    ] = 600.0
    settle_seconds: Annotated[
        float, Field(ge=0, description="How long a cold hour must have got no new segment before it is merged.")
    ] = 600.0
    gather_seconds: Annotated[
        float, Field(ge=0, description="How long a hot hour is left between two looks for segments to merge.")
    ] = 300.0


class RollupPolicy(_Group):
    """How long changes gather before a tier is computed from them, and how far back it looks."""

    model_config = SettingsConfigDict(env_prefix="LAKERUNNER_ROLLUP_", env_file=".env", extra="ignore", frozen=True)

    gather_1m_seconds: Annotated[
        float, Field(ge=0, description="How long changes of a slot of the 1 min tier gather before it is computed.")
    ] = 90.0
    gather_5m_seconds: Annotated[
        float, Field(ge=0, description="How long changes of a slot of the 5 min tier gather before it is computed.")
    ] = 200.0
    gather_20m_seconds: Annotated[
        float, Field(ge=0, description="How long changes of a slot of the 20 min tier gather before it is computed.")
    ] = 300.0
    gather_1h_seconds: Annotated[
        float, Field(ge=0, description="How long changes of a slot of the 1 h tier gather before it is computed.")
    ] = 300.0
    look_back_hours: Annotated[
        float,
        Field(
            gt=0,
            le=MOST_LOOK_BACK_HOURS,
            description="How far before a slot the last value of a cumulative series is looked for. After a longer gap "
            "its increment is not known, and none is made up.",
        ),
    ] = 24.0

    def gather_seconds(self, label: str) -> float:
        """The wait of the tier of this label."""
        return float(getattr(self, f"gather_{label}_seconds"))


class MaintenancePolicy(_Group):
    """When the maintenance of the lake acts: on what was missed, replaced, left over or lost."""

    model_config = SettingsConfigDict(
        env_prefix="LAKERUNNER_MAINTENANCE_", env_file=".env", extra="ignore", frozen=True
    )

    look_back_hours: Annotated[
        float,
        Field(gt=0, description="How far back reconciliation looks for raw objects that nobody told of, in hours."),
    ] = 48.0
    settle_seconds: Annotated[
        float, Field(ge=0, description="How old a raw object must be: the news of a younger one may be on its way.")
    ] = 300.0
    overdue_seconds: Annotated[
        float,
        Field(ge=0, description="How long a box may wait for a run before its message is sent again, in seconds."),
    ] = 900.0
    grace_seconds: Annotated[
        float, Field(ge=0, description="How long a superseded segment stays for readers that know it, in seconds.")
    ] = 3600.0
    orphan_hours: Annotated[
        float, Field(gt=0, description="How old a segment's object that no row knows must be to be deleted, in hours.")
    ] = 24.0
    deletions_days: Annotated[
        float, Field(gt=0, description="How long a deletion is remembered: longer than any run lasts, in days.")
    ] = 7.0
    fault_retry_seconds: Annotated[
        float, Field(gt=0, description="Wait before a segment that cannot be read is tried again; doubles each time.")
    ] = 3600.0


class HistoryPolicy(_Group):
    """What Dagster's own storage keeps. The status of partitions, and what it stands on, is kept for ever."""

    model_config = SettingsConfigDict(env_prefix="LAKERUNNER_HISTORY_", env_file=".env", extra="ignore", frozen=True)

    logs_days: Annotated[
        float,
        Field(
            gt=0,
            description="How long the log of a run stays that has ended: its lines and steps, and what it wrote to "
            "stdout and stderr, in days.",
        ),
    ] = 7.0
    runs_days: Annotated[
        float,
        Field(
            gt=0,
            description="How long a run stays that has ended, and the events of assets that newer ones supersede, "
            "in days.",
        ),
    ] = 14.0
    events_kept: Annotated[
        int,
        Field(gt=0, description="Newest materialisations of each partition that stay for ever, with their runs."),
    ] = 1
    backfills_days: Annotated[float, Field(gt=0, description="How long a backfill stays that has ended, in days.")] = (
        30.0
    )


class Settings(_Group):
    """All settings but the groups above. With nothing set, everything is embedded under ``home``."""

    model_config = SettingsConfigDict(env_prefix="LAKERUNNER_", env_file=".env", extra="ignore", frozen=True)

    home: Annotated[Path, Field(description="Directory of the embedded services and the local bucket.")] = Path(
        ".lakerunner"
    )
    database_url: Annotated[
        SecretStr | None,
        Field(description="PostgreSQL URL of lrdb (postgresql://…); unset: the embedded server."),
    ] = None
    dagster_database_url: Annotated[
        SecretStr | None,
        Field(description="PostgreSQL URL of Dagster's own storage (postgresql+psycopg2://…)."),
    ] = None
    dagster_connections: Annotated[
        int, Field(gt=0, description="Connections to Dagster's own storage that each of its processes keeps.")
    ] = 2
    kafka_bootstrap_servers: Annotated[
        str | None, Field(description="Kafka's bootstrap servers, host:port,…; unset: the embedded cluster.")
    ] = None
    kafka_options: Annotated[
        dict[str, SecretStr],
        Field(description="JSON object of librdkafka settings passed through (security.protocol, sasl.*, ssl.*)."),
    ] = {}
    kafka_topic_prefix: Annotated[str, Field(description="Prefix of every topic.")] = "lakerunner."
    kafka_partitions: Annotated[int, Field(gt=0, description="Partitions of a topic that we create.")] = 16
    kafka_replication: Annotated[int, Field(gt=0, description="Replicas of a topic that we create.")] = 3
    kafka_retention_hours: Annotated[int, Field(gt=0, description="Retention of a topic that we create, in hours.")] = (
        168
    )

    http_host: Annotated[str, Field(description="Address the HTTP adapter listens on.")] = "127.0.0.1"
    http_port: Annotated[int, Field(ge=0, le=65535, description="Port of the HTTP adapter; 0 takes a free one.")] = 8081
    http_token: Annotated[
        SecretStr | None,
        Field(description="Bearer token that the HTTP adapter demands; needed off loopback."),
    ] = None
    http_body_bytes: Annotated[int, Field(gt=0, description="Largest notification body, in bytes.")] = MiB
    directory_poll_seconds: Annotated[
        float, Field(gt=0, description="How often the directory adapter lists its bucket.")
    ] = 1.0
    directory_settle_seconds: Annotated[
        float, Field(ge=0, description="How long a file must stay unchanged before it is notified.")
    ] = 1.0
    queue_receivers: Annotated[
        int, Field(gt=0, le=8, description="Threads of a queue's adapter, each with messages of its own in hand.")
    ] = 2
    queue_batch: Annotated[
        int, Field(gt=0, le=1000, description="Most messages of a queue that one thread has in hand at once.")
    ] = 100
    queue_wait_seconds: Annotated[
        int,
        Field(gt=0, le=20, description="How long a request to an empty queue waits for a message; so long an end may."),
    ] = 10
    queue_lease_seconds: Annotated[
        int,
        Field(
            gt=0,
            le=600,
            description="How long a queue keeps a message for an adapter that gives no sign of life, in seconds; with "
            "Pub/Sub 10 at the least.",
        ),
    ] = 60
    queue_poison_deliveries: Annotated[
        int,
        Field(
            gt=0,
            description="Deliveries after which what cannot be understood moves to Azure's queue of the same name with "
            "-poison.",
        ),
    ] = 5
    monitor_host: Annotated[
        str, Field(description="Address of /healthz, /readyz and /metrics of the adapters that have no HTTP otherwise.")
    ] = "127.0.0.1"
    monitor_port: Annotated[int, Field(ge=0, le=65535, description="Port of these; 0 takes a free one.")] = 0
    monitor_stall_seconds: Annotated[
        float, Field(gt=0, description="How long an adapter's loop may take for a turn before /healthz says so.")
    ] = 120.0
    log_format: Annotated[
        Literal["text", "json"], Field(description="Lines that the adapters log: text, or a JSON object each (json).")
    ] = "text"
    sources_per_organization: Annotated[
        int, Field(gt=0, le=32767, description="Most collectors that an organization's keys may register.")
    ] = 1000

    lease_seconds: Annotated[float, Field(gt=0, description="How long a claim lives without a heartbeat.")] = 60.0
    box_attempts: Annotated[int, Field(gt=0, description="Claims of a box before it is failed.")] = 10
    retry_backoff_seconds: Annotated[
        float, Field(ge=0, description="Wait after a first failed attempt; doubles each time.")
    ] = 10.0
    drain_seconds: Annotated[
        float,
        Field(
            gt=0,
            description="How long a dispatched run goes on taking further boxes of its partition, for each of its "
            "assets, in seconds.",
        ),
    ] = 60.0
    tick_seconds: Annotated[float, Field(gt=0, le=50, description="Longest time a sensor's tick polls and plans.")] = (
        15.0
    )
    listen_seconds: Annotated[
        float, Field(ge=0, le=50, description="How long a tick goes on listening though nothing comes, in seconds.")
    ] = 0.0
    sensor_interval_seconds: Annotated[
        int,
        Field(
            gt=0,
            description="Shortest time between two ticks of a sensor of ingest, in seconds; of the others six times as "
            "long.",
        ),
    ] = 5
    active_runs: Annotated[
        int,
        Field(
            gt=0,
            description="Runs of one stage (a signal's ingest or compaction, or rollup) that its dispatcher may have "
            "queued or running.",
        ),
    ] = 4
    freshness_seconds: Annotated[
        float, Field(gt=0, description="Longest wait of a raw object before the freshness check fails, in seconds.")
    ] = 300.0
