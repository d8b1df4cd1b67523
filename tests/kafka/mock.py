"""librdkafka's mock cluster with its fault injection, which no real broker gives."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

from confluent_kafka import KafkaError

from lakerunner_dagster.local.kafka import MockCluster

BROKER = 1
PRODUCE, METADATA, OFFSET_COMMIT = 0, 3, 8
"""Numbers of requests in Kafka's protocol."""

_POINTER = ctypes.c_void_p


class FaultyCluster(MockCluster):
    """A mock cluster in this process whose broker fails as it is told to."""

    def __init__(self) -> None:
        super().__init__()
        for name, arguments in {
            "rd_kafka_mock_broker_set_down": [_POINTER, ctypes.c_int32],
            "rd_kafka_mock_broker_set_up": [_POINTER, ctypes.c_int32],
            "rd_kafka_mock_push_request_errors_array": [_POINTER, ctypes.c_int16, ctypes.c_size_t, _POINTER],
            "rd_kafka_mock_clear_request_errors": [_POINTER, ctypes.c_int16],
        }.items():
            getattr(self.library, name).argtypes = arguments

    def down(self) -> None:
        """Close every connection and take none."""
        self.library.rd_kafka_mock_broker_set_down(self.handle, BROKER)

    def up(self) -> None:
        self.library.rd_kafka_mock_broker_set_up(self.handle, BROKER)

    def fail(self, request: int, errors: Sequence[int]) -> None:
        """Answer the next requests of that kind with these errors; ``_TRANSPORT`` closes the connection instead."""
        codes = (ctypes.c_int * len(errors))(*errors)
        self.library.rd_kafka_mock_push_request_errors_array(self.handle, request, len(errors), codes)

    def heal(self, request: int) -> None:
        """Forget the errors that were not answered yet."""
        self.library.rd_kafka_mock_clear_request_errors(self.handle, request)


RETRIABLE = (
    KafkaError.NOT_LEADER_FOR_PARTITION,
    KafkaError.REQUEST_TIMED_OUT,
    KafkaError.NOT_ENOUGH_REPLICAS,
    KafkaError.NOT_ENOUGH_REPLICAS_AFTER_APPEND,
    KafkaError._TRANSPORT,
)
"""Errors of a produce request after which it is sent again."""
