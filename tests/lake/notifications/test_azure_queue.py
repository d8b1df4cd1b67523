"""What would break if a queue of Azure lost a message, kept one that was done, or circled on a bad one for ever."""

from __future__ import annotations

import base64
import json
import uuid
from dataclasses import dataclass
from threading import Event
from typing import Any

import pytest
from azure.core.exceptions import ResourceNotFoundError
from azure.storage.queue import QueueClient

from lakerunner_dagster.lake.errors import ConfigurationError, QueueDenied, QueueUnavailable
from lakerunner_dagster.lake.notifications import azure_queue
from lakerunner_dagster.lake.notifications.azure_queue import AzureQueue, plain
from lakerunner_dagster.lake.notifications.pulling import PullingAdapter
from tests.lake.notifications import samples
from tests.lake.notifications.conftest import Lake
from tests.lake.notifications.pulled import LOGS, Gate, counted, kept_for_leases, pulling, quick
from tests.servers.azure import ACCOUNT, KEY, Azure
from tests.waiting import eventually


@dataclass(frozen=True)
class Door:
    """A queue of the test's own in azurite."""

    url: str

    def client(self, suffix: str = "") -> QueueClient:
        return QueueClient.from_queue_url(self.url + suffix, credential={"account_name": ACCOUNT, "account_key": KEY})

    def queue(self, lake: Lake, **changes: Any) -> AzureQueue:
        return AzureQueue(self.url, quick(lake.settings, **changes))

    def send(self, *texts: str) -> None:
        with self.client() as client:
            for text in texts:
                client.send_message(text)

    def left(self) -> int:
        with self.client() as client:
            return client.get_queue_properties().approximate_message_count or 0

    def poison(self) -> list[str]:
        try:
            with self.client("-poison") as client:
                return [message.content for message in client.peek_messages(32)]
        except ResourceNotFoundError:
            return []


@pytest.fixture
def door(azure: Azure, monkeypatch: pytest.MonkeyPatch) -> Door:
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_KEY", KEY)
    monkeypatch.delenv("AZURE_STORAGE_CONNECTION_STRING", raising=False)
    door = Door(f"{azure.queue_endpoint}/q-{uuid.uuid4().hex[:8]}")
    with door.client() as client:
        client.create_queue()
    return door


def encoded(document: Any) -> str:
    return base64.b64encode(json.dumps(document).encode()).decode()


def test_event_grid_s_events_are_in_kafka_encoded_or_plain(lake: Lake, door: Door) -> None:
    expected = [lake.key(f"logs/a b+%2F&<ü> {number}") for number in range(6)]
    door.send(
        encoded(samples.event_grid(expected[0])),
        encoded([samples.event_grid(expected[1])]),
        encoded(samples.cloud_event(expected[2])),
        json.dumps(samples.event_grid(expected[3])),
        json.dumps([samples.event_grid(expected[4])], indent=1),
        json.dumps(samples.cloud_event(expected[5]), ensure_ascii=False),
        encoded(samples.event_grid(lake.key("logs/gone"), eventType="Microsoft.Storage.BlobDeleted")),
        encoded([samples.validation()]),
    )
    with pulling(door.queue(lake), lake.intake, lake.settings) as adapter:
        counted(adapter, "produced", len(expected))
        counted(adapter, "ignored", 1, "not_created")
        counted(adapter, "ignored", 1, "handshake")
        eventually(lambda: door.left() == 0, "the queue is empty")
    assert sorted(body["k"] for body in lake.bodies(LOGS, len(expected))) == expected


def test_what_cannot_be_understood_moves_to_the_queue_of_poison_and_holds_up_no_other(lake: Lake, door: Door) -> None:
    bad = [encoded({"hello": "world"}), "no json <&>", '{"no": "event"}']
    expected = [lake.key(f"logs/{number}") for number in range(3)]
    door.send(bad[0], *(encoded(samples.event_grid(key)) for key in expected), *bad[1:])
    queue = door.queue(lake, queue_lease_seconds=1, queue_poison_deliveries=2)
    with pulling(queue, lake.intake, lake.settings) as adapter:
        eventually(lambda: sorted(door.poison()) == sorted(bad), "all of them are set aside as they were")
        eventually(lambda: door.left() == 0, "the queue is empty")
        assert adapter.metrics.value("failed", "unknown_format") == 4
        assert adapter.metrics.value("failed", "not_json") == 2
    assert sorted(body["k"] for body in lake.bodies(LOGS, len(expected))) == expected


def test_a_lease_is_kept_while_kafka_is_slow(lake: Lake, door: Door) -> None:
    settings = quick(lake.settings, queue_lease_seconds=3, queue_receivers=2)
    gate = Gate(lake.intake)
    door.send(encoded(samples.event_grid(lake.key())))
    with pulling(door.queue(lake, queue_lease_seconds=3), gate.intake, settings) as adapter:
        assert gate.asked.wait(60)
        kept_for_leases(adapter, lease_seconds=3, number=2)
        gate.free.set()
        eventually(lambda: door.left() == 0, "the queue is empty")
    assert [body["k"] for body in lake.bodies(LOGS, 1)] == [lake.key()]


def test_more_than_a_page_is_received_and_done_at_once(lake: Lake, door: Door) -> None:
    door.send(*(encoded({"n": number}) for number in range(40)))
    queue = door.queue(lake)
    received = queue.receive(36, Event())
    assert len(received) == 36
    queue.extend(received)
    assert queue.acknowledge(received) == []
    assert queue.acknowledge(received) == []
    assert door.left() == 4
    queue.close()


def test_a_message_of_another_s_now_is_told_as_not_done(lake: Lake, door: Door) -> None:
    door.send(*(encoded({"n": number}) for number in range(2)))
    queue = door.queue(lake)
    first, second = queue.receive(10, Event())
    queue.give_back([first])
    [again] = queue.receive(10, Event())
    first.receipt.pop_receipt = "AgAAAAMAAAAAAAAAAAAAAAAAAAA="
    assert queue.acknowledge([first, second]) == [first]
    assert queue.acknowledge([again]) == []
    queue.close()


def test_any_credentials_of_the_environment_do(
    azure: Azure, lake: Lake, door: Door, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("AZURE_STORAGE_ACCOUNT_KEY")
    account = f"AccountName={ACCOUNT};AccountKey={KEY};QueueEndpoint={azure.queue_endpoint}"
    monkeypatch.setenv("AZURE_STORAGE_CONNECTION_STRING", f"DefaultEndpointsProtocol=http;{account}")
    queue = door.queue(lake)
    assert queue.check() is None
    queue.close()
    monkeypatch.setenv("AZURE_STORAGE_CONNECTION_STRING", "nonsense secret")
    with pytest.raises(ConfigurationError, match="AZURE_STORAGE_CONNECTION_STRING") as raised:
        door.queue(lake)
    assert "secret" not in str(raised.value)


def test_a_queue_that_is_not_there_or_denies_us_ends_it_at_once_with_what_to_do(
    lake: Lake, door: Door, monkeypatch: pytest.MonkeyPatch
) -> None:
    missing = AzureQueue(door.url + "-none", quick(lake.settings))
    with pytest.raises(QueueDenied, match="create it"):
        PullingAdapter(missing, lake.intake, lake.settings).run(Event())
    with pytest.raises(ConfigurationError, match="no queue's URL"):
        AzureQueue("my-queue", lake.settings)
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_KEY", base64.b64encode(b"wrong").decode())
    denied = door.queue(lake)
    with pytest.raises(QueueDenied, match="Storage Queue Data Contributor"):
        PullingAdapter(denied, lake.intake, lake.settings).run(Event())


def test_a_server_that_is_away_is_unavailable_not_denied(lake: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_KEY", KEY)
    monkeypatch.setattr(azure_queue, "RETRIES", 0)
    nobody = AzureQueue(f"http://127.0.0.1:9/{ACCOUNT}/queue", quick(lake.settings))
    with pytest.raises(QueueUnavailable):
        nobody.receive(1, Event())
    nobody.close()


def test_base64_is_told_from_json_by_looking() -> None:
    for text in ('{"a": 1}', "[]", "1", '"abcd"', "", "not base64!"):
        assert plain(base64.b64encode(text.encode()).decode()) == text.encode()
    for text in ('{"a": 1}', "[{}]", "not base64!", "ü"):
        assert plain(text) == text.encode()
