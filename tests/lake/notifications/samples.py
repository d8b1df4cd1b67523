"""One body of each format, as its sender documents it; ``KEY`` is the object's key as the store knows it."""

from __future__ import annotations

import json
from typing import Any
from urllib.parse import quote, quote_plus

ORGANIZATION = "9f1c7e0a-1f5b-4a8e-9a43-5f3f6d2b7c11"
BUCKET = "lake-raw"
KEY = f"otel-raw/{ORGANIZATION}/edge+eu 1/2026/ünï%41/logs_122666952.binpb.gz"
SIZE = 4711
ETAG = "b1946ac92492d2347c6235b4d2611184"
TIME = "2026-04-24T19:37:59.125Z"
TIME_MS = 1_777_059_479_125


def s3_record(key: str = KEY, **changes: Any) -> dict[str, Any]:
    return {
        "eventVersion": "2.1",
        "eventSource": "aws:s3",
        "awsRegion": "eu-central-1",
        "eventTime": TIME,
        "eventName": "ObjectCreated:Put",
        "userIdentity": {"principalId": "AWS:EXAMPLE"},
        "s3": {
            "s3SchemaVersion": "1.0",
            "configurationId": "lake",
            "bucket": {"name": BUCKET, "ownerIdentity": {"principalId": "E"}, "arn": f"arn:aws:s3:::{BUCKET}"},
            "object": {
                # S3 keeps slashes, writes a space as "+", and escapes the rest.
                "key": quote_plus(key, safe="/", errors="surrogatepass"),
                "size": SIZE,
                "eTag": ETAG,
                "versionId": "096fKKXTRTtl3on89fVO.nfljtsv6qko",
                "sequencer": "0055AED6DCD90281E5",
            },
        },
        **changes,
    }


def s3_event(*records: dict[str, Any]) -> dict[str, Any]:
    return {"Records": list(records) or [s3_record()]}


def s3_test_event() -> dict[str, Any]:
    return {
        "Service": "Amazon S3",
        "Event": "s3:TestEvent",
        "Time": "2026-10-13T15:57:02.089Z",
        "Bucket": BUCKET,
        "RequestId": "5582815E1AEA5ADF",
        "HostId": "8cLeGAmw098X5cv4Zkwcmo8vvZa3eH3eKxsPzbB9wrR+YstdA6Knx4Ip8EXAMPLE",
    }


def sns(message: Any) -> dict[str, Any]:
    return {
        "Type": "Notification",
        "MessageId": "95df01b4-ee98-5cb9-9903-4c221d41eb5e",
        "TopicArn": "arn:aws:sns:eu-central-1:123456789012:lake",
        "Subject": "Amazon S3 Notification",
        "Message": message if isinstance(message, str) else json.dumps(message),
        "Timestamp": TIME,
        "SignatureVersion": "1",
        "Signature": "EXAMPLE",
    }


def event_bridge(key: str = KEY, **changes: Any) -> dict[str, Any]:
    return {
        "version": "0",
        "id": "17793124-05d4-b198-2fde-7ededc63b103",
        "detail-type": "Object Created",
        "source": "aws.s3",
        "account": "111122223333",
        "time": TIME,
        "region": "eu-central-1",
        "resources": [f"arn:aws:s3:::{BUCKET}"],
        "detail": {
            "version": "0",
            "bucket": {"name": BUCKET},
            "object": {
                "key": key,
                "size": SIZE,
                "etag": ETAG,
                "version-id": "IYV3p45BT0ac8hjHg1houSdS1a.Mro8e",
                "sequencer": "617f08299329d189",
            },
            "request-id": "N4N7GDK58NMKJ12R",
            "requester": "123456789012",
            "reason": "PutObject",
        },
        **changes,
    }


def gcs(key: str = KEY, **changes: Any) -> dict[str, Any]:
    return {
        "kind": "storage#object",
        "id": f"{BUCKET}/{key}/1777059479125000",
        "name": key,
        "bucket": BUCKET,
        "generation": "1777059479125000",
        "metageneration": "1",
        "contentType": "application/octet-stream",
        "timeCreated": TIME,
        "updated": TIME,
        "storageClass": "STANDARD",
        "size": str(SIZE),
        "md5Hash": "sZRqySSS0jR8YjW00mERhA==",
        "crc32c": "f0x36Q==",
        "etag": "CIjKpY7h+/kCEAE=",
        **changes,
    }


def event_grid(key: str = KEY, **changes: Any) -> dict[str, Any]:
    return {
        "topic": "/subscriptions/s/resourceGroups/g/providers/Microsoft.Storage/storageAccounts/account",
        "subject": f"/blobServices/default/containers/{BUCKET}/blobs/{key}",
        "eventType": "Microsoft.Storage.BlobCreated",
        "id": "831e1650-001e-001b-66ab-eeb76e069631",
        "data": {
            "api": "PutBlockList",
            "clientRequestId": "6d79dbfb-0e37-4fc4-981f-442c9ca65760",
            "requestId": "831e1650-001e-001b-66ab-eeb76e000000",
            "eTag": ETAG,
            "contentType": "application/octet-stream",
            "contentLength": SIZE,
            "blobType": "BlockBlob",
            "url": f"https://account.blob.core.windows.net/{BUCKET}/{quote(key, errors='surrogatepass')}",
            "sequencer": "00000000000004420000000000028963",
            "storageDiagnostics": {"batchId": "b68529f3-68cd-4744-baa4-3c0498ec19f0"},
        },
        "dataVersion": "",
        "metadataVersion": "1",
        "eventTime": "2026-04-24T19:37:59.1250000Z",
        **changes,
    }


def cloud_event(key: str = KEY, **changes: Any) -> dict[str, Any]:
    grid = event_grid(key)
    return {
        "specversion": "1.0",
        "id": grid["id"],
        "source": grid["topic"],
        "subject": grid["subject"],
        "type": grid["eventType"],
        "time": grid["eventTime"],
        "data": grid["data"],
        **changes,
    }


def validation(code: str = "512d38b6-c7b8-40c8-89fe-f46f9e9622b6") -> dict[str, Any]:
    return {
        "id": "2d1781af-3a4c-4d7c-bd0c-e34b19da4e66",
        "topic": "/subscriptions/s",
        "subject": "",
        "data": {"validationCode": code, "validationUrl": "https://rp-eastus2.eventgrid.azure.net/validate?id=5"},
        "eventType": "Microsoft.EventGrid.SubscriptionValidationEvent",
        "eventTime": TIME,
        "metadataVersion": "1",
        "dataVersion": "1",
    }


def collector_notice(key: str = KEY) -> dict[str, Any]:
    """The OpenTelemetry Collector's awss3exporter: everything in the key is escaped, and there is no etag."""
    return {
        "Records": [
            {
                "eventSource": "aws:s3",
                "eventName": "ObjectCreated:Put",
                "eventTime": TIME,
                "s3": {
                    "bucket": {"name": BUCKET},
                    "object": {"key": quote_plus(key, errors="surrogatepass"), "size": SIZE},
                },
            }
        ]
    }


FORMATS: dict[str, Any] = {
    "s3": s3_event(),
    "s3_in_sns": sns(s3_event()),
    "event_bridge": event_bridge(),
    "event_bridge_in_sns": sns(event_bridge()),
    "s3_test": s3_test_event(),
    "s3_test_in_sns": sns(s3_test_event()),
    "gcs": gcs(),
    "event_grid": event_grid(),
    "event_grid_array": [event_grid()],
    "cloud_event": cloud_event(),
    "cloud_event_array": [cloud_event()],
    "validation": [validation()],
    "collector": collector_notice(),
}
