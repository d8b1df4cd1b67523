"""A subscription of Google Cloud Pub/Sub, as the pulling adapter needs it.

What belongs here: Pub/Sub's requests, and what its errors mean. What does not: when to call them (``pulling``).

Messages are pulled by request, not by the client's streaming pull: a stream holds messages in threads and leases of its
own while Kafka is away, gives up a lease after an hour, and tells of an acknowledgement before Pub/Sub has it. By
request nothing is in memory but what the loop has in hand, and each answer is the service's own.
"""

from __future__ import annotations

import re
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

from google.api_core.exceptions import (
    DeadlineExceeded,
    GoogleAPICallError,
    NotFound,
    PermissionDenied,
    RetryError,
    Unauthenticated,
)
from google.auth.exceptions import DefaultCredentialsError, GoogleAuthError
from google.cloud.pubsub_v1 import SubscriberClient  # type: ignore[import-untyped]

from lakerunner_dagster.lake.errors import ConfigurationError, QueueDenied, QueueUnavailable
from lakerunner_dagster.lake.notifications.pulling import BEATS_OF_LEASE, QueueMessage

if TYPE_CHECKING:
    import threading
    from collections.abc import Iterator, Sequence

    from lakerunner_dagster.lake.settings import Settings

ANSWER_SECONDS = 10.0
"""How long Pub/Sub may take to answer a request that waits for no message.

Such requests are not repeated by the client, which would do so for a minute, longer than a lease: the loop does.
"""

SHORTEST_PULL_SECONDS = 1.0
"""A pull that is cut off too early brings nothing though there is something."""


class PubSubQueue:
    """One subscription (``projects/P/subscriptions/S``); ConfigurationError where it can be none.

    Credentials are the application's default ones, or none where PUBSUB_EMULATOR_HOST names an emulator.
    """

    name = "gcp"

    def __init__(self, subscription: str, settings: Settings) -> None:
        if not re.fullmatch(r"projects/[^/]+/subscriptions/[^/]+", subscription):
            raise ConfigurationError(f"{subscription[:200]!r} is no subscription: projects/PROJECT/subscriptions/NAME")
        self._subscription = subscription
        self._wait_seconds = max(float(settings.queue_wait_seconds), SHORTEST_PULL_SECONDS)
        self._lease_seconds = max(settings.queue_lease_seconds, 10)
        try:
            self._client = SubscriberClient()
        except DefaultCredentialsError as error:
            raise ConfigurationError(f"there are no Google Cloud credentials: {error}") from error

    def check(self) -> str | None:
        """What is missing where the subscription has no dead-letter policy, if we may know."""
        try:
            with self._errors():
                found = self._client.get_subscription(
                    subscription=self._subscription, timeout=ANSWER_SECONDS, retry=None
                )
        except QueueDenied as error:
            if isinstance(error.__cause__, PermissionDenied):
                return f"whether {self._subscription} has a dead-letter policy is not known: {error.__cause__.message}"
            raise
        if found.dead_letter_policy.dead_letter_topic:
            return None
        return (
            f"{self._subscription} has no dead-letter policy: a message that cannot be understood comes again until "
            "its retention ends; give it a dead-letter topic"
        )

    def receive(self, limit: int, stop: threading.Event) -> list[QueueMessage]:
        """One pull, which waits for a first message; ours for a lease from then on."""
        del stop  # the wait is bounded by a setting
        try:
            with self._errors():
                pulled = self._client.pull(
                    subscription=self._subscription, max_messages=limit, timeout=self._wait_seconds, retry=None
                )
        except QueueUnavailable as error:
            if isinstance(error.__cause__, DeadlineExceeded):
                return []
            raise
        messages = [
            QueueMessage(
                body=received.message.data,
                sent=received.message.publish_time.timestamp(),
                deliveries=received.delivery_attempt,
                receipt=received.ack_id,
                attributes=dict(received.message.attributes),
            )
            for received in pulled.received_messages
        ]
        if messages:
            with suppress(QueueUnavailable):  # then they are ours for the subscription's own deadline
                self.extend(messages)
        return messages

    def extend(self, messages: Sequence[QueueMessage]) -> None:
        """Their deadline begins anew."""
        self._change(messages, self._lease_seconds)

    def acknowledge(self, messages: Sequence[QueueMessage]) -> Sequence[QueueMessage]:
        """Acknowledge them, all or none."""
        try:
            with self._errors():
                self._client.acknowledge(
                    subscription=self._subscription,
                    ack_ids=[message.receipt for message in messages],
                    timeout=ANSWER_SECONDS,
                    retry=None,
                )
        except (QueueUnavailable, QueueDenied):
            return messages
        return []

    def refuse(self, messages: Sequence[QueueMessage]) -> None:
        """They come again at once where a dead-letter policy counts how often, else when their lease ends."""
        counted = [message for message in messages if message.deliveries]
        if counted:
            self.give_back(counted)

    def give_back(self, messages: Sequence[QueueMessage]) -> None:
        """Their deadline is now."""
        self._change(messages, 0)

    def close(self) -> None:
        """Let the connection go."""
        self._client.close()

    def _change(self, messages: Sequence[QueueMessage], deadline_seconds: int) -> None:
        with self._errors():
            self._client.modify_ack_deadline(
                subscription=self._subscription,
                ack_ids=[message.receipt for message in messages],
                ack_deadline_seconds=deadline_seconds,
                timeout=min(ANSWER_SECONDS, self._lease_seconds / BEATS_OF_LEASE),
                retry=None,
            )

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except NotFound as error:
            raise QueueDenied(f"there is no {self._subscription}: create it, or correct its name") from error
        except (PermissionDenied, Unauthenticated) as error:
            raise QueueDenied(
                f"{self._subscription} denies us ({error.message}): grant roles/pubsub.subscriber on it"
            ) from error
        except GoogleAuthError as error:
            raise QueueDenied(f"Google Cloud's credentials cannot be used: {error}") from error
        except (GoogleAPICallError, RetryError) as error:
            raise QueueUnavailable(f"{self._subscription} did not answer: {error}") from error
