"""What would break if an event were misread: the wrong object, a lost one, or a body that stops the adapter."""

from __future__ import annotations

import json
import random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lakerunner_dagster.lake.errors import InputError
from lakerunner_dagster.lake.notifications.events import SHOWN_CHARACTERS, ObjectEvent, Parsed, parse
from tests.lake.notifications import samples
from tests.lake.notifications.samples import BUCKET, ETAG, KEY, SIZE, TIME_MS


def parsed(document: Any, attributes: dict[str, str] | None = None) -> Parsed:
    return parse(json.dumps(document).encode(), attributes)


def refusal(body: bytes) -> str:
    with pytest.raises(InputError) as caught:
        parse(body)
    return caught.value.reason


WITH_OBJECT = sorted(set(samples.FORMATS) - {"s3_test", "s3_test_in_sns", "validation"})


@pytest.mark.parametrize("name", WITH_OBJECT)
def test_every_format_names_the_same_object(name: str) -> None:
    etag = "" if name == "collector" else ETAG
    result = parsed(samples.FORMATS[name])
    assert result.objects == (ObjectEvent(BUCKET, KEY, SIZE, etag, TIME_MS),)
    assert not result.ignored
    assert result.handshake is None


@pytest.mark.parametrize(
    ("escaped", "key"),
    [
        ("a+b", "a b"),
        ("a%2Bb", "a+b"),
        ("a%2525", "a%25"),
        ("a%20b%2Fc", "a b/c"),
        ("%C3%BC", "ü"),
        ("100%", "100%"),
        ("%22%27%60", "\"'`"),
        ("..%2F..%2Fetc", "../../etc"),
        ("a%00b", "a\x00b"),
        ("a%FFb", "a\udcffb"),
    ],
)
def test_keys_of_s3_events_are_form_decoded_once(escaped: str, key: str) -> None:
    event = samples.s3_event()
    event["Records"][0]["s3"]["object"]["key"] = escaped
    assert [found.key for found in parsed(event).objects] == [key]


@pytest.mark.parametrize("key", ["a+b c", "100%41", "%2F", "ü/日本", "a%00b"])
@pytest.mark.parametrize("build", [samples.event_bridge, samples.gcs, samples.event_grid, samples.cloud_event])
def test_keys_of_other_formats_are_taken_as_they_are(build: Any, key: str) -> None:
    assert [found.key for found in parsed(build(key)).objects] == [key]


@pytest.mark.parametrize(
    ("document", "attributes", "reason"),
    [
        (samples.s3_event(samples.s3_record(eventName="ObjectRemoved:Delete")), {}, "not_created"),
        (samples.s3_event(samples.s3_record(eventName="ObjectRestore:Post")), {}, "not_created"),
        (samples.s3_event(samples.s3_record("otel-raw/folder/")), {}, "directory"),
        (samples.s3_event(samples.s3_record("db/x/tbl_1.parquet")), {}, "segment"),
        ({"Records": []}, {}, "empty"),
        (samples.s3_test_event(), {}, "test_event"),
        (samples.sns(samples.s3_test_event()), {}, "test_event"),
        ({"Type": "SubscriptionConfirmation", "SubscribeURL": "http://169.254.169.254/"}, {}, "subscription"),
        (samples.event_bridge(**{"detail-type": "Object Deleted"}), {}, "not_created"),
        (samples.event_bridge("db/x"), {}, "segment"),
        (samples.gcs(), {"eventType": "OBJECT_DELETE"}, "not_created"),
        (samples.gcs(), {"eventType": "OBJECT_METADATA_UPDATE"}, "not_created"),
        (samples.gcs(timeDeleted=samples.TIME), {}, "not_created"),
        (samples.gcs("folder/"), {"eventType": "OBJECT_FINALIZE"}, "directory"),
        (samples.event_grid(eventType="Microsoft.Storage.BlobDeleted"), {}, "not_created"),
        (samples.cloud_event(type="Microsoft.Storage.BlobRenamed"), {}, "not_created"),
        (samples.event_grid(eventType="Microsoft.Storage.DirectoryCreated"), {}, "not_created"),
        (samples.event_grid(data={"api": "CreateFile", "contentLength": 0}), {}, "not_finished"),
        (samples.cloud_event(data={"api": "SftpCreate"}), {}, "not_finished"),
        (samples.cloud_event("db/x"), {}, "segment"),
    ],
)
def test_what_is_none_of_ours_is_counted_not_produced(document: Any, attributes: dict[str, str], reason: str) -> None:
    result = parsed(document, attributes)
    assert result.objects == ()
    assert dict(result.ignored) == {reason: 1}


def test_a_body_of_several_events_keeps_each_and_its_order() -> None:
    keys = ["b/1", "a/2", "db/3", "c/"]
    result = parsed(samples.s3_event(*(samples.s3_record(key) for key in keys)))
    assert [found.key for found in result.objects] == ["b/1", "a/2"]
    assert dict(result.ignored) == {"segment": 1, "directory": 1}
    grid = parsed([samples.event_grid("b/1"), samples.cloud_event("a/2"), samples.validation("code")])
    assert [found.key for found in grid.objects] == ["b/1", "a/2"]
    assert grid.handshake == "code"


def test_the_handshake_is_told_apart_from_news() -> None:
    for document in (samples.validation("code"), [samples.validation("code")]):
        result = parsed(document)
        assert (result.objects, dict(result.ignored), result.handshake) == ((), {}, "code")


@pytest.mark.parametrize(
    ("size", "bytes_"),
    [
        (12, 12),
        ("12", 12),
        (None, 0),
        ("many", 0),
        (-1, 0),
        (1.5, 0),
        (True, 0),
        ([], 0),
        (2**62 + 1, 0),
        (10**400, 0),
        ("9" * 5000, 0),
        ("٣", 0),
        (2**62, 2**62),
    ],
)
def test_a_size_that_is_none_is_unknown(size: Any, bytes_: int) -> None:
    event = samples.event_bridge()
    event["detail"]["object"]["size"] = size
    assert [found.size for found in parsed(event).objects] == [bytes_]


@pytest.mark.parametrize(
    ("etag", "normal"),
    [('"abc"', "abc"), ('W/"abc"', "abc"), (None, ""), (7, ""), ("x" * 257, ""), ("a\x00", ""), ("ü", ""), ("", "")],
)
def test_an_etag_that_is_none_is_unknown(etag: Any, normal: str) -> None:
    event = samples.event_bridge()
    event["detail"]["object"]["etag"] = etag
    assert [found.etag for found in parsed(event).objects] == [normal]


def test_the_etag_of_a_composite_gcs_object_is_unknown_not_the_json_api_s() -> None:
    event = samples.gcs()
    del event["md5Hash"]
    assert [found.etag for found in parsed(event).objects] == [""]
    assert [found.etag for found in parsed(samples.gcs(md5Hash="&&")).objects] == [""]


@pytest.mark.parametrize(
    ("time", "ms"),
    [
        ("1970-01-01T00:00:00.000Z", 0),
        ("2026-04-24T21:37:59.125+02:00", TIME_MS),
        ("2026-04-24T19:37:59.1259999Z", TIME_MS),
        ("2026-04-24T19:37:59.125", TIME_MS),
        ("1969-01-01T00:00:00Z", 0),
        ("0001-01-01T00:00:00+23:59", 0),
        ("9999-12-31T23:59:59-23:59", 0),  # a time to Python, and none that a notification may carry
        ("yesterday", 0),
        ("2" * 10_000, 0),
        (1777059479, 0),
        (None, 0),
    ],
)
def test_a_time_that_is_none_is_unknown(time: Any, ms: int) -> None:
    assert [found.event_time_ms for found in parsed(samples.event_bridge(time=time)).objects] == [ms]


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b"", "not_json"),
        (b"hello", "not_json"),
        (b"\xff\xfe{}", "not_json"),
        (b"\x00" * 10, "not_json"),
        (b'{"Records": NaN}', "not_json"),
        (b'{"kind": "storage#object", "name": "a\x00b", "bucket": "b"}', "not_json"),
        (b'{"size": ' + b"9" * 5000 + b"}", "not_json"),
        (b"[" * 100_000 + b"]" * 100_000, "too_deep"),
        (b'{"Records":' * 100_000 + b"1" + b"}" * 100_000, "too_deep"),
        (json.dumps(samples.sns("[" * 100_000)).encode(), "too_deep"),
        (json.dumps(samples.sns("hello")).encode(), "not_json"),
        (json.dumps(samples.sns("\ud800")).encode(), "not_json"),
        (json.dumps(samples.sns(samples.sns(samples.s3_event()))).encode(), "unknown_format"),
        (b"{}", "unknown_format"),
        (b"[]", "unknown_format"),
        (b"null", "unknown_format"),
        (b'"Records"', "unknown_format"),
        (b"17", "unknown_format"),
        (b'{"Records": {}}', "unknown_format"),
        (b'[{"Records": []}]', "unknown_format"),
        (b'{"eventType": "PageViewed"}', "unknown_format"),
        (b'{"source": "aws.s3", "detail-type": 1}', "unknown_format"),
        (b'{"Records": [1]}', "incomplete_event"),
        (b'{"Records": [{"eventName": "ObjectCreated:Put"}]}', "incomplete_event"),
        (b'{"Records": [{"eventName": 7}]}', "incomplete_event"),
        (b'{"Records": [{"s3": {"bucket": {"name": ""}, "object": {"key": "k"}}}]}', "incomplete_event"),
        (b'{"Records": [{"s3": {"bucket": {"name": "b"}, "object": {"key": 1}}}]}', "incomplete_event"),
        (b'{"detail-type": "Object Created", "detail": []}', "incomplete_event"),
        (b'{"kind": "storage#object"}', "incomplete_event"),
        (b'{"eventType": "Microsoft.Storage.BlobCreated", "subject": "/blobs/x"}', "incomplete_event"),
        (b'{"eventType": "Microsoft.EventGrid.SubscriptionValidationEvent", "data": {}}', "incomplete_event"),
    ],
)
def test_what_is_no_event_is_refused_with_the_reason(body: bytes, reason: str) -> None:
    assert refusal(body) == reason


@pytest.mark.parametrize(
    ("document", "reason"),
    [
        ({"Records": [samples.s3_record(), {"eventName": "ObjectCreated:Put"}, 7]}, "incomplete_event"),
        (samples.sns({"Records": [7, samples.s3_record(), {"s3": 1}]}), "incomplete_event"),
        ([samples.event_grid(), samples.event_grid(subject="/"), {"eventType": "PageViewed"}], "incomplete_event"),
        ([{"eventType": "PageViewed"}, samples.cloud_event(), 1], "unknown_format"),
    ],
)
def test_what_cannot_be_read_in_a_body_takes_nothing_else_with_it(document: Any, reason: str) -> None:
    result = parsed(document)
    assert [found.key for found in result.objects] == [KEY]
    assert result.unreadable is not None
    assert result.unreadable.error.reason == reason
    assert str(result.unreadable.error).startswith("2 of the events in a body cannot be read: ")
    assert len(json.loads(result.unreadable.text)) == 2
    assert result.entries == (*result.objects, result.unreadable)


@pytest.mark.parametrize(
    "api", ["PutBlob", "PutBlockList", "CopyBlob", "FlushWithClose", "SftpCommit", "New", ["x"], None]
)
def test_a_blob_that_is_finished_by_whatever_call_is_an_object(api: Any) -> None:
    event = samples.event_grid(data={"api": api, "contentLength": SIZE, "eTag": ETAG})
    assert parsed(event).objects == (ObjectEvent(BUCKET, KEY, SIZE, ETAG, TIME_MS),)


def test_of_many_events_that_cannot_be_read_little_is_kept() -> None:
    result = parsed({"Records": [samples.s3_record("db/x"), *(["x" * 9000] * 40)]})
    assert result.ignored == {"segment": 1}
    assert result.unreadable is not None
    assert len(result.unreadable.text) == SHOWN_CHARACTERS
    deep = json.dumps({"Records": [samples.s3_record(), "DEEP"]}).replace('"DEEP"', "[" * 900 + "]" * 900)
    survives(deep.encode())


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20) | st.just("s3:TestEvent"),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=10), inner, max_size=3),
    max_leaves=8,
)


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Every place in a document, as the way to it."""
    children = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(place for name, child in children for place in places(child, (*path, name)))]


def replaced(value: Any, path: tuple[Any, ...], new: Any) -> Any:
    if not path:
        return new
    copy = dict(value) if isinstance(value, dict) else list(value)
    copy[path[0]] = replaced(copy[path[0]], path[1:], new)
    return copy


@pytest.mark.parametrize("name", sorted(samples.FORMATS))
@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_a_field_of_any_other_kind_is_an_event_or_a_refusal(name: str, data: st.DataObject) -> None:
    document = samples.FORMATS[name]
    for _ in range(data.draw(st.integers(1, 3))):
        path = data.draw(st.sampled_from(places(document)))
        document = replaced(document, path, data.draw(JSON_VALUES))
    survives(json.dumps(document).encode())


@pytest.mark.parametrize("name", sorted(samples.FORMATS))
def test_a_body_with_bytes_changed_is_an_event_or_a_refusal(name: str) -> None:
    body = json.dumps(samples.FORMATS[name], ensure_ascii=False).encode()
    chance = random.Random(name)
    for _ in range(800):
        mutated = bytearray(body)
        for _ in range(chance.randint(1, 4)):
            at = chance.randrange(len(mutated))
            match chance.randrange(4):
                case 0:
                    mutated[at] = chance.randrange(256)
                case 1:
                    del mutated[at : at + chance.randint(1, 40)]
                case 2:
                    mutated[at:at] = chance.randbytes(3)
                case _:
                    mutated[at:at] = mutated[at : at + chance.randint(1, 100)]
        survives(bytes(mutated))


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=200))
def test_any_bytes_are_an_event_or_a_refusal(body: bytes) -> None:
    survives(body)


def outcome(body: bytes) -> Parsed | InputError:
    try:
        return parse(body)
    except InputError as error:
        return error


def survives(body: bytes) -> None:
    result = outcome(body)
    if isinstance(result, InputError):
        assert result.reason in {"not_json", "too_deep", "unknown_format", "incomplete_event"}
        assert len(str(result)) < 500
        return
    if result.unreadable is not None:
        assert len(result.unreadable.text) <= SHOWN_CHARACTERS
    for found in result.objects:
        assert found.bucket
        assert found.key
        assert 0 <= found.size <= 2**62
        assert 0 <= found.event_time_ms < 2**53
        assert found.etag.isascii()


def test_a_validation_code_that_cannot_be_sent_back_is_refused() -> None:
    assert refusal(json.dumps([samples.validation("512d\udcff")]).encode()) == "incomplete_event"
