"""What would break if a body that is nearly right stopped an adapter, or an odd name what comes with it."""

from __future__ import annotations

import http.client
import json
import re
import signal
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from random import Random
from typing import Any
from urllib.parse import urlsplit

import pytest

from lakerunner_dagster.lake.errors import InputError
from lakerunner_dagster.lake.lrdb.dead_letters import count_waiting
from lakerunner_dagster.lake.lrdb.intake import LATEST_MS, Notification, upsert_raw_objects
from lakerunner_dagster.lake.notifications.events import BIGGEST_SIZE, ETAG_BYTES, ObjectEvent, Parsed, parse
from lakerunner_dagster.lake.notifications.http import HttpAdapter
from lakerunner_dagster.lake.signals import SIGNALS, Signal
from tests.lake.notifications import samples
from tests.lake.notifications.conftest import Lake
from tests.lake.notifications.mutating import mutated
from tests.lake.notifications.samples import ORGANIZATION
from tests.lake.notifications.test_http import serving

BODIES = 10_000
"""Of each format."""

TAKEN_IN = 150
"""Of each format, through lrdb and Kafka."""

POSTED = 60
"""Of each format, through HTTP."""

CONNECTIONS = 4

REASONS = {"not_json", "too_deep", "unknown_format", "incomplete_event"}

ATTRIBUTES: list[dict[str, str]] = [
    {},
    {"eventType": "OBJECT_FINALIZE"},
    {"eventType": "OBJECT_DELETE"},
    {"eventType": "\x00\ud800"},
    {"payloadFormat": "JSON_API_V1"},
]
"""What comes beside the body of a Pub/Sub message."""

PATIENCE_SECONDS = 120

SAMPLES = {
    name: json.dumps(document).replace("edge+eu 1", "edge").replace("edge%2Beu+1", "edge")
    for name, document in samples.FORMATS.items()
}
"""A body of each format, of a collector that may be registered."""


@contextmanager
def patience() -> Iterator[None]:
    """What hangs fails, where it hangs."""

    def end(*_: Any) -> None:
        raise AssertionError(f"nothing came of it within {PATIENCE_SECONDS} s")

    before = signal.signal(signal.SIGALRM, end)
    signal.alarm(PATIENCE_SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def bodies(name: str, count: int) -> Iterator[tuple[str, bytes]]:
    """Mutated bodies of a format, each with the seed that makes it again."""
    for number in range(count):
        seed = f"{name} {number}"
        yield seed, mutated(SAMPLES[name], seed)


def checked(seed: str, body: bytes) -> Parsed | InputError:
    """What the parser makes of a body: nothing but what an adapter can go on with."""
    try:
        return _parsed(body, Random(seed).choice(ATTRIBUTES))
    except BaseException as error:
        raise AssertionError(f"seed {seed!r} ({error!r}): {body!r}") from error


def _parsed(body: bytes, attributes: dict[str, str]) -> Parsed | InputError:
    try:
        parsed = parse(body, attributes)
    except InputError as error:
        if error.reason not in REASONS:
            raise
        return error
    for event in parsed.objects:
        check_event(event)
    return parsed


def check_event(event: ObjectEvent) -> None:
    assert isinstance(event.bucket, str)
    assert isinstance(event.key, str)
    assert event.bucket
    assert event.key
    assert type(event.size) is int
    assert 0 <= event.size <= BIGGEST_SIZE
    assert event.etag.isascii()
    assert len(event.etag) <= ETAG_BYTES
    assert type(event.event_time_ms) is int
    assert 0 <= event.event_time_ms <= LATEST_MS


def ending(found: Parsed | InputError) -> str:
    if isinstance(found, InputError):
        return found.reason
    if found.handshake is not None:
        return "handshake"
    return "object" if found.objects else "ignored"


@pytest.mark.parametrize("name", sorted(SAMPLES))
def test_no_body_does_more_than_be_refused(name: str) -> None:
    with patience():
        endings = Counter(ending(checked(seed, body)) for seed, body in bodies(name, BODIES))
    assert endings.total() == BODIES
    assert endings["not_json"], "no body was spoiled"
    assert endings["object"] + endings["ignored"] + endings["handshake"], "no body was left whole"
    assert len(endings) > 2, "the changes change nothing"


def readable(lake: Lake, produced: int) -> list[Notification]:
    """The notifications in Kafka, as the boxer reads them."""
    bodies = lake.bodies(SIGNALS[Signal.LOGS].notification_topic, produced)
    return [Notification.from_body(Signal.LOGS, body) for body in bodies]


def test_what_parses_has_an_end_whatever_it_names(lake: Lake) -> None:
    found = [(seed, checked(seed, body)) for name in SAMPLES for seed, body in bodies(name, TAKEN_IN)]
    said = [(seed, parsed.entries) for seed, parsed in found if isinstance(parsed, Parsed) and parsed.entries]
    with patience():
        reports = lake.intake.accept_each([objects for _, objects in said], "http")
    for (seed, objects), report in zip(said, reports, strict=True):
        assert report.produced + report.dead.total() + report.ignored.total() == len(objects), seed
    produced = sum(report.produced for report in reports)
    assert produced > TAKEN_IN, "hardly anything is left of the bodies"
    notifications = readable(lake, produced)
    assert len(notifications) == produced
    with lake.lrdb.transaction() as conn:
        upserted = upsert_raw_objects(conn, notifications)
    assert (upserted.new + upserted.duplicates, upserted.unknown) == (produced, ())


ODD = (
    *("\x00", "a\x00b", "\ud800", "\udcff", "a\ud83d", "..", "../..", ".", "a/../b", "%00", "%2F..", "%", "x" * 2048),
    *(
        "ü" * 1024,
        "\u202e",
        "\ufeff",
        "\x7f",
        "\n",
        "\\",
        "'; DROP TABLE raw_objects; --",
        "{}",
        "a//b",
        "😀",
        " ",
        "a ?#&",
    ),
)


def odd_documents() -> Iterator[Any]:
    """Every format with every odd text in its key, as its collector, as its whole key, and as its bucket."""
    for odd in ODD:
        place = f"otel-raw/{ORGANIZATION}"
        for key in (f"{place}/edge/logs/{odd}", f"{place}/{odd}/logs/1", odd, f"{place}/edge/{odd}"):
            yield samples.s3_event(samples.s3_record(key))
            yield samples.collector_notice(key)
            yield samples.event_bridge(key)
            yield samples.gcs(key)
            yield samples.event_grid(key)
            yield samples.cloud_event(key)
        record = samples.s3_record(f"{place}/edge/logs/1")
        record["s3"]["bucket"]["name"] = odd
        yield samples.s3_event(record)
        yield samples.gcs(f"{place}/edge/logs/1", bucket=odd, md5Hash=odd, size=odd, timeCreated=odd)


def test_odd_names_end_as_produced_ignored_or_a_dead_letter(lake: Lake) -> None:
    documents = [json.dumps(document).encode() for document in odd_documents()]
    said = [parse(body) for body in documents]
    with patience():
        reports = lake.intake.accept_each([parsed.entries for parsed in said], "http")
    for body, parsed, report in zip(documents, said, reports, strict=True):
        ends = report.produced + report.dead.total() + report.ignored.total() + parsed.ignored.total()
        assert ends == 1, body
    produced = sum(report.produced for report in reports)
    assert produced
    assert len(readable(lake, produced)) == produced
    with lake.lrdb.connection() as conn:
        assert 0 < sum(count_waiting(conn).values()) <= sum(report.dead.total() for report in reports)


def posted(adapter: HttpAdapter, share: list[tuple[str, bytes]]) -> list[tuple[int, Any]]:
    """The answers to bodies posted over one connection."""
    client = http.client.HTTPConnection(urlsplit(adapter.url).netloc, timeout=PATIENCE_SECONDS)
    answers = []
    client.connect()
    kept = client.sock
    for seed, body in share:
        client.request("POST", "/", body=body)
        response = client.getresponse()
        content = response.read()
        assert response.status in (200, 400), f"seed {seed!r} was answered {response.status} {content!r}: {body!r}"
        answers.append((response.status, json.loads(content)))
        assert client.sock is kept, f"seed {seed!r} closed the connection: {body!r}"
    client.close()
    return answers


def told(body: bytes, status: int, answer: Any) -> Counter[tuple[str, str]]:
    """What an answer says that the counters must say, too."""
    if status == 400:
        return Counter({("received", ""): 1, ("failed", answer["error"]): 1})
    ignored = parse(body).ignored if "validationResponse" in answer else answer["ignored"]
    reasons = [*((("ignored", reason), n) for reason, n in ignored.items())]
    reasons += [(("dead_letters", reason), n) for reason, n in answer.get("dead_letters", {}).items()]
    return Counter({("received", ""): 1, ("produced", ""): answer.get("produced", 0), **dict(reasons)})


COUNTER = re.compile(
    r'^lakerunner_notifications_(\w+)_total\{adapter="http"(?:,reason="(\w+)")?\} ([1-9]\d*)$', re.MULTILINE
)


def test_every_body_posted_is_answered_and_counted(lake: Lake) -> None:
    made = [body for name in sorted(SAMPLES) for body in bodies(name, POSTED)]
    shares = [made[start::CONNECTIONS] for start in range(CONNECTIONS)]
    with serving(lake.intake, lake.settings) as adapter:
        with ThreadPoolExecutor(CONNECTIONS) as pool:
            answers = list(pool.map(lambda share: posted(adapter, share), shares))
        counted = {(name, reason): int(number) for name, reason, number in COUNTER.findall(adapter.metrics.render())}
    assert [len(share) for share in answers] == [len(share) for share in shares]
    pairs = [
        pair for share, answered in zip(shares, answers, strict=True) for pair in zip(share, answered, strict=True)
    ]
    expected = sum((told(body, status, answer) for (_, body), (status, answer) in pairs), Counter[tuple[str, str]]())
    assert counted == expected
    assert len(lake.bodies(SIGNALS[Signal.LOGS].notification_topic, counted["produced", ""])) == counted["produced", ""]
