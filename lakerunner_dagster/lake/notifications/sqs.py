"""A queue of Amazon SQS, as the pulling adapter needs it.

What belongs here: SQS's requests, and what its errors mean. What does not: when to call them (``pulling``).
"""

from __future__ import annotations

import re
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import botocore.session  # type: ignore[import-untyped]
from botocore.config import Config  # type: ignore[import-untyped]
from botocore.credentials import (  # type: ignore[import-untyped]
    AssumeRoleCredentialFetcher,
    CredentialProvider,
    CredentialResolver,
    DeferredRefreshableCredentials,
)
from botocore.exceptions import (  # type: ignore[import-untyped]
    BotoCoreError,
    ClientError,
    NoCredentialsError,
    NoRegionError,
)

from lakerunner_dagster.lake.errors import ConfigurationError, QueueDenied, QueueUnavailable
from lakerunner_dagster.lake.notifications.pulling import BEATS_OF_LEASE, QueueMessage, filled

if TYPE_CHECKING:
    import threading
    from collections.abc import Callable, Iterator, Sequence

    from lakerunner_dagster.lake.settings import Settings

BATCH = 10
"""Most messages of one request."""

ANSWER_SECONDS = 10
"""How long SQS may take to answer, beside the wait for a message that it was asked for."""

REGION = re.compile(r"https://sqs\.([a-z0-9-]+)\.amazonaws\.com")

PERMISSIONS = "sqs:GetQueueAttributes, sqs:ReceiveMessage, sqs:DeleteMessage and sqs:ChangeMessageVisibility"

MISSING = frozenset({"AWS.SimpleQueueService.NonExistentQueue", "QueueDoesNotExist", "InvalidAddress"})
DENIED = frozenset(
    {
        "AccessDenied",
        "AccessDeniedException",
        "AuthFailure",
        "InvalidClientTokenId",
        "SignatureDoesNotMatch",
        "UnrecognizedClientException",
    }
)


class SqsQueue:
    """One queue, by its URL. ConfigurationError where no region is known, or the URL can be none."""

    name = "sqs"

    def __init__(
        self,
        url: str,
        settings: Settings,
        *,
        region: str | None = None,
        endpoint: str | None = None,
        role: str | None = None,
    ) -> None:
        """``endpoint`` is SQS's where it is not the region's own; ``role`` the ARN of a role to assume."""
        if not re.match(r"https?://[^/]+/.+", url):
            raise ConfigurationError(f"{url[:200]!r} is no queue's URL: https://sqs.REGION.amazonaws.com/ACCOUNT/NAME")
        self._url = url
        self._redrives = False
        self._wait_seconds = settings.queue_wait_seconds
        self._lease_seconds = settings.queue_lease_seconds
        found = REGION.match(url)
        session = _session(region or (found[1] if found else None), role)
        config = Config(
            connect_timeout=ANSWER_SECONDS,
            read_timeout=self._wait_seconds + ANSWER_SECONDS,
            retries={"mode": "standard", "total_max_attempts": 2},
            max_pool_connections=settings.queue_receivers + 1,
        )
        try:
            self._client = session.create_client("sqs", endpoint_url=endpoint, config=config)
        except NoRegionError as error:
            raise ConfigurationError("no region is known: give --region, or set AWS_DEFAULT_REGION") from error
        except ValueError as error:
            raise ConfigurationError(f"{endpoint!r} is no endpoint's URL") from error

    def check(self) -> str | None:
        """What is missing where the queue has no redrive policy."""
        with self._errors():
            answer = self._client.get_queue_attributes(QueueUrl=self._url, AttributeNames=["RedrivePolicy"])
        self._redrives = "RedrivePolicy" in answer.get("Attributes", {})
        if self._redrives:
            return None
        return (
            f"queue {self._url} has no RedrivePolicy: a message that cannot be understood comes again until its "
            "retention ends; give it a dead-letter queue"
        )

    def receive(self, limit: int, stop: threading.Event) -> list[QueueMessage]:
        """A long poll, then more without waiting as long as there is a full batch each time."""
        del stop  # the wait is bounded by a setting
        first = self._received(min(limit, BATCH), self._wait_seconds)
        seconds = self._lease_seconds / BEATS_OF_LEASE
        return filled(first, BATCH, limit, lambda number: self._received(number, wait_seconds=0), seconds)

    def extend(self, messages: Sequence[QueueMessage]) -> None:
        """Their visibility timeout begins anew. SQS allows 12 hours in all: then they come again."""
        self._change(messages, self._lease_seconds)

    def acknowledge(self, messages: Sequence[QueueMessage]) -> Sequence[QueueMessage]:
        """Delete them; those that were not deleted."""
        return self._in_batches(self._client.delete_message_batch, messages)

    def refuse(self, messages: Sequence[QueueMessage]) -> None:
        """They come again at once where a redrive policy counts how often, else when their visibility timeout ends."""
        if self._redrives:
            self.give_back(messages)

    def give_back(self, messages: Sequence[QueueMessage]) -> None:
        """They are visible at once."""
        self._change(messages, 0)

    def close(self) -> None:
        """Let the connections go."""
        self._client.close()

    def _received(self, limit: int, wait_seconds: int) -> list[QueueMessage]:
        with self._errors():
            answer = self._client.receive_message(
                QueueUrl=self._url,
                MaxNumberOfMessages=limit,
                WaitTimeSeconds=wait_seconds,
                VisibilityTimeout=self._lease_seconds,
                MessageSystemAttributeNames=["ApproximateReceiveCount", "SentTimestamp"],
            )
        return [
            QueueMessage(
                body=message["Body"].encode(errors="surrogatepass"),
                sent=int(message["Attributes"]["SentTimestamp"]) / 1000,
                deliveries=int(message["Attributes"]["ApproximateReceiveCount"]),
                receipt=message["ReceiptHandle"],
            )
            for message in answer.get("Messages", [])
        ]

    def _change(self, messages: Sequence[QueueMessage], visibility_seconds: int) -> None:
        left = self._in_batches(
            self._client.change_message_visibility_batch, messages, VisibilityTimeout=visibility_seconds
        )
        if len(left) == len(messages):
            raise QueueUnavailable(f"queue {self._url} did not change the visibility of {len(left)} messages")

    def _in_batches(
        self, request: Callable[..., Any], messages: Sequence[QueueMessage], **each: object
    ) -> list[QueueMessage]:
        """Ask for something of each message; those for which it was not done."""
        left: list[QueueMessage] = []
        for batch in _batches(messages):
            entries = [
                {"Id": str(number), "ReceiptHandle": message.receipt, **each} for number, message in enumerate(batch)
            ]
            try:
                answer = request(QueueUrl=self._url, Entries=entries)
            except (BotoCoreError, ClientError):
                left += batch
            else:
                left += [batch[int(failure["Id"])] for failure in answer.get("Failed", [])]
        return left

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except ClientError as error:
            code = error.response["Error"]["Code"]
            if code in MISSING:
                raise QueueDenied(f"there is no queue {self._url}: create it, or correct its URL and region") from error
            if code in DENIED:
                raise QueueDenied(f"queue {self._url} denies us ({error}): allow {PERMISSIONS}") from error
            raise QueueUnavailable(f"queue {self._url} did not answer as it should: {error}") from error
        except NoCredentialsError as error:
            raise QueueDenied(
                "there are no AWS credentials: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or give this machine "
                f"a role, with {PERMISSIONS}"
            ) from error
        except BotoCoreError as error:
            raise QueueUnavailable(f"queue {self._url} did not answer: {error}") from error


class _AssumedRole(CredentialProvider):  # type: ignore[misc]  # botocore ships no types
    """Credentials of a role, by those that are found otherwise; asked for anew before they expire."""

    METHOD = "assume-role"
    CANONICAL_NAME = "custom-assume-role"

    def __init__(self, session: botocore.session.Session, role: str) -> None:
        super().__init__()
        self._session = session
        self._role = role

    def load(self) -> DeferredRefreshableCredentials:
        fetcher = AssumeRoleCredentialFetcher(
            client_creator=self._session.create_client,
            source_credentials=self._session.get_credentials(),
            role_arn=self._role,
            extra_args={"RoleSessionName": "lakerunner"},
        )
        return DeferredRefreshableCredentials(fetcher.fetch_credentials, self.METHOD)


def _session(region: str | None, role: str | None) -> botocore.session.Session:
    session = botocore.session.Session()
    if region is not None:
        session.set_config_variable("region", region)
    if role is None:
        return session
    assuming = botocore.session.Session()
    assuming.set_config_variable("region", session.get_config_variable("region"))
    assuming.register_component("credential_provider", CredentialResolver([_AssumedRole(session, role)]))
    return assuming


def _batches(messages: Sequence[QueueMessage]) -> Iterator[Sequence[QueueMessage]]:
    return (messages[start : start + BATCH] for start in range(0, len(messages), BATCH))
