"""What was set aside is found by a person, with its reason, and goes round again."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from lakerunner_dagster.lake.errors import RequestRefused
from lakerunner_dagster.lake.lrdb import dead_letters, quarantine
from lakerunner_dagster.lake.lrdb.connection import Lrdb
from lakerunner_dagster.lake.lrdb.dead_letters import DeadLetter
from lakerunner_dagster.lake.lrdb.quarantine import SetAside
from lakerunner_dagster.lake.model import RawState, Source
from tests.lake.lrdb.work import (
    add_source,
    ingest,
    ingested,
    must_claim,
    open_box,
    output,
    pending_ids,
    publish_box,
    quarantined,
)


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
        return dead_letters.add(conn, **(letter | changes))


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
        dead_letters.mark_replayed(conn, [letter])
    assert waiting(lrdb) == []
    bury(lrdb)
    assert [found.dead_letter_id for found in waiting(lrdb)] == [letter]


@pytest.mark.parametrize("text", ["nul \0", "half \ud800", "x" * 9000], ids=["nul", "surrogate", "long"])
def test_hostile_letters_are_kept(lrdb: Lrdb, text: str) -> None:
    letter = bury(lrdb, key=text, reason="bad", error_text=text, body={text: [text]}, topic=text, adapter=text)
    with lrdb.connection() as conn:
        found = dead_letters.show(conn, letter)
    assert found is not None
    assert found.body == {text: [text]}


@pytest.fixture
def three(lrdb: Lrdb, edge: Source) -> list[int]:
    """Objects that ended partly rejected, quarantined and missing."""
    open_box(lrdb, edge)
    box = must_claim(lrdb, edge)
    partly, bad, gone = (member.raw_object_id for member in box.members)
    outcomes = [
        ingested(partly, rejected={"time_ahead": 3, "no_time": 1}),
        quarantined(bad),
        replace(quarantined(gone), state=RawState.MISSING, error_class="object_missing"),
    ]
    publish_box(lrdb, box, [output(edge, {partly: 6})], outcomes)
    return [partly, bad, gone]


def test_whatever_lost_records_is_listed_with_its_reason(lrdb: Lrdb, edge: Source, three: list[int]) -> None:
    ingest(lrdb, edge)
    ingest(lrdb, add_source(lrdb, "globex", "edge"))
    with lrdb.connection() as conn:
        found = quarantine.set_aside(conn, edge.organization_id, 10)
        assert [item.item_id for item in found] == [f"raw:{raw_object_id}" for raw_object_id in reversed(three)]
        assert [item.reason for item in found] == ["object_missing", "truncated_gzip", "time_ahead"]
        assert found[1].error_text == "it ends before its end"
        assert found[2].rejected == {"time_ahead": 3, "no_time": 1}
        shown = quarantine.show(conn, f"raw:{three[0]}")
    assert shown == found[2]


def test_a_retry_sends_objects_round_again_and_gives_letters_back(lrdb: Lrdb, three: list[int]) -> None:
    letter = bury(lrdb)
    with lrdb.transaction() as conn:
        retried = quarantine.retry(conn, [f"raw:{three[1]}", f"dead:{letter}", f"raw:{three[2]}"])
    assert retried.pending == (three[1], three[2])
    assert [found.dead_letter_id for found in retried.letters] == [letter]
    assert pending_ids(lrdb) == three[1:]


def test_an_ingested_object_is_not_retried_since_it_would_be_published_twice(lrdb: Lrdb, three: list[int]) -> None:
    with pytest.raises(RequestRefused, match="rebuild"), lrdb.transaction() as conn:
        quarantine.retry(conn, [f"raw:{three[1]}", f"raw:{three[0]}"])
    assert pending_ids(lrdb) == []


@pytest.mark.parametrize("item_id", ["raw:99999", "dead:99999", "raw:0", "12", "raw:-1", "raw:" + "9" * 30, ""])
def test_an_id_that_is_none_says_what_ids_look_like(lrdb: Lrdb, item_id: str) -> None:
    with pytest.raises(RequestRefused, match=r"quarantine list|raw:12, segment:7 or dead:3"), lrdb.connection() as conn:
        quarantine.show(conn, item_id)


def test_a_whole_object_is_not_in_the_quarantine(lrdb: Lrdb, edge: Source) -> None:
    box, _ = ingest(lrdb, edge)
    with lrdb.connection() as conn:
        assert quarantine.set_aside(conn, edge.organization_id, 10) == []
        with pytest.raises(RequestRefused):
            quarantine.show(conn, f"raw:{box.members[0].raw_object_id}")


def test_what_is_shown_is_either_kind(lrdb: Lrdb, three: list[int]) -> None:
    letter = bury(lrdb)
    with lrdb.connection() as conn:
        assert isinstance(quarantine.show(conn, f"dead:{letter}"), DeadLetter)
        assert isinstance(quarantine.show(conn, f"raw:{three[2]}"), SetAside)
