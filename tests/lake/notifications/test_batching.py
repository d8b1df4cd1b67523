"""What would break if senders whose notifications are taken together got each other's answers, or none."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from lakerunner_dagster.lake.errors import BusUnavailable, InputError
from lakerunner_dagster.lake.model import Message
from lakerunner_dagster.lake.notifications import batching as module
from lakerunner_dagster.lake.notifications.batching import Batches, TooManyWait
from tests.lake.notifications import samples
from tests.lake.notifications.conftest import Lake
from tests.lake.notifications.test_http import post, serving
from tests.waiting import eventually

PATIENCE_SECONDS = 30.0


class Worker:
    """Takes batches by turning bodies round, once it is let; remembers them."""

    def __init__(self, *, busy: bool = False) -> None:
        self.batches: list[list[bytes]] = []
        self.free = threading.Event()
        if not busy:
            self.free.set()

    def take(self, bodies: Sequence[bytes]) -> list[bytes | Exception]:
        self.batches.append(list(bodies))
        assert self.free.wait(PATIENCE_SECONDS)
        if b"away" in bodies:
            raise BusUnavailable("nobody there")
        if b"fault" in bodies:
            raise ZeroDivisionError("a fault of ours")
        return [InputError("bad", body.decode()) if body.startswith(b"bad") else body[::-1] for body in bodies]


def run(story: Awaitable[Any]) -> Any:
    async def told() -> Any:
        return await asyncio.wait_for(story, PATIENCE_SECONDS)

    return asyncio.run(told())


async def answers(batches: Batches[bytes], bodies: Sequence[bytes]) -> list[Any]:
    """What each sender gets, exceptions included."""
    return await asyncio.gather(*(batches.outcome(body) for body in bodies), return_exceptions=True)


async def until(true: Callable[[], bool]) -> None:
    while not true():  # noqa: ASYNC110  # the caller's patience ends it
        await asyncio.sleep(0.001)


async def behind_a_busy_worker(worker: Worker, batches: Batches[bytes], bodies: Sequence[bytes]) -> list[Any]:
    """What senders get that came, in this order, while another's body was being taken."""
    first = asyncio.create_task(batches.outcome(b"first"))
    await until(lambda: bool(worker.batches))
    others = [asyncio.create_task(batches.outcome(body)) for body in bodies]
    await asyncio.sleep(0)
    worker.free.set()
    assert await first == b"tsrif"
    return await asyncio.gather(*others, return_exceptions=True)


def test_each_sender_gets_its_own_answer() -> None:
    worker = Worker()
    bodies = [b"body %d" % number for number in range(400)]

    async def senders() -> list[Any]:
        batches: Batches[bytes] = Batches(worker.take)

        async def sender(own: Sequence[bytes]) -> list[Any]:
            return [await batches.outcome(body) for body in own]

        found: list[Any] = await asyncio.gather(*(sender(bodies[start::40]) for start in range(40)))
        return found

    assert run(senders()) == [[body[::-1] for body in bodies[start::40]] for start in range(40)]
    assert sorted(body for batch in worker.batches for body in batch) == sorted(bodies)


def test_one_alone_does_not_wait_for_company_and_those_that_wait_go_together() -> None:
    worker = Worker(busy=True)
    bodies = [b"%d" % number for number in range(10)]
    assert run(behind_a_busy_worker(worker, Batches(worker.take), bodies)) == [body[::-1] for body in bodies]
    assert worker.batches == [[b"first"], bodies]


def test_a_batch_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BATCH_BODIES", 4)
    worker = Worker(busy=True)
    run(behind_a_busy_worker(worker, Batches(worker.take), [b"x"] * 10))
    assert [len(batch) for batch in worker.batches] == [1, 4, 4, 2]


def test_a_bad_body_is_its_own_sender_s_alone() -> None:
    worker = Worker(busy=True)
    found = run(behind_a_busy_worker(worker, Batches(worker.take), [b"a", b"bad 1", b"b", b"bad 2"]))
    assert found[::2] == [b"a", b"b"]
    assert [(type(error), str(error)) for error in found[1::2]] == [(InputError, "bad 1"), (InputError, "bad 2")]


def test_a_lost_batch_is_lost_for_all_of_it_and_for_no_other() -> None:
    worker = Worker(busy=True)
    batches = Batches(worker.take)

    async def story() -> tuple[list[Any], list[Any]]:
        return await behind_a_busy_worker(worker, batches, [b"a", b"away", b"b"]), await answers(batches, [b"c", b"d"])

    lost, after = run(story())
    assert [type(error) for error in lost] == [BusUnavailable] * 3
    assert after == [b"c", b"d"]
    assert worker.batches[1:] == [[b"a", b"away", b"b"], [b"c", b"d"]]


def test_a_fault_of_ours_over_one_body_is_not_the_others() -> None:
    worker = Worker(busy=True)
    found = run(behind_a_busy_worker(worker, Batches(worker.take), [b"a", b"fault", b"b", b"bad"]))
    assert (found[0], found[2]) == (b"a", b"b")
    assert isinstance(found[1], ZeroDivisionError)
    assert isinstance(found[3], InputError)


@pytest.mark.parametrize(("bound", "value"), [("WAITING", 3), ("WAITING_BYTES", 3)])
def test_the_queue_is_bounded(monkeypatch: pytest.MonkeyPatch, bound: str, value: int) -> None:
    monkeypatch.setattr(module, bound, value)
    worker = Worker(busy=True)
    found = run(behind_a_busy_worker(worker, Batches(worker.take), [b"a", b"b", b"c", b"d", b"e"]))
    assert found[:3] == [b"a", b"b", b"c"]
    assert [type(error) for error in found[3:]] == [TooManyWait, TooManyWait]
    assert worker.batches == [[b"first"], [b"a", b"b", b"c"]]


def test_a_body_above_the_queue_s_bytes_is_taken_when_nobody_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "WAITING_BYTES", 3)
    assert run(Batches(Worker().take).outcome(b"heavy")) == b"yvaeh"


def test_a_sender_that_is_cut_off_takes_nobody_s_answer() -> None:
    worker = Worker(busy=True)
    batches = Batches(worker.take)

    async def story() -> list[Any]:
        tasks = [asyncio.create_task(batches.outcome(body)) for body in (b"gone", b"ab")]
        await until(lambda: bool(worker.batches))
        tasks[0].cancel()
        await asyncio.sleep(0)
        worker.free.set()
        return [*await asyncio.gather(*tasks, return_exceptions=True), await batches.outcome(b"cd")]

    gone, *others = run(story())
    assert isinstance(gone, asyncio.CancelledError)
    assert others == [b"ba", b"dc"]


class Gate:
    """Kafka behind a gate: shut, it takes nothing in; ``lost`` says of which batches (by number) it never hears."""

    def __init__(
        self, lake: Lake, monkeypatch: pytest.MonkeyPatch, *, lost: Callable[[int], bool] = lambda _: False
    ) -> None:
        self.batches: list[int] = []
        self.open = threading.Event()
        self.reached = threading.Event()
        self._lost = lost
        self._produce = lake.bus.produce
        monkeypatch.setattr(lake.bus, "produce", self.produce)

    def produce(self, messages: Sequence[Message], timeout_seconds: float) -> None:
        self.batches.append(len(messages))
        number = len(self.batches)
        self.reached.set()
        assert self.open.wait(PATIENCE_SECONDS)
        if self._lost(number):
            raise BusUnavailable("a batch is lost")
        self._produce(messages, timeout_seconds)


def sent(adapter: Any, key: str) -> int:
    return post(adapter, samples.s3_event(samples.s3_record(key)))[0]


def test_what_is_acknowledged_is_in_kafka_though_batches_are_lost(lake: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    gate = Gate(lake, monkeypatch, lost=lambda number: number % 2 == 0)
    gate.open.set()
    keys = [lake.key(f"logs/{number}") for number in range(120)]

    def answer(key: str) -> int:
        return sent(adapter, key)

    with serving(lake.intake, lake.settings) as adapter, ThreadPoolExecutor(12) as pool:
        statuses = dict(zip(keys, pool.map(answer, keys), strict=True))
        assert set(statuses.values()) == {200, 503}
        assert adapter.metrics.value("produced") == sum(status == 200 for status in statuses.values())
        assert adapter.metrics.value("failed", "unavailable") == sum(status == 503 for status in statuses.values())
    taken = [key for key, status in statuses.items() if status == 200]
    assert sorted(body["k"] for body in lake.bodies("objstore.ingest.logs", len(taken))) == sorted(taken)


def test_stopped_in_the_middle_it_answers_whom_it_has_heard(lake: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    gate = Gate(lake, monkeypatch)
    keys = [lake.key(f"logs/{number}") for number in range(8)]
    with ThreadPoolExecutor(8) as pool:
        with serving(lake.intake, lake.settings) as adapter:
            first = pool.submit(sent, adapter, keys[0])
            assert gate.reached.wait(PATIENCE_SECONDS)
            others = [pool.submit(sent, adapter, key) for key in keys[1:]]
            eventually(lambda: adapter.metrics.value("received") == len(keys), "all are heard")
            adapter.stop()
            gate.open.set()
        assert {answer.result() for answer in (first, *others)} == {200}
    assert sorted(body["k"] for body in lake.bodies("objstore.ingest.logs", len(keys))) == sorted(keys)
    assert len(gate.batches) < len(keys)


def test_beyond_the_queue_senders_are_asked_to_come_again(lake: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "WAITING", 2)
    gate = Gate(lake, monkeypatch)
    keys = [lake.key(f"logs/{number}") for number in range(8)]
    with serving(lake.intake, lake.settings) as adapter, ThreadPoolExecutor(8) as pool:
        first = pool.submit(sent, adapter, keys[0])
        assert gate.reached.wait(PATIENCE_SECONDS)
        others = [pool.submit(post, adapter, samples.s3_event(samples.s3_record(key))) for key in keys[1:]]
        eventually(lambda: adapter.metrics.value("failed", "busy") == 5, "the queue is full")
        gate.open.set()
        answered = [other.result() for other in others]
        assert first.result() == 200
    assert sorted(status for status, *_ in answered) == [200, 200, *[503] * 5]
    assert all(int(headers["retry-after"]) > 0 for status, headers, _ in answered if status == 503)
    assert len(lake.bodies("objstore.ingest.logs", 3)) == 3


def test_one_refused_event_changes_nobody_else_s_answer(lake: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    gate = Gate(lake, monkeypatch)
    documents: list[Any] = [
        samples.s3_event(samples.s3_record(lake.key())),
        samples.s3_event(samples.s3_record("backup/x"), samples.s3_record(lake.key())),
        {"no": "event"},
        samples.validation("code"),
        samples.s3_event(samples.s3_record("db/x")),
    ]
    with serving(lake.intake, lake.settings) as adapter, ThreadPoolExecutor(6) as pool:
        first = pool.submit(sent, adapter, lake.key("logs/first"))
        assert gate.reached.wait(PATIENCE_SECONDS)
        others = [pool.submit(post, adapter, document) for document in documents]
        eventually(lambda: adapter.metrics.value("received") == len(documents) + 1, "all are heard")
        gate.open.set()
        found = [(status, answer) for status, _, answer in (other.result() for other in others)]
        assert first.result() == 200
    assert found[0] == (200, {"produced": 1, "dead_letters": {}, "ignored": {}})
    assert found[1] == (200, {"produced": 1, "dead_letters": {"no_route": 1}, "ignored": {}})
    assert (found[2][0], found[2][1]["error"]) == (400, "unknown_format")
    assert found[3] == (200, {"validationResponse": "code"})
    assert found[4] == (200, {"produced": 0, "dead_letters": {}, "ignored": {"segment": 1}})
