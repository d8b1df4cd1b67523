"""Boxes: whose they are, how often they are tried, and that a run is asked for as long as there is work."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from uuid import uuid4

import pytest

from lakerunner_dagster.lake.errors import LeaseLost, SwapConflict
from lakerunner_dagster.lake.lrdb import boxes, outbox
from lakerunner_dagster.lake.lrdb.boxes import MESSAGE_BYTES, WaitingPartition
from lakerunner_dagster.lake.lrdb.connection import Lrdb
from lakerunner_dagster.lake.lrdb.intake import Notification
from lakerunner_dagster.lake.model import ClaimedBox, Source
from lakerunner_dagster.lake.settings import Settings
from lakerunner_dagster.lake.signals import Signal
from lakerunner_dagster.lake.stages import ingest_stage
from tests.lake.lrdb.work import (
    DAY,
    NOW_MS,
    SETTINGS,
    add_source,
    box_pending,
    claim,
    do,
    expire,
    must_claim,
    notification,
    notify,
    one,
    open_box,
    pending_ids,
    planned,
    publish_box,
    states,
)

STAGE = ingest_stage(Signal.LOGS).name


def waiting(lrdb: Lrdb) -> list[WaitingPartition]:
    with lrdb.transaction() as conn:
        return boxes.waiting_partitions(conn, STAGE)


def dispatch(lrdb: Lrdb, *box_ids: int) -> None:
    with lrdb.transaction() as conn:
        boxes.mark_dispatched(conn, box_ids)


def release(lrdb: Lrdb, box: ClaimedBox, backoff_seconds: float = 0.0, text: str = "no answer") -> None:
    with lrdb.transaction() as conn:
        boxes.release(conn, box.lease, "StoreUnavailable", text, backoff_seconds)


def heartbeat(lrdb: Lrdb, box: ClaimedBox) -> None:
    with lrdb.transaction() as conn:
        boxes.heartbeat(conn, box.lease)


def state(lrdb: Lrdb, box_id: int) -> str:
    return str(one(lrdb, "SELECT state FROM boxes WHERE box_id = %s", box_id))


# Opening.


def test_an_opened_box_has_its_objects_and_a_message_of_them(lrdb: Lrdb, edge: Source) -> None:
    told = [notification(edge) for _ in range(3)]
    notify(lrdb, *told)
    (box_id,) = box_pending(lrdb)
    assert set(states(lrdb, edge.organization_id).values()) == {"boxed"}
    with lrdb.transaction() as conn:
        (item,) = outbox.take(conn, 10)
    message = item.message
    assert (message.topic, message.key) == ("segments.logs.ingest", f"{edge.organization_id}/edge")
    assert (message.body["v"], message.body["box"], message.body["q"]) == (1, box_id, "2026-01-05T13:00:00.000Z")
    received = [Notification.from_body(Signal.LOGS, body) for body in message.body["m"]]
    assert received == [replace(sent, queued="2026-01-05T13:00:00.000Z", adapter="") for sent in told]


def test_a_box_whose_message_would_be_too_large_becomes_several(lrdb: Lrdb, edge: Source) -> None:
    long = "é" * 480
    notify(lrdb, *(notification(edge, key=f"{long}/{number}", size=10) for number in range(700)))
    opened = box_pending(lrdb)
    assert len(opened) > 1
    with lrdb.transaction() as conn:
        items = outbox.take(conn, 100)
    assert all(len(json.dumps(item.message.body)) < MESSAGE_BYTES for item in items)
    assert sorted(item.message.body["box"] for item in items) == opened
    assert sum(len(item.message.body["m"]) for item in items) == 700
    assert one(lrdb, "SELECT sum(members) FROM boxes") == 700
    assert one(lrdb, "SELECT sum(bytes) FROM boxes") == 700 * 80


def test_objects_that_are_boxed_already_are_not_boxed_again(lrdb: Lrdb, edge: Source) -> None:
    notify(lrdb, notification(edge), notification(edge))
    ids = pending_ids(lrdb)
    plan = planned(ids, edge)
    with lrdb.transaction() as conn:
        boxes.open_boxes(conn, Signal.LOGS, plan, NOW_MS)
    with pytest.raises(SwapConflict, match="plan again"), lrdb.transaction() as conn:
        boxes.open_boxes(conn, Signal.LOGS, plan, NOW_MS)
    assert one(lrdb, "SELECT count(*) FROM boxes") == 1


def test_another_organizations_objects_cannot_be_boxed(lrdb: Lrdb, edge: Source) -> None:
    globex = add_source(lrdb, "globex", "edge")
    notify(lrdb, notification(globex))
    with pytest.raises(SwapConflict), lrdb.transaction() as conn:
        boxes.open_boxes(conn, Signal.LOGS, planned(pending_ids(lrdb), edge), NOW_MS)


def test_boxes_that_lrdb_never_had_are_told_apart(lrdb: Lrdb, edge: Source) -> None:
    box_id = open_box(lrdb, edge)
    with lrdb.connection() as conn:
        assert boxes.unknown_boxes(conn, [box_id, box_id + 7]) == {box_id + 7}


# Waiting and dispatching.


def test_boxes_wait_by_partition_oldest_first(lrdb: Lrdb, edge: Source) -> None:
    core = add_source(lrdb, "acme", "core")
    first, second, third = open_box(lrdb, core), open_box(lrdb, edge), open_box(lrdb, core)
    open_box(lrdb, edge, Signal.TRACES)
    assert waiting(lrdb) == [
        WaitingPartition(core, DAY, (first, third), (0, 0), (0, 0), (0,)),
        WaitingPartition(edge, DAY, (second,), (0,), (0,), (0,)),
    ]


def test_boxes_of_a_day_that_is_to_come_wait_for_it(lrdb: Lrdb, edge: Source) -> None:
    to_come, today = open_box(lrdb, edge), open_box(lrdb, edge)
    for box_id, days in ((to_come, 2), (today, 0)):
        day = "to_char(now() AT TIME ZONE 'UTC' + %s * interval '1 day', 'YYYYMMDD')::int"
        do(lrdb, f"UPDATE boxes SET dateint = {day} WHERE box_id = %s", days, box_id)
    assert [partition.box_ids for partition in waiting(lrdb)] == [(today,)]


def age_dispatch(lrdb: Lrdb, seconds: float) -> None:
    do(lrdb, "UPDATE boxes SET dispatched_at = dispatched_at - %s * interval '1 second'", seconds)


@pytest.mark.parametrize(("dispatches", "seconds"), [(1, 2), (3, 8), (8, 256), (9, 300), (40, 300), (5000, 300)])
def test_a_dispatched_box_calls_for_another_run_after_a_growing_while(
    lrdb: Lrdb, edge: Source, dispatches: int, seconds: int
) -> None:
    box_id = open_box(lrdb, edge)
    do(lrdb, "UPDATE boxes SET dispatches = %s", dispatches - 1)
    dispatch(lrdb, box_id)
    assert waiting(lrdb) == []
    age_dispatch(lrdb, seconds - 1.5)
    assert waiting(lrdb) == []
    age_dispatch(lrdb, 1.5)
    assert [partition.dispatches for partition in waiting(lrdb)] == [(dispatches,)]


def test_a_dispatched_box_that_was_claimed_and_given_back_calls_at_once(lrdb: Lrdb, edge: Source) -> None:
    box_id = open_box(lrdb, edge)
    for _ in range(6):
        dispatch(lrdb, box_id)
    release(lrdb, must_claim(lrdb, edge))
    assert [(partition.attempts, partition.dispatches) for partition in waiting(lrdb)] == [((1,), (6,))]


def test_recalled_boxes_call_at_once_in_other_words_and_those_of_others_do_not(lrdb: Lrdb, edge: Source) -> None:
    core = add_source(lrdb, "acme", "core")
    ours, theirs, metrics = open_box(lrdb, edge), open_box(lrdb, core), open_box(lrdb, edge, Signal.METRICS)
    for _ in range(6):
        dispatch(lrdb, ours, theirs, metrics)
    with lrdb.transaction() as conn:
        boxes.recall(conn, STAGE, edge, DAY)
    assert [(partition.box_ids, partition.dispatches) for partition in waiting(lrdb)] == [((ours,), (6,))]
    assert one(lrdb, "SELECT count(*) FROM boxes WHERE dispatched_at IS NULL") == 1


def test_a_dispatched_box_can_be_claimed_by_whichever_run_comes(lrdb: Lrdb, edge: Source) -> None:
    dispatch(lrdb, open_box(lrdb, edge))
    must_claim(lrdb, edge)


def test_a_partition_is_never_asked_for_twice_in_the_same_words(lrdb: Lrdb, edge: Source) -> None:
    """What a run_key is made of differs at every dispatch: also after a failure, and after a person's retry."""
    box_id = open_box(lrdb, edge)
    seen = []
    for turn in range(8):
        (partition,) = waiting(lrdb)
        seen.append((partition.box_ids, partition.attempts, partition.dispatches))
        dispatch(lrdb, box_id)
        box = claim(lrdb, edge)
        if turn % 2 or box is None:
            age_dispatch(lrdb, 1000)
        if box is not None:
            release(lrdb, box)
        if state(lrdb, box_id) == "failed":
            with lrdb.transaction() as conn:
                assert boxes.reopen_failed(conn, STAGE, edge, DAY) == 1
    assert len(set(seen)) == len(seen) == 8


def test_claimed_and_ended_boxes_do_not_wait(lrdb: Lrdb, edge: Source) -> None:
    open_box(lrdb, edge)
    box = must_claim(lrdb, edge)
    assert waiting(lrdb) == []
    publish_box(lrdb, box)
    assert waiting(lrdb) == []


# Claiming.


def test_a_claim_names_source_day_and_members_in_order(lrdb: Lrdb, edge: Source) -> None:
    box_id = open_box(lrdb, edge, objects=5)
    box = must_claim(lrdb, edge, run="r1")
    assert (box.lease.box_id, box.lease.run_id, box.lease.attempt) == (box_id, "r1", 1)
    assert (box.source, box.signal, box.dateint, box.stage) == (edge, Signal.LOGS, DAY, STAGE)
    ids = [member.raw_object_id for member in box.members]
    assert ids == sorted(ids)
    assert len(ids) == 5


def test_a_claim_takes_only_its_partitions_boxes(lrdb: Lrdb, edge: Source) -> None:
    for other in (add_source(lrdb, "acme", "core"), add_source(lrdb, "globex", "edge")):
        open_box(lrdb, other)
    open_box(lrdb, edge, Signal.METRICS)
    notify(lrdb, notification(edge, event_time_ms=NOW_MS + 86_400_000))
    box_pending(lrdb)
    assert claim(lrdb, edge) is None


def test_runs_that_claim_at_once_get_different_boxes(lrdb: Lrdb, edge: Source) -> None:
    opened = {open_box(lrdb, edge, objects=1) for _ in range(12)}
    with ThreadPoolExecutor(10) as pool:
        claims = list(pool.map(lambda run: claim(lrdb, edge, run=f"run{run}"), range(24)))
    got = [box.lease.box_id for box in claims if box is not None]
    assert sorted(got) == sorted(opened)


def test_a_claim_does_not_wait_for_a_run_that_holds_another_box(lrdb: Lrdb, edge: Source) -> None:
    first, second = open_box(lrdb, edge), open_box(lrdb, edge)
    with ThreadPoolExecutor(1) as pool, lrdb.transaction() as conn:
        conn.execute("SELECT FROM boxes WHERE box_id = %s FOR UPDATE", (first,))
        box = pool.submit(must_claim, lrdb, edge).result(timeout=60)
    assert box.lease.box_id == second


def test_a_box_is_tried_again_only_when_its_time_has_come(lrdb: Lrdb, edge: Source) -> None:
    open_box(lrdb, edge)
    release(lrdb, must_claim(lrdb, edge), backoff_seconds=3600)
    assert claim(lrdb, edge) is None
    assert waiting(lrdb) == []
    do(lrdb, "UPDATE boxes SET next_attempt_at = now()")
    assert must_claim(lrdb, edge).lease.attempt == 2


def test_the_box_of_a_killed_run_is_claimed_by_the_next_once_its_lease_expires(lrdb: Lrdb, edge: Source) -> None:
    box_id = open_box(lrdb, edge)
    killed = must_claim(lrdb, edge, run="killed")
    assert claim(lrdb, edge, run="next") is None
    expire(lrdb, box_id)
    assert [partition.attempts for partition in waiting(lrdb)] == [(1,)]
    again = must_claim(lrdb, edge, run="next")
    assert again.lease.attempt == 2
    assert again.members == killed.members
    for act in (heartbeat, release, publish_box):
        with pytest.raises(LeaseLost, match="another run"):
            act(lrdb, killed)
    heartbeat(lrdb, again)


def test_a_lease_lives_as_long_as_its_heart_beats(lrdb: Lrdb, edge: Source) -> None:
    box_id = open_box(lrdb, edge)
    box = must_claim(lrdb, edge)
    expire(lrdb, box_id)
    heartbeat(lrdb, box)
    assert claim(lrdb, edge) is None


def test_an_expired_lease_that_nobody_took_can_still_publish(lrdb: Lrdb, edge: Source) -> None:
    box_id = open_box(lrdb, edge)
    box = must_claim(lrdb, edge)
    expire(lrdb, box_id)
    publish_box(lrdb, box)
    assert state(lrdb, box_id) == "done"


def test_a_made_up_token_is_no_lease(lrdb: Lrdb, edge: Source) -> None:
    open_box(lrdb, edge)
    box = must_claim(lrdb, edge)
    with pytest.raises(LeaseLost):
        heartbeat(lrdb, replace(box, lease=replace(box.lease, token=uuid4())))


# Failing.


def test_a_box_that_is_given_back_every_time_fails_and_keeps_the_last_error(lrdb: Lrdb, edge: Source) -> None:
    box_id = open_box(lrdb, edge)
    for attempt in range(1, SETTINGS.box_attempts + 1):
        box = must_claim(lrdb, edge)
        assert box.lease.attempt == attempt
        release(lrdb, box, text=f"timeout\0 no {attempt}")
    assert claim(lrdb, edge) is None
    assert state(lrdb, box_id) == "failed"
    text = one(lrdb, "SELECT error_text FROM boxes")
    assert text.startswith("attempt 3 of 3: timeout")
    assert text.endswith("no 3")
    assert set(states(lrdb, edge.organization_id).values()) == {"boxed"}


def test_a_box_that_kills_every_run_fails_and_says_so(lrdb: Lrdb, edge: Source) -> None:
    box_id = open_box(lrdb, edge)
    for attempt in range(SETTINGS.box_attempts):
        must_claim(lrdb, edge, run=f"run{attempt}")
        expire(lrdb, box_id)
    assert claim(lrdb, edge) is None
    assert state(lrdb, box_id) == "failed"
    assert one(lrdb, "SELECT error_class FROM boxes") == "LeaseExpired"
    assert "claimed 3 times, the most allowed; the last, run run2, let its lease run out" in one(
        lrdb, "SELECT error_text FROM boxes"
    )


def test_a_poisonous_box_does_not_keep_those_behind_it_from_runs(lrdb: Lrdb, edge: Source) -> None:
    poisonous, good = open_box(lrdb, edge), open_box(lrdb, edge)
    do(lrdb, "UPDATE boxes SET attempts = 3 WHERE box_id = %s", poisonous)
    assert must_claim(lrdb, edge).lease.box_id == good
    assert state(lrdb, poisonous) == "failed"


def test_fewer_attempts_allowed_than_before_fail_a_waiting_box(lrdb: Lrdb, edge: Source) -> None:
    box_id = open_box(lrdb, edge)
    release(lrdb, must_claim(lrdb, edge), text="bad disk")
    assert claim(lrdb, edge, settings=Settings(box_attempts=1)) is None
    assert state(lrdb, box_id) == "failed"
    assert "bad disk" in one(lrdb, "SELECT error_text FROM boxes")


def test_a_failed_box_opened_again_has_all_its_attempts(lrdb: Lrdb, edge: Source) -> None:
    other = add_source(lrdb, "acme", "core")
    failed = [open_box(lrdb, edge), open_box(lrdb, other)]
    do(lrdb, "UPDATE boxes SET state = 'failed', attempts = 3, error_class = 'E', error_text = 'e', ended_at = now()")
    with lrdb.transaction() as conn:
        assert boxes.reopen_failed(conn, STAGE, edge, DAY) == 1
    assert [state(lrdb, box_id) for box_id in failed] == ["open", "failed"]
    assert must_claim(lrdb, edge).lease.attempt == 1
