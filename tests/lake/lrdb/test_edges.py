"""The edges to Kafka: messages leave the outbox once acknowledged, offsets say up to where everything is in lrdb."""

from __future__ import annotations

from lakerunner_dagster.lake.lrdb import offsets, outbox
from lakerunner_dagster.lake.lrdb.connection import Lrdb
from lakerunner_dagster.lake.model import Message


def messages(*numbers: int) -> list[Message]:
    return [Message("topic", f"key{number}", {"z": number, "a": "é\0"}, {"h": "v"}) for number in numbers]


def taken(lrdb: Lrdb, limit: int = 100) -> list[Message]:
    with lrdb.transaction() as conn:
        return [item.message for item in outbox.take(conn, limit)]


def test_messages_go_out_as_they_came_in_order(lrdb: Lrdb) -> None:
    with lrdb.transaction() as conn:
        outbox.add(conn, messages(1, 2, 3))
        outbox.add(conn, [])
    assert taken(lrdb) == messages(1, 2, 3)
    assert [list(message.body) for message in taken(lrdb, 1)] == [["z", "a"]]


def test_a_message_stays_until_it_is_deleted(lrdb: Lrdb) -> None:
    with lrdb.transaction() as conn:
        outbox.add(conn, messages(1, 2))
    with lrdb.transaction() as conn:
        outbox.delete(conn, [item.outbox_id for item in outbox.take(conn, 1)])
    assert taken(lrdb) == messages(2)


def test_two_publishers_at_once_take_different_messages(lrdb: Lrdb) -> None:
    with lrdb.transaction() as conn:
        outbox.add(conn, messages(1, 2, 3))
    with lrdb.transaction() as first, lrdb.transaction() as second:
        assert [item.message for item in outbox.take(first, 2)] == messages(1, 2)
        assert [item.message for item in outbox.take(second, 2)] == messages(3)


def test_offsets_are_kept_by_group_and_cluster(lrdb: Lrdb) -> None:
    with lrdb.transaction() as conn:
        assert offsets.load(conn, "boxer", "c1") == {}
        offsets.record(conn, "boxer", "c1", {("logs", 0): 5, ("logs", 1): 7})
        offsets.record(conn, "boxer", "c2", {("logs", 0): 1})
        offsets.record(conn, "other", "c1", {("logs", 0): 2})
        offsets.record(conn, "boxer", "c1", {("logs", 1): 9})
        offsets.record(conn, "boxer", "c1", {})
        assert offsets.load(conn, "boxer", "c1") == {("logs", 0): 5, ("logs", 1): 9}


def test_offsets_follow_a_topic_that_was_made_anew(lrdb: Lrdb) -> None:
    with lrdb.transaction() as conn:
        offsets.record(conn, "boxer", "c1", {("logs", 0): 1000})
        offsets.record(conn, "boxer", "c1", {("logs", 0): 3})
        assert offsets.load(conn, "boxer", "c1") == {("logs", 0): 3}
