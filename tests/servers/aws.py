"""S3 and SQS by moto, as one server in memory."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import boto3  # type: ignore[import-untyped]

from lakerunner_dagster.local.postgres import free_port
from tests.servers.process import ServerProcess

REGION = "eu-central-1"
CREDENTIALS = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test"}
"""Any will do: moto checks none."""

ACCOUNT = "123456789012"
"""In whose name moto answers."""


class Aws:
    """moto: buckets whose notifications reach queues. It forgets everything when it is stopped."""

    def __init__(self, log: Path) -> None:
        port = free_port()
        server = Path(sys.executable).with_name("moto_server")
        self._process = ServerProcess([str(server), "-H", "127.0.0.1", "-p", str(port)], port, log)
        self.endpoint = f"http://127.0.0.1:{port}"

    def start(self) -> None:
        self._process.start()

    def stop(self) -> None:
        self._process.stop()

    def client(self, service: str) -> Any:
        """boto3's client of this server for ``s3``, ``sqs``, ``sts`` or ``iam``."""
        return boto3.client(
            service,
            endpoint_url=self.endpoint,
            region_name=REGION,
            aws_access_key_id=CREDENTIALS["AWS_ACCESS_KEY_ID"],
            aws_secret_access_key=CREDENTIALS["AWS_SECRET_ACCESS_KEY"],
        )

    def create_bucket(self, name: str) -> None:
        self.client("s3").create_bucket(Bucket=name, CreateBucketConfiguration={"LocationConstraint": REGION})

    def notify(self, bucket: str, queue: str) -> None:
        """Let the bucket's creations be told to the queue."""
        arn = f"arn:aws:sqs:{REGION}:{ACCOUNT}:{queue}"
        self.client("s3").put_bucket_notification_configuration(
            Bucket=bucket,
            NotificationConfiguration={"QueueConfigurations": [{"QueueArn": arn, "Events": ["s3:ObjectCreated:*"]}]},
        )
