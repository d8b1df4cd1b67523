"""A queue of Azure Storage, as the pulling adapter needs it.

What belongs here: its requests, what its errors mean, and the queue for poison. What does not: when to call them
(``pulling``).

Azure's queues have no dead-letter rule of their own. What was delivered too often and cannot be understood is put into
the queue of the same name with ``-poison``, as Azure Functions does, and then deleted: killed in between, it is there
twice, and never lost.
"""

from __future__ import annotations

import base64
import binascii
import logging
import os
import re
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from azure.core.exceptions import (
    AzureError,
    ClientAuthenticationError,
    HttpResponseError,
    ResourceExistsError,
    ResourceNotFoundError,
)
from azure.identity import DefaultAzureCredential
from azure.storage.queue import ExponentialRetry, QueueClient

from lakerunner_dagster.lake.errors import ConfigurationError, QueueDenied, QueueUnavailable
from lakerunner_dagster.lake.notifications.pulling import BEATS_OF_LEASE, Pauses, QueueMessage, filled

if TYPE_CHECKING:
    import threading
    from collections.abc import Callable, Iterator, Sequence

    from lakerunner_dagster.lake.settings import Settings

logger = logging.getLogger(__name__)

PAGE = 32
"""Most messages of one request."""

CONCURRENT_REQUESTS = 8
"""Messages are deleted and extended one by one: so many at once."""

CONNECT_SECONDS = 5
ANSWER_SECONDS = 10
RETRIES = 2

DENIED_STATUS = 403

PERMISSION = "the role Storage Queue Data Contributor"

IDLE_SECONDS = 2.0
"""Longest pause between two looks into an empty queue: there is no request that waits for a message."""

POISON = "-poison"
NEVER = -1
"""How long a message of poison lives."""


class AzureQueue:
    """One queue, by its URL, which may carry a SAS token. ConfigurationError where it can be none.

    Credentials: the URL's token, AZURE_STORAGE_CONNECTION_STRING, AZURE_STORAGE_ACCOUNT_KEY (which the stores go by),
    or what DefaultAzureCredential finds, in this order.
    """

    name = "azure"

    def __init__(self, url: str, settings: Settings) -> None:
        parts = urlsplit(url)
        self._queue = parts.path.rpartition("/")[2]
        if parts.scheme not in ("http", "https") or not self._queue:
            raise ConfigurationError(
                f"{url.partition('?')[0][:200]!r} is no queue's URL: https://ACCOUNT.queue.core.windows.net/NAME"
            )
        self._url = f"{parts.scheme}://{parts.netloc}{parts.path}"
        self._wait_seconds = settings.queue_wait_seconds
        self._lease_seconds = settings.queue_lease_seconds
        self._poison_deliveries = settings.queue_poison_deliveries
        try:
            self._client = _client(url, self._queue)
            self._poison = _client(url.replace(parts.path, parts.path + POISON, 1), self._queue + POISON)
        except ValueError as error:
            # Neither the value nor the error is passed on: either may hold a secret.
            raise ConfigurationError(
                f"no client can be made for queue {self._url}: correct AZURE_STORAGE_CONNECTION_STRING or "
                "AZURE_STORAGE_ACCOUNT_KEY, or unset it"
            ) from error
        self._pool = ThreadPoolExecutor(CONCURRENT_REQUESTS, "azure")

    def check(self) -> str | None:
        """Nothing is missing that could be: what cannot be understood moves to the queue of poison."""
        with self._errors():
            self._client.get_queue_properties()
        return None

    def receive(self, limit: int, stop: threading.Event) -> list[QueueMessage]:
        """Looks again and again until there is something, then takes more as long as there is a full page."""
        pauses = Pauses(stop, IDLE_SECONDS)
        deadline = time.monotonic() + self._wait_seconds
        messages = self._received(min(limit, PAGE))
        while not messages and time.monotonic() < deadline and not pauses.pause():
            messages = self._received(min(limit, PAGE))
        return filled(messages, PAGE, limit, self._received, self._lease_seconds / BEATS_OF_LEASE)

    def extend(self, messages: Sequence[QueueMessage]) -> None:
        """They stay invisible for a lease from now on; their receipts are new ones."""
        self._change(messages, self._lease_seconds)

    def acknowledge(self, messages: Sequence[QueueMessage]) -> Sequence[QueueMessage]:
        """Delete them; those that were not deleted, but for those that were not there any more."""
        return self._each(self._delete, messages)

    def refuse(self, messages: Sequence[QueueMessage]) -> None:
        """What has come too often moves to the queue of poison; the rest comes again when its lease ends."""
        for message in messages:
            if message.deliveries >= self._poison_deliveries:
                self._set_aside(message)

    def give_back(self, messages: Sequence[QueueMessage]) -> None:
        """They are visible at once."""
        self._change(messages, 0)

    def close(self) -> None:
        """Let the connections go."""
        self._pool.shutdown()
        self._client.close()
        self._poison.close()

    def _received(self, limit: int) -> list[QueueMessage]:
        with self._errors():
            received = list(
                self._client.receive_messages(
                    messages_per_page=limit, max_messages=limit, visibility_timeout=self._lease_seconds
                )
            )
        return [
            QueueMessage(
                body=plain(message.content),
                sent=message.inserted_on.timestamp() if message.inserted_on is not None else time.time(),
                deliveries=message.dequeue_count or 0,
                receipt=message,
            )
            for message in received
        ]

    def _set_aside(self, message: QueueMessage) -> None:
        with self._errors():
            try:
                self._poison.send_message(message.receipt.content, time_to_live=NEVER)
            except ResourceNotFoundError:
                with suppress(ResourceExistsError):
                    self._poison.create_queue()
                self._poison.send_message(message.receipt.content, time_to_live=NEVER)
            self._delete(message)
        logger.warning("after %d deliveries a message was moved to queue %s", message.deliveries, self._queue + POISON)

    def _delete(self, message: QueueMessage) -> None:
        with suppress(ResourceNotFoundError):
            self._client.delete_message(message.receipt.id, message.receipt.pop_receipt)

    def _change(self, messages: Sequence[QueueMessage], visibility_seconds: int) -> None:
        def change(message: QueueMessage) -> None:
            changed = self._client.update_message(
                # By its id: given the message itself, the client would send its text once more.
                message.receipt.id,
                message.receipt.pop_receipt,
                visibility_timeout=visibility_seconds,
            )
            message.receipt.pop_receipt = changed.pop_receipt

        left = self._each(change, messages)
        if len(left) == len(messages):
            raise QueueUnavailable(f"queue {self._url} did not change the visibility of {len(left)} messages")

    def _each(self, request: Callable[[QueueMessage], None], messages: Sequence[QueueMessage]) -> list[QueueMessage]:
        """Ask for something of each message; those for which it was not done."""

        def failed(message: QueueMessage) -> bool:
            try:
                request(message)
            except AzureError:
                return True
            return False

        return [message for message, left in zip(messages, self._pool.map(failed, messages), strict=True) if left]

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except ResourceNotFoundError as error:
            raise QueueDenied(f"there is no queue {self._url}: create it, or correct its URL") from error
        except HttpResponseError as error:
            if isinstance(error, ClientAuthenticationError) or error.status_code == DENIED_STATUS:
                raise QueueDenied(
                    f"queue {self._url} denies us ({error.reason}): give us {PERMISSION}, or a key of its account"
                ) from error
            raise QueueUnavailable(f"queue {self._url} did not answer as it should: {error.reason}") from error
        except AzureError as error:
            raise QueueUnavailable(f"queue {self._url} did not answer: {error.message}") from error


def plain(content: str) -> bytes:
    """The body of a message: Event Grid encodes it in base64, other senders need not. No JSON of ours is base64."""
    try:
        return base64.b64decode(content, validate=True)
    except (binascii.Error, ValueError):
        return content.encode(errors="surrogatepass")


def _client(url: str, queue: str) -> QueueClient:
    options: dict[str, Any] = {
        "retry_policy": ExponentialRetry(
            initial_backoff=1, increment_base=2, retry_total=RETRIES, random_jitter_range=1
        ),
        "connection_timeout": CONNECT_SECONDS,
        "read_timeout": ANSWER_SECONDS,
        "message_encode_policy": None,
        "message_decode_policy": None,
    }
    if urlsplit(url).query:
        return QueueClient.from_queue_url(url, **options)
    connection = os.environ.get("AZURE_STORAGE_CONNECTION_STRING")
    if connection:
        return QueueClient.from_connection_string(connection, queue, **options)
    return QueueClient.from_queue_url(url, credential=_credential(url), **options)


def _credential(url: str) -> DefaultAzureCredential | dict[str, str]:
    key = os.environ.get("AZURE_STORAGE_ACCOUNT_KEY")
    if not key:
        return DefaultAzureCredential()
    parts = urlsplit(url)
    # Behind an address of its own (an emulator, a private host) the account is the first element of the path.
    in_path = re.match(r"/([^/]+)/[^/]+", parts.path)
    account = in_path[1] if in_path else (parts.hostname or "").partition(".")[0]
    return {"account_name": account, "account_key": key}
