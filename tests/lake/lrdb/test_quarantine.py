"""What was set aside is found by a person, with its reason, and goes round again."""

from __future__ import annotations

from dataclasses import replace

import pytest

from lakerunner_dagster.lake.errors import RequestRefused
from lakerunner_dagster.lake.lrdb import quarantine
from lakerunner_dagster.lake.lrdb.connection import Lrdb
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


def test_a_retry_sends_objects_round_again(lrdb: Lrdb, three: list[int]) -> None:
    with lrdb.transaction() as conn:
        retried = quarantine.retry(conn, [f"raw:{three[1]}", f"raw:{three[2]}"])
    assert retried.pending == (three[1], three[2])
    assert pending_ids(lrdb) == three[1:]


def test_an_ingested_object_is_not_retried_since_it_would_be_published_twice(lrdb: Lrdb, three: list[int]) -> None:
    with pytest.raises(RequestRefused, match="rebuild"), lrdb.transaction() as conn:
        quarantine.retry(conn, [f"raw:{three[1]}", f"raw:{three[0]}"])
    assert pending_ids(lrdb) == []


@pytest.mark.parametrize("item_id", ["raw:99999", "dead:1", "raw:0", "12", "raw:-1", "raw:" + "9" * 30, ""])
def test_an_id_that_is_none_says_what_ids_look_like(lrdb: Lrdb, item_id: str) -> None:
    with pytest.raises(RequestRefused, match=r"quarantine list|raw:12 or segment:7"), lrdb.connection() as conn:
        quarantine.show(conn, item_id)


def test_a_whole_object_is_not_in_the_quarantine(lrdb: Lrdb, edge: Source) -> None:
    box, _ = ingest(lrdb, edge)
    with lrdb.connection() as conn:
        assert quarantine.set_aside(conn, edge.organization_id, 10) == []
        with pytest.raises(RequestRefused):
            quarantine.show(conn, f"raw:{box.members[0].raw_object_id}")
