"""Apache Kafka as one KRaft node on loopback: downloaded once into the user's cache, started in a given directory.

What belongs here: the server. What does not: what is tested on it.
"""

from __future__ import annotations

import hashlib
import re
import subprocess
import time
from pathlib import Path

import pytest
from confluent_kafka import KafkaException
from confluent_kafka.admin import AdminClient

from lakerunner_dagster.local.postgres import free_port
from tests.kafka.proxy import LossyProxy
from tests.servers.cache import cached, needed

POM = Path(__file__).with_name("pom.xml")
START_SECONDS = 120.0
JAVA_MAJOR = 17
COPY = "org.apache.maven.plugins:maven-dependency-plugin:3.8.1:copy-dependencies"
# A test's server lives for seconds: compiling its code well would take longer than it runs.
JVM = ["-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC", "-Xmx512m"]


def jars() -> Path:
    """Kafka's jars, downloaded from Maven Central when they are not there; the test is skipped where that cannot be."""
    needed("java", "mvn")
    version = subprocess.run(["java", "-version"], check=True, capture_output=True, text=True).stderr
    match = re.search(r'version "(\d+)', version)
    if match is None or int(match[1]) < JAVA_MAJOR:
        pytest.skip(f"Apache Kafka 4 needs Java {JAVA_MAJOR} or later, here is: {version.splitlines()[0]}")
    fetch = ["mvn", "-B", "-q", "-f", str(POM), COPY, "-DincludeScope=runtime"]
    return cached(
        f"kafka-{hashlib.sha256(POM.read_bytes()).hexdigest()[:12]}", lambda into: [*fetch, f"-DoutputDirectory={into}"]
    )


class ApacheKafka:
    """One broker and controller whose data are in ``directory``; the same address at each start.

    ``proxy.address`` leads to the same broker through a proxy that loses acknowledgements when told to.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._java = ["java", *JVM, "-cp", f"{jars()}/*"]
        self._port, controller, lossy = free_port(), free_port(), free_port()
        self.proxy = LossyProxy(("127.0.0.1", lossy), free_port())
        self._process: subprocess.Popen[bytes] | None = None
        settings = {
            "process.roles": "broker,controller",
            "node.id": 1,
            "controller.quorum.voters": f"1@127.0.0.1:{controller}",
            "listeners": f"PLAINTEXT://127.0.0.1:{self._port},CONTROLLER://127.0.0.1:{controller},"
            f"LOSSY://127.0.0.1:{lossy}",
            "advertised.listeners": f"PLAINTEXT://127.0.0.1:{self._port},LOSSY://{self.proxy.address}",
            "controller.listener.names": "CONTROLLER",
            "listener.security.protocol.map": "PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT,LOSSY:PLAINTEXT",
            "log.dirs": directory / "data",
            "offsets.topic.replication.factor": 1,
            "offsets.topic.num.partitions": 1,
            "transaction.state.log.replication.factor": 1,
            "transaction.state.log.min.isr": 1,
            "share.coordinator.state.topic.replication.factor": 1,
            "share.coordinator.state.topic.min.isr": 1,
            "group.initial.rebalance.delay.ms": 0,
            "auto.create.topics.enable": "false",
        }
        self._properties = directory / "server.properties"
        self._properties.write_text("".join(f"{name}={value}\n" for name, value in settings.items()))
        cluster = subprocess.run(
            [*self._java, "kafka.tools.StorageTool", "random-uuid"], check=True, capture_output=True, text=True
        ).stdout.strip()
        subprocess.run(
            [*self._java, "kafka.tools.StorageTool", "format", "-t", cluster, "-c", str(self._properties)],
            check=True,
            capture_output=True,
        )

    @property
    def bootstrap_servers(self) -> str:
        return f"127.0.0.1:{self._port}"

    def start(self) -> None:
        """Start the broker; return when it takes requests."""
        with (self._directory / "server.log").open("ab") as log:
            self._process = subprocess.Popen(
                [*self._java, "kafka.Kafka", str(self._properties)], cwd=self._directory, stdout=log, stderr=log
            )
        admin = AdminClient({"bootstrap.servers": self.bootstrap_servers, "log_level": 0})
        deadline = time.monotonic() + START_SECONDS
        while True:
            try:
                if admin.list_topics(timeout=1).brokers:
                    return
            except KafkaException:
                assert self._process.poll() is None, (self._directory / "server.log").read_text()[-2000:]
            assert time.monotonic() < deadline, "Apache Kafka does not start"

    def stop(self) -> None:
        """Stop the broker, cleanly; its data stay."""
        process, self._process = self._process, None
        if process is None:
            return
        process.terminate()
        try:
            process.wait(START_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            raise
