"""Group commit: bodies that wait are taken together, and each sender has an answer of its own.

What belongs here: who waits, which go together, and what a failure means for each. What does not: what a body says
(``events``), how it is taken (who makes a ``Batches``), and how the answer looks (``http``).

A batch is whatever waits when the worker becomes free: nobody waits for company, and the more come, the more share
what a batch costs (a look at lrdb, an acknowledgement by Kafka).
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TYPE_CHECKING, Generic, TypeVar

from lakerunner_dagster.lake.errors import LakeError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

MiB = 1024 * 1024

WAITING = 512
"""Bodies that may wait for the worker."""

WAITING_BYTES = 64 * MiB
"""What they may weigh together; a single one may weigh more."""

BATCH_BODIES = 256
"""The largest batch: so much is sent again where its acknowledgement is lost."""

Outcome = TypeVar("Outcome")


class TooManyWait(LakeError):
    """The queue is full: this body was not taken, and is still its sender's."""


class Batches(Generic[Outcome]):
    """A bounded queue of bodies before one worker thread; belongs to one event loop.

    ``take`` gets the bodies of a batch in the order they came, and returns as many outcomes in that order; one that is
    an exception is raised to its sender alone. A LakeError that ``take`` raises is every sender's: nothing of the batch
    may be taken for passed on. Any other is a fault of ours over one of the bodies: each is taken alone then, and that
    one's sender gets it.
    """

    def __init__(self, take: Callable[[Sequence[bytes]], Sequence[Outcome | Exception]]) -> None:
        self._take = take
        self._waiting: deque[tuple[bytes, asyncio.Future[Outcome]]] = deque()
        self._bytes = 0
        self._worker: asyncio.Task[None] | None = None

    async def outcome(self, body: bytes) -> Outcome:
        """What became of a body, once that is certain. Raises TooManyWait, and what ``take`` raised for it."""
        if len(self._waiting) >= WAITING or (self._waiting and self._bytes + len(body) > WAITING_BYTES):
            raise TooManyWait(f"{len(self._waiting)} notifications of {self._bytes} bytes wait: send it again later")
        answer: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()
        self._waiting.append((body, answer))
        self._bytes += len(body)
        if self._worker is None:
            self._worker = asyncio.create_task(self._work())
        return await answer

    async def _work(self) -> None:
        """Take batches until nobody waits."""
        try:
            while self._waiting:
                batch = self._next()
                bodies = [body for body, _ in batch]
                outcomes = await asyncio.to_thread(self._outcomes, bodies)
                for (_, answer), outcome in zip(batch, outcomes, strict=True):
                    _give(answer, outcome)
        finally:
            self._worker = None

    def _next(self) -> list[tuple[bytes, asyncio.Future[Outcome]]]:
        batch = [self._waiting.popleft() for _ in range(min(len(self._waiting), BATCH_BODIES))]
        self._bytes -= sum(len(body) for body, _ in batch)
        return batch

    def _outcomes(self, bodies: Sequence[bytes]) -> Sequence[Outcome | Exception]:
        """Runs in the worker thread."""
        try:
            return self._take(bodies)
        except LakeError as error:
            return [error] * len(bodies)
        except Exception as error:  # noqa: BLE001  # it is raised again, to the sender of the body that it is about
            return [error] if len(bodies) == 1 else [self._outcomes([body])[0] for body in bodies]


def _give(answer: asyncio.Future[Outcome], outcome: Outcome | Exception) -> None:
    if answer.done():  # its sender was cut off
        return
    if isinstance(outcome, Exception):
        answer.set_exception(outcome)
    else:
        answer.set_result(outcome)
