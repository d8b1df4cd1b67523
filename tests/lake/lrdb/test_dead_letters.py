"""What would break if a letter that leads nowhere were lost, told twice, or taken for one that is done with."""

from __future__ import annotations

from typing import Any

import pytest

from lakerunner_dagster.lake.errors import RequestRefused
from lakerunner_dagster.lake.lrdb import dead_letters
from lakerunner_dagster.lake.lrdb.connection import Lrdb
from lakerunner_dagster.lake.lrdb.dead_letters import DeadLetter, NewLetter


def bury(lrdb: Lrdb, **changes: Any) -> int:
    letter: dict[str, Any] = {
        "topic": "objstore.ingest.logs",
        "key": "k",
        "reason": "unknown_organization",
        "error_text": "no organization has this id",
        "body": {"b": "lake", "k": "x", "t": "2026-01-05T12:00:00Z"},
        "adapter": "http",
    }
    with lrdb.transaction() as conn:
        dead_letters.add(conn, [NewLetter(**(letter | changes))])
        [(letter_id,)] = conn.execute("SELECT dead_letter_id FROM dead_letters WHERE last_at = now()")
    return int(letter_id)


def waiting(lrdb: Lrdb) -> list[DeadLetter]:
    with lrdb.connection() as conn:
        return dead_letters.waiting(conn, 10)


def test_a_letter_sent_again_counts_again_and_is_one(lrdb: Lrdb) -> None:
    first = bury(lrdb)
    assert bury(lrdb, body={"b": "lake", "k": "x", "t": "later"}) == first
    other = bury(lrdb, body={"b": "lake", "k": "y"})
    assert [(letter.dead_letter_id, letter.times) for letter in waiting(lrdb)] == [(other, 1), (first, 2)]


def test_a_replayed_letter_waits_no_more_until_it_dies_again(lrdb: Lrdb) -> None:
    letter = bury(lrdb)
    with lrdb.transaction() as conn:
        dead_letters.mark_replayed(conn, dead_letters.waiting(conn, 1))
    assert waiting(lrdb) == []
    bury(lrdb)
    assert [found.dead_letter_id for found in waiting(lrdb)] == [letter]


@pytest.mark.parametrize("text", ["nul \0", "half \ud800", "x" * 9000], ids=["nul", "surrogate", "long"])
def test_hostile_letters_are_kept(lrdb: Lrdb, text: str) -> None:
    letter = bury(lrdb, key=text, reason="bad", error_text=text, body={text: [text]}, topic=text, adapter=text)
    with lrdb.connection() as conn:
        found = dead_letters.show(conn, letter)
    assert found.body == {text: [text]}


def test_a_letter_that_came_back_since_it_was_read_waits_though_it_was_replayed(lrdb: Lrdb) -> None:
    letter = bury(lrdb)
    read = waiting(lrdb)
    bury(lrdb)
    with lrdb.transaction() as conn:
        dead_letters.mark_replayed(conn, read)
    assert [found.dead_letter_id for found in waiting(lrdb)] == [letter]


def test_letters_are_found_by_reason_and_counted_until_they_are_replayed(lrdb: Lrdb) -> None:
    for number in range(3):
        bury(lrdb, key=f"r{number}", reason="no_route")
    other = bury(lrdb)
    with lrdb.transaction() as conn:
        dead_letters.mark_replayed(conn, dead_letters.waiting(conn, 1, reason="no_route"))
        assert dead_letters.count_waiting(conn) == {"no_route": 2, "unknown_organization": 1}
        assert [letter.key for letter in dead_letters.waiting(conn, 10, reason="no_route")] == ["r1", "r0"]
        assert [letter.key for letter in dead_letters.kept(conn, 2, reason="no_route")] == ["r2", "r1"]
        assert [letter.dead_letter_id for letter in dead_letters.kept(conn, 1)] == [other]
        assert dead_letters.waiting(conn, 10, reason="'; DROP TABLE dead_letters; --\0") == []


def test_letters_kept_together_are_each_kept_and_counted(lrdb: Lrdb) -> None:
    letters = [
        NewLetter("objstore.ingest", f"k{number % 3}", "no_route", "?", {"k": number % 3}) for number in range(7)
    ]
    with lrdb.transaction() as conn:
        dead_letters.add(conn, letters)
        dead_letters.add(conn, [])
    assert {letter.key: letter.times for letter in waiting(lrdb)} == {"k0": 3, "k1": 2, "k2": 2}


def test_a_discarded_letter_says_who_and_why_and_never_waits_again(lrdb: Lrdb) -> None:
    letter, other = bury(lrdb), bury(lrdb, key="other")
    with lrdb.transaction() as conn:
        assert dead_letters.discard(conn, "ops@host", "a typo", ids=[letter]) == {"unknown_organization": 1}
        assert dead_letters.discard(conn, "ops@host", "a typo", ids=[letter]) == {}
    assert bury(lrdb) == letter
    assert [found.dead_letter_id for found in waiting(lrdb)] == [other]
    with lrdb.connection() as conn:
        found = dead_letters.show(conn, letter)
        assert dead_letters.count_waiting(conn) == {"unknown_organization": 1}
        assert dead_letters.known_keys(conn, "objstore.ingest.logs", ["k", "other", "none"]) == {"k", "other"}
    assert (found.times, found.discarded_by, found.discarded_because) == (2, "ops@host", "a typo")
    assert found.discarded_at is not None
    assert found.replayed_at is None


def test_letters_are_discarded_by_reason_or_all_and_replayed_ones_are_not(lrdb: Lrdb) -> None:
    for number in range(3):
        bury(lrdb, key=f"r{number}", reason="no_route")
    bury(lrdb)
    with lrdb.transaction() as conn:
        dead_letters.mark_replayed(conn, dead_letters.waiting(conn, 1, reason="no_route"))
        assert dead_letters.discard(conn, "", "", reason="no_route") == {"no_route": 2}
        assert dead_letters.discard(conn, "", "") == {"unknown_organization": 1}
    assert waiting(lrdb) == []


def test_a_letter_that_is_not_there_is_refused(lrdb: Lrdb) -> None:
    with pytest.raises(RequestRefused, match="no dead letter 7"), lrdb.connection() as conn:
        dead_letters.show(conn, 7)
