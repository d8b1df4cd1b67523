"""What would break if a cloud's store were not what the lake takes it for: every kind, against its real protocol."""

from __future__ import annotations

import gzip
import random
from pathlib import Path

import obstore
import pytest

from lakerunner_dagster.lake.errors import InputError, ObjectMissing, StoreDenied
from lakerunner_dagster.lake.store import CHUNK_BYTES, BucketConfiguration, Store
from tests.lake.clouds import CLOUD_CREDENTIALS, PROVIDERS, new_bucket
from tests.lake.test_store import ODD_KEYS
from tests.servers.gcs_front import LARGE

SEGMENT = "db/6b0dbc7c-2a6b-4a0e-9f5f-0d9b6c0f7a11/edge/20260203/logs/10/tbl_1.parquet"


@pytest.fixture(params=PROVIDERS)
def bucket(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> BucketConfiguration:
    for name, value in CLOUD_CREDENTIALS.items():
        monkeypatch.setenv(name, value)
    return new_bucket(request.param, request, tmp_path)


@pytest.fixture
def store(bucket: BucketConfiguration) -> Store:
    return Store.open(bucket)


def test_odd_keys_stay_what_they_are(store: Store, bucket: BucketConfiguration) -> None:
    # azurite takes a backslash for a slash.
    keys = [key for key in ODD_KEYS if "\\" not in key or bucket.cloud_provider != "azure"]
    for key in keys:
        store.put(key, key.encode())
    assert [found.key for found in store.list()] == sorted(keys, key=str.encode)
    for key in keys:
        data, described = store.read(key, 1000)
        assert (data, described.key, described.size) == (key.encode(), key, len(key.encode()))
    assert store.delete(keys) == dict.fromkeys(keys)
    assert list(store.list()) == []


def test_an_object_is_called_alike_by_everybody_who_tells_of_it(store: Store) -> None:
    store.put("otel-raw/a", b"x" * 10_000)
    (listed,) = store.list("otel-raw")
    _, read = store.read("otel-raw/a", 10_000)
    assert store.head("otel-raw/a") == read
    assert read.etag
    if not store.local:
        assert listed == read


def test_another_content_has_another_etag(store: Store) -> None:
    store.put("a", b"one")
    first = store.head("a").etag
    store.put("a", b"two")
    assert store.head("a").etag != first


def test_what_is_created_is_never_replaced(store: Store) -> None:
    assert store.create(SEGMENT, b"rows")
    assert store.create(SEGMENT, b"rows"), "the first answer may have been lost"
    assert not store.create(SEGMENT, b"rome")
    assert not store.create(SEGMENT, b"other rows")
    assert store.read(SEGMENT, 100)[0] == b"rows"


def test_a_listing_of_several_pages_is_in_order_and_goes_on_where_it_was_left(store: Store) -> None:
    keys = [f"otel-raw/{number % 7}/{number:04d}" for number in range(1100 if store.local else 230)]
    for key in keys:
        store.put(key, b"x")
    store.put("otel-rawer", b"x")
    listed = [found.key for found in store.list("otel-raw")]
    assert listed == sorted(keys)
    half = listed[len(listed) // 2]
    assert [found.key for found in store.list("otel-raw", after=half)] == [key for key in listed if key > half]
    assert [found.key for found in store.list("otel-raw", after="otel-raw/3")] == [
        key for key in listed if key > "otel-raw/3"
    ]
    assert [found.key for found in store.list(after="otel-raw/6/9")] == ["otel-rawer"]


def test_large_objects_come_in_pieces_with_every_byte(store: Store, tmp_path: Path) -> None:
    data = bytes(number % 251 for number in range(1000)) * (2 * CHUNK_BYTES // 1000 + 1)
    store.put("db/large", data)
    store.download("db/large", tmp_path / "copy")
    assert (tmp_path / "copy").read_bytes() == data
    assert store.read("db/large", len(data))[0] == data


def test_what_is_stored_as_gzip_encoded_is_read_as_stored(store: Store, tmp_path: Path) -> None:
    if store.local:
        pytest.skip("a file has no Content-Encoding")
    data = gzip.compress(b"hello " * 1000)
    obstore.put(store._store, "otel-raw/a", data, attributes={"Content-Encoding": "gzip"}, use_multipart=False)
    (listed,) = store.list("otel-raw")
    assert store.read("otel-raw/a", len(data)) == (data, listed)
    assert store.head("otel-raw/a") == listed
    assert listed.size == len(data)
    store.download("otel-raw/a", tmp_path / "copy")
    assert (tmp_path / "copy").read_bytes() == data


def test_what_is_given_without_its_size_is_an_error_of_its_own_and_no_outage(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in CLOUD_CREDENTIALS.items():
        monkeypatch.setenv(name, value)
    store = Store.open(new_bucket("gcp", request, tmp_path))
    data = gzip.compress(random.Random(20260203).randbytes(LARGE))
    obstore.put(store._store, "otel-raw/a", data, attributes={"Content-Encoding": "gzip"}, use_multipart=False)
    with pytest.raises(InputError, match="a Content-Encoding: take that"):
        store.read("otel-raw/a", len(data))


def test_more_than_allowed_is_not_read(store: Store) -> None:
    store.put("a", b"x" * 1000)
    with pytest.raises(InputError, match="has 1000 bytes"):
        store.read("a", 999)


def test_a_missing_object_is_missing(store: Store, tmp_path: Path) -> None:
    for use in (
        lambda: store.read("none", 10),
        lambda: store.head("none"),
        lambda: store.download("none", tmp_path / "c"),
    ):
        with pytest.raises(ObjectMissing):
            use()


def test_deletes_tell_for_each_key_whether_it_is_gone(store: Store) -> None:
    store.put("a", b"x")
    store.put("b", b"x")
    outcome = store.delete(["a", "never-was", "../out"])
    assert (outcome["a"], outcome["never-was"]) == (None, None)
    assert isinstance(outcome["../out"], InputError)
    assert [found.key for found in store.list()] == ["b"]


def test_a_missing_bucket_is_no_missing_object(bucket: BucketConfiguration) -> None:
    if bucket.cloud_provider == "file":
        pytest.skip("a directory that is not there is an outage: it may be mounted again")
    other = Store.open(
        BucketConfiguration(
            "no-such-bucket", bucket.cloud_provider, bucket.region, bucket.endpoint, use_path_style=True
        )
    )
    for use in (lambda: other.read("a", 10), lambda: other.put("a", b"x"), lambda: list(other.list())):
        with pytest.raises(StoreDenied, match="no-such-bucket"):
            use()
    assert isinstance(other.delete(["a"])["a"], StoreDenied)
