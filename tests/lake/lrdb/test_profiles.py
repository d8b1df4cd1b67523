"""Storage profiles: who is who, and that a source has one number and one home."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from uuid import UUID, uuid4

import pytest

from lakerunner_dagster.lake.errors import ConfigurationError, InputError
from lakerunner_dagster.lake.lrdb import profiles
from lakerunner_dagster.lake.lrdb.connection import Lrdb
from lakerunner_dagster.lake.lrdb.profiles import PrefixMapping
from lakerunner_dagster.lake.model import Source
from lakerunner_dagster.lake.signals import Signal
from lakerunner_dagster.lake.store import BucketConfiguration
from tests.lake.lrdb.work import add_source


def register(lrdb: Lrdb, organization_id: UUID, collector: str, bucket: str = "lake", limit: int = 1000) -> Source:
    with lrdb.transaction() as conn:
        return profiles.register_source(conn, organization_id, collector, bucket, limit)


def test_a_source_is_found_by_each_of_its_names(lrdb: Lrdb, edge: Source) -> None:
    with lrdb.connection() as conn:
        assert profiles.source_of(conn, edge.organization_id, "edge") == edge
        assert profiles.source_of_instance(conn, edge.organization_id, edge.instance_num) == edge
        assert profiles.source_by_key(conn, "acme/edge") == edge
        assert profiles.sources(conn) == [edge]
        assert profiles.source_by_key(conn, "acme/core") is None
        assert profiles.source_of(conn, uuid4(), "edge") is None


def test_a_collector_seen_again_keeps_its_number(lrdb: Lrdb, edge: Source) -> None:
    core = add_source(lrdb, "acme", "core")
    assert add_source(lrdb, "acme", "edge") == edge
    assert {edge.instance_num, core.instance_num} == {1, 2}


def test_the_numbers_of_organizations_do_not_depend_on_each_other(lrdb: Lrdb, edge: Source) -> None:
    assert add_source(lrdb, "globex", "edge").instance_num == edge.instance_num == 1


def test_a_collector_that_writes_into_another_bucket_keeps_its_home(lrdb: Lrdb, edge: Source) -> None:
    assert add_source(lrdb, "acme", "edge", bucket="elsewhere") == edge


def test_collectors_registered_at_once_get_a_number_each(lrdb: Lrdb, edge: Source) -> None:
    names = [f"collector-{number % 6}" for number in range(18)]
    with ThreadPoolExecutor(9) as pool:
        made = list(pool.map(lambda name: register(lrdb, edge.organization_id, name), names))
    assert len({(source.collector, source.instance_num) for source in made}) == 6
    assert len({source.instance_num for source in made} | {edge.instance_num}) == 7


def test_hostile_keys_cannot_register_collectors_without_end(lrdb: Lrdb, edge: Source) -> None:
    register(lrdb, edge.organization_id, "second", limit=2)
    with pytest.raises(InputError, match="the most allowed") as refused:
        register(lrdb, edge.organization_id, "third", limit=2)
    assert refused.value.reason == "too_many_collectors"
    assert register(lrdb, edge.organization_id, "edge", limit=2) == edge


@pytest.mark.parametrize(
    "name", ["", ".", "..", "a/b", "a|b", "a...b", "-a", "é", "a b", "a\n", "a\0", "\ud800", "_", "x" * 65]
)
def test_a_collector_that_no_path_or_partition_key_could_hold_is_refused(lrdb: Lrdb, edge: Source, name: str) -> None:
    with pytest.raises(InputError) as refused:
        register(lrdb, edge.organization_id, name)
    assert refused.value.reason == "bad_collector_name"


def test_whatever_python_takes_for_a_collector_the_table_takes_too(lrdb: Lrdb, edge: Source) -> None:
    for name in ("A", "0", "a.b-c_d", "a..b", "x" * 64):
        assert register(lrdb, edge.organization_id, name).collector == name


def test_unknown_names_are_refused_by_their_reason(lrdb: Lrdb, edge: Source) -> None:
    for organization_id, bucket, reason in (
        (uuid4(), "lake", "unknown_organization"),
        (edge.organization_id, "nowhere", "unknown_bucket"),
        (edge.organization_id, "no\0where", "unknown_bucket"),
    ):
        with pytest.raises(InputError) as refused:
            register(lrdb, organization_id, "new", bucket)
        assert refused.value.reason == reason


def test_a_disabled_organization_takes_nothing_in(lrdb: Lrdb, edge: Source) -> None:
    with lrdb.connection() as conn:
        profiles.enable_organization(conn, edge.organization_id, enabled=False)
        assert [organization.enabled for organization in profiles.organizations(conn)] == [False]
    with pytest.raises(InputError, match="enable it") as refused:
        register(lrdb, edge.organization_id, "edge")
    assert refused.value.reason == "organization_disabled"


@pytest.mark.parametrize("name", ["", "Acme", "a/b", "a...b", "-a", "a-", "x" * 64, "a b", "acme"])
def test_an_organizations_name_is_a_slug_of_its_own(lrdb: Lrdb, edge: Source, name: str) -> None:
    assert edge.organization_name == "acme"
    with pytest.raises(ConfigurationError, match="choose another"), lrdb.connection() as conn:
        profiles.add_organization(conn, name)


def test_a_bucket_is_put_again_to_change_it(lrdb: Lrdb) -> None:
    first = BucketConfiguration("lake", "aws", "eu-west-1", "https://s3", "arn:role", use_path_style=True)
    second = BucketConfiguration("lake", "gcp")
    with lrdb.connection() as conn:
        for configuration in (first, second):
            profiles.put_bucket(conn, configuration)
            assert profiles.bucket_configuration(conn, "lake") == configuration
        assert profiles.buckets(conn) == [second]
        with pytest.raises(ConfigurationError, match="provider is aws"):
            profiles.put_bucket(conn, BucketConfiguration("lake", "ftp"))
        with pytest.raises(ConfigurationError, match="no storage profile"):
            profiles.bucket_configuration(conn, "nowhere")


def test_the_longest_prefix_comes_first_and_only_of_its_bucket(lrdb: Lrdb, edge: Source) -> None:
    def mapping(prefix: str, signal: Signal, collector: str) -> PrefixMapping:
        return PrefixMapping("lake", prefix, signal, edge.organization_id, collector)

    short = mapping("raw/", Signal.LOGS, "a")
    long = mapping("raw/eu_%/", Signal.LOGS, "b")
    traces = mapping("raw/", Signal.TRACES, "c")
    with lrdb.connection() as conn:
        for given in (short, long, traces, mapping("raw/", Signal.LOGS, "old"), short):
            profiles.put_prefix_mapping(conn, given)
        assert profiles.prefix_mappings(conn, "lake", "raw/eu_%/x") == [long, short, traces]
        assert profiles.prefix_mappings(conn, "lake", "raw/eu_x/x") == [short, traces]
        assert profiles.prefix_mappings(conn, "lake", "ra") == []
        assert profiles.prefix_mappings(conn, "other", "raw/x") == []
        assert profiles.prefix_mappings(conn, "lake", "raw/\0\ud800") == [short, traces]


def test_retention_of_a_tier_goes_before_that_of_its_signal(lrdb: Lrdb, edge: Source) -> None:
    organization_id = edge.organization_id
    with lrdb.connection() as conn:
        assert profiles.retention_days(conn, organization_id, Signal.METRICS, 60_000) == 0
        profiles.set_retention(conn, organization_id, Signal.METRICS, 30)
        profiles.set_retention(conn, organization_id, Signal.METRICS, 7, 10_000)
        profiles.set_retention(conn, organization_id, Signal.METRICS, 8, 10_000)
        assert profiles.retention_days(conn, organization_id, Signal.METRICS, 60_000) == 30
        assert profiles.retention_days(conn, organization_id, Signal.METRICS, 10_000) == 8
        assert profiles.retention_days(conn, organization_id, Signal.LOGS) == 0
