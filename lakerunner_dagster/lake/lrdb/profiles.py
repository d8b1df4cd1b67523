"""Storage profiles: organizations, their buckets and sources, prefix mappings and retention.

What belongs here: who may put what where. What does not: what is there (``intake``, ``segments``), and secrets, which
come from the environment.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING
from uuid import UUID, uuid4

from psycopg.errors import CheckViolation, ForeignKeyViolation, UniqueViolation
from psycopg.rows import args_row

from lakerunner_dagster.lake.errors import ConfigurationError, InputError, RequestRefused
from lakerunner_dagster.lake.lrdb import partitions
from lakerunner_dagster.lake.lrdb.connection import storable
from lakerunner_dagster.lake.model import Source, check_collector
from lakerunner_dagster.lake.signals import SIGNALS, Signal
from lakerunner_dagster.lake.store import BucketConfiguration

if TYPE_CHECKING:
    from lakerunner_dagster.lake.lrdb.connection import Conn


@dataclass(frozen=True, slots=True)
class Organization:
    """A tenant. ``name`` is a unique slug; nothing is taken in for one that is not ``enabled``."""

    organization_id: UUID
    name: str
    enabled: bool


@dataclass(frozen=True, slots=True)
class PrefixMapping:
    """Whose the keys below ``path_prefix`` are, where they do not say so themselves."""

    bucket: str
    path_prefix: str
    signal: Signal
    organization_id: UUID
    collector: str


def add_organization(conn: Conn, name: str, organization_id: UUID | None = None) -> Organization:
    """Register a tenant, under a new id unless one is given; ConfigurationError for a name that is taken or no slug."""
    chosen = organization_id or uuid4()
    try:
        conn.execute("INSERT INTO organizations (id, name) VALUES (%s, %s)", (chosen, name))
    except (CheckViolation, UniqueViolation) as error:
        raise ConfigurationError(
            f"organization {name!r} ({chosen}) cannot be added: its name or id is taken, or the name is no slug of "
            "lower case letters, digits and single - _ . between them, 63 at most: choose another"
        ) from error
    return Organization(chosen, name, enabled=True)


def enable_organization(conn: Conn, organization_id: UUID, *, enabled: bool) -> None:
    """Take in what comes for the tenant, or refuse it (it becomes dead letters); what is in already goes on."""
    conn.execute("UPDATE organizations SET enabled = %s WHERE id = %s", (enabled, organization_id))


def organizations(conn: Conn) -> list[Organization]:
    """Every tenant, by name."""
    with conn.cursor(row_factory=args_row(Organization)) as cursor:
        return cursor.execute("SELECT id, name, enabled FROM organizations ORDER BY name").fetchall()


def organization_named(conn: Conn, name: str) -> Organization | None:
    """The tenant of that name."""
    with conn.cursor(row_factory=args_row(Organization)) as cursor:
        return cursor.execute("SELECT id, name, enabled FROM organizations WHERE name = %s", (name,)).fetchone()


def put_bucket(conn: Conn, bucket: BucketConfiguration) -> None:
    """Register a bucket, or change how it is reached; ConfigurationError for a provider that there is not."""
    try:
        conn.execute(
            """
            INSERT INTO bucket_configurations (bucket_name, cloud_provider, region, endpoint, role, use_path_style)
            VALUES (%s, %s, %s, %s, %s, %s)
            ON CONFLICT (bucket_name) DO UPDATE SET
                cloud_provider = excluded.cloud_provider, region = excluded.region, endpoint = excluded.endpoint,
                role = excluded.role, use_path_style = excluded.use_path_style
            """,
            (
                bucket.bucket_name,
                bucket.cloud_provider,
                bucket.region,
                bucket.endpoint,
                bucket.role,
                bucket.use_path_style,
            ),
        )
    except CheckViolation as error:
        raise ConfigurationError(
            f"bucket {bucket.bucket_name!r} with provider {bucket.cloud_provider!r} cannot be kept: "
            "the provider is aws, gcp, azure or file, the name has 1 to 255 characters"
        ) from error


_BUCKETS = "SELECT bucket_name, cloud_provider, region, endpoint, role, use_path_style FROM bucket_configurations"


def buckets(conn: Conn) -> list[BucketConfiguration]:
    """Every bucket, by name."""
    with conn.cursor(row_factory=args_row(BucketConfiguration)) as cursor:
        return cursor.execute(f"{_BUCKETS} ORDER BY bucket_name").fetchall()


def bucket_configuration(conn: Conn, bucket: str) -> BucketConfiguration:
    """How a bucket is reached; ConfigurationError when no storage profile knows it."""
    with conn.cursor(row_factory=args_row(BucketConfiguration)) as cursor:
        found = cursor.execute(f"{_BUCKETS} WHERE bucket_name = %s", (bucket,)).fetchone()
    if found is None:
        raise ConfigurationError(
            f"no storage profile knows the bucket {bucket!r}: `lakerunner profile add` registers it"
        )
    return found


@dataclass(frozen=True, slots=True)
class BucketUse:
    """What a bucket is used for: sources that are at home in it, mappings of its prefixes, and what stands in it."""

    sources: tuple[Source, ...]
    mappings: tuple[PrefixMapping, ...]
    raw_objects: int
    segments: int


def bucket_use(conn: Conn, bucket: str) -> BucketUse:
    """What a bucket is used for. Best where each statement commits by itself: in one transaction it locks every day."""
    at_home = _at_home(conn, bucket)
    return BucketUse(
        sources=at_home,
        mappings=tuple(_mappings_of(conn, bucket)),
        raw_objects=_raw_objects(conn, bucket),
        segments=sum(_published(conn, source, signal) for source in at_home for signal in Signal),
    )


def _at_home(conn: Conn, bucket: str) -> tuple[Source, ...]:
    return tuple(source for source in sources(conn) if source.bucket == bucket)


def _raw_objects(conn: Conn, bucket: str) -> int:
    return _count(conn, "SELECT count(*) FROM raw_objects WHERE bucket = %s", bucket)


def _published(conn: Conn, source: Source, signal: Signal) -> int:
    """How many segments of a source readers see."""
    query = f"""
        SELECT count(*) FROM {SIGNALS[signal].segment_table}
        WHERE organization_id = %s AND dateint = ANY(%s) AND instance_num = %s AND published
    """  # noqa: S608  # the table is one of ours
    days = partitions.days(conn, signal, source.organization_id)
    return sum(
        _count(conn, query, source.organization_id, batch, source.instance_num) for batch in partitions.batches(days)
    )


def remove_bucket(conn: Conn, bucket: str) -> None:
    """Forget a bucket and its prefix mappings.

    RequestRefused while anything of it is known: raw objects or a source that is at home there.
    """
    bucket_configuration(conn, bucket)
    at_home, raw_objects = _at_home(conn, bucket), _raw_objects(conn, bucket)
    if at_home or raw_objects:
        raise RequestRefused(
            f"bucket {bucket!r} is in use: {len(at_home)} sources are at home in it, and {raw_objects:,} of its raw "
            "objects are known: it stays"
        )
    conn.execute("DELETE FROM bucket_prefix_mappings WHERE bucket = %s", (bucket,))
    try:
        conn.execute("DELETE FROM bucket_configurations WHERE bucket_name = %s", (bucket,))
    except ForeignKeyViolation as error:
        raise RequestRefused(f"bucket {bucket!r} has just become a source's home: it stays") from error


def _mappings_of(conn: Conn, bucket: str) -> list[PrefixMapping]:
    with conn.cursor(row_factory=args_row(_mapping)) as cursor:
        return cursor.execute(
            """
            SELECT bucket, path_prefix, signal, organization_id, collector_name FROM bucket_prefix_mappings
            WHERE bucket = %s ORDER BY path_prefix, signal
            """,
            (bucket,),
        ).fetchall()


def _count(conn: Conn, query: str, *parameters: object) -> int:
    row = conn.execute(query.encode(), parameters).fetchone()
    return int(row[0]) if row else 0


_SOURCES = """
    SELECT s.organization_id, o.name, s.collector_name, s.instance_num, s.bucket
    FROM organization_buckets s JOIN organizations o ON o.id = s.organization_id
"""


def sources(conn: Conn) -> list[Source]:
    """Every source of every organization, by key."""
    with conn.cursor(row_factory=args_row(Source)) as cursor:
        return cursor.execute(f"{_SOURCES} ORDER BY o.name, s.collector_name").fetchall()


def source_of(conn: Conn, organization_id: UUID, collector: str) -> Source | None:
    """The source of a collector of an organization."""
    with conn.cursor(row_factory=args_row(Source)) as cursor:
        return cursor.execute(
            f"{_SOURCES} WHERE s.organization_id = %s AND s.collector_name = %s", (organization_id, collector)
        ).fetchone()


def source_of_instance(conn: Conn, organization_id: UUID, instance_num: int) -> Source | None:
    """The source of a numbered collector of an organization."""
    with conn.cursor(row_factory=args_row(Source)) as cursor:
        return cursor.execute(
            f"{_SOURCES} WHERE s.organization_id = %s AND s.instance_num = %s", (organization_id, instance_num)
        ).fetchone()


def source_by_key(conn: Conn, key: str) -> Source | None:
    """The source of a partition key ``{organization name}/{collector}``."""
    organization, _, collector = key.partition("/")
    with conn.cursor(row_factory=args_row(Source)) as cursor:
        return cursor.execute(
            f"{_SOURCES} WHERE o.name = %s AND s.collector_name = %s", (organization, collector)
        ).fetchone()


def register_source(conn: Conn, organization_id: UUID, collector: str, bucket: str, limit: int) -> Source:
    """The source of a collector, with the next free number where it is new; ``limit`` bounds an organization's sources.

    The bucket where a collector is first seen is its home: its segments go there, whichever bucket its raw objects come
    from later. InputError: ``bad_collector_name``, ``unknown_bucket``, ``unknown_organization``,
    ``organization_disabled``, ``too_many_collectors``.
    """
    check_collector(collector)
    if not conn.execute("SELECT FROM bucket_configurations WHERE bucket_name = %s", (storable(bucket),)).fetchall():
        raise InputError("unknown_bucket", f"no storage profile knows the bucket {bucket[:300]!a}: add it first")
    row = conn.execute("SELECT enabled FROM organizations WHERE id = %s", (organization_id,)).fetchone()
    if row is None:
        raise InputError("unknown_organization", f"no organization has the id {organization_id}: add it first")
    if not row[0]:
        raise InputError("organization_disabled", f"organization {organization_id} is disabled: enable it first")
    source = source_of(conn, organization_id, collector)
    if source is None:
        _number_source(conn, organization_id, collector, bucket, limit)
        source = source_of(conn, organization_id, collector)
    if source is None:
        raise InputError(
            "too_many_collectors",
            f"organization {organization_id} has {limit} collectors, the most allowed: {collector!r} is not "
            "registered; raise LAKERUNNER_SOURCES_PER_ORGANIZATION if it is meant to be one",
        )
    return source


def _number_source(conn: Conn, organization_id: UUID, collector: str, bucket: str, limit: int) -> None:
    """Give a collector the next number, unless it has one or there are ``limit``."""
    with conn.transaction():
        # Whoever registers another collector of this organization waits here, so that no number is given twice.
        conn.execute("SELECT FROM organizations WHERE id = %s FOR NO KEY UPDATE", (organization_id,))
        conn.execute(
            """
            INSERT INTO organization_buckets (organization_id, bucket, instance_num, collector_name)
            SELECT %(organization)s, %(bucket)s, coalesce(max(instance_num), 0) + 1, %(collector)s
            FROM organization_buckets WHERE organization_id = %(organization)s
            HAVING count(*) < %(limit)s AND coalesce(bool_and(collector_name <> %(collector)s), true)
            """,
            {"organization": organization_id, "bucket": bucket, "collector": collector, "limit": limit},
        )


def put_prefix_mapping(conn: Conn, mapping: PrefixMapping) -> None:
    """Say whose a prefix is, instead of what was said of this bucket, prefix and signal before."""
    conn.execute(
        """
        INSERT INTO bucket_prefix_mappings (bucket, organization_id, path_prefix, signal, collector_name)
        VALUES (%s, %s, %s, %s, %s)
        ON CONFLICT (bucket, path_prefix, signal) DO UPDATE SET
            organization_id = excluded.organization_id, collector_name = excluded.collector_name
        """,
        (mapping.bucket, mapping.organization_id, mapping.path_prefix, mapping.signal, mapping.collector),
    )


def prefix_mappings(conn: Conn, bucket: str, key: str) -> list[PrefixMapping]:
    """The mappings whose prefix the key begins with, longest first (of equal length: one for each signal)."""
    with conn.cursor(row_factory=args_row(_mapping)) as cursor:
        return cursor.execute(
            """
            SELECT bucket, path_prefix, signal, organization_id, collector_name FROM bucket_prefix_mappings
            WHERE bucket = %s AND starts_with(%s, path_prefix) ORDER BY length(path_prefix) DESC, signal
            """,
            (storable(bucket), storable(key)),
        ).fetchall()


def prefixes_of(conn: Conn, source: Source, signal: Signal) -> list[str]:
    """The mapped prefixes of a source's home bucket under which there may be objects of it, in order."""
    rows = conn.execute(
        """
        SELECT path_prefix FROM bucket_prefix_mappings
        WHERE bucket = %s AND organization_id = %s AND collector_name = %s AND signal = %s ORDER BY path_prefix
        """,
        (source.bucket, source.organization_id, source.collector, str(signal)),
    )
    return [prefix for (prefix,) in rows]


def mapped_prefixes(conn: Conn, bucket: str) -> list[str]:
    """Every mapped prefix of a bucket, in order."""
    rows = conn.execute(
        "SELECT DISTINCT path_prefix FROM bucket_prefix_mappings WHERE bucket = %s ORDER BY path_prefix", (bucket,)
    )
    return [prefix for (prefix,) in rows]


def _mapping(bucket: str, path_prefix: str, signal: str, organization_id: UUID, collector: str) -> PrefixMapping:
    return PrefixMapping(bucket, path_prefix, Signal(signal), organization_id, collector)


def set_retention(conn: Conn, organization_id: UUID, signal: Signal, days: int, frequency_ms: int = 0) -> None:
    """Keep an organization's segments for so many days of event time; 0 keeps for ever.

    ``frequency_ms`` 0 is the rule of the signal, for metrics that of every tier without one of its own.
    """
    conn.execute(
        """
        INSERT INTO retentions (organization_id, signal, frequency_ms, days) VALUES (%s, %s, %s, %s)
        ON CONFLICT (organization_id, signal, frequency_ms) DO UPDATE SET days = excluded.days
        """,
        (organization_id, signal, frequency_ms, days),
    )


def retentions(conn: Conn, organization_id: UUID) -> list[tuple[Signal, int, int]]:
    """What was said of an organization: signal, ``frequency_ms`` (0: all of the signal without a rule) and days."""
    rows = conn.execute(
        "SELECT signal, frequency_ms, days FROM retentions WHERE organization_id = %s ORDER BY 1, 2", (organization_id,)
    )
    return [(Signal(signal), frequency_ms, days) for signal, frequency_ms, days in rows]


def retention_days(conn: Conn, organization_id: UUID, signal: Signal, frequency_ms: int = 0) -> int:
    """Days of event time that segments of this tier are kept; 0, also where nothing is said, keeps for ever."""
    row = conn.execute(
        """
        SELECT days FROM retentions
        WHERE organization_id = %s AND signal = %s AND frequency_ms IN (0, %s) ORDER BY frequency_ms DESC LIMIT 1
        """,
        (organization_id, signal, frequency_ms),
    ).fetchone()
    return row[0] if row else 0
