"""What would break if the loop acknowledged too early, held too much, let a lease end, or stood still for one."""

from __future__ import annotations

import json
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, cast

import pytest

from lakerunner_dagster.lake.bus import Bus
from lakerunner_dagster.lake.errors import (
    BusUnavailable,
    LakeDatabaseUnavailable,
    LakeError,
    QueueDenied,
    QueueUnavailable,
)
from lakerunner_dagster.lake.notifications import intake as intake_module
from lakerunner_dagster.lake.notifications import pulling as module
from lakerunner_dagster.lake.notifications.intake import Intake
from lakerunner_dagster.lake.notifications.pulling import PullingAdapter, QueueMessage
from tests.kafka.mock import FaultyCluster
from tests.lake.notifications import samples
from tests.lake.notifications.conftest import Lake
from tests.lake.notifications.pulled import LOGS, Gate, counted, kept_for_leases, pulling, quick
from tests.waiting import eventually

BROKEN = b"no json"


class MemoryQueue:
    """A queue in memory with leases by a real clock, which remembers what was done to it."""

    name = "memory"

    def __init__(self, bodies: Sequence[bytes], lease_seconds: float = 60.0) -> None:
        self._lease_seconds = lease_seconds
        self._lock = threading.Lock()
        self._visible_from = dict.fromkeys(range(len(bodies)), 0.0)
        self._bodies = bodies
        self.deliveries: Counter[int] = Counter()
        self.refused: Counter[int] = Counter()
        self.given_back: Counter[int] = Counter()
        self.not_acknowledged: Counter[int] = Counter()
        self.error: LakeError | None = None
        self.closed = False

    @property
    def left(self) -> list[int]:
        with self._lock:
            return sorted(self._visible_from)

    def check(self) -> str | None:
        return None

    def receive(self, limit: int, stop: threading.Event) -> list[QueueMessage]:
        self._fail()
        with self._lock:
            now = time.monotonic()
            free = [number for number, at in self._visible_from.items() if at <= now][:limit]
            self.deliveries.update(free)
            self._visible_from.update(dict.fromkeys(free, now + self._lease_seconds))
        if not free:
            stop.wait(0.01)
        return [QueueMessage(self._bodies[n], time.time() - 5, self.deliveries[n], n) for n in free]

    def extend(self, messages: Sequence[QueueMessage]) -> None:
        self._fail()
        self._until(messages, time.monotonic() + self._lease_seconds)

    def acknowledge(self, messages: Sequence[QueueMessage]) -> Sequence[QueueMessage]:
        with self._lock:
            kept = [message for message in messages if self.not_acknowledged[message.receipt] > 0]
            self.not_acknowledged.subtract(message.receipt for message in kept)
            for message in messages:
                if message not in kept:
                    self._visible_from.pop(message.receipt, None)
        return kept

    def refuse(self, messages: Sequence[QueueMessage]) -> None:
        self._fail()
        self.refused.update(message.receipt for message in messages)

    def give_back(self, messages: Sequence[QueueMessage]) -> None:
        self.given_back.update(message.receipt for message in messages)
        self._until(messages, 0.0)

    def end_lease(self, number: int) -> None:
        """Let a message be delivered again, as if its lease had come to its end."""
        with self._lock:
            self._visible_from[number] = 0.0

    def close(self) -> None:
        self.closed = True

    def _fail(self) -> None:
        if self.error is not None:
            raise self.error

    def _until(self, messages: Sequence[QueueMessage], at: float) -> None:
        with self._lock:
            self._visible_from.update({m.receipt: at for m in messages if m.receipt in self._visible_from})


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "FIRST_PAUSE_SECONDS", 0.005)
    monkeypatch.setattr(module, "LONGEST_PAUSE_SECONDS", 0.02)


def body(*keys: str) -> bytes:
    return json.dumps(samples.s3_event(*map(samples.s3_record, keys))).encode()


def keys_of(lake: Lake, count: int) -> list[str]:
    return [f"{lake.key()}/{number}" for number in range(count)]


def told(lake: Lake, count: int) -> Counter[str]:
    return Counter(message["k"] for message in lake.bodies(LOGS, count))


def test_nothing_is_acknowledged_before_kafka_has_it(lake: Lake) -> None:
    queue = MemoryQueue([body(key) for key in keys_of(lake, 20)])
    gate = Gate(lake.intake)
    with pulling(queue, gate.intake, lake.settings) as adapter:
        assert gate.asked.wait(60)
        assert len(queue.left) == 20
        gate.free.set()
        counted(adapter, "produced", 20)
        eventually(lambda: not queue.left, "the queue is empty")
    assert told(lake, 20) == Counter(keys_of(lake, 20))
    assert queue.closed


@pytest.mark.parametrize("error", [BusUnavailable("away"), LakeDatabaseUnavailable("away")])
def test_an_outage_is_waited_out_with_what_is_in_hand_and_no_more(
    lake: Lake, error: LakeError, caplog: pytest.LogCaptureFixture
) -> None:
    settings = quick(lake.settings, queue_receivers=2, queue_batch=10)
    queue = MemoryQueue([body(key) for key in keys_of(lake, 100)])
    gate = Gate(lake.intake, error)
    with pulling(queue, gate.intake, settings) as adapter:
        counted(adapter, "failed", 50, "unavailable")
        assert adapter.metrics.in_hand == 20
        assert queue.deliveries.total() == 20
        assert adapter.metrics.lag_seconds > 4
        assert adapter.pulse.stalled() == []
        gate.free.set()
        counted(adapter, "produced", 100)
        eventually(lambda: not queue.left, "the queue is empty")
        eventually(lambda: adapter.metrics.lag_seconds == 0.0, "it has caught up")
    assert max(queue.deliveries.values()) == 1
    assert told(lake, 100) == Counter(keys_of(lake, 100))
    assert caplog.text.count("waits and goes on trying") == 1


def test_kafka_goes_away_under_load_and_comes_back(lake: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    # Longer than a first connection takes, on a busy machine too.
    monkeypatch.setattr(intake_module, "PRODUCE_SECONDS", 2.0)
    cluster = FaultyCluster()
    options = {"reconnect.backoff.ms": "10", "reconnect.backoff.max.ms": "20"}
    bus = Bus(cluster.bootstrap_servers, prefix=f"t-{uuid.uuid4().hex[:8]}.", replication=1, options=options)
    elsewhere = Lake(lake.lrdb, bus, lake.settings, lake.directory, lake.organization_id)
    settings = quick(lake.settings, queue_receivers=2, queue_batch=10)
    keys = keys_of(lake, 1000)
    queue = MemoryQueue([body(key) for key in keys])
    with pulling(queue, elsewhere.intake, settings) as adapter:
        counted(adapter, "produced", 50)
        cluster.down()
        counted(adapter, "failed", 2, "unavailable")
        before = queue.left
        counted(adapter, "failed", 4, "unavailable")
        assert queue.left == before
        assert adapter.metrics.in_hand == min(20, len(before))
        cluster.up()
        counted(adapter, "produced", len(keys))
        eventually(lambda: not queue.left, "the queue is empty")
    # Some may be there twice, so how many there are tells nothing.
    consumer = bus.consumer("test", [LOGS])
    consumer.assign({})
    found: set[str] = set()

    def all_found() -> bool:
        found.update(json.loads(message.body)["k"] for message in consumer.poll(1000, 0.2))
        return found == set(keys)

    eventually(all_found, "each is in Kafka")
    consumer.close()
    bus.close()
    cluster.close()


def test_a_lease_is_kept_while_kafka_is_slow(lake: Lake) -> None:
    settings = lake.settings.model_copy(update={"queue_lease_seconds": 1.0})
    queue = MemoryQueue([body(lake.key())], lease_seconds=1.0)
    gate = Gate(lake.intake)
    with pulling(queue, gate.intake, settings) as adapter:
        assert gate.asked.wait(60)
        kept_for_leases(adapter, lease_seconds=1.0, number=3)
        gate.free.set()
        counted(adapter, "produced", 1)
    assert queue.deliveries.total() == 1


def test_an_extension_that_hangs_costs_no_other_hand_its_lease(lake: Lake) -> None:
    queue = Hanging([body(key) for key in keys_of(lake, 2)])
    gate = Gate(lake.intake)
    settings = lake.settings.model_copy(update={"queue_lease_seconds": 0.3, "queue_batch": 1})
    with pulling(queue, gate.intake, settings) as adapter:
        eventually(lambda: adapter.metrics.in_hand == 2, "both have one in hand")
        eventually(lambda: queue.extended[1] > 3, "the other one's lease is extended")
        assert queue.extended[0] == 0
        queue.free.set()
        gate.free.set()
        counted(adapter, "produced", 2)
    assert queue.deliveries == {0: 1, 1: 1}


class Hanging(MemoryQueue):
    """A queue that does not answer when the lease of its first message is to be extended, until it is let go."""

    def __init__(self, bodies: Sequence[bytes]) -> None:
        super().__init__(bodies)
        self.free = threading.Event()
        self.extended: Counter[int] = Counter()

    def extend(self, messages: Sequence[QueueMessage]) -> None:
        if any(message.receipt == 0 for message in messages):
            assert self.free.wait(60)
        self.extended.update(message.receipt for message in messages)
        super().extend(messages)


def test_one_that_cannot_be_understood_holds_up_no_other(lake: Lake, caplog: pytest.LogCaptureFixture) -> None:
    keys = keys_of(lake, 6)
    settings = lake.settings.model_copy(update={"http_body_bytes": 2000})
    queue = MemoryQueue([BROKEN, *map(body, keys), b" " * 2001, b"\xff" * 300])
    with pulling(queue, lake.intake, settings) as adapter:
        counted(adapter, "produced", len(keys))
        eventually(lambda: queue.left == [0, 7, 8], "the good ones are acknowledged")
        assert set(queue.refused) == {0, 7, 8}
        assert adapter.metrics.value("failed", "not_json") == 2
        assert adapter.metrics.value("failed", "too_large") == 1
    assert r"\xff" * 200 in caplog.text
    assert r"\xff" * 201 not in caplog.text


def test_messages_of_many_events_go_in_portions(lake: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "EVENTS", 5)
    keys = keys_of(lake, 22)
    groups = [keys[:2], keys[2:4], keys[4:6], keys[6:18], keys[18:22], []]
    gate = Gate(lake.intake)
    gate.free.set()
    with pulling(MemoryQueue([body(*group) for group in groups[:-1]]), gate.intake, lake.settings) as adapter:
        counted(adapter, "produced", len(keys))
    assert gate.sizes == [4, 2, 12, 4]
    assert told(lake, len(keys)) == Counter(keys)


def test_what_is_not_acknowledged_is_tried_again_then_comes_again(lake: Lake, caplog: pytest.LogCaptureFixture) -> None:
    keys = keys_of(lake, 3)
    queue = MemoryQueue([body(key) for key in keys])
    queue.not_acknowledged.update({1: module.ACKNOWLEDGE_ATTEMPTS - 1, 2: module.ACKNOWLEDGE_ATTEMPTS})
    with pulling(queue, lake.intake, lake.settings) as adapter:
        counted(adapter, "failed", 1, "not_acknowledged")
        eventually(lambda: queue.left == [2], "the others are acknowledged")
        queue.end_lease(2)
        eventually(lambda: not queue.left, "the queue is empty")
        assert adapter.metrics.value("failed", "not_acknowledged") == 1
    assert queue.deliveries == {0: 1, 1: 1, 2: 2}
    assert told(lake, 4) == Counter({keys[0]: 1, keys[1]: 1, keys[2]: 2})
    assert "1 messages were passed on and could not be acknowledged" in caplog.text


def test_told_to_end_it_brings_what_is_in_hand_to_its_end(lake: Lake) -> None:
    queue = MemoryQueue([body(key) for key in keys_of(lake, 30)])
    gate = Gate(lake.intake)
    adapter = PullingAdapter(queue, gate.intake, lake.settings.model_copy(update={"queue_batch": 5}))
    with ending(adapter) as stop:
        eventually(lambda: adapter.metrics.in_hand == 10, "both have their hands full")
        stop.set()
        gate.free.set()
    assert queue.deliveries.total() == 10
    assert len(queue.left) == 20
    assert not queue.given_back
    assert told(lake, 10).total() == 10


def test_told_to_end_while_kafka_is_away_it_gives_back_what_is_in_hand(lake: Lake) -> None:
    queue = MemoryQueue([body(key) for key in keys_of(lake, 30)])
    gate = Gate(lake.intake, BusUnavailable("away"))
    adapter = PullingAdapter(queue, gate.intake, lake.settings.model_copy(update={"queue_batch": 5}))
    with ending(adapter) as stop:
        counted(adapter, "failed", 4, "unavailable")
        stop.set()
    assert queue.given_back.total() == 10
    assert len(queue.left) == 30
    assert adapter.metrics.in_hand == 0


def test_a_queue_that_is_away_is_asked_again(lake: Lake) -> None:
    queue = MemoryQueue([body(lake.key())])
    queue.error = QueueUnavailable("away")
    with pulling(queue, lake.intake, lake.settings) as adapter:
        counted(adapter, "failed", 4, "queue")
        assert adapter.troubles() == ["queue"]
        queue.error = None
        counted(adapter, "produced", 1)
        assert adapter.troubles() == []
        # Once it was heard, a refusal may be of a moment: credentials are being changed.
        queue.error = QueueDenied("denied")
        counted(adapter, "failed", adapter.metrics.value("failed", "queue") + 4, "queue")


def test_a_queue_that_denies_us_from_the_start_ends_it(lake: Lake) -> None:
    queue = MemoryQueue([])
    queue.error = QueueDenied("grant it")
    with pytest.raises(QueueDenied, match="grant it"):
        PullingAdapter(queue, lake.intake, lake.settings).run(threading.Event())


def test_a_fault_of_ours_ends_it_with_nothing_acknowledged(lake: Lake) -> None:
    queue = MemoryQueue([body(lake.key())])
    faulty = cast("Intake", object())
    with pytest.raises(AttributeError, match="accept"):
        PullingAdapter(queue, faulty, lake.settings).run(threading.Event())
    assert queue.left == [0]


def test_a_loop_that_hangs_is_told(lake: Lake) -> None:
    queue = MemoryQueue([body(lake.key())])
    gate = Gate(lake.intake)
    settings = lake.settings.model_copy(update={"monitor_stall_seconds": 0.2, "queue_receivers": 1})
    with pulling(queue, gate.intake, settings) as adapter:
        eventually(lambda: adapter.pulse.stalled() == ["receiver 0"], "the loop hangs")
        gate.free.set()
        eventually(lambda: adapter.pulse.stalled() == [], "it turns again")


@contextmanager
def ending(adapter: PullingAdapter) -> Iterator[threading.Event]:
    """The adapter runs in a thread, and must have ended soon after the block."""
    stop = threading.Event()
    failures: list[BaseException] = []

    def run(target: Callable[[threading.Event], Any]) -> None:
        try:
            target(stop)
        except BaseException as error:
            failures.append(error)
            raise

    thread = threading.Thread(target=run, args=(adapter.run,))
    thread.start()
    try:
        yield stop
    finally:
        stop.set()
        thread.join(60)
    assert not thread.is_alive()
    assert not failures
