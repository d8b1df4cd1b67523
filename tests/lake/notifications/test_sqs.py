"""What would break if a queue of SQS lost a message, kept one that was done, or stood still for a bad one."""

from __future__ import annotations

import json
import uuid
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from threading import Event
from typing import Any

import pytest

from lakerunner_dagster.lake.errors import ConfigurationError, QueueDenied, QueueUnavailable
from lakerunner_dagster.lake.notifications.pulling import PullingAdapter
from lakerunner_dagster.lake.notifications.sqs import SqsQueue
from tests.lake.notifications import samples
from tests.lake.notifications.conftest import Lake
from tests.lake.notifications.pulled import LOGS, Gate, counted, kept_for_leases, pulling, quick
from tests.servers.aws import ACCOUNT, CREDENTIALS, REGION, Aws
from tests.waiting import eventually


@dataclass(frozen=True)
class Door:
    """A queue of the test's own in moto, with a queue for what was delivered twice in vain."""

    aws: Aws
    name: str
    url: str
    dead_url: str

    def queue(self, lake: Lake, **changes: Any) -> SqsQueue:
        return SqsQueue(self.url, quick(lake.settings, **changes), region=REGION, endpoint=self.aws.endpoint)

    def pulling(self, lake: Lake, **changes: Any) -> AbstractContextManager[PullingAdapter]:
        """An adapter of one thread: moto fails two requests for one queue at once, now and then."""
        settings = quick(lake.settings, queue_receivers=1, **changes)
        return pulling(self.queue(lake, **changes), lake.intake, settings)

    def send(self, *bodies: Any) -> None:
        client = self.aws.client("sqs")
        for body in bodies:
            text = body if isinstance(body, str) else json.dumps(body)
            client.send_message(QueueUrl=self.url, MessageBody=text)

    def left(self, url: str = "") -> int:
        """Messages in the queue, visible or not."""
        names = ["ApproximateNumberOfMessages", "ApproximateNumberOfMessagesNotVisible"]
        answer = self.aws.client("sqs").get_queue_attributes(QueueUrl=url or self.url, AttributeNames=names)
        return sum(int(answer["Attributes"][name]) for name in names)


@pytest.fixture
def door(aws: Aws, monkeypatch: pytest.MonkeyPatch) -> Door:
    for name, value in CREDENTIALS.items():
        monkeypatch.setenv(name, value)
    client = aws.client("sqs")
    name = f"queue-{uuid.uuid4().hex[:8]}"
    dead_url = client.create_queue(QueueName=f"{name}-dead")["QueueUrl"]
    redrive = {"deadLetterTargetArn": f"arn:aws:sqs:{REGION}:{ACCOUNT}:{name}-dead", "maxReceiveCount": 2}
    url = client.create_queue(QueueName=name, Attributes={"RedrivePolicy": json.dumps(redrive)})["QueueUrl"]
    return Door(aws, name, url, dead_url)


def keys(lake: Lake, count: int) -> set[str]:
    """Of those whose messages are in Kafka; a queue may bring one twice."""
    return {body["k"] for body in lake.bodies(LOGS, count)}


def acknowledged(door: Door, adapter: PullingAdapter, lake: Lake, expected: Sequence[str]) -> None:
    """Everything was passed on, and the queue is empty."""
    counted(adapter, "produced", len(expected))
    eventually(lambda: door.left() == 0, "the queue is empty")
    assert keys(lake, len(expected)) == set(expected)


def test_what_is_put_into_a_bucket_is_in_kafka(lake: Lake, door: Door) -> None:
    s3 = door.aws.client("s3")
    bucket = f"raw-{door.name}"
    s3.create_bucket(Bucket=bucket, CreateBucketConfiguration={"LocationConstraint": REGION})
    with lake.lrdb.transaction() as conn:
        conn.execute("INSERT INTO bucket_configurations (bucket_name, cloud_provider) VALUES (%s, 'aws')", (bucket,))
    door.aws.notify(bucket, door.name)
    odd = [lake.key(name) for name in ("logs/a b+c", "logs/%2F/ü", "logs/plain.binpb")]
    for key in odd:
        s3.put_object(Bucket=bucket, Key=key, Body=b"payload")
    parts = lake.key("logs/parts")
    upload = s3.create_multipart_upload(Bucket=bucket, Key=parts)["UploadId"]
    part = s3.upload_part(Bucket=bucket, Key=parts, UploadId=upload, PartNumber=1, Body=b"payload")
    s3.complete_multipart_upload(
        Bucket=bucket,
        Key=parts,
        UploadId=upload,
        MultipartUpload={"Parts": [{"PartNumber": 1, "ETag": part["ETag"]}]},
    )
    with door.pulling(lake) as adapter:
        counted(adapter, "ignored", 1, "test_event")
        eventually(lambda: door.left() == 0, "the queue is empty")
        assert adapter.metrics.value("failed") == 0
    bodies = lake.bodies(LOGS, 5)
    assert {body["k"] for body in bodies} == {*odd, parts}
    assert {(body["a"], body["b"], body["s"]) for body in bodies} == {("sqs", bucket, 7)}
    etags = {key: s3.head_object(Bucket=bucket, Key=key)["ETag"].strip('"') for key in (*odd, parts)}
    assert {body["k"]: body["e"] for body in bodies if body["e"]}.items() <= etags.items()


def test_events_in_the_envelopes_of_sns_and_event_bridge_are_in_kafka(lake: Lake, door: Door) -> None:
    expected = [lake.key(f"logs/{name}") for name in ("s3", "sns", "bridge", "both")]
    door.send(
        samples.s3_event(samples.s3_record(expected[0])),
        samples.sns(samples.s3_event(samples.s3_record(expected[1]))),
        samples.event_bridge(expected[2]),
        samples.sns(samples.event_bridge(expected[3])),
        samples.s3_test_event(),
        samples.s3_event(samples.s3_record(lake.key("logs/gone"), eventName="ObjectRemoved:Delete")),
    )
    with door.pulling(lake) as adapter:
        acknowledged(door, adapter, lake, expected)
        assert adapter.metrics.value("ignored", "test_event") == 1
        assert adapter.metrics.value("ignored", "not_created") == 1


def test_what_cannot_be_understood_ends_in_the_redrive_queue_and_holds_up_no_other(
    lake: Lake, door: Door, caplog: pytest.LogCaptureFixture
) -> None:
    bad = ["no json " + "x" * 300, '{"hello": "world"}', '{"Records": [{"s3": {}}]}']
    expected = [lake.key(f"logs/{number}") for number in range(5)]
    good = [samples.s3_event(samples.s3_record(key)) for key in expected]
    door.send(good[0], bad[0], good[1], bad[1], *good[2:], bad[2])
    with door.pulling(lake, queue_lease_seconds=60) as adapter:
        eventually(lambda: door.left(door.dead_url) == len(bad), "all of them are set aside")
        acknowledged(door, adapter, lake, expected)
        assert adapter.metrics.value("failed", "unknown_format") == 2
        assert adapter.metrics.value("failed", "not_json") == 2
        assert adapter.metrics.value("failed", "incomplete_event") == 2
    assert ascii(bad[0].encode()[:200]) in caplog.text
    assert "x" * 201 not in caplog.text


def test_a_lease_is_kept_while_kafka_is_slow(lake: Lake, door: Door) -> None:
    settings = quick(lake.settings, queue_lease_seconds=3, queue_receivers=1)
    gate = Gate(lake.intake)
    door.send(samples.s3_event(samples.s3_record(lake.key())))
    with pulling(door.queue(lake, queue_lease_seconds=3), gate.intake, settings) as adapter:
        assert gate.asked.wait(60)
        kept_for_leases(adapter, lease_seconds=3, number=2)
        gate.free.set()
        eventually(lambda: door.left() == 0, "the queue is empty")
    assert [body["k"] for body in lake.bodies(LOGS, 1)] == [lake.key()]


def test_hundreds_of_messages_are_taken_in_full_batches(lake: Lake, door: Door) -> None:
    expected = [lake.key(f"logs/{number}") for number in range(200)]
    client = door.aws.client("sqs")
    for start in range(0, len(expected), 10):
        entries = [
            {"Id": str(n), "MessageBody": json.dumps(samples.s3_event(samples.s3_record(key)))}
            for n, key in enumerate(expected[start : start + 10])
        ]
        client.send_message_batch(QueueUrl=door.url, Entries=entries)
    one = door.queue(lake, queue_lease_seconds=60)
    received = one.receive(25, stop=Event())
    assert len(received) == 25
    one.give_back(received)
    one.close()
    with door.pulling(lake, queue_batch=25, queue_lease_seconds=60) as adapter:
        acknowledged(door, adapter, lake, expected)


def test_a_queue_that_is_not_there_or_denies_us_ends_it_at_once_with_what_to_do(lake: Lake, door: Door) -> None:
    missing = SqsQueue(door.url + "-none", quick(lake.settings), region=REGION, endpoint=door.aws.endpoint)
    with pytest.raises(QueueDenied, match="create it"):
        PullingAdapter(missing, lake.intake, lake.settings).run(Event())
    with pytest.raises(ConfigurationError, match="no queue's URL"):
        SqsQueue("my-queue", lake.settings)


def test_without_credentials_it_says_so(lake: Lake, door: Door, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in CREDENTIALS:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/nowhere")
    with pytest.raises(QueueDenied, match="AWS_ACCESS_KEY_ID"):
        PullingAdapter(door.queue(lake), lake.intake, lake.settings).run(Event())


def test_a_queue_without_a_redrive_policy_is_warned_of(lake: Lake, door: Door) -> None:
    assert door.queue(lake).check() is None
    without = SqsQueue(door.dead_url, quick(lake.settings), region=REGION, endpoint=door.aws.endpoint)
    assert "RedrivePolicy" in str(without.check())


def test_a_role_is_assumed_by_the_credentials_that_are_there(
    lake: Lake, door: Door, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL_STS", door.aws.endpoint)
    door.send(samples.s3_event(samples.s3_record(lake.key())))
    role = f"arn:aws:iam::{ACCOUNT}:role/reader"
    queue = SqsQueue(door.url, quick(lake.settings), region=REGION, endpoint=door.aws.endpoint, role=role)
    with pulling(queue, lake.intake, quick(lake.settings, queue_receivers=1)) as adapter:
        acknowledged(door, adapter, lake, [lake.key()])
    # moto gives a role's credentials keys of their own form.
    assert queue._client._get_credentials().access_key.startswith("ASIA")


def test_entries_that_were_not_deleted_are_told_one_by_one(lake: Lake, door: Door) -> None:
    door.send(*({"n": number} for number in range(12)))
    queue = door.queue(lake)
    received = queue.receive(12, Event())
    received += queue.receive(12 - len(received), Event()) if len(received) < 12 else []
    received[3].receipt = "never given"
    assert queue.acknowledge(received) == [received[3]]
    assert door.left() == 1


def test_a_server_that_is_away_is_unavailable_not_denied(lake: Lake, door: Door) -> None:
    nobody = SqsQueue(door.url, quick(lake.settings), region=REGION, endpoint="http://127.0.0.1:9")
    with pytest.raises(QueueUnavailable):
        nobody.receive(1, Event())
