"""What would break if the HTTP adapter said yes too early, no without a reason, or let anybody in."""

from __future__ import annotations

import http.client
import json
import socket
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

import pytest
from pydantic import SecretStr

from lakerunner_dagster.lake.bus import Bus
from lakerunner_dagster.lake.errors import ConfigurationError
from lakerunner_dagster.lake.lrdb import connection, dead_letters
from lakerunner_dagster.lake.notifications import http as module
from lakerunner_dagster.lake.notifications import intake as intake_module
from lakerunner_dagster.lake.notifications.http import HttpAdapter
from lakerunner_dagster.lake.notifications.intake import Intake
from lakerunner_dagster.lake.notifications.replay import replay, waiting
from lakerunner_dagster.lake.settings import Settings
from tests.lake.notifications import samples
from tests.lake.notifications.conftest import Lake

NOBODY = "127.0.0.1:9"
Answer = tuple[int, dict[str, str], Any]


@contextmanager
def serving(intake: Intake, settings: Settings) -> Iterator[HttpAdapter]:
    adapter = HttpAdapter(intake, settings)
    thread = threading.Thread(target=adapter.run)
    thread.start()
    try:
        yield adapter
    finally:
        adapter.stop()
        thread.join(30)
        assert not thread.is_alive()


@pytest.fixture
def adapter(lake: Lake) -> Iterator[HttpAdapter]:
    with serving(lake.intake, lake.settings) as adapter:
        yield adapter


def request(
    adapter: HttpAdapter, method: str, path: str, body: bytes | Iterator[bytes] = b"", **headers: str
) -> Answer:
    client = http.client.HTTPConnection(urlsplit(adapter.url).netloc, timeout=30)
    try:
        names = {name.replace("_", "-"): value for name, value in headers.items()}
        client.request(method, path, body=body, headers=names, encode_chunked=not isinstance(body, bytes))
        response = client.getresponse()
        content = response.read()
    finally:
        client.close()
    answered = {name.lower(): value for name, value in response.getheaders()}
    return (
        response.status,
        answered,
        json.loads(content) if "json" in answered.get("content-type", "") else content.decode(),
    )


def post(adapter: HttpAdapter, document: Any, **headers: str) -> Answer:
    return request(adapter, "POST", "/", json.dumps(document).encode(), **headers)


FORMATS: list[tuple[str, Callable[[str], Any]]] = [
    ("s3", lambda key: samples.s3_event(samples.s3_record(key))),
    ("sns", lambda key: samples.sns(samples.s3_event(samples.s3_record(key)))),
    ("event_bridge", samples.event_bridge),
    ("gcs", samples.gcs),
    ("event_grid", lambda key: [samples.event_grid(key)]),
    ("cloud_event", samples.cloud_event),
    ("collector", samples.collector_notice),
]


def test_every_format_is_in_kafka_when_it_is_answered(lake: Lake, adapter: HttpAdapter) -> None:
    keys = [lake.key(f"a+b {name}%41/ü/logs_1.gz") for name, _ in FORMATS]
    for (_, build), key in zip(FORMATS, keys, strict=True):
        status, _, answer = post(adapter, build(key))
        assert (status, answer) == (200, {"produced": 1, "dead_letters": {}, "ignored": {}})
    bodies = lake.bodies("objstore.ingest.logs", len(keys))
    assert sorted(body["k"] for body in bodies) == sorted(keys)
    assert {body["a"] for body in bodies} == {"http"}
    assert adapter.metrics.value("produced") == len(keys)


def test_what_is_passed_over_or_dead_is_acknowledged_and_counted(lake: Lake, adapter: HttpAdapter) -> None:
    records = [samples.s3_record(key) for key in ("db/x", "x/", "backup/x", lake.key())]
    status, _, answer = post(adapter, samples.s3_event(*records))
    assert status == 200
    assert answer == {"produced": 1, "dead_letters": {"no_route": 1}, "ignored": {"segment": 1, "directory": 1}}
    assert post(adapter, samples.s3_test_event())[2]["ignored"] == {"test_event": 1}
    assert adapter.metrics.value("ignored", "segment") == 1
    assert adapter.metrics.value("dead_letters", "no_route") == 1
    assert len(lake.messages("deadletter", 1)) == 1


def test_good_events_beside_bad_ones_are_taken_and_the_bad_ones_kept(lake: Lake, adapter: HttpAdapter) -> None:
    notice = {"Records": [samples.s3_record(lake.key()), {"s3": {"bucket": {"name": "b"}}}, 7]}
    for times in (1, 2):
        status, _, answer = post(adapter, notice)
        assert (status, answer) == (200, {"produced": 1, "dead_letters": {"incomplete_event": 1}, "ignored": {}})
        assert adapter.metrics.value("dead_letters", "incomplete_event") == times
    assert {body["k"] for body in lake.bodies("objstore.ingest.logs", 2)} == {lake.key()}
    with lake.lrdb.connection() as conn:
        [letter] = dead_letters.waiting(conn, 10)
    assert (letter.reason, letter.times) == ("incomplete_event", 2)
    assert json.loads(letter.body["text"]) == notice["Records"][1:]
    assert len(lake.messages("deadletter", 2)) == 2
    [batch] = waiting(lake.lrdb)
    assert replay(lake.lrdb, lake.bus, lake.settings, [batch]).stay == {"incomplete_event": 1}


def test_what_is_no_event_is_400_with_the_reason(adapter: HttpAdapter, caplog: pytest.LogCaptureFixture) -> None:
    refused = {
        b'{"hello": "world"}': "unknown_format",
        b"not json": "not_json",
        b"": "not_json",
        b"\x00\xff": "not_json",
        b"[" * 200_000: "too_deep",
        b'{"Records": [{"s3": {}}]}': "incomplete_event",
    }
    for body, reason in refused.items():
        status, _, answer = request(adapter, "POST", "/", body)
        assert (status, answer["error"]) == (400, reason)
        assert adapter.metrics.value("failed", reason) > 0
        assert ascii(body[:200]) in caplog.text
    assert "[" * 201 not in caplog.text


def test_a_body_of_2_mb_is_413_told_to_its_sender(lake: Lake, adapter: HttpAdapter) -> None:
    huge = json.dumps(samples.s3_event(samples.s3_record(lake.key()))).encode() + b" " * 2_000_000
    status, _, answer = request(adapter, "POST", "/", huge)
    assert status == 413
    assert str(lake.settings.http_body_bytes) in answer
    chunks = (huge[start : start + 65_536] for start in range(0, len(huge), 65_536))
    assert request(adapter, "POST", "/", chunks, Transfer_Encoding="chunked")[0] == 413
    assert adapter.metrics.value("failed", "http_413") == 2
    assert adapter.metrics.value("produced") == 0


def test_a_body_of_just_the_allowed_size_is_taken(lake: Lake, adapter: HttpAdapter) -> None:
    body = json.dumps(samples.s3_event(samples.s3_record(lake.key()))).encode()
    padded = body + b" " * (lake.settings.http_body_bytes - len(body))
    assert request(adapter, "POST", "/", padded)[0] == 200
    assert request(adapter, "POST", "/", padded + b" ")[0] == 413


def test_a_sender_that_does_not_finish_is_cut_off(adapter: HttpAdapter, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BODY_SECONDS", 0.2)
    address = urlsplit(adapter.url)
    with socket.create_connection((address.hostname, address.port), timeout=30) as connected:
        connected.sendall(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{")
        assert connected.recv(1000).startswith(b"HTTP/1.1 408 ")


def test_a_sender_that_goes_away_disturbs_nobody(lake: Lake, adapter: HttpAdapter) -> None:
    address = urlsplit(adapter.url)
    for _ in range(5):
        with socket.create_connection((address.hostname, address.port), timeout=30) as connected:
            connected.sendall(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{")
    assert post(adapter, samples.s3_event(samples.s3_record(lake.key())))[0] == 200


def test_a_token_that_is_set_is_demanded(lake: Lake) -> None:
    settings = lake.settings.model_copy(update={"http_token": SecretStr("s3cret")})
    event = samples.s3_event(samples.s3_record(lake.key()))
    with serving(lake.intake, settings) as adapter:
        for refused in (
            {},
            {"Authorization": "Bearer wrong"},
            {"Authorization": "Basic s3cret"},
            {"Authorization": "ü"},
        ):
            status, headers, _ = post(adapter, event, **refused)
            assert (status, headers["www-authenticate"]) == (401, "Bearer")
        assert adapter.metrics.value("produced") == 0
        assert post(adapter, event, Authorization="Bearer s3cret")[0] == 200
        assert post(adapter, event, Authorization="bearer s3cret")[0] == 200
        assert request(adapter, "GET", "/healthz")[0] == 200


def test_off_loopback_without_a_token_it_does_not_start(lake: Lake) -> None:
    for host in ("0.0.0.0", "::", "192.0.2.1", "example.org"):  # noqa: S104 - what must be refused
        for token in (None, SecretStr("")):
            settings = lake.settings.model_copy(update={"http_host": host, "http_token": token})
            with pytest.raises(ConfigurationError, match="LAKERUNNER_HTTP_TOKEN"):
                HttpAdapter(lake.intake, settings)


def test_off_loopback_with_a_token_it_starts(lake: Lake) -> None:
    everywhere = {"http_host": "0.0.0.0", "http_token": SecretStr("s3cret")}  # noqa: S104 - what a token allows
    with serving(lake.intake, lake.settings.model_copy(update=everywhere)) as adapter:
        assert adapter.url.startswith("http://0.0.0.0:")


def test_a_taken_port_is_said_at_once(lake: Lake, adapter: HttpAdapter) -> None:
    taken = lake.settings.model_copy(update={"http_port": urlsplit(adapter.url).port})
    with pytest.raises(ConfigurationError, match="LAKERUNNER_HTTP_PORT"):
        HttpAdapter(lake.intake, taken)


def test_event_grid_s_handshake_is_answered(adapter: HttpAdapter) -> None:
    status, _, answer = post(adapter, [samples.validation("code-1")])
    assert (status, answer) == (200, {"validationResponse": "code-1"})


def test_cloudevents_handshake_is_answered(adapter: HttpAdapter) -> None:
    status, headers, _ = request(adapter, "OPTIONS", "/", WebHook_Request_Origin="eventgrid.azure.net")
    assert (status, headers["webhook-allowed-origin"]) == (200, "eventgrid.azure.net")
    assert request(adapter, "OPTIONS", "/")[0] == 204


def test_without_kafka_the_sender_is_asked_to_come_again(lake: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(intake_module, "PRODUCE_SECONDS", 0.3)
    monkeypatch.setattr("lakerunner_dagster.lake.bus.REQUEST_SECONDS", 0.3)
    with serving(Intake(lake.lrdb, Bus(NOBODY, replication=1), lake.settings), lake.settings) as adapter:
        status, headers, _ = post(adapter, samples.s3_event(samples.s3_record(lake.key())))
        assert status == 503
        assert int(headers["retry-after"]) > 0
        assert request(adapter, "GET", "/readyz")[::2] == (503, {"troubles": ["kafka"]})
        assert request(adapter, "GET", "/healthz")[0] == 200
        assert adapter.metrics.value("failed", "unavailable") == 1
        assert adapter.metrics.value("produced") == 0


def test_without_lrdb_the_sender_is_asked_to_come_again(lake: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "POOL_TIMEOUT_SECONDS", 0.3)
    with (
        connection.Lrdb(f"postgresql://nobody@{NOBODY}/none") as away,
        serving(Intake(away, lake.bus, lake.settings), lake.settings) as adapter,
    ):
        status, headers, _ = post(adapter, samples.s3_event(samples.s3_record(lake.key())))
        assert status == 503
        assert "retry-after" in headers
        assert request(adapter, "GET", "/readyz")[::2] == (503, {"troubles": ["lrdb"]})


def test_prometheus_can_read_what_was_done(lake: Lake, adapter: HttpAdapter) -> None:
    post(adapter, samples.s3_event(samples.s3_record(lake.key()), samples.s3_record("db/x"), samples.s3_record("b")))
    post(adapter, {})
    status, headers, text = request(adapter, "GET", "/metrics")
    assert (status, headers["content-type"]) == (200, "text/plain; version=0.0.4; charset=utf-8")
    numbers = dict(line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
    prefix = "lakerunner_notifications"
    assert numbers[f'{prefix}_received_total{{adapter="http"}}'] == "2"
    assert numbers[f'{prefix}_produced_total{{adapter="http"}}'] == "1"
    assert numbers[f'{prefix}_ignored_total{{adapter="http",reason="segment"}}'] == "1"
    assert numbers[f'{prefix}_dead_letters_total{{adapter="http",reason="no_route"}}'] == "1"
    assert numbers[f'{prefix}_failed_total{{adapter="http",reason="unknown_format"}}'] == "1"
    assert numbers[f'{prefix}_seconds_count{{adapter="http"}}'] == "2"
    assert numbers[f'{prefix}_seconds_bucket{{adapter="http",le="+Inf"}}'] == "2"
    assert request(adapter, "GET", "/readyz")[::2] == (200, {"troubles": []})


def test_other_requests_are_told_so(adapter: HttpAdapter) -> None:
    assert request(adapter, "GET", "/")[0] == 405
    assert request(adapter, "POST", "/elsewhere")[0] == 404


def test_many_senders_at_once_are_all_taken(lake: Lake, adapter: HttpAdapter) -> None:
    keys = [lake.key(f"logs/{number}") for number in range(60)]
    with ThreadPoolExecutor(20) as pool:
        statuses = list(pool.map(lambda key: post(adapter, samples.s3_event(samples.s3_record(key)))[0], keys))
    assert set(statuses) == {200}
    assert sorted(body["k"] for body in lake.bodies("objstore.ingest.logs", len(keys))) == sorted(keys)
