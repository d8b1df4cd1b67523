"""Kafka's clients when something goes wrong: what passes by itself, what they complain of, and which error that is.

What belongs here: making clients, repeating requests, translating errors. What does not: what is asked of Kafka
(``bus``).
"""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING, Any, TypeVar

from confluent_kafka import KafkaError, KafkaException

from lakerunner_dagster.lake.errors import BusUnavailable, ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

logger = logging.getLogger(__name__)

Client = TypeVar("Client")
Answer = TypeVar("Answer")

PASSING = frozenset(
    {
        KafkaError.COORDINATOR_LOAD_IN_PROGRESS,
        KafkaError.COORDINATOR_NOT_AVAILABLE,
        KafkaError.LEADER_NOT_AVAILABLE,
        KafkaError.NOT_COORDINATOR,
        KafkaError.NOT_LEADER_FOR_PARTITION,
        KafkaError.UNKNOWN_TOPIC_OR_PART,
    }
)
"""Answers of brokers that do not know yet what another one has decided: of a new topic, a new group, a new leader."""

PAUSE_SECONDS = 0.05


class Trouble:
    """What a client last complained of: its requests only say that they failed. Served by the client's polls."""

    def __init__(self) -> None:
        self.text = ""

    def __call__(self, error: KafkaError) -> None:
        """Remember the error. That all brokers are down is said after why, and tells less."""
        if error.code() != KafkaError._ALL_BROKERS_DOWN or not self.text:  # noqa: SLF001  # its public name
            self.text = error.str()

    def because(self, reason: str) -> str:
        """The reason that a request gave, and what is known beside it."""
        return f"{reason}; {self.text}" if self.text else reason


def made(client: Callable[..., Client], config: Mapping[str, Any]) -> Client:
    """A client of these settings. Raises ConfigurationError when it refuses one."""
    try:
        return client(dict(config), logger=logger)
    except (KafkaException, TypeError, ValueError) as error:
        raise ConfigurationError(
            f"Kafka's client refuses its settings ({error}): mend LAKERUNNER_KAFKA_OPTIONS and "
            "LAKERUNNER_KAFKA_BOOTSTRAP_SERVERS"
        ) from error


def patiently(request: Callable[[], Answer], seconds: float) -> Answer:
    """The answer to ``request``, which is repeated while its error passes, for so long. Raises KafkaException."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            return request()
        except KafkaException as error:
            if error.args[0].code() not in PASSING or time.monotonic() >= deadline:
                raise
        time.sleep(PAUSE_SECONDS)


def unavailable(address: str, error: KafkaException, trouble: Trouble) -> BusUnavailable:
    """The error of a request that was not answered as it should be."""
    reason = trouble.because(error.args[0].str())
    return BusUnavailable(f"Kafka at {address} does not answer ({reason}): is it up, and is that its address?")


def refused(topic: str, address: str, error: KafkaError) -> BusUnavailable | ConfigurationError:
    """The error of a topic that was not created."""
    if error.code() in PASSING | {KafkaError._TIMED_OUT, KafkaError._TRANSPORT}:  # noqa: SLF001  # public names
        return BusUnavailable(f"Kafka at {address} did not create topic {topic}: {error.str()}")
    return ConfigurationError(
        f"Kafka at {address} refuses to create topic {topic} ({error.str()}): set LAKERUNNER_KAFKA_PARTITIONS and "
        "LAKERUNNER_KAFKA_REPLICATION to what it can do, or create the topics yourself"
    )
