"""Messages that a transaction has left: sent once it has committed, in order, and not lost on the way."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest

from lakerunner_dagster.lake import bus as kafka
from lakerunner_dagster.lake.bus import Bus
from lakerunner_dagster.lake.errors import BusUnavailable
from lakerunner_dagster.lake.lrdb import outbox
from lakerunner_dagster.lake.model import Message
from lakerunner_dagster.lake.ticks.outbox import BATCH, announce, publish_outbox
from tests.lake.world import World

TOPIC = "boxer.logs.compact"


def leave(world: World, count: int) -> None:
    with world.lake.lrdb.transaction() as conn:
        outbox.add(conn, [Message(TOPIC, "one key", {"number": number}) for number in range(count)])


def heard(world: World, count: int) -> list[str]:
    consumer = world.lake.bus.consumer("test", [TOPIC])
    consumer.assign({})
    bodies: list[str] = []
    while len(bodies) < count and (received := consumer.poll(count, 5.0)):
        bodies.extend(message.body.decode() for message in received)
    consumer.close()
    return bodies


def test_everything_is_sent_once_and_in_order(world: World) -> None:
    count = 2 * BATCH + 1
    leave(world, count)
    assert publish_outbox(world.lake.lrdb, world.lake.bus, 30.0) == count
    assert heard(world, count) == [f'{{"number":{number}}}' for number in range(count)]
    assert publish_outbox(world.lake.lrdb, world.lake.bus, 30.0) == 0


def test_two_at_once_send_each_message_once(world: World) -> None:
    leave(world, 3 * BATCH)
    with ThreadPoolExecutor(2) as pool:
        sent = list(pool.map(lambda _: publish_outbox(world.lake.lrdb, world.lake.bus, 30.0), range(2)))
    assert sum(sent) == 3 * BATCH
    assert len(heard(world, 3 * BATCH)) == 3 * BATCH


def test_what_kafka_does_not_acknowledge_stays(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kafka, "REQUEST_SECONDS", 0.5)
    leave(world, 3)
    away = Bus("127.0.0.1:1", prefix=world.place.prefix)
    with pytest.raises(BusUnavailable):
        publish_outbox(world.lake.lrdb, away, 0.1)
    assert world.query("SELECT count(*) FROM outbox") == [(3,)]
    assert announce(world.lake.lrdb, world.lake.bus) == 3
