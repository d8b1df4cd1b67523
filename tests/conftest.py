"""Real servers for the tests: started once in a session when a test first asks, stopped at its end."""

from __future__ import annotations

import itertools
import os
import signal
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest

from lakerunner_dagster.lake.bus import Bus
from lakerunner_dagster.lake.lrdb.migrate import migrate
from lakerunner_dagster.local.kafka import KafkaServer
from lakerunner_dagster.local.postgres import PostgresServer
from tests.servers.aws import Aws
from tests.servers.azure import Azure
from tests.servers.gcs import Gcs
from tests.servers.pubsub import PubSub

# No test asserts a duration, least of all on a busy machine.
hypothesis.settings.register_profile("lake", deadline=None)
hypothesis.settings.load_profile("lake")


# What waits more than it computes and has few, long tests: begun last, a single one of these would be waited for alone.
BEGUN_FIRST = ("e2e", "production", "commands", "local", "launcher")

# A shell's background job ignores SIGINT, and its children inherit that. Dagster, where it handles interrupts, then
# lets SIGTERM be ignored too: nothing that a test starts could be ended.
signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_xdist_auto_num_workers() -> int:
    """One process more than there are cores, for tests wait a lot; each starts servers of its own, so not many."""
    return min((os.cpu_count() or 1) + 1, 4)


@pytest.hookimpl(tryfirst=True)  # before xdist reads the groups
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Test processes share the work file by file; the end-to-end tests, which share one deployment, stay together."""
    items.sort(key=lambda item: _rank(item.path))
    for item in items:
        item.add_marker(pytest.mark.xdist_group("e2e" if "e2e" in item.path.parts else str(item.path)))


def _rank(path: Path) -> int:
    """Place of a file's directory among those that are begun first; one for all others."""
    directory = path.relative_to(Path(__file__).parent).parts[0]
    return BEGUN_FIRST.index(directory) if directory in BEGUN_FIRST else len(BEGUN_FIRST)


class TestDatabases:
    """A PostgreSQL server that hands out databases of their own."""

    __test__ = False

    def __init__(self, server: PostgresServer) -> None:
        self.server = server
        self._numbers = itertools.count(1)

    def create_database(self, *, template: str = "template1") -> str:
        """URL (``postgresql://…``) of a new database: empty, or a copy of ``template``."""
        return self.server.create_database(f"test_{next(self._numbers)}", template=template)


@pytest.fixture(scope="session")
def postgres() -> Iterator[TestDatabases]:
    """A throw-away PostgreSQL (fsync off); ``postgres.create_database()`` gives the URL of a new empty database."""
    with tempfile.TemporaryDirectory(prefix="lakerunner-test-") as directory:
        Path(directory).chmod(0o711)  # root's server runs as another user, who must get through
        server = PostgresServer(Path(directory) / "postgres", durable=False)
        server.start()
        try:
            yield TestDatabases(server)
        finally:
            server.stop()


@pytest.fixture(scope="session")
def migrated_template(postgres: TestDatabases) -> str:
    """Name of a database with lrdb's schema and nothing in it, to be copied."""
    name = "migrated_template"
    migrate(postgres.server.create_database(name))
    return name


@pytest.fixture
def lrdb_url(postgres: TestDatabases, migrated_template: str) -> Iterator[str]:
    """URL of a database of the test's own, with lrdb's schema and nothing in it."""
    url = postgres.create_database(template=migrated_template)
    yield url
    postgres.server.drop_database(url.rpartition("/")[2])


@pytest.fixture(scope="session")
def kafka_bootstrap(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Address of an embedded Kafka, which makes a topic of 4 partitions when one is first asked for."""
    server = KafkaServer([], tmp_path_factory.mktemp("kafka") / "kafka.log")
    server.start()
    yield server.bootstrap_servers
    server.stop()


@pytest.fixture
def bus(kafka_bootstrap: str) -> Iterator[Bus]:
    """A Bus on the embedded Kafka with topics of the test's own."""
    bus = Bus(kafka_bootstrap, prefix=f"test-{uuid.uuid4().hex[:12]}.", partitions=4, replication=1)
    yield bus
    bus.close()


@pytest.fixture(scope="session")
def aws(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Aws]:
    """S3 and SQS; a test takes buckets and queues of names of its own."""
    server = Aws(tmp_path_factory.mktemp("moto") / "moto.log")
    server.start()
    yield server
    server.stop()


@pytest.fixture(scope="session")
def azure(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Azure]:
    """Azure's blobs and queues; a test takes containers and queues of names of its own."""
    server = Azure(tmp_path_factory.mktemp("azurite"))
    server.start()
    yield server
    server.stop()


@pytest.fixture(scope="session")
def gcs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gcs]:
    """Google Cloud Storage; a test takes buckets of names of its own."""
    server = Gcs(tmp_path_factory.mktemp("gcs") / "gcs.log")
    server.start()
    yield server
    server.stop()


@pytest.fixture(scope="session")
def pubsub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PubSub]:
    """Google's Pub/Sub; a test takes topics and subscriptions of names of its own."""
    server = PubSub(tmp_path_factory.mktemp("pubsub") / "pubsub.log")
    server.start()
    yield server
    server.stop()
