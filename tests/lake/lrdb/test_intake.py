"""Raw objects on their way in: each content once, whatever is told of it, how often, and in which order."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lakerunner_dagster.lake.errors import InputError, LeaseLost
from lakerunner_dagster.lake.lrdb import intake
from lakerunner_dagster.lake.lrdb.connection import Lrdb
from lakerunner_dagster.lake.lrdb.intake import Notification, Observed, Resolution
from lakerunner_dagster.lake.model import ClaimedBox, RawObject, RawState, Source
from lakerunner_dagster.lake.segments.ids import raw_identity
from lakerunner_dagster.lake.signals import Signal
from lakerunner_dagster.lake.store import StoredObject
from tests.lake.lrdb.work import (
    DAY,
    NOON_MS,
    add_source,
    box_pending,
    do,
    expire,
    ingest,
    ingested,
    must_claim,
    notification,
    notify,
    one,
    output,
    pending_ids,
    publish_box,
    quarantined,
    states,
)

ORGANIZATION = "11111111-1111-4111-8111-111111111111"
BODY: dict[str, Any] = {"o": ORGANIZATION, "i": 1, "b": "lake", "k": "a/b", "s": 5, "t": "2026-01-05T12:00:00Z"}


def test_a_body_read_back_is_the_notification(edge: Source) -> None:
    sent = notification(edge)
    assert Notification.from_body(Signal.LOGS, sent.body()) == sent


def test_another_systems_message_lacks_our_keys_and_is_dated_by_its_queueing() -> None:
    read = Notification.from_body(Signal.LOGS, BODY)
    assert (read.etag, read.collector, read.adapter, read.event_time_ms) == ("", "", "", NOON_MS)


def test_etags_are_compared_without_quotes() -> None:
    assert Notification.from_body(Signal.LOGS, BODY | {"e": 'W/"abc"'}).etag == "abc"


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"o": "acme"}, "bad_notification"),
        ({"i": "1"}, "bad_notification"),
        ({"i": True}, "bad_notification"),
        ({"i": 40_000}, "bad_notification"),
        ({"b": "x" * 256}, "bad_notification"),
        ({"b": "la\0ke"}, "bad_notification"),
        ({"k": "../x"}, "bad_key"),
        ({"k": "x" * 1025}, "bad_notification"),
        ({"k": None}, "bad_notification"),
        ({"s": -1}, "bad_notification"),
        ({"s": 1 << 63}, "bad_notification"),
        ({"s": 1.5}, "bad_notification"),
        ({"e": "x" * 300}, "bad_notification"),
        ({"et": 10**18}, "bad_notification"),
        ({"et": -1}, "bad_notification"),
        ({"t": "yesterday"}, "bad_notification"),
        ({"c": "\ud800"}, "bad_notification"),
    ],
)
def test_a_hostile_body_is_refused_by_the_field(changes: Mapping[str, Any], reason: str) -> None:
    with pytest.raises(InputError) as refused:
        Notification.from_body(Signal.LOGS, {**BODY, **changes})
    assert refused.value.reason == reason


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)


@given(
    st.dictionaries(st.sampled_from(["o", "i", "b", "k", "s", "t", "e", "c", "et", "a"]), json_values) | json_values,
    st.booleans(),
)
def test_no_json_breaks_the_reader(body: object, on_top: bool) -> None:  # noqa: FBT001  # drawn by hypothesis
    if on_top and isinstance(body, dict):
        body = BODY | body
    with contextlib.suppress(InputError):
        assert isinstance(Notification.from_body(Signal.LOGS, body), Notification)


def test_a_notified_object_is_one_row_however_often_it_is_told(lrdb: Lrdb, edge: Source) -> None:
    told = notification(edge)
    again = replace(told, queued="2026-01-05T13:00:00.000Z", size=7)
    first = notify(lrdb, told, told, again)
    assert (first.new, first.duplicates, first.observed) == (1, 2, {(edge, DAY): Observed(1, told.size)})
    second = notify(lrdb, again)
    assert (second.new, second.duplicates, second.observed) == (0, 1, {})
    assert one(lrdb, "SELECT identity FROM raw_objects") == raw_identity(told.bucket, told.key, told.etag)


def test_new_content_under_a_known_key_is_an_object_of_its_own(lrdb: Lrdb, edge: Source) -> None:
    told = notification(edge)
    assert notify(lrdb, told, replace(told, etag="other")).new == 2


def test_objects_of_unknown_sources_are_given_back(lrdb: Lrdb, edge: Source) -> None:
    stranger = notification(edge, instance_num=99)
    mistaken = notification(edge, collector="core")
    nameless = notification(edge, collector="")
    found = notify(lrdb, stranger, mistaken, nameless)
    assert (found.unknown, found.new) == ((stranger, mistaken), 1)
    assert one(lrdb, "SELECT collector FROM raw_objects") == "edge"


def test_nothing_notified_is_nothing_done(lrdb: Lrdb) -> None:
    assert notify(lrdb).new == 0


def test_the_same_objects_notified_at_once_in_different_orders_do_not_lock_each_other_out(
    lrdb: Lrdb, edge: Source
) -> None:
    told = [notification(edge) for _ in range(1500)]
    with ThreadPoolExecutor(4) as pool:
        new = pool.map(lambda turn: notify(lrdb, *told[:: 1 - 2 * (turn % 2)]).new, range(8))
    assert sum(new) == len(told)


def test_a_missing_object_that_is_notified_again_is_looked_for_again(lrdb: Lrdb, edge: Source) -> None:
    told = [notification(edge), notification(edge)]
    notify(lrdb, *told)
    box_pending(lrdb)
    box = must_claim(lrdb, edge)
    missing, bad = (member.raw_object_id for member in box.members)
    gone = replace(quarantined(missing), state=RawState.MISSING, error_class="object_missing")
    publish_box(lrdb, box, [], [gone, quarantined(bad)])
    again = notify(lrdb, *told)
    assert (again.new, again.reopened, again.duplicates) == (0, 1, 1)
    assert pending_ids(lrdb) == [missing]
    assert one(lrdb, "SELECT error_class FROM raw_objects WHERE raw_object_id = %s", missing) is None


def test_objects_set_aside_are_sent_round_again_and_others_are_not(lrdb: Lrdb, edge: Source) -> None:
    notify(lrdb, *(notification(edge) for _ in range(3)))
    box_pending(lrdb)
    box = must_claim(lrdb, edge)
    good, bad, gone = (member.raw_object_id for member in box.members)
    lost = replace(quarantined(gone), state=RawState.MISSING)
    publish_box(lrdb, box, [output(edge, {good: 10})], [ingested(good), quarantined(bad), lost])
    with lrdb.transaction() as conn:
        assert intake.requeue(conn, edge.organization_id, [good, bad, gone]) == 2
    assert states(lrdb, edge.organization_id) == {good: "ingested", bad: "pending", gone: "pending"}


def test_what_waits_is_grouped_by_source_and_window_and_never_over_midnight(lrdb: Lrdb, edge: Source) -> None:
    core = add_source(lrdb, "acme", "core")
    midnight = NOON_MS + 12 * 3_600_000
    notify(
        lrdb,
        notification(edge, event_time_ms=midnight - 1),
        notification(edge, event_time_ms=midnight),
        notification(edge, event_time_ms=midnight + 1),
        notification(core, event_time_ms=midnight),
        notification(edge, Signal.TRACES),
    )
    with lrdb.transaction() as conn:
        groups = [item.group for item in intake.pending(conn, Signal.LOGS, 100, window_seconds=7 * 86_400)]
    assert len(groups) == 4
    assert len(set(groups)) == 3


def test_sizes_are_estimated_by_what_the_source_has_shown(lrdb: Lrdb, edge: Source) -> None:
    def estimate() -> int:
        notify(lrdb, notification(edge, size=100))
        with lrdb.transaction() as conn:
            return intake.pending(conn, Signal.LOGS, 100, 3600)[-1].bytes

    assert estimate() == 800
    box_pending(lrdb)
    box = must_claim(lrdb, edge)
    outcomes = [ingested(box.members[0].raw_object_id, raw_bytes=2000)]
    publish_box(lrdb, box, outcomes=outcomes)
    assert estimate() == 2000
    for _ in range(30):
        box_pending(lrdb)
        box = must_claim(lrdb, edge)
        publish_box(lrdb, box, outcomes=[ingested(member.raw_object_id, raw_bytes=400) for member in box.members])
        last = estimate()
    assert 400 <= last < 420


def test_objects_of_unknown_size_are_ingested_and_teach_nothing(lrdb: Lrdb, edge: Source) -> None:
    notify(lrdb, notification(edge, size=0), notification(edge, size=0))
    box_pending(lrdb)
    publish_box(lrdb, must_claim(lrdb, edge))
    assert one(lrdb, "SELECT count(*) FROM compression_ratios") == 0
    assert set(states(lrdb, edge.organization_id).values()) == {"ingested"}


def test_one_organizations_flood_leaves_room_for_the_others(lrdb: Lrdb, edge: Source) -> None:
    globex = add_source(lrdb, "globex", "edge")
    notify(lrdb, *(notification(edge) for _ in range(50)))
    notify(lrdb, *(notification(globex) for _ in range(3)))
    with lrdb.transaction() as conn:
        first = intake.pending(conn, Signal.LOGS, 6, 3600)
    assert [item.group[0] for item in first].count(globex.organization_id) == 3


def test_two_boxers_at_once_plan_one_after_the_other(lrdb: Lrdb, edge: Source) -> None:
    notify(lrdb, *(notification(edge) for _ in range(40)))
    with ThreadPoolExecutor(4) as pool:
        opened = [box_id for boxes in pool.map(lambda _: box_pending(lrdb), range(4)) for box_id in boxes]
    assert len(opened) == 1
    assert one(lrdb, "SELECT count(*) FROM raw_objects WHERE state = 'boxed'") == 40


# What the store says when a run reads an object.


def claimed(lrdb: Lrdb, source: Source, *told: Notification) -> ClaimedBox:
    notify(lrdb, *told)
    box_pending(lrdb)
    return must_claim(lrdb, source)


def resolve(lrdb: Lrdb, box: ClaimedBox, raw: RawObject, etag: str) -> tuple[Resolution, RawObject]:
    stored = StoredObject(raw.key, size=77, etag=etag, last_modified_ms=NOON_MS + 5)
    with lrdb.transaction() as conn:
        return intake.resolve_etag(conn, box.lease, raw, stored)


def test_an_object_notified_without_etag_takes_that_of_the_store(lrdb: Lrdb, edge: Source) -> None:
    told = notification(edge, etag="")
    box = claimed(lrdb, edge, told)
    how, raw = resolve(lrdb, box, box.members[0], "true")
    assert (how, raw.etag, raw.size, raw.raw_object_id) == (
        Resolution.NAMED,
        "true",
        77,
        box.members[0].raw_object_id,
    )
    assert one(lrdb, "SELECT identity FROM raw_objects") == raw_identity(told.bucket, told.key, "true")
    assert notify(lrdb, replace(told, etag="true")).duplicates == 1


def test_a_second_notification_without_etag_is_absorbed_by_the_row_of_the_first(lrdb: Lrdb, edge: Source) -> None:
    told = notification(edge, etag="")
    first = claimed(lrdb, edge, told)
    _, raw = resolve(lrdb, first, first.members[0], "true")
    publish_box(lrdb, replace(first, members=(raw,)))
    second = claimed(lrdb, edge, told, notification(edge))
    anonymous, other = second.members
    assert resolve(lrdb, second, anonymous, "true")[0] is Resolution.ABSORBED
    assert states(lrdb, edge.organization_id) == {raw.raw_object_id: "ingested", other.raw_object_id: "boxed"}
    publish_box(lrdb, replace(second, members=(other,)))


def test_a_box_of_absorbed_objects_alone_is_done_with_nothing(lrdb: Lrdb, edge: Source) -> None:
    told = notification(edge)
    claimed_first = claimed(lrdb, edge, told)
    publish_box(lrdb, claimed_first)
    box = claimed(lrdb, edge, replace(told, etag=""))
    resolve(lrdb, box, box.members[0], told.etag)
    publish_box(lrdb, box, [], [])
    assert one(lrdb, "SELECT state FROM boxes WHERE box_id = %s", box.lease.box_id) == "done"


def test_absorbed_by_a_row_that_was_missing_the_object_is_looked_for_again(lrdb: Lrdb, edge: Source) -> None:
    told = notification(edge)
    box = claimed(lrdb, edge, told)
    gone = replace(quarantined(box.members[0].raw_object_id), state=RawState.MISSING)
    publish_box(lrdb, box, [], [gone])
    again = claimed(lrdb, edge, replace(told, etag=""))
    assert resolve(lrdb, again, again.members[0], told.etag)[0] is Resolution.ABSORBED
    assert pending_ids(lrdb) == [box.members[0].raw_object_id]


def test_an_overwritten_object_leaves_its_successor_waiting(lrdb: Lrdb, edge: Source) -> None:
    told = notification(edge)
    box = claimed(lrdb, edge, told)
    for _ in range(2):  # as after a crash between this and the publishing transaction
        assert resolve(lrdb, box, box.members[0], "newer")[0] is Resolution.OVERWRITTEN
    (successor,) = pending_ids(lrdb)
    assert one(lrdb, "SELECT (key, etag)::text FROM raw_objects WHERE raw_object_id = %s", successor) == (
        f"({told.key},newer)"
    )


def test_an_object_that_is_as_it_was_notified_costs_no_write(lrdb: Lrdb, edge: Source) -> None:
    box = claimed(lrdb, edge, notification(edge))
    do(lrdb, "UPDATE boxes SET state = 'open', lease_token = NULL, lease_until = NULL")
    assert resolve(lrdb, box, box.members[0], box.members[0].etag)[0] is Resolution.SAME


def test_a_run_that_lost_its_lease_resolves_nothing(lrdb: Lrdb, edge: Source) -> None:
    box = claimed(lrdb, edge, notification(edge, etag=""))
    expire(lrdb, box.lease.box_id)
    must_claim(lrdb, edge, run="other")
    with pytest.raises(LeaseLost, match="another run"):
        resolve(lrdb, box, box.members[0], "true")
    assert one(lrdb, "SELECT etag FROM raw_objects") == ""


def test_ingested_objects_do_not_wait(lrdb: Lrdb, edge: Source) -> None:
    ingest(lrdb, edge)
    assert pending_ids(lrdb) == []
