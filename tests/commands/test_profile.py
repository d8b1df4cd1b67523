"""What would break if a person could not see, try out and remove a storage profile, or could remove one in use."""

from __future__ import annotations

import os
import uuid
from dataclasses import replace
from pathlib import Path

import pytest

from lakerunner_dagster.lake.notifications.routing import uninteresting
from lakerunner_dagster.lake.probe import PROBE_PREFIX, RIGHTS, probe
from lakerunner_dagster.lake.signals import Signal
from lakerunner_dagster.lake.store import Store
from tests.command_line import done, lakerunner, refused
from tests.lake.clouds import CLOUD_CREDENTIALS, PROVIDERS, new_bucket
from tests.lake.requests import logs
from tests.lake.world import BUCKET, NOON_MS, World
from tests.servers.faulty import Answer, Asked, Fault, FaultyProxy

STEPS = ["write", "describe", "read", "list", "delete"]


def test_a_profile_shows_whose_the_bucket_is_and_what_is_in_it(world: World) -> None:
    world.send(Signal.LOGS, "a", logs("a", [NOON_MS]))
    world.ingest(Signal.LOGS)
    done("profile", "map", BUCKET, "old/", "traces", "acme", "legacy")
    shown = " ".join(done("profile", "show", BUCKET).split())
    assert f"endpoint {world.place.bucket}" in shown
    assert "holds 1 raw objects and 1 published segments" in shown
    assert "home of acme/edge" in shown
    assert "maps old/… to traces of" in shown
    assert "no storage profile knows the bucket 'other'" in refused("profile", "show", "other")


def test_a_bucket_that_readers_need_is_not_removed(world: World) -> None:
    world.send(Signal.LOGS, "a", logs("a", [NOON_MS]))
    world.ingest(Signal.LOGS)
    assert "1 sources are at home in it, and 1 of its raw objects" in refused("profile", "remove", BUCKET)
    assert BUCKET in done("profile", "list")


def test_a_bucket_that_nothing_is_in_is_removed_with_its_mappings(world: World) -> None:
    done("profile", "add", "spare", "--provider", "file", "--endpoint", str(world.place.bucket))
    done("profile", "map", "spare", "old/", "logs", "acme", "edge")
    assert "untouched" in done("profile", "remove", "spare")
    assert "spare" not in done("profile", "list")
    assert world.query("SELECT count(*) FROM bucket_prefix_mappings") == [(0,)]
    assert "'spare'" in refused("profile", "remove", "spare")


def test_a_bucket_that_works_is_tried_out_and_left_as_it_was(world: World) -> None:
    said = done("profile", "test", BUCKET)
    assert [line.split()[:2] for line in said.splitlines()] == [["well", step] for step in STEPS]
    assert [path for path in world.place.bucket.rglob("*") if path.is_file()] == []


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere: the next test stands for this one")
def test_a_directory_that_may_not_be_written_says_so(world: World) -> None:
    world.place.bucket.chmod(0o500)
    assert "does not allow: write" in refused("profile", "test", BUCKET)


def test_a_directory_that_is_gone_is_told_with_what_to_do(world: World) -> None:
    world.place.bucket.rmdir()
    assert "create or mount it" in refused("profile", "test", BUCKET)


@pytest.mark.parametrize("provider", PROVIDERS)
def test_every_provider_is_tried_out_by_its_own_protocol(
    provider: str, request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in CLOUD_CREDENTIALS.items():
        monkeypatch.setenv(name, value)
    bucket = new_bucket(provider, request, tmp_path)
    store = Store.open(bucket)
    assert [(step.name, step.trouble) for step in probe(store, provider)] == [(step, None) for step in STEPS]
    assert list(store.list()) == []


def test_a_cloud_that_denies_us_is_told_with_the_right_that_is_missing(
    world: World, request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in CLOUD_CREDENTIALS.items():
        monkeypatch.setenv(name, value)
    bucket = new_bucket("azure", request, tmp_path)
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_KEY", "d3Jvbmc=")
    done("profile", "add", bucket.bucket_name, "--provider", "azure", "--endpoint", str(bucket.endpoint))
    ended = lakerunner("profile", "test", bucket.bucket_name)
    assert ended.code == 1
    assert "write, list" in ended.err
    assert ended.out.count("Storage Blob Data Contributor") == 2
    assert world.query("SELECT count(*) FROM bucket_configurations") == [(2,)]


@pytest.mark.parametrize("provider", ["aws", "azure", "gcp"])
def test_a_bucket_that_is_not_there_is_told_as_such_and_no_right_is_asked_for(
    provider: str, request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in CLOUD_CREDENTIALS.items():
        monkeypatch.setenv(name, value)
    gone = replace(new_bucket(provider, request, tmp_path), bucket_name="no-such-bucket")
    told = "bucket 'no-such-bucket' does not exist: create it, or correct the storage profile"
    assert [(step.name, step.trouble) for step in probe(Store.open(gone), provider)] == [
        ("write", told),
        ("list", told),
    ]


@pytest.mark.parametrize("denied", STEPS)
@pytest.mark.parametrize("provider", ["aws", "azure", "gcp"])
def test_each_right_that_is_missing_is_named_and_no_other(
    provider: str, denied: str, request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in CLOUD_CREDENTIALS.items():
        monkeypatch.setenv(name, value)
    bucket = new_bucket(provider, request, tmp_path)
    assert bucket.endpoint is not None
    proxy = Denying(bucket.endpoint, denied)
    try:
        steps = {
            step.name: step.trouble for step in probe(Store.open(replace(bucket, endpoint=proxy.endpoint)), provider)
        }
    finally:
        proxy.close()
    assert [name for name, trouble in steps.items() if trouble is not None] == [denied]
    assert str(steps[denied]).endswith(f"(needed: {RIGHTS[provider][denied]})")


class Denying(FaultyProxy):
    """A store that denies one kind of request."""

    def __init__(self, target: str, denied: str) -> None:
        super().__init__(target)
        self._denied = denied

    def next(self, asked: Asked) -> Answer | Fault:
        if "list-type" in asked.path or "comp=list" in asked.path:
            kind = "list"
        else:
            kinds = {"PUT": "write", "HEAD": "describe", "GET": "read", "DELETE": "delete", "POST": "delete"}
            kind = kinds[asked.method]
        return Answer(403, "<Error><Code>AccessDenied</Code></Error>") if kind == self._denied else Fault.PASS


def test_nothing_takes_a_probe_for_input_or_a_segment() -> None:
    assert uninteresting(f"{PROBE_PREFIX}/{uuid.uuid4()}") == "segment"
    assert {frozenset(rights) for rights in RIGHTS.values()} == {frozenset(STEPS)}
