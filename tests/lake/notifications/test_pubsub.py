"""What would break if a subscription of Pub/Sub lost a message, kept one that was done, or circled on a bad one."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from threading import Event
from typing import Any

import pytest
from google.cloud import pubsub_v1  # type: ignore[import-untyped]

from lakerunner_dagster.lake.errors import ConfigurationError, QueueDenied, QueueUnavailable
from lakerunner_dagster.lake.notifications.pubsub import PubSubQueue
from lakerunner_dagster.lake.notifications.pulling import PullingAdapter
from tests.lake.notifications import samples
from tests.lake.notifications.conftest import Lake
from tests.lake.notifications.pulled import LOGS, Gate, counted, kept_for_leases, pulling, quick
from tests.servers.pubsub import PROJECT, PubSub
from tests.waiting import eventually

SHORTEST_LEASE_SECONDS = 10
"""Of Pub/Sub, and the deadline of these subscriptions."""

FINALIZED = {"eventType": "OBJECT_FINALIZE", "payloadFormat": "JSON_API_V1"}


@dataclass(frozen=True)
class Door:
    """A topic and a subscription of the test's own, with a dead-letter topic that something listens to."""

    publisher: Any
    subscriber: Any
    topic: str
    subscription: str
    dead_subscription: str

    def send(self, body: Any, **attributes: str) -> None:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.publisher.publish(self.topic, data, **attributes).result(30)

    def queue(self, lake: Lake, **changes: Any) -> PubSubQueue:
        return PubSubQueue(self.subscription, quick(lake.settings, **changes))


@pytest.fixture
def door(pubsub: PubSub, monkeypatch: pytest.MonkeyPatch) -> Iterator[Door]:
    monkeypatch.setenv("PUBSUB_EMULATOR_HOST", pubsub.address)
    name = uuid.uuid4().hex[:8]
    with pubsub_v1.PublisherClient() as publisher, pubsub_v1.SubscriberClient() as subscriber:
        topic = publisher.create_topic(name=f"projects/{PROJECT}/topics/t-{name}").name
        dead_topic = publisher.create_topic(name=f"projects/{PROJECT}/topics/dead-{name}").name
        subscription = f"projects/{PROJECT}/subscriptions/s-{name}"
        policy = {"dead_letter_topic": dead_topic, "max_delivery_attempts": 5}
        subscriber.create_subscription(
            request={"name": subscription, "topic": topic, "ack_deadline_seconds": 10, "dead_letter_policy": policy}
        )
        dead = subscriber.create_subscription(name=f"projects/{PROJECT}/subscriptions/dead-{name}", topic=dead_topic)
        yield Door(publisher, subscriber, topic, subscription, dead.name)


def test_objects_are_told_by_their_attributes_and_deletions_are_not(lake: Lake, door: Door) -> None:
    expected = [lake.key(f"logs/a b+%2F {number}") for number in range(3)]
    for key in expected:
        door.send(samples.gcs(key), **FINALIZED)
    door.send(samples.gcs(lake.key("logs/gone")), eventType="OBJECT_DELETE")
    door.send(samples.gcs(lake.key("logs/changed")), eventType="OBJECT_METADATA_UPDATE")
    with pulling(door.queue(lake), lake.intake, lake.settings) as adapter:
        counted(adapter, "produced", len(expected))
        counted(adapter, "ignored", 2, "not_created")
    bodies = lake.bodies(LOGS, len(expected))
    assert {body["k"] for body in bodies} == set(expected)
    assert {(body["a"], body["e"]) for body in bodies} == {("gcp", samples.ETAG)}
    assert door.queue(lake).receive(10, Event()) == []


def test_a_lease_is_kept_for_longer_than_the_subscription_s_deadline(lake: Lake, door: Door) -> None:
    door.send(samples.gcs(lake.key()), **FINALIZED)
    gate = Gate(lake.intake)
    settings = quick(lake.settings, queue_lease_seconds=SHORTEST_LEASE_SECONDS)
    with pulling(PubSubQueue(door.subscription, settings), gate.intake, settings) as adapter:
        assert gate.asked.wait(60)
        kept_for_leases(adapter, SHORTEST_LEASE_SECONDS, number=2)
        gate.free.set()
        counted(adapter, "produced", 1)
    assert door.queue(lake).receive(10, Event()) == []


def test_what_was_not_acknowledged_comes_again_and_changes_nothing(lake: Lake, door: Door) -> None:
    door.send(samples.gcs(lake.key()), **FINALIZED)
    queue = door.queue(lake)
    [first] = queue.receive(10, Event())
    queue.give_back([first])
    with pulling(queue, lake.intake, lake.settings) as adapter:
        counted(adapter, "produced", 1)
    assert [body["k"] for body in lake.bodies(LOGS, 1)] == [lake.key()]


def test_what_cannot_be_understood_ends_in_the_dead_letter_topic_and_holds_up_no_other(lake: Lake, door: Door) -> None:
    bad = [b"no json", b'{"hello": "world"}']
    expected = [lake.key(f"logs/{number}") for number in range(3)]
    for body in (bad[0], *map(samples.gcs, expected), bad[1]):
        door.send(body, **FINALIZED)
    found: set[bytes] = set()
    dead = PubSubQueue(door.dead_subscription, quick(lake.settings))
    with pulling(door.queue(lake), lake.intake, lake.settings) as adapter:
        counted(adapter, "produced", len(expected))

        def all_dead() -> bool:
            found.update(message.body for message in dead.receive(10, Event()))
            return found == set(bad)

        eventually(all_dead, "both are dead letters")
        assert adapter.metrics.value("failed", "not_json") == 5
        assert adapter.metrics.value("failed", "unknown_format") == 5
    dead.close()
    assert {body["k"] for body in lake.bodies(LOGS, len(expected))} == set(expected)


def test_without_a_dead_letter_policy_it_warns_and_does_not_circle(lake: Lake, door: Door) -> None:
    name = f"projects/{PROJECT}/subscriptions/plain-{uuid.uuid4().hex[:8]}"
    door.subscriber.create_subscription(name=name, topic=door.topic)
    queue = PubSubQueue(name, quick(lake.settings))
    assert "dead-letter" in str(queue.check())
    assert door.queue(lake).check() is None
    door.send(b"no json")
    with pulling(queue, lake.intake, lake.settings) as adapter:
        counted(adapter, "failed", 1, "not_json")
        door.send(samples.gcs(lake.key()), **FINALIZED)
        counted(adapter, "produced", 1)
        assert adapter.metrics.value("failed", "not_json") == 1


def test_a_subscription_that_is_not_there_ends_it_at_once(lake: Lake, door: Door) -> None:
    missing = PubSubQueue(door.subscription + "-none", quick(lake.settings))
    with pytest.raises(QueueDenied, match="create it"):
        PullingAdapter(missing, lake.intake, lake.settings).run(Event())
    with pytest.raises(ConfigurationError, match="projects/PROJECT/subscriptions/NAME"):
        PubSubQueue("my-subscription", lake.settings)


def test_an_emulator_that_is_away_is_unavailable_not_denied(
    lake: Lake, door: Door, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PUBSUB_EMULATOR_HOST", "127.0.0.1:9")
    nobody = PubSubQueue(door.subscription, quick(lake.settings))
    with pytest.raises(QueueUnavailable):
        nobody.receive(1, Event())
    nobody.close()
