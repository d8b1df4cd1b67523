"""What would break the lake if the boxer got it wrong: items lost or doubled, bounds passed, young boxes closed."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from lakerunner_dagster.lake.planning.boxer import Pending, PlannedBox, next_ms, plan
from lakerunner_dagster.lake.settings import BoxPolicy

NOW = 1_750_000_000_000
POLICY = BoxPolicy(bytes=100, count=4, age_seconds=20)


def waiting(*sizes: int, group: str = "a", age: float = 0, first: int = 1) -> list[Pending]:
    """Items of these sizes, numbered on from ``first``, that have waited for ``age`` seconds."""
    since = NOW - round(age * 1000)
    return [Pending(first + index, (group,), size, since) for index, size in enumerate(sizes)]


def boxed(boxes: list[PlannedBox]) -> list[tuple[tuple[int, ...], str]]:
    return [(box.item_ids, box.reason) for box in boxes]


CASES = {
    "nothing waits": ([], []),
    "a young item goes on waiting": (waiting(10), []),
    "an old item is closed": (waiting(10, age=20), [((1,), "age")]),
    "an item is not old a millisecond early": (waiting(10, age=19.999), []),
    "a clock that is behind makes nothing old": (waiting(10, age=-3600), []),
    "exactly full by bytes": (waiting(60, 40), [((1, 2), "bytes")]),
    "one byte short of full": (waiting(60, 39), []),
    "the next item does not fit": (waiting(60, 41), [((1,), "bytes")]),
    "the next item does not fit, and is full itself": (waiting(60, 100), [((1,), "bytes"), ((2,), "bytes")]),
    "full by count": (waiting(1, 1, 1, 1), [((1, 2, 3, 4), "count")]),
    "one item short of the count": (waiting(1, 1, 1), []),
    "full by bytes and by count is full by bytes": (waiting(25, 25, 25, 25), [((1, 2, 3, 4), "bytes")]),
    "an oversized item is alone": (waiting(1000), [((1,), "bytes")]),
    "an oversized item between small ones": (waiting(1, 1000, 1), [((1,), "bytes"), ((2,), "bytes")]),
    "an oversized item takes no old one with it": (
        waiting(1, age=60) + waiting(1000, 1, first=2),
        [((1,), "bytes"), ((2,), "bytes")],
    ),
    "items without bytes are bounded by count": (waiting(0, 0, 0, 0, 0), [((1, 2, 3, 4), "count")]),
    "an item without bytes joins no full box": (waiting(100, 0), [((1,), "bytes")]),
    "the remainder of a full box waits on": (waiting(50, 50, 50), [((1, 2), "bytes")]),
    "the remainder of a full box is old": (waiting(50, 50, 50, age=30), [((1, 2), "bytes"), ((3,), "age")]),
    "one old item closes the young with it": (waiting(1, age=20) + waiting(1, first=2), [((1, 2), "age")]),
    "the old item may be the later one": (waiting(1) + waiting(1, age=20, first=2), [((1, 2), "age")]),
    "an old item in a full box does not age the rest": (
        waiting(50, 50, age=30) + waiting(50, first=3),
        [((1, 2), "bytes")],
    ),
    "groups do not fill each other": (waiting(60, group="a") + waiting(60, group="b", first=2), []),
    "groups do not age each other": (
        waiting(1, group="a", age=30) + waiting(1, group="b", first=2),
        [((1,), "age")],
    ),
    "interleaved groups each keep their order": (
        waiting(50, group="a") + waiting(50, group="b", first=2) + waiting(50, group="a", first=3)
        + waiting(50, group="b", first=4),
        [((1, 3), "bytes"), ((2, 4), "bytes")],
    ),
    "ids out of order keep the order given": (
        waiting(50, first=9) + waiting(50, first=3),
        [((9, 3), "bytes")],
    ),
}  # fmt: skip


@pytest.mark.parametrize(("pending", "expected"), CASES.values(), ids=CASES.keys())
def test_plan(pending: list[Pending], expected: list[tuple[tuple[int, ...], str]]) -> None:
    assert boxed(plan(pending, POLICY, NOW)) == expected


def test_a_count_of_one_boxes_each_item_at_once() -> None:
    assert boxed(plan(waiting(1, 1), BoxPolicy(count=1), NOW)) == [((1,), "count"), ((2,), "count")]


def test_an_age_of_zero_leaves_nothing_waiting() -> None:
    assert boxed(plan(waiting(1, 1), BoxPolicy(age_seconds=0), NOW)) == [((1, 2), "age")]


def test_a_box_says_its_group_and_bytes() -> None:
    group = ("organization", 7, 490_417)
    [box] = plan([Pending(1, group, 30, 0), Pending(2, group, 12, 0)], POLICY, NOW)
    assert box == PlannedBox(group, (1, 2), 42, "age")


POLICIES = st.builds(
    BoxPolicy,
    bytes=st.integers(1, 50),
    count=st.integers(1, 6),
    age_seconds=st.sampled_from([0.0, 0.5, 5.0]),
)
ITEMS = st.lists(
    st.tuples(st.sampled_from("abc"), st.integers(0, 70), st.integers(NOW - 10_000, NOW + 1_000)), max_size=25
).map(
    lambda items: [Pending(number, (group,), size, since) for number, (group, size, since) in enumerate(items)]
)  # fmt: skip


@settings(max_examples=300, deadline=None)
@given(pending=ITEMS, policy=POLICIES)
@example(pending=waiting(60, 41), policy=POLICY)
def test_no_box_breaks_a_rule(pending: list[Pending], policy: BoxPolicy) -> None:
    boxes = plan(pending, policy, NOW)
    items = {item.item_id: item for item in pending}
    taken = [item_id for box in boxes for item_id in box.item_ids]

    assert not [item_id for item_id, times in Counter(taken).items() if times > 1], "an item is in two boxes"
    for box in boxes:
        members = [items[item_id] for item_id in box.item_ids]
        assert members
        assert {member.group for member in members} == {box.group}
        assert box.bytes == sum(member.bytes for member in members)
        assert box.bytes <= policy.bytes or len(members) == 1
        assert len(members) <= policy.count
    for group in {item.group for item in pending}:
        order = [item.item_id for item in pending if item.group == group]
        closed = [item_id for box in boxes if box.group == group for item_id in box.item_ids]
        assert closed == order[: len(closed)], "what is closed is not what waited first"
    assert plan(iter(pending), policy, NOW) == boxes, "the same input gives another plan"


@settings(max_examples=300, deadline=None)
@given(pending=ITEMS, policy=POLICIES)
def test_boxes_close_when_full_or_old_and_not_before(pending: list[Pending], policy: BoxPolicy) -> None:
    boxes = plan(pending, policy, NOW)
    items = {item.item_id: item for item in pending}
    old = NOW - policy.age_seconds * 1000
    for box in boxes:
        members = [items[item_id] for item_id in box.item_ids]
        after = [item for item in pending if item.group == box.group and item.item_id > members[-1].item_id]
        if box.reason == "age":
            assert min(member.waiting_since_ms for member in members) <= old
            assert not after, "a box that is not full was closed while more could go in"
        elif box.reason == "count":
            assert len(members) == policy.count
        else:
            assert box.bytes >= policy.bytes or box.bytes + after[0].bytes > policy.bytes

    taken = {item_id for box in boxes for item_id in box.item_ids}
    left = [item for item in pending if item.item_id not in taken]
    assert all(item.waiting_since_ms > old for item in left), "an old item goes on waiting"
    for group in {item.group for item in left}:
        rest = [item for item in left if item.group == group]
        assert sum(item.bytes for item in rest) < policy.bytes
        assert len(rest) < policy.count


def brute_force(pending: list[Pending], policy: BoxPolicy, now_ms: int) -> set[tuple[int, ...]]:
    """Another way to the same boxes: cut the longest beginning that fits off each group, again and again."""
    found = set()
    for group in {item.group for item in pending}:
        rest = [item for item in pending if item.group == group]
        while rest:
            fits = max(
                size
                for size in range(1, len(rest) + 1)
                if size == 1 or (size <= policy.count and sum(item.bytes for item in rest[:size]) <= policy.bytes)
            )
            # A full box takes no more, not even what has no bytes.
            full = next((n for n in range(1, fits + 1) if sum(i.bytes for i in rest[:n]) >= policy.bytes), fits)
            beginning, rest = rest[:full], rest[full:]
            is_full = sum(i.bytes for i in beginning) >= policy.bytes or len(beginning) == policy.count or bool(rest)
            if is_full or any(now_ms - item.waiting_since_ms >= policy.age_seconds * 1000 for item in beginning):
                found.add(tuple(item.item_id for item in beginning))
    return found


@settings(max_examples=300, deadline=None)
@given(pending=ITEMS, policy=POLICIES)
def test_plan_equals_brute_force(pending: list[Pending], policy: BoxPolicy) -> None:
    assert {box.item_ids for box in plan(pending, policy, NOW)} == brute_force(pending, policy, NOW)


@settings(max_examples=100, deadline=None)
@given(pending=ITEMS, policy=POLICIES, ticks=st.integers(1, 5))
def test_what_waits_on_is_boxed_once_in_later_ticks(pending: list[Pending], policy: BoxPolicy, ticks: int) -> None:
    """A boxer that is asked again and again boxes every item, each once, whatever the ticks' times."""
    waiting_now, boxed_ids = list(pending), []
    for tick in range(ticks + 1):
        now = NOW + tick * 60_000 * (tick == ticks)
        closed = [item_id for box in plan(waiting_now, policy, now) for item_id in box.item_ids]
        boxed_ids += closed
        waiting_now = [item for item in waiting_now if item.item_id not in set(closed)]
    assert not waiting_now
    assert sorted(boxed_ids) == [item.item_id for item in pending]


@given(
    st.lists(st.tuples(st.sampled_from("ab"), st.integers(0, 120), st.integers(0, 30_000)), max_size=12),
)
def test_nothing_is_due_before_the_time_that_is_told_and_something_is_then(
    items: list[tuple[str, int, int]],
) -> None:
    pending = [
        Pending(number, (group,), size, NOW - waited) for number, (group, size, waited) in enumerate(items, start=1)
    ]
    boxed_now = {item_id for box in plan(pending, POLICY, NOW) for item_id in box.item_ids}
    left = [item for item in pending if item.item_id not in boxed_now]
    due_ms = next_ms(left, POLICY)
    if due_ms is None:
        assert left == []
    else:
        assert due_ms > NOW
        assert plan(left, POLICY, due_ms - 1) == []
        assert {box.reason for box in plan(left, POLICY, due_ms)} == {"age"}
