"""What the lake relies on of Kafka: the same tests on the embedded cluster and on a real Apache Kafka."""

from __future__ import annotations

import time
import uuid
from collections import defaultdict
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol

import pytest
from confluent_kafka.admin import AdminClient
from confluent_kafka.cimpl import NewPartitions

from lakerunner_dagster.lake import bus as bus_module
from lakerunner_dagster.lake.bus import MESSAGE_BYTES, TOPICS, Bus, BusConsumer, Received
from lakerunner_dagster.lake.errors import BusUnavailable, ConfigurationError, InputError
from lakerunner_dagster.lake.model import Message
from lakerunner_dagster.local.postgres import free_port
from tests.kafka.apache import ApacheKafka
from tests.kafka.mock import FaultyCluster

SECONDS = 90.0
TOPIC = "objstore.ingest.logs"


class Cluster(Protocol):
    """A Kafka that can be taken away and brought back."""

    @property
    def bootstrap_servers(self) -> str: ...
    def down(self) -> None: ...
    def up(self) -> None: ...


class RealCluster(ApacheKafka):
    down = ApacheKafka.stop
    up = ApacheKafka.start


@pytest.fixture(scope="module", params=["embedded", "apache"])
def cluster(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    if request.param == "embedded":
        mock = FaultyCluster()
        yield mock
        mock.close()
    else:
        real = RealCluster(tmp_path_factory.mktemp("apache"))
        real.start()
        yield real
        real.stop()
        real.proxy.close()


@pytest.fixture
def bus(cluster: Cluster) -> Iterator[Bus]:
    bus = connect(cluster, f"test-{uuid.uuid4().hex[:8]}.")
    bus.ensure_topics([TOPIC])
    yield bus
    bus.close()


def connect(cluster: Cluster, prefix: str) -> Bus:
    return Bus(cluster.bootstrap_servers, prefix=prefix, partitions=4, replication=1)


def messages(count: int, keys: int = 1) -> list[Message]:
    return [Message(TOPIC, f"key-{number % keys}", {"n": number}) for number in range(count)]


def read(consumer: BusConsumer, count: int) -> list[Received]:
    """Poll until ``count`` messages came, and once more, which must bring none."""
    received: list[Received] = []
    deadline = time.monotonic() + SECONDS
    while len(received) < count:
        assert time.monotonic() < deadline, f"{len(received)} of {count} messages came"
        received += consumer.poll(1000, 1.0)
    assert not consumer.poll(10, 0.05)
    return received


def read_all(bus: Bus, count: int, group: str = "reader") -> list[Received]:
    consumer = bus.consumer(group, [TOPIC])
    consumer.assign({})
    try:
        return read(consumer, count)
    finally:
        consumer.close()


def ends(received: Sequence[Received]) -> dict[tuple[str, int], int]:
    positions: dict[tuple[str, int], int] = {}
    for message in received:
        place = (message.topic, message.partition)
        positions[place] = max(positions.get(place, 0), message.offset + 1)
    return positions


def test_every_message_arrives_as_it_was_sent(bus: Bus) -> None:
    before_ms = time.time_ns() // 1_000_000
    body = {"o": "0b6a", "k": "a b+c%20/é/\U0001f600/\ud800", "s": 12, "deep": {"list": [1, None, True]}}
    bus.produce([Message(TOPIC, "org/collecteur é", body, {"reason": "née", "empty": "", "bad": "\ud800"})], SECONDS)
    [message] = read_all(bus, 1)
    assert message.topic == TOPIC
    assert message.key == "org/collecteur é"
    assert message.body == (
        rb'{"o":"0b6a","k":"a b+c%20/\u00e9/\ud83d\ude00/\ud800","s":12,"deep":{"list":[1,null,true]}}'
    )
    assert message.headers == {"reason": "née", "empty": "", "bad": "\\ud800"}
    assert before_ms <= message.timestamp_ms <= time.time_ns() // 1_000_000


def test_a_key_keeps_its_partition_and_its_order(bus: Bus, cluster: Cluster) -> None:
    for _ in range(3):
        bus.produce(messages(300, keys=11), SECONDS)
    other = connect(cluster, bus._prefix)
    other.produce(messages(300, keys=11), SECONDS)
    by_key = defaultdict(list)
    for message in read_all(bus, 1200):
        by_key[message.key].append(message)
    assert len({message.partition for kept in by_key.values() for message in kept}) > 1
    for key, kept in by_key.items():
        assert len({message.partition for message in kept}) == 1, key
        expected = [f'{{"n":{number}}}'.encode() for number in range(300) if f"key-{number % 11}" == key]
        assert [message.body for message in sorted(kept, key=lambda message: message.offset)] == expected * 4, key


def test_a_reader_starts_where_it_is_told_else_where_its_group_was_else_at_the_beginning(bus: Bus) -> None:
    bus.produce(messages(10), SECONDS)
    first = bus.consumer("group", [TOPIC])
    first.assign({})
    received = read(first, 10)
    [place] = ends(received)
    first.commit({place: 4})
    first.close()

    second = bus.consumer("group", [TOPIC])
    second.assign({})
    assert [message.offset for message in read(second, 6)] == [4, 5, 6, 7, 8, 9]
    second.assign({place: 7})
    assert [message.offset for message in read(second, 3)] == [7, 8, 9]
    second.close()
    assert len(read_all(bus, 10, "another group")) == 10


def test_a_position_that_the_topic_does_not_have_is_its_beginning(bus: Bus) -> None:
    bus.produce(messages(5), SECONDS)
    [place] = ends(read_all(bus, 5))
    consumer = bus.consumer("group", [TOPIC])
    consumer.assign({place: 1_000_000, (TOPIC, 99): 5, ("no.such.topic", 0): 3})
    assert [message.offset for message in read(consumer, 5)] == [0, 1, 2, 3, 4]
    consumer.close()


def test_a_position_lives_on_when_everything_is_opened_anew(bus: Bus, cluster: Cluster) -> None:
    bus.produce(messages(40, keys=5), SECONDS)
    consumer = bus.consumer("group", [TOPIC])
    consumer.assign({})
    taken = consumer.poll(7, SECONDS)
    assert 0 < len(taken) <= 7
    consumer.commit(ends(taken))
    consumer.close()
    bus.close()

    again = connect(cluster, bus._prefix)
    reader = again.consumer("group", [TOPIC])
    reader.assign({})
    rest = read(reader, 40 - len(taken))
    reader.close()
    seen = {(message.partition, message.offset) for message in [*taken, *rest]}
    assert len(seen) == 40


def test_a_poll_never_brings_more_than_asked_for_and_a_commit_drops_none(bus: Bus) -> None:
    bus.produce(messages(200, keys=7), SECONDS)
    consumer = bus.consumer("group", [TOPIC])
    consumer.assign({})
    received: list[Received] = []
    deadline = time.monotonic() + SECONDS
    while len(received) < 200:
        assert time.monotonic() < deadline
        batch = consumer.poll(9, 1.0)
        assert len(batch) <= 9
        received += batch
        consumer.commit(ends(batch))
    consumer.close()
    assert len({(message.partition, message.offset) for message in received}) == 200


def test_a_box_of_900_kilobytes_passes(bus: Bus) -> None:
    body = {"m": "x" * 900_000}
    bus.produce([Message(TOPIC, "key", body)] * 3, SECONDS)
    assert [len(message.body) for message in read_all(bus, 3)] == [900_008] * 3


def test_a_message_beyond_the_limit_is_refused_before_anything_is_sent(bus: Bus) -> None:
    with pytest.raises(InputError, match="key-big") as refused:
        bus.produce([*messages(3), Message(TOPIC, "key-big", {"m": "x" * MESSAGE_BYTES})], SECONDS)
    assert refused.value.reason == "message_too_large"
    bus.produce([Message(TOPIC, "key", {"only": 1})], SECONDS)
    assert [message.body for message in read_all(bus, 1)] == [b'{"only":1}']


def test_threads_share_a_bus(bus: Bus) -> None:
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda _: bus.produce(messages(25), SECONDS), range(16)))
    assert len(read_all(bus, 400)) == 400


def test_nothing_is_claimed_as_sent_while_the_broker_is_down(
    bus: Bus, cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bus_module, "REQUEST_SECONDS", 0.5)
    bus.produce(messages(2), SECONDS)
    consumer = bus.consumer("group", [TOPIC])
    consumer.assign({})
    [place] = ends(read(consumer, 2))
    cluster.down()
    try:
        with pytest.raises(BusUnavailable, match="did not acknowledge 3 of 3"):
            bus.produce(messages(3), 0.5)
        for _ in range(2):
            with pytest.raises(BusUnavailable, match="does not answer"):
                consumer.poll(10, 0.5)
        with pytest.raises(BusUnavailable, match="commit"):
            consumer.commit({place: 2})
        with pytest.raises(BusUnavailable, match="does not answer"):
            bus.cluster_id()
        with pytest.raises(BusUnavailable, match="does not answer"):
            consumer.assign({})
    finally:
        cluster.up()
    bus.produce([Message(TOPIC, "key-0", {"after": 1})], SECONDS)
    monkeypatch.setattr(bus_module, "REQUEST_SECONDS", SECONDS)
    received = read_until(consumer, b'{"after":1}')
    assert b'{"n":2}' not in received, "what was purged must not be sent behind our back"
    consumer.commit({place: 3})
    consumer.close()


def test_a_lost_acknowledgement_repeats_nothing(bus: Bus, cluster: Cluster) -> None:
    if not isinstance(cluster, RealCluster):
        pytest.skip("the embedded cluster does not know a message again that it has taken")
    lossy = Bus(cluster.proxy.address, prefix=bus._prefix)
    lossy.produce(messages(1), SECONDS)
    for _ in range(3):
        cluster.proxy.lose(1)
        lossy.produce(messages(50, keys=9), SECONDS)
    lossy.close()
    assert cluster.proxy.lost == 3
    assert len(read_all(bus, 151)) == 151


def read_until(consumer: BusConsumer, body: bytes) -> list[bytes]:
    received: list[bytes] = []
    deadline = time.monotonic() + SECONDS
    while body not in received:
        assert time.monotonic() < deadline
        received += [message.body for message in consumer.poll(100, 1.0)]
    return received


def test_topics_are_made_once_and_kept(cluster: Cluster) -> None:
    bus = connect(cluster, f"test-{uuid.uuid4().hex[:8]}.")
    bus.ensure_topics()
    bus.produce(messages(5), SECONDS)
    bus.ensure_topics()
    existing = AdminClient({"bootstrap.servers": cluster.bootstrap_servers}).list_topics(timeout=SECONDS).topics
    assert {len(existing[bus._prefix + topic].partitions) for topic in TOPICS} == {4}
    assert len(read_all(bus, 5)) == 5


def test_a_topic_that_grew_is_read_whole(bus: Bus, cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    if isinstance(cluster, FaultyCluster):
        pytest.skip("the embedded cluster's topics do not grow")
    consumer = bus.consumer("group", [TOPIC])
    consumer.assign({})
    admin = AdminClient({"bootstrap.servers": cluster.bootstrap_servers})
    [grown] = admin.create_partitions([NewPartitions(bus._prefix + TOPIC, 12)]).values()
    grown.result(SECONDS)
    bus.close()  # a client learns of new partitions within minutes: a new one knows them at once
    deadline = time.monotonic() + SECONDS
    while len(bus._metadata(bus._prefix + TOPIC).topics[bus._prefix + TOPIC].partitions) < 12:
        assert time.monotonic() < deadline
        bus.close()
    bus.produce(messages(100, keys=100), SECONDS)
    monkeypatch.setattr(bus_module, "NEW_PARTITIONS_SECONDS", 0.0)
    assert len({message.partition for message in read(consumer, 100)}) > 4
    consumer.close()


def test_what_the_cluster_cannot_do_is_told_with_the_setting_that_asks_for_it(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    if isinstance(cluster, FaultyCluster):
        pytest.skip("the embedded cluster has no administration")
    with pytest.raises(ConfigurationError, match="LAKERUNNER_KAFKA_REPLICATION"):
        Bus(cluster.bootstrap_servers, prefix="refused.", replication=3).ensure_topics()
    consumer = connect(cluster, "refused.").consumer("group", [TOPIC])
    monkeypatch.setattr(bus_module, "REQUEST_SECONDS", 0.5)
    with pytest.raises(BusUnavailable, match=rf"topic refused\.{TOPIC}: .*Unknown topic"):
        consumer.assign({})
    consumer.close()


def test_a_cluster_keeps_its_id(bus: Bus, cluster: Cluster) -> None:
    assert bus.cluster_id() == connect(cluster, "other.").cluster_id()


def test_an_option_that_does_not_exist_is_named() -> None:
    bus = Bus(f"127.0.0.1:{free_port()}", options={"sasl.mechansim": "PLAIN"})
    with pytest.raises(ConfigurationError, match=r"sasl\.mechansim"):
        bus.produce(messages(1), 1.0)


def test_an_option_cannot_weaken_what_is_promised(cluster: Cluster) -> None:
    bus = Bus(cluster.bootstrap_servers, options={"acks": "0", "enable.idempotence": "false"}, replication=1)
    bus.ensure_topics([TOPIC])
    bus.produce(messages(1), SECONDS)
    bus.close()
