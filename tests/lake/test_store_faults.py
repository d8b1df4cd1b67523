"""What would break if a store's bad day were taken for ours, or our mistake for its: each cloud's own answers."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from types import MappingProxyType

import pytest

from lakerunner_dagster.lake import store as stores
from lakerunner_dagster.lake.errors import LakeError, ObjectMissing, StoreDenied, StoreUnavailable
from lakerunner_dagster.lake.store import Store
from tests.lake.clouds import CLOUD_CREDENTIALS, new_bucket
from tests.servers.aws import ACCOUNT, Aws
from tests.servers.faulty import Answer, Fault, FaultyProxy

CLOUDS = ("aws", "azure", "gcp")
RETRIES = 3
DATA = bytes(range(256)) * 4096
KEY = "db/x/tbl_1.parquet"


def error(code: str) -> str:
    """A refusal as S3, Azure and Google's XML API word it."""
    return f'<?xml version="1.0" encoding="UTF-8"?><Error><Code>{code}</Code><Message>no</Message></Error>'


PASSING = [
    Answer(500, error("InternalError")),
    Answer(503, error("ServiceUnavailable")),
    Answer(503, error("SlowDown")),
    Answer(429, error("TooManyRequests")),
    Fault.LOSE,
]

DENIED = [
    ("aws", Answer(400, error("ExpiredToken"))),
    ("aws", Answer(400, error("InvalidToken"))),
    ("aws", Answer(403, error("InvalidAccessKeyId"))),
    ("aws", Answer(403, error("SignatureDoesNotMatch"))),
    ("aws", Answer(403, error("RequestTimeTooSkewed"))),
    ("aws", Answer(403, error("AccessDenied"))),
    ("azure", Answer(403, error("AuthenticationFailed"))),
    ("azure", Answer(403, error("AuthorizationPermissionMismatch"))),
    ("azure", Answer(401, error("InvalidAuthenticationInfo"))),
    ("gcp", Answer(401, error("AuthenticationRequired"))),
    ("gcp", Answer(403, error("AccessDenied"))),
]


DENIED_IN_A_BATCH = [
    (
        "aws",
        Answer(
            200,
            f"<DeleteResult><Error><Key>{KEY}</Key><Code>AccessDenied</Code><Message>no</Message></Error></DeleteResult>",
        ),
    ),
    (
        "azure",
        Answer(
            202,
            "--b\r\nContent-Type: application/http\r\nContent-ID: 0\r\n\r\nHTTP/1.1 403 no\r\n"
            "x-ms-error-code: AuthorizationPermissionMismatch\r\nContent-Length: 0\r\n\r\n\r\n--b--\r\n",
            MappingProxyType({"Content-Type": "multipart/mixed; boundary=b"}),
        ),
    ),
]
"""How S3 and Azure refuse to delete one of several keys, in an answer that is good by its status."""


@pytest.fixture(params=CLOUDS)
def provider(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def proxy(
    provider: str, request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[FaultyProxy, Store]]:
    """A bucket with one object, reached through a proxy that is told what goes wrong."""
    for name, value in CLOUD_CREDENTIALS.items():
        monkeypatch.setenv(name, value)
    backoff = {"init_backoff": timedelta(milliseconds=1), "max_backoff": timedelta(milliseconds=5), "base": 2}
    monkeypatch.setattr(stores, "RETRY", stores.RETRY | {"max_retries": RETRIES, "backoff": backoff})
    monkeypatch.setattr(stores, "SILENCE", timedelta(seconds=1))
    bucket = new_bucket(provider, request, tmp_path)
    assert bucket.endpoint is not None
    between = FaultyProxy(bucket.endpoint)
    store = Store.open(replace(bucket, endpoint=between.endpoint))
    store.put(KEY, DATA)
    yield between, store
    between.close()


@pytest.mark.parametrize("fault", PASSING, ids=str)
def test_what_passes_is_tried_again(proxy: tuple[FaultyProxy, Store], fault: Answer | Fault) -> None:
    between, store = proxy
    between.script(fault, fault)
    assert store.read(KEY, len(DATA))[0] == DATA
    assert len(between.asked) == 3
    between.script(fault)
    assert [found.key for found in store.list("db")] == [KEY]
    between.script(fault)
    assert store.delete([KEY]) == {KEY: None}


@pytest.mark.parametrize("fault", PASSING, ids=str)
def test_what_does_not_pass_is_an_outage_after_a_bounded_number_of_requests(
    proxy: tuple[FaultyProxy, Store], fault: Answer | Fault, tmp_path: Path
) -> None:
    between, store = proxy
    between.always(fault)
    for use in (
        lambda: store.read(KEY, len(DATA)),
        lambda: store.download(KEY, tmp_path / "copy"),
        lambda: store.put("db/other", b"x"),
        lambda: list(store.list("db")),
        lambda: store.head(KEY),
    ):
        between.asked.clear()
        with pytest.raises(StoreUnavailable):
            use()
        assert 1 <= len(between.asked) <= RETRIES + 1
        (tmp_path / "copy").unlink(missing_ok=True)
    assert isinstance(store.delete([KEY])[KEY], StoreUnavailable)


def test_an_answer_that_breaks_off_is_never_taken_for_the_whole(
    proxy: tuple[FaultyProxy, Store], tmp_path: Path
) -> None:
    between, store = proxy
    between.script(Fault.HALF)
    assert store.read(KEY, len(DATA))[0] == DATA
    between.script(Fault.HALF)
    store.download(KEY, tmp_path / "copy")
    assert (tmp_path / "copy").read_bytes() == DATA
    between.always(Fault.HALF)
    with pytest.raises(StoreUnavailable):
        store.read(KEY, len(DATA))


def test_a_create_whose_answer_is_lost_has_created_it_once(proxy: tuple[FaultyProxy, Store]) -> None:
    between, store = proxy
    between.script(Fault.LOSE)
    assert store.create("db/new", DATA)
    assert store.read("db/new", len(DATA))[0] == DATA
    between.script(Fault.LOSE)
    assert not store.create(KEY, b"other rows")
    assert store.read(KEY, len(DATA))[0] == DATA


def test_a_store_that_says_nothing_is_away_and_not_waited_for(proxy: tuple[FaultyProxy, Store]) -> None:
    between, store = proxy
    between.always(Fault.HANG)
    with pytest.raises(StoreUnavailable):
        store.head(KEY)


@pytest.mark.parametrize(("provider", "refusal"), DENIED, ids=str)
def test_a_credential_that_is_refused_fails_at_once_with_what_to_do(
    proxy: tuple[FaultyProxy, Store], refusal: Answer, tmp_path: Path
) -> None:
    between, store = proxy
    between.always(refusal)
    for use in (
        lambda: store.read(KEY, len(DATA)),
        lambda: store.download(KEY, tmp_path / "copy"),
        lambda: store.put("db/other", b"x"),
        lambda: store.create("db/other", b"x"),
        lambda: list(store.list("db")),
    ):
        between.asked.clear()
        with pytest.raises(StoreDenied, match="credentials"):
            use()
        assert len(between.asked) == 1
        (tmp_path / "copy").unlink(missing_ok=True)
    assert isinstance(store.delete([KEY])[KEY], StoreDenied)


@pytest.mark.parametrize(("provider", "answer"), DENIED_IN_A_BATCH, ids=["aws", "azure"])
def test_a_delete_that_is_denied_for_one_key_is_a_denial(proxy: tuple[FaultyProxy, Store], answer: Answer) -> None:
    between, store = proxy
    between.always(answer)
    assert isinstance(store.delete([KEY])[KEY], StoreDenied)


def test_an_object_that_is_missing_is_asked_for_once(proxy: tuple[FaultyProxy, Store]) -> None:
    between, store = proxy
    between.script()
    with pytest.raises(ObjectMissing):
        store.read("db/none", 1)
    assert len(between.asked) == 1


def test_an_object_whose_name_is_a_refusal_is_just_missing(proxy: tuple[FaultyProxy, Store]) -> None:
    _, store = proxy
    for key in ("<Code>NoSuchBucket</Code>", "<Code>ExpiredToken</Code>", "status code: 403"):
        with pytest.raises(ObjectMissing):
            store.read(key, 1)


def test_without_credentials_nothing_is_asked_and_it_is_told(
    proxy: tuple[FaultyProxy, Store], provider: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    between, _ = proxy
    for name in CLOUD_CREDENTIALS:
        monkeypatch.delenv(name)
    bucket = stores.BucketConfiguration("b", provider, region="eu-central-1", endpoint=between.endpoint)
    between.script()
    with pytest.raises(LakeError) as told:
        Store.open(bucket).read("a", 1)
    assert "credentials" in str(told.value)
    assert between.asked == []


def test_a_role_is_assumed_and_what_it_may_is_done_in_its_name(
    aws: Aws, request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in CLOUD_CREDENTIALS.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("AWS_ENDPOINT_URL_STS", aws.endpoint)
    bucket = new_bucket("aws", request, tmp_path)
    between = FaultyProxy(aws.endpoint)
    try:
        role = f"arn:aws:iam::{ACCOUNT}:role/lake"
        store = Store.open(replace(bucket, endpoint=between.endpoint, role=role))
        store.put("a", b"x")
        assert store.read("a", 10)[0] == b"x"
        assert all(asked.headers["x-amz-security-token"] for asked in between.asked)
        own = CLOUD_CREDENTIALS["AWS_ACCESS_KEY_ID"]
        assert not any(f"Credential={own}/" in asked.headers["authorization"] for asked in between.asked)
    finally:
        between.close()
