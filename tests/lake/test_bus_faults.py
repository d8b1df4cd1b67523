"""The bus while its broker fails in ways that only librdkafka's mock can: nothing acknowledged is ever lost."""

from __future__ import annotations

import json
import threading
import time
import uuid
from collections import defaultdict
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import pytest
from confluent_kafka import KafkaError
from hypothesis import given, settings
from hypothesis import strategies as st

from lakerunner_dagster.lake import bus as bus_module
from lakerunner_dagster.lake.bus import Bus, Received
from lakerunner_dagster.lake.errors import BusUnavailable
from lakerunner_dagster.lake.model import Message
from lakerunner_dagster.local.kafka import KafkaServer
from tests.kafka.mock import OFFSET_COMMIT, PRODUCE, RETRIABLE, FaultyCluster
from tests.waiting import eventually

SECONDS = 30.0
QUICK = {"retry.backoff.ms": "1", "reconnect.backoff.ms": "10", "reconnect.backoff.max.ms": "20"}


@pytest.fixture(scope="module")
def cluster() -> Iterator[FaultyCluster]:
    cluster = FaultyCluster()
    yield cluster
    cluster.close()


@pytest.fixture(scope="module")
def bus(cluster: FaultyCluster) -> Iterator[Bus]:
    bus = Bus(cluster.bootstrap_servers, options=QUICK)
    yield bus
    bus.close()


@pytest.fixture
def topic() -> str:
    return new_topic()


def new_topic() -> str:
    return f"topic-{uuid.uuid4()}"


def read_until_quiet(bus: Bus, topic: str) -> list[Received]:
    """All messages of the topic: a last one of our own tells that none is missing before it."""
    bus.produce([Message(topic, f"end-{number}", {"end": number}) for number in range(32)], SECONDS)
    consumer = bus.consumer("reader", [topic])
    consumer.assign({})
    received: list[Received] = []
    deadline = time.monotonic() + SECONDS
    while sum(message.key.startswith("end-") for message in received) < 32:
        assert time.monotonic() < deadline
        received += consumer.poll(1000, 1.0)
    consumer.close()
    return [message for message in received if not message.key.startswith("end-")]


def send(bus: Bus, topic: str, batch: int, size: int, timeout_seconds: float) -> bool:
    """Send a batch of 3 keys; whether it was acknowledged."""
    messages = [Message(topic, f"key-{number % 3}", {"batch": batch, "n": number}) for number in range(size)]
    try:
        bus.produce(messages, timeout_seconds)
    except BusUnavailable:
        return False
    return True


def check_kept(received: Sequence[Received], acknowledged: Sequence[int], size: int) -> None:
    """Each acknowledged batch is there, in the order of its keys.

    Repetition is allowed: the mock, unlike a broker, does not know a batch again whose acknowledgement was lost.
    """
    by_batch: dict[int, dict[str, dict[int, None]]] = defaultdict(lambda: defaultdict(dict))
    for message in sorted(received, key=lambda message: (message.partition, message.offset)):
        body = json.loads(message.body)
        by_batch[body["batch"]][message.key].setdefault(body["n"])
    for batch in acknowledged:
        first_seen = {key: list(numbers) for key, numbers in by_batch[batch].items()}
        assert first_seen == {f"key-{key}": list(range(key, size, 3)) for key in range(3)}, batch


@settings(max_examples=25, deadline=None)
@given(faults=st.lists(st.lists(st.sampled_from(RETRIABLE), max_size=3), min_size=1, max_size=4))
def test_request_errors_lose_nothing_that_was_acknowledged(
    cluster: FaultyCluster, bus: Bus, faults: list[list[int]]
) -> None:
    topic = new_topic()
    acknowledged = []
    for batch, errors in enumerate(faults):
        cluster.fail(PRODUCE, errors)
        if send(bus, topic, batch, 30, SECONDS):
            acknowledged.append(batch)
        cluster.heal(PRODUCE)
    assert acknowledged == list(range(len(faults))), "each of these errors passes"
    check_kept(read_until_quiet(bus, topic), acknowledged, 30)


def test_an_error_that_does_not_pass_is_told_and_the_next_message_goes_through(
    cluster: FaultyCluster, bus: Bus, topic: str
) -> None:
    assert send(bus, topic, 0, 3, SECONDS)
    cluster.fail(PRODUCE, [KafkaError.TOPIC_AUTHORIZATION_FAILED])
    with pytest.raises(BusUnavailable, match="authorization"):
        bus.produce([Message(topic, "key-0", {"batch": 1, "n": 0})], SECONDS)
    cluster.heal(PRODUCE)
    assert send(bus, topic, 2, 3, SECONDS)
    check_kept(read_until_quiet(bus, topic), [0, 2], 3)


def test_a_broker_that_comes_and_goes_loses_nothing_that_was_acknowledged(
    cluster: FaultyCluster, bus: Bus, topic: str
) -> None:
    assert send(bus, topic, 0, 30, SECONDS)
    acknowledged = [0]
    finished = threading.Event()

    def through(batches: int) -> bool:
        return len(acknowledged) > batches

    def come_and_go() -> None:
        for times in range(1, 4):
            cluster.down()
            time.sleep(0.05)
            cluster.up()
            eventually(partial(through, times * 20), "batches come through")
        finished.set()

    thread = threading.Thread(target=come_and_go)
    thread.start()
    batch = 0
    deadline = time.monotonic() + SECONDS
    while not finished.is_set():
        assert time.monotonic() < deadline, f"only {len(acknowledged)} batches came through"
        batch += 1
        if send(bus, topic, batch, 30, 5.0):
            acknowledged.append(batch)
    thread.join()
    check_kept(read_until_quiet(bus, topic), acknowledged, 30)


def test_one_thread_s_patience_ends_and_the_others_messages_are_sent(topic: str) -> None:
    cluster = FaultyCluster()
    bus = Bus(cluster.bootstrap_servers, options=QUICK)
    assert send(bus, topic, 0, 30, SECONDS)
    before = client_threads()
    cluster.down()
    with ThreadPoolExecutor(1) as pool:
        patient = pool.submit(send, bus, topic, 1, 30, SECONDS)
        eventually(lambda: len(bus._producer.client()) == 30, "the patient one's messages wait")
        assert not send(bus, topic, 2, 30, 0.1)
        cluster.up()
        assert patient.result()
    assert send(bus, topic, 3, 30, SECONDS)
    eventually(lambda: client_threads() <= before, "the client that was given up is gone")
    check_kept(read_until_quiet(bus, topic), [0, 1, 3], 30)
    bus.close()
    cluster.close()


def client_threads() -> int:
    """Threads of Kafka's clients in this process."""
    names = (task.read_text() for task in Path("/proc/self/task").glob("*/comm"))
    return sum(name.startswith("rdk:") for name in names)


def test_a_commit_outlives_errors_that_pass(cluster: FaultyCluster, bus: Bus, topic: str) -> None:
    assert send(bus, topic, 0, 9, SECONDS)
    consumer = bus.consumer("group", [topic])
    consumer.assign({})
    cluster.fail(
        OFFSET_COMMIT, [KafkaError.COORDINATOR_LOAD_IN_PROGRESS, KafkaError.NOT_COORDINATOR, KafkaError._TRANSPORT]
    )
    positions = {(topic, partition): 1 for partition in range(4)}
    consumer.commit(positions)
    cluster.heal(OFFSET_COMMIT)
    consumer.close()
    again = bus.consumer("group", [topic])
    again.assign({})
    offsets = [message.offset for message in again.poll(100, 1.0)]
    assert offsets
    assert 0 not in offsets
    again.close()


def test_a_commit_that_is_refused_is_no_success(cluster: FaultyCluster, bus: Bus, topic: str) -> None:
    assert send(bus, topic, 0, 9, SECONDS)
    consumer = bus.consumer("group", [topic])
    consumer.assign({})
    cluster.fail(OFFSET_COMMIT, [KafkaError.GROUP_AUTHORIZATION_FAILED])
    with pytest.raises(BusUnavailable, match="authorization"):
        consumer.commit({(topic, 0): 1})
    cluster.heal(OFFSET_COMMIT)
    consumer.commit({(topic, 0): 1})
    consumer.close()


def test_each_start_of_the_embedded_cluster_is_a_cluster_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bus_module, "REQUEST_SECONDS", SECONDS)
    server = KafkaServer(["lakerunner.deadletter"], tmp_path / "kafka.log", partitions=3)
    ids = set()
    for _ in range(3):
        server.start()
        bus = Bus(server.bootstrap_servers)
        ids.add(bus.cluster_id())
        bus.close()
        server.stop()
    assert len(ids) == 3


def test_connecting_waits_for_nobody_and_producing_says_that_nobody_is_there() -> None:
    away = Bus("127.0.0.1:1", replication=1)
    away.connect()
    with pytest.raises(BusUnavailable):
        away.produce([Message("topic", "key", {})], 0.2)
