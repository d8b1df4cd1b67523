"""Kafka as the lake uses it: keyed messages that are acknowledged or still ours, and positions that we choose.

What belongs here: producing, consuming from given offsets, committing, topics. What does not: how threads share a
producer (``kafka_producer``), what messages mean (``notifications``, ``ticks``) and where offsets are kept for good
(``lrdb.offsets``).

Rules that keep every broker usable: at-least-once with idempotent keyed producing, no Kafka transactions, no group
join (consumers take the partitions that they are given). The embedded cluster (``local.kafka``) is librdkafka's mock
broker: it keeps everything in memory, **drops the oldest messages of a partition beyond 5 MiB or 100,000 of them**,
answers no administrative request but metadata, makes a topic of 4 partitions when one is asked for, and is a new
cluster at each start. lrdb being the truth, that delays work and loses none.

Clients are made at the first use, never at construction, so that a Bus may be built before a fork.
"""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, cast

from confluent_kafka import Consumer, KafkaError, KafkaException, Producer, TopicPartition
from confluent_kafka import Message as KafkaMessage
from confluent_kafka.admin import AdminClient
from confluent_kafka.cimpl import NewTopic

from lakerunner_dagster.lake.errors import BusUnavailable, InputError
from lakerunner_dagster.lake.kafka_client import Trouble, made, patiently, refused, unavailable
from lakerunner_dagster.lake.kafka_producer import SharedProducer
from lakerunner_dagster.lake.signals import DEADLETTER_TOPIC
from lakerunner_dagster.lake.stages import STAGES

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from confluent_kafka.admin._metadata import ClusterMetadata

    from lakerunner_dagster.lake.model import Message

TOPICS: tuple[str, ...] = (
    *(stage.input_topic for stage in STAGES.values()),
    *(stage.box_topic for stage in STAGES.values()),
    DEADLETTER_TOPIC,
)
"""Every topic of the contract, without prefix (spec/messages.md)."""

MESSAGE_BYTES = 1_000_000
"""Largest message with its key and headers: what every broker takes by default. A box stays under 900 kB."""

EMBEDDED_CLUSTER = "mockCluster"
"""How the cluster id of librdkafka's mock broker begins. What follows is a memory address, and may come again."""

EMBEDDED_MARKER = "embedded-cluster."
"""The embedded cluster's host gives each start an id of its own by a topic of this name and that id."""

REQUEST_SECONDS = 10.0
"""Longest wait for an answer about metadata or offsets, in seconds."""

NEW_PARTITIONS_SECONDS = 60.0
"""How often a consumer looks whether its topics have grown, in seconds."""


_JSON = json.JSONEncoder(separators=(",", ":"))
"""Kept, for ``json.dumps`` makes one anew for each message."""


@dataclass(frozen=True, slots=True)
class Received:
    """A message as it came; ``body`` is not decoded, for it may be anything. Topic without prefix, time in ms."""

    topic: str
    partition: int
    offset: int
    key: str
    body: bytes
    headers: Mapping[str, str]
    timestamp_ms: int


class Bus:
    """A Kafka cluster and the topics under one prefix. Safe to share among threads; consumers are not."""

    def __init__(
        self,
        bootstrap_servers: str,
        *,
        prefix: str = "lakerunner.",
        options: Mapping[str, str] | None = None,
        partitions: int = 16,
        replication: int = 3,
        retention_hours: int = 168,
    ) -> None:
        self._config: dict[str, Any] = {
            "client.id": "lakerunner",
            "reconnect.backoff.max.ms": 1000,
            # What goes wrong is told by the error that is raised, not by a line for each attempt to connect.
            "log_level": 2,
            **(options or {}),
            "bootstrap.servers": bootstrap_servers,
        }
        self._prefix = prefix
        self._partitions = partitions
        self._replication = replication
        self._retention_hours = retention_hours
        self._trouble = Trouble()
        self._producer = SharedProducer(
            {
                **self._config,
                "acks": "all",
                "enable.idempotence": True,
                # The partitioner of the Java clients: a key has one partition, whoever writes it.
                "partitioner": "murmur2_random",
                "message.max.bytes": MESSAGE_BYTES,
                "error_cb": self._trouble,
            }
        )

    def cluster_id(self) -> str:
        """The id of the cluster: offsets mean nothing in another one. Raises BusUnavailable.

        It is asked for each time: a cluster may be made anew at the same address.
        """
        reported: str | None = self._metadata(self._prefix + DEADLETTER_TOPIC).cluster_id
        if reported is None:
            raise BusUnavailable(f"Kafka at {self._address} tells no cluster id: it is older than version 0.10.1")
        if not reported.startswith(EMBEDDED_CLUSTER):
            return reported
        markers = [topic for topic in self._metadata(None).topics if topic.startswith(EMBEDDED_MARKER)]
        return max(markers, default=reported).removeprefix(EMBEDDED_MARKER)

    def ensure_topics(self, topics: Sequence[str] = TOPICS) -> None:
        """Create the topics that are not there; those that are stay as they are.

        Raises BusUnavailable, or ConfigurationError where the cluster refuses what the settings ask for.
        """
        names = [self._prefix + topic for topic in topics]
        cluster = self._metadata(None)
        missing = [name for name in names if name not in cluster.topics]
        if _is_embedded(cluster):
            for name in missing:
                self._metadata(name)
        elif missing:
            self._create(missing)

    def connect(self) -> None:
        """Let the producer connect while its user does something else; returns at once, and asks nothing of Kafka.

        What is given to an idempotent producer before a broker has told it who it is waits for half a second.
        """
        self._producer.client()

    def produce(self, messages: Sequence[Message], timeout_seconds: float) -> None:
        """Send messages; return when every replica in sync has every one of them.

        Raises BusUnavailable when that did not happen in time: some of them may have been sent, none may be taken for
        sent, all are to be sent again. Raises InputError(``message_too_large``) before anything is sent.
        """
        records = [_record(message, self._prefix) for message in messages]
        if not records:
            return
        deadline = time.monotonic() + timeout_seconds
        batch = self._producer.send(records, deadline)
        if batch.unacknowledged:
            reason = batch.error.str() if batch.error else f"no answer within {timeout_seconds:g} s"
            raise BusUnavailable(
                f"Kafka at {self._address} did not acknowledge {batch.unacknowledged} of {len(records)} messages: "
                f"{self._trouble.because(reason)}"
            )
        self._trouble.text = ""

    def consumer(self, group: str, topics: Sequence[str], *, urgent: bool = True) -> BusConsumer:
        """A consumer of all partitions of ``topics``, which commits as ``group``. Call its ``assign`` first.

        One that is not ``urgent`` may hear of a message half a second later. Raises BusUnavailable.
        """
        config = {**self._config, **self._fetch_options(urgent=urgent), "group.id": group}
        return BusConsumer(config, self._prefix, topics)

    def close(self) -> None:
        """Let the connections go. A Bus that is used again connects again."""
        self._producer.close()

    @property
    def _address(self) -> str:
        return str(self._config["bootstrap.servers"])

    def _metadata(self, topic: str | None) -> ClusterMetadata:
        client = self._producer.client()
        client.poll(0)
        try:
            cluster: ClusterMetadata = client.list_topics(topic, timeout=REQUEST_SECONDS)
        except KafkaException as error:
            client.poll(0)
            raise unavailable(self._address, error, self._trouble) from error
        return cluster

    def _fetch_options(self, *, urgent: bool) -> dict[str, Any]:
        # The mock broker holds an empty fetch until its time is up, even when a message comes meanwhile. Fourteen
        # consumers with a fetch each 10 ms were a quarter of an idle machine's CPU.
        embedded = _is_embedded(self._metadata(self._prefix + DEADLETTER_TOPIC))
        return {"fetch.wait.max.ms": 50} if embedded and urgent else {}

    def _create(self, names: Sequence[str]) -> None:
        retention_ms = str(self._retention_hours * 3_600_000)
        wanted = [
            NewTopic(name, self._partitions, self._replication, config={"retention.ms": retention_ms}) for name in names
        ]
        admin = made(AdminClient, self._config)
        for name, created in admin.create_topics(wanted, request_timeout=REQUEST_SECONDS).items():
            try:
                created.result(REQUEST_SECONDS)
            except KafkaException as error:
                if error.args[0].code() != KafkaError.TOPIC_ALREADY_EXISTS:
                    raise refused(name, self._address, error.args[0]) from error
        self._await(names)

    def _await(self, names: Sequence[str]) -> None:
        """Return when the brokers know the topics: one of them has created them, another may be asked next."""
        client = self._producer.client()
        try:
            for name in names:
                patiently(partial(_partitions, client, name), REQUEST_SECONDS)
        except KafkaException as error:
            raise unavailable(self._address, error, self._trouble) from error


class BusConsumer:
    """A reader of all partitions of some topics, from positions that its user gives. Topics without prefix."""

    def __init__(self, config: Mapping[str, Any], prefix: str, topics: Sequence[str]) -> None:
        self._address = str(config["bootstrap.servers"])
        self._prefix = prefix
        self._topics = tuple(topics)
        self._commits: dict[frozenset[tuple[str, int, int]], KafkaError | None] = {}
        self._unread: list[KafkaMessage] = []
        self._trouble = Trouble()
        self._assigned: set[tuple[str, int]] = set()
        self._grown_at = time.monotonic()
        self._consumer = made(
            Consumer,
            {
                **config,
                "auto.offset.reset": "earliest",
                "enable.auto.commit": False,
                "enable.auto.offset.store": False,
                "queued.max.messages.kbytes": 16_384,
                "on_commit": self._note_commit,
                "error_cb": self._trouble,
            },
        )

    def assign(self, positions: Mapping[tuple[str, int], int]) -> None:
        """Read on from ``positions`` (next offsets), else from what the group committed, else from the earliest.

        A position that the topic no longer has (or not yet) is the earliest too. May be called again, to go back.
        Raises BusUnavailable.
        """
        partitions = self._existing()
        self._unread.clear()
        self._consumer.assign(self._start(partitions, positions))
        self._assigned = set(partitions)
        self._grown_at = time.monotonic()

    def poll(self, max_messages: int, timeout_seconds: float) -> list[Received]:
        """What is there, at most ``max_messages``; waits for the first message only, up to the timeout.

        Partitions that a topic has gained are read too, from their beginning, within a minute. Raises BusUnavailable
        when the brokers cannot be reached; an empty list means that there is nothing.
        """
        deadline = time.monotonic() + timeout_seconds
        if time.monotonic() - self._grown_at > NEW_PARTITIONS_SECONDS:
            self._take_new_partitions()
        while True:
            taken = self._take(max_messages, max(deadline - time.monotonic(), 0.0))
            received = [_received(message, self._prefix) for message in taken if message.error() is None]
            for error in (message.error() for message in taken):
                if error is not None:
                    self._trouble(error)
            if received:
                return received
            if time.monotonic() >= deadline:
                break
        if self._trouble.text:
            # A complaint comes once, and also when a connection was only closed for being idle: so ask.
            self._existing()
            self._trouble.text = ""
        return []

    def commit(self, next_offsets: Mapping[tuple[str, int], int]) -> None:
        """Commit the offsets to be read next; return when Kafka has them. Raises BusUnavailable."""
        if not next_offsets:
            return
        wanted = [
            TopicPartition(self._prefix + topic, partition, offset)
            for (topic, partition), offset in next_offsets.items()
        ]
        try:
            patiently(partial(self._commit, wanted), REQUEST_SECONDS)
        except KafkaException as error:
            reason = self._trouble.because(error.args[0].str())
            raise BusUnavailable(f"Kafka at {self._address} did not commit offsets: {reason}") from error

    def close(self) -> None:
        """Let the connection go; what was not committed stays so."""
        self._consumer.close()

    def _commit(self, wanted: list[TopicPartition]) -> None:
        # A synchronous commit would wait for a broker that is down for as long as it is down.
        self._commits.clear()
        self._consumer.commit(offsets=wanted, asynchronous=True)
        deadline = time.monotonic() + REQUEST_SECONDS
        while _places(wanted) not in self._commits:
            if time.monotonic() >= deadline:
                raise KafkaException(KafkaError(KafkaError._TIMED_OUT, f"no answer within {REQUEST_SECONDS:g} s"))  # noqa: SLF001
            # The answer is served by a poll, and a poll may bring a message: it is kept for the next one.
            message = self._consumer.poll(0.01)
            if message is not None:
                self._unread.append(message)
        error = self._commits[_places(wanted)]
        if error is not None:
            raise KafkaException(error)

    def _note_commit(self, error: KafkaError | None, offsets: Sequence[TopicPartition]) -> None:
        errors = [error, *(place.error for place in offsets)]
        self._commits[_places(offsets)] = next((wrong for wrong in errors if wrong is not None), None)

    def _take(self, max_messages: int, timeout_seconds: float) -> list[KafkaMessage]:
        if self._unread:
            taken, self._unread = self._unread[:max_messages], self._unread[max_messages:]
            return taken
        first = self._consumer.poll(timeout_seconds)
        return [] if first is None else [first, *self._consumer.consume(max_messages - 1, 0)]

    def _existing(self) -> list[tuple[str, int]]:
        """Every partition of the topics, as (topic, partition)."""
        found: list[tuple[str, int]] = []
        try:
            for topic in self._topics:
                request = partial(_partitions, self._consumer, self._prefix + topic)
                found.extend((topic, partition) for partition in patiently(request, REQUEST_SECONDS))
        except KafkaException as error:
            raise unavailable(self._address, error, self._trouble) from error
        return found

    def _start(
        self, partitions: Sequence[tuple[str, int]], positions: Mapping[tuple[str, int], int]
    ) -> list[TopicPartition]:
        given = {place: offset for place, offset in positions.items() if place in set(partitions)}
        others = [
            TopicPartition(self._prefix + topic, partition)
            for topic, partition in partitions
            if (topic, partition) not in given
        ]
        try:
            others = patiently(partial(self._committed, others), REQUEST_SECONDS)
            for place in others:
                if place.offset < 0:
                    place.offset = patiently(partial(self._earliest, place), REQUEST_SECONDS)
        except KafkaException as error:
            raise unavailable(self._address, error, self._trouble) from error
        return [
            *(TopicPartition(self._prefix + topic, partition, offset) for (topic, partition), offset in given.items()),
            *others,
        ]

    def _committed(self, places: list[TopicPartition]) -> list[TopicPartition]:
        if not places:
            return []
        committed = self._consumer.committed(places, timeout=REQUEST_SECONDS)
        for place in committed:
            if place.error is not None:
                raise KafkaException(place.error)
        return committed

    def _earliest(self, place: TopicPartition) -> int:
        # By number, for by its name the client waits half a second before it asks.
        low, _ = self._consumer.get_watermark_offsets(place, timeout=REQUEST_SECONDS)
        return low

    def _take_new_partitions(self) -> None:
        self._grown_at = time.monotonic()
        new = [place for place in self._existing() if place not in self._assigned]
        if new:
            self._consumer.incremental_assign(self._start(new, {}))
            self._assigned.update(new)


def _partitions(client: Producer | Consumer, name: str) -> list[int]:
    """The partitions of a topic. Raises KafkaException, also where there is no such topic."""
    cluster: ClusterMetadata = client.list_topics(name, timeout=REQUEST_SECONDS)
    topic = cluster.topics[name]
    if topic.error is not None:
        raise KafkaException(KafkaError(topic.error.code(), f"topic {name}: {topic.error.str()}"))
    return list(topic.partitions)


def _is_embedded(cluster: ClusterMetadata) -> bool:
    return str(cluster.cluster_id).startswith(EMBEDDED_CLUSTER)


def _places(offsets: Sequence[TopicPartition]) -> frozenset[tuple[str, int, int]]:
    return frozenset((place.topic, place.partition, place.offset) for place in offsets)


def _record(message: Message, prefix: str) -> dict[str, Any]:
    """The arguments of the client's ``produce``. Text that is not Unicode is escaped, so that it can always be sent."""
    key = message.key.encode(errors="backslashreplace")
    value = _JSON.encode(message.body).encode()
    headers = [(name, text.encode(errors="backslashreplace")) for name, text in message.headers.items()]
    size = len(key) + len(value) + sum(len(name) + len(text) for name, text in headers)
    if size > MESSAGE_BYTES:
        raise InputError(
            "message_too_large",
            f"a message of {size} bytes for {message.topic} (key {message.key[:200]}) is beyond Kafka's "
            f"{MESSAGE_BYTES}: make it smaller",
        )
    return {"topic": prefix + message.topic, "key": key, "value": value, "headers": headers}


def _received(message: KafkaMessage, prefix: str) -> Received:
    _, timestamp_ms = message.timestamp()
    return Received(
        topic=(message.topic() or "").removeprefix(prefix),
        partition=message.partition() or 0,
        offset=message.offset() or 0,
        key=(message.key() or b"").decode(errors="replace"),
        body=message.value() or b"",
        headers={name: (value or b"").decode(errors="replace") for name, value in _headers(message)},
        timestamp_ms=timestamp_ms,
    )


def _headers(message: KafkaMessage) -> list[tuple[str, bytes | None]]:
    # A received message has a list of pairs; the client's type says what one may give it, too.
    return cast("list[tuple[str, bytes | None]]", message.headers() or [])
