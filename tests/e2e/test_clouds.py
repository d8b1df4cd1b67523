"""The whole path once for each cloud: a raw file is put there, its cloud tells, and its rows are queryable there."""

from __future__ import annotations

import base64
import json
import sys
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from azure.storage.queue import QueueClient
from google.cloud import pubsub_v1  # type: ignore[import-untyped]

from lakerunner_dagster.lake.lrdb import lineage, profiles
from lakerunner_dagster.lake.model import rfc3339
from lakerunner_dagster.lake.signals import Signal
from lakerunner_dagster.lake.store import BucketConfiguration, Store, StoredObject
from lakerunner_dagster.local.demo import ORGANIZATIONS
from tests.e2e.conftest import Deployment
from tests.lake.clouds import CLOUD_CREDENTIALS
from tests.lake.notifications import samples
from tests.lake.requests import logs, minutes
from tests.lake.world import now_ms
from tests.servers.aws import REGION, Aws
from tests.servers.azure import ACCOUNT, KEY, Azure
from tests.servers.gcs import Gcs
from tests.servers.pubsub import PROJECT, PubSub

RECORDS = 7


@dataclass(frozen=True)
class Door:
    """A bucket of a cloud, the adapter that hears of it, and what the cloud would do that its emulator does not."""

    bucket: BucketConfiguration
    notify: list[str]
    environment: dict[str, str]
    told: Callable[[StoredObject], None] = lambda _: None


def _aws(name: str, request: pytest.FixtureRequest) -> Door:
    server: Aws = request.getfixturevalue("aws")
    server.create_bucket(name)
    url = server.client("sqs").create_queue(QueueName=name)["QueueUrl"]
    server.notify(name, name)
    bucket = BucketConfiguration(name, "aws", region=REGION, endpoint=server.endpoint, use_path_style=True)
    return Door(bucket, ["sqs", url, "--region", REGION, "--endpoint", server.endpoint], {})


def _azure(name: str, request: pytest.FixtureRequest) -> Door:
    server: Azure = request.getfixturevalue("azure")
    server.create_container(name)
    url = f"{server.queue_endpoint}/{name}"
    queue = QueueClient.from_queue_url(url, credential={"account_name": ACCOUNT, "account_key": KEY})
    queue.create_queue()

    def event_grid_tells(stored: StoredObject) -> None:
        event = samples.event_grid(
            stored.key,
            subject=f"/blobServices/default/containers/{name}/blobs/{stored.key}",
            eventTime=rfc3339(stored.last_modified_ms),
        )
        event["data"] |= {"eTag": stored.etag, "contentLength": stored.size}
        queue.send_message(base64.b64encode(json.dumps(event).encode()).decode())

    return Door(BucketConfiguration(name, "azure", endpoint=server.blob_endpoint), ["azure", url], {}, event_grid_tells)


@pytest.fixture(scope="module")
def telling_gcs(pubsub: PubSub, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Gcs, str, str]]:
    """Cloud Storage that tells Pub/Sub of its objects, the subscription, and the emulator's address."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PUBSUB_EMULATOR_HOST", pubsub.address)
        with pubsub_v1.PublisherClient() as publisher, pubsub_v1.SubscriberClient() as subscriber:
            topic = publisher.create_topic(name=f"projects/{PROJECT}/topics/created").name
            subscription = f"projects/{PROJECT}/subscriptions/created"
            subscriber.create_subscription(request={"name": subscription, "topic": topic, "ack_deadline_seconds": 30})
    server = Gcs(tmp_path_factory.mktemp("gcs") / "gcs.log", pubsub, "created")
    server.start()
    yield server, subscription, pubsub.address
    server.stop()


def _gcp(name: str, request: pytest.FixtureRequest) -> Door:
    server, subscription, address = request.getfixturevalue("telling_gcs")
    server.create_bucket(name)
    bucket = BucketConfiguration(name, "gcp", endpoint=server.endpoint)
    return Door(bucket, ["gcp", subscription], {"PUBSUB_EMULATOR_HOST": address})


DOORS = {"sqs": _aws, "azure": _azure, "gcp": _gcp}


@pytest.mark.parametrize("adapter", DOORS)
def test_a_file_in_a_clouds_bucket_becomes_queryable_in_that_bucket(
    deployment: Deployment, adapter: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    for variable, value in CLOUD_CREDENTIALS.items():
        monkeypatch.setenv(variable, value)
    door = DOORS[adapter](f"lake-{adapter}-{uuid.uuid4().hex[:8]}", request)
    with deployment.lrdb.transaction() as conn:
        profiles.put_bucket(conn, door.bucket)
    monkeypatch.chdir(deployment.project)  # where the deployment's .env is
    environment = [f"{variable}={value}" for variable, value in door.environment.items()]
    command = [sys.executable, "-m", "lakerunner_dagster.cli", "notify", *door.notify]
    deployment.children.start(f"notify-{adapter}", ["env", *environment, "LAKERUNNER_MONITOR_PORT=0", *command])

    store = Store.open(door.bucket)
    key = f"otel-raw/{ORGANIZATIONS[0].organization_id}/{adapter}-cloud/{Signal.LOGS}/a name+with%41 ünï.binpb.gz"
    store.put(key, logs("cloud", minutes(now_ms() - RECORDS * 60_000, RECORDS)))
    door.told(store.head(key))

    deployment.wait_until_queryable(key, RECORDS)
    with deployment.lrdb.connection() as conn:
        (known,) = lineage.raw_objects_at(conn, key)
    assert (known.raw.bucket, known.raw.etag) == (door.bucket.bucket_name, store.head(key).etag)
    assert {Path(found.key).suffix for found in store.list("db")} == {".parquet"}
    deployment.wait_until_materialised("log_segments", deployment.partition(key))
