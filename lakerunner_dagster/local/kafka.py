"""The embedded Kafka: librdkafka's mock cluster, out of the confluent-kafka wheel, in a process of its own.

What belongs here: hosting that cluster, in this process or in a child. What does not: using it (``lake.bus``, where its
limits are told), and when services start and stop (``local.services``).

Everything in it is gone when it stops. Its address is new at each start, and so is its id: a topic that is named after
it (``bus.EMBEDDED_MARKER``), for the id that the mock reports is a memory address.
"""

from __future__ import annotations

import argparse
import ctypes
import secrets
import subprocess
import sys
from typing import TYPE_CHECKING

import confluent_kafka.cimpl

from lakerunner_dagster.lake.bus import EMBEDDED_MARKER
from lakerunner_dagster.local.errors import ServiceFailed

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

STOP_SECONDS = 10.0

_PRODUCER = 0
_POINTER, _TEXT, _INT, _SIZE = ctypes.c_void_p, ctypes.c_char_p, ctypes.c_int, ctypes.c_size_t
_SIGNATURES = {
    "rd_kafka_conf_new": (_POINTER, []),
    "rd_kafka_conf_set": (_INT, [_POINTER, _TEXT, _TEXT, _TEXT, _SIZE]),
    "rd_kafka_new": (_POINTER, [_INT, _POINTER, _TEXT, _SIZE]),
    "rd_kafka_destroy": (None, [_POINTER]),
    "rd_kafka_err2str": (_TEXT, [_INT]),
    "rd_kafka_handle_mock_cluster": (_POINTER, [_POINTER]),
    "rd_kafka_mock_cluster_bootstraps": (_TEXT, [_POINTER]),
    "rd_kafka_mock_topic_create": (_INT, [_POINTER, _TEXT, _INT, _INT]),
}


def _library() -> ctypes.CDLL:
    # The symbols of a library that Python's extension module is linked with are found through the module itself.
    library = ctypes.CDLL(confluent_kafka.cimpl.__file__)
    for name, (result, arguments) in _SIGNATURES.items():
        function = getattr(library, name)
        function.restype, function.argtypes = result, arguments
    return library


class MockCluster:
    """librdkafka's mock cluster of one broker, in threads of this process, until it is closed."""

    def __init__(self) -> None:
        self.library = _library()
        config = self.library.rd_kafka_conf_new()
        problem = ctypes.create_string_buffer(512)
        for name, value in (("test.mock.num.brokers", "1"), ("log_level", "0")):
            self.library.rd_kafka_conf_set(config, name.encode(), value.encode(), problem, len(problem))
        self._client: int | None = self.library.rd_kafka_new(_PRODUCER, config, problem, len(problem))
        if not self._client:
            raise ServiceFailed(f"the embedded Kafka did not start: {problem.value.decode(errors='replace')}")
        self.handle: int = self.library.rd_kafka_handle_mock_cluster(self._client)
        self.create_topic(EMBEDDED_MARKER + secrets.token_hex(16), 1)

    @property
    def bootstrap_servers(self) -> str:
        """Its address, ``127.0.0.1:port``."""
        address: bytes = self.library.rd_kafka_mock_cluster_bootstraps(self.handle)
        return address.decode()

    def create_topic(self, name: str, partitions: int) -> None:
        """Create a topic. Raises ServiceFailed when it is there already."""
        error = self.library.rd_kafka_mock_topic_create(self.handle, name.encode(), partitions, 1)
        if error:
            raise ServiceFailed(f"topic {name}: {self.library.rd_kafka_err2str(error).decode()}")

    def close(self) -> None:
        """End the cluster, and all that is in it."""
        if self._client is not None:
            self.library.rd_kafka_destroy(self._client)
            self._client = None


class KafkaServer:
    """The embedded Kafka in a child process, which ends with this one, however this one ends."""

    def __init__(self, topics: Sequence[str], log: Path, *, partitions: int = 1) -> None:
        self.log = log
        self._command = [sys.executable, "-m", __name__, f"--partitions={partitions}", *topics]
        self._process: subprocess.Popen[str] | None = None
        self._address = ""

    @property
    def bootstrap_servers(self) -> str:
        """The address of the last start, ``127.0.0.1:port``."""
        return self._address

    @property
    def process_id(self) -> int | None:
        """Process id of the running cluster, or None."""
        return self._process.pid if self._process and self._process.poll() is None else None

    def start(self) -> None:
        """Start an empty cluster with the topics; return when it takes connections. Raises ServiceFailed."""
        with self.log.open("wb") as log:
            self._process = subprocess.Popen(  # noqa: S603  # our own module
                self._command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                # A Ctrl-C in the terminal is for the owner, who stops the cluster when nobody needs it any more.
                start_new_session=True,
            )
        self._address = self._process.stdout.readline().strip() if self._process.stdout else ""
        if not self._address:
            self.stop()
            raise ServiceFailed(f"the embedded Kafka did not start: {self.log.read_text(errors='replace')[-500:]}")

    def stop(self) -> None:
        """End the cluster; nothing happens when it is not running."""
        if self._process is None:
            return
        try:
            self._process.communicate(timeout=STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.communicate()
        self._process = None


def main() -> None:
    """Host a cluster, tell its address on standard output, and stop when standard input ends: with our owner."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--partitions", type=int, default=1)
    parser.add_argument("topics", nargs="*")
    arguments = parser.parse_args()
    cluster = MockCluster()
    for topic in arguments.topics:
        cluster.create_topic(topic, arguments.partitions)
    print(cluster.bootstrap_servers, flush=True)
    sys.stdin.read()
    cluster.close()


if __name__ == "__main__":
    main()
