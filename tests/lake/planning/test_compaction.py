"""What would break the lake if the planner got it wrong: strangers merged, hours never done, work without end."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from itertools import combinations
from types import FrameType
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lakerunner_dagster.lake.planning import compaction
from lakerunner_dagster.lake.planning.compaction import (
    FULL,
    Candidate,
    Merge,
    Outlook,
    SegmentGroup,
    outlook,
    plan,
    settled,
)
from lakerunner_dagster.lake.settings import CompactionPolicy
from lakerunner_dagster.lake.signals import Signal
from tests.lake.planning.hours import BEGIN, END, GROUP, POLICY, tier_of

HOT = END - 1_800_000
COLD = END + 600_000
LATER = COLD + 600_000


def smalls(
    *sizes: int,
    records: int | None = None,
    first: int = 1,
    created: int = BEGIN,
    group: SegmentGroup = GROUP,
    rolledup: bool = False,
) -> list[Candidate]:
    """Segments of these bytes, and as many records where ``records`` says nothing else, numbered from ``first``."""
    return [
        Candidate(first + index, group, rolledup, size, size if records is None else records, created)
        for index, size in enumerate(sizes)
    ]


Case = tuple[list[Candidate], int, list[tuple[tuple[int, ...], str]]]

INTERLEAVED = [
    Candidate(
        number, GROUP, rolledup=False, bytes=200 if number % 2 == 0 else 700, records=200 - number, created_ms=BEGIN
    )
    for number in range(1, 19)
]
"""A tier in which no two neighbours by records make a full one that doubles, and nine small files."""

HOT_CASES: dict[str, Case] = {
    "nothing is there": ([], HOT, []),
    "one is left": (smalls(10), HOT, []),
    "fewer than the fanout of a tier wait": (smalls(10, 10, 10), HOT, []),
    "the fanout of a tier is merged": (smalls(10, 10, 10, 10), HOT, [((1, 2, 3, 4), "tier")]),
    "all of a tier are merged, not only the fanout": (smalls(*[10] * 9), HOT, [(tuple(range(1, 10)), "tier")]),
    "a tier ends below the next power of the fanout": (smalls(16, 16, 16, 63), HOT, [((1, 2, 3, 4), "tier")]),
    "a tier begins at its power of the fanout": (smalls(15, 16, 16, 16), HOT, []),
    "each tier is merged by itself": (
        smalls(10, 10, 10, 10) + smalls(100, 100, 100, 100, first=5),
        HOT,
        [((5, 6, 7, 8), "tier"), ((1, 2, 3, 4), "tier")],
    ),
    "a tier is of records: equal bytes are none": (
        smalls(10, 10, 10, records=10) + smalls(10, records=1000, first=4),
        HOT,
        [],
    ),
    "a tier is of records: unequal bytes are one": (
        smalls(1, 20, 300, 40, records=10),
        HOT,
        [((1, 2, 3, 4), "tier")],
    ),
    "the smallest files of a tier are merged where not all fit": (
        smalls(740, records=15) + smalls(70, 70, 70, 70, records=4, first=2),
        HOT,
        [((2, 3, 4, 5), "tier")],
    ),
    "a tier of which not the fanout fits waits": (smalls(600, 600, 600, 600), HOT, []),
    "a tier is cut at the target, and merged as far as there are as many as the fanout": (
        INTERLEAVED[:16],
        HOT,
        [((2, 4, 6, 8, 10), "tier")],
    ),
    "a tier may be merged to several": (
        INTERLEAVED,
        HOT,
        [((2, 4, 6, 8, 10), "tier"), ((12, 14, 16, 18), "tier")],
    ),
    "full ones are never merged": (smalls(750, 800, 1000, 5000), HOT, []),
    "one byte short of full is not": (smalls(375, 374), HOT, []),
    "exactly full is merged": (smalls(375, 375), HOT, [((1, 2), "full")]),
    "exactly the target is merged": (smalls(500, 500), HOT, [((1, 2), "full")]),
    "nothing passes the target": (smalls(500, 501), HOT, []),
    "a run takes what fits, not only what makes it full": (
        smalls(300, 300, 300, 90),
        HOT,
        [((1, 2, 3, 4), "full")],
    ),
    "of equal records the larger file is packed first": (
        smalls(300, 500, 500, records=10),
        HOT,
        [((2, 3), "full")],
    ),
    "what is left of a run waits": (smalls(300, 300, 300, 300), HOT, [((1, 2, 3), "full")]),
    "there may be several runs": (smalls(500, 500, 400, 400), HOT, [((1, 2), "full"), ((3, 4), "full")]),
    "a large one is not rewritten for crumbs": (smalls(700, 50, 50), HOT, []),
    "a large one that would not double is left": (smalls(400, 399), HOT, []),
    "doubling is of records": (
        smalls(100, records=500) + smalls(700, records=499, first=2),
        HOT,
        [],
    ),
    "one that cannot be packed holds up no others": (smalls(700, 300, 300, 300), HOT, [((2, 3, 4), "full")]),
    "what a run takes is of no tier any more": (
        smalls(250, 250, 250, 250, records=10) + smalls(10, 10, 10, records=10, first=5),
        HOT,
        [((1, 2, 3, 4), "full")],
    ),
    "a run and a tier are merged at once": (
        smalls(500, 500) + smalls(9, 9, 9, 9, first=3, records=9),
        HOT,
        [((1, 2), "full"), ((3, 4, 5, 6), "tier")],
    ),
}

COLD_CASES: dict[str, Case] = {
    "an hour without any merge is done": (smalls(10), COLD, []),
    "an hour of full ones is done": (smalls(750, 1000), COLD, []),
    "two alike are merged": (smalls(10, 10), COLD, [((1, 2), "cold")]),
    "a millisecond earlier the hour is hot": (smalls(10, 10), COLD - 1, []),
    "a straggler of a fanout's part is left": (smalls(400, 100), COLD, []),
    "a straggler of more than that is merged": (smalls(400, 101), COLD, [((1, 2), "cold")]),
    "a straggler is measured by records": (
        smalls(400, records=100) + smalls(1, records=100, first=2),
        COLD,
        [((1, 2), "cold")],
    ),
    "three alike are merged": (smalls(10, 10, 10), COLD, [((1, 2, 3), "cold")]),
    "two small stragglers are merged alone": (smalls(400, 50, 50), COLD, [((2, 3), "cold")]),
    "stragglers that are large together take the base in": (smalls(400, 50, 51), COLD, [((1, 2, 3), "cold")]),
    "stragglers may be what was there before the base": (smalls(20, 30, 400), COLD, [((1, 2), "cold")]),
    "what comes to more than the target is merged at once": (smalls(700, 700, 700), COLD, [((1, 2, 3), "cold")]),
    "two that come to more than the target are merged": (smalls(700, 700), COLD, [((1, 2), "cold")]),
    "a full one is no base": (smalls(1000, 10, 10), COLD, [((2, 3), "cold")]),
    "a merge reads no more than the fanout of targets": (
        smalls(*[500] * 12),
        COLD,
        [((1, 2, 3, 4, 5, 6, 7, 8), "cold"), ((9, 10, 11, 12), "cold")],
    ),
    "what is alone beyond that waits for what the others leave": (
        smalls(*[500] * 9),
        COLD,
        [((1, 2, 3, 4, 5, 6, 7, 8), "cold")],
    ),
    "a fresh straggler is waited for": (smalls(400) + smalls(399, first=2, created=COLD), LATER - 1, []),
    "a straggler that settled is merged": (
        smalls(400) + smalls(399, first=2, created=COLD),
        LATER,
        [((1, 2), "cold")],
    ),
    "the newest straggler is waited for": (
        smalls(400, 50) + smalls(50, first=3, created=COLD + 1),
        LATER,
        [],
    ),
    "a straggler from the future is waited for": (smalls(400) + smalls(399, first=2, created=LATER), LATER, []),
    "fresh stragglers are merged when there is a fanout of them": (
        smalls(400) + smalls(10, 10, 10, 10, first=2, created=COLD),
        COLD,
        [((2, 3, 4, 5), "tier")],
    ),
    "fresh stragglers are merged when they make a full one": (
        smalls(700) + smalls(500, 500, first=2, created=COLD),
        COLD,
        [((2, 3), "full")],
    ),
    "a fresh full one keeps nothing waiting": (
        smalls(10, 10) + smalls(1000, first=3, created=COLD),
        COLD,
        [((1, 2), "cold")],
    ),
}  # fmt: skip

OTHERS = [
    GROUP._replace(organization_id=UUID(int=2)),
    GROUP._replace(instance_num=8),
    GROUP._replace(signal=Signal.TRACES),
    GROUP._replace(frequency_ms=10_000),
    GROUP._replace(dateint=20_250_614),
    GROUP._replace(hour=9),
]


def told(merges: Iterable[Merge]) -> list[tuple[tuple[int, ...], str]]:
    return [(merge.segment_ids, merge.reason) for merge in merges]


@pytest.mark.parametrize(("segments", "now", "expected"), HOT_CASES.values(), ids=HOT_CASES.keys())
def test_plan_of_a_hot_hour(segments: list[Candidate], now: int, expected: list[tuple[tuple[int, ...], str]]) -> None:
    assert told(plan(segments, POLICY, now)) == expected


@pytest.mark.parametrize(("segments", "now", "expected"), COLD_CASES.values(), ids=COLD_CASES.keys())
def test_plan_of_a_cold_hour(segments: list[Candidate], now: int, expected: list[tuple[tuple[int, ...], str]]) -> None:
    assert told(plan(segments, POLICY, now)) == expected


def test_a_merge_says_its_group_bytes_and_records() -> None:
    segments = smalls(30, records=7) + smalls(12, records=5, first=2)
    assert plan(segments, POLICY, COLD) == [Merge(GROUP, (1, 2), 42, 12, "cold")]


@pytest.mark.parametrize("other", OTHERS)
def test_strangers_are_never_merged(other: SegmentGroup) -> None:
    own, foreign = smalls(10, 10), smalls(10, 10, first=3, group=other)
    assert plan([own[0], foreign[0]], POLICY, LATER) == []
    assert {(merge.group, merge.segment_ids) for merge in plan(own + foreign, POLICY, LATER)} == {
        (GROUP, (1, 2)),
        (other, (3, 4)),
    }


def test_what_is_rolled_up_is_merged_with_its_like_only() -> None:
    segments = smalls(10, 10) + smalls(10, 10, first=3, rolledup=True)
    assert plan(segments[1:3], POLICY, COLD) == []
    assert told(plan(segments, POLICY, COLD)) == [((1, 2), "cold"), ((3, 4), "cold")]


def test_a_fresh_segment_keeps_only_its_like_waiting() -> None:
    segments = smalls(10, 10) + smalls(10, 10, first=3, rolledup=True, created=COLD)
    assert told(plan(segments, POLICY, COLD)) == [((1, 2), "cold")]


@pytest.mark.parametrize(
    ("segments", "now", "done"),
    [
        ([], HOT, True),
        (smalls(10), COLD, True),
        (smalls(10), COLD - 1, False),
        (smalls(1000), COLD, True),
        (smalls(1000), COLD - 1, False),
        (smalls(400, 100), COLD, True),
        (smalls(400, 101), COLD, False),
        (smalls(400, 10, 10), COLD, False),
        (smalls(400) + smalls(399, first=2, created=COLD), COLD, False),
        (smalls(400) + smalls(1, first=2, created=COLD), COLD, True),
        (smalls(10) + smalls(10, first=2, rolledup=True), COLD, True),
        (smalls(10) + smalls(10, 10, first=2, rolledup=True), COLD, False),
    ],
)
def test_an_hour_is_settled_when_nothing_will_ever_be_planned(
    segments: list[Candidate], now: int, *, done: bool
) -> None:  # fmt: skip
    assert settled(segments, POLICY, now) is done


@pytest.mark.parametrize(
    ("segments", "expected"),
    [
        ([], Outlook(0, 0, 0, 0)),
        (smalls(750, 4000), Outlook(0, 0, 0, 0)),
        (smalls(400, 100, 1000), Outlook(2, 500, 0, 0)),
        (smalls(400, 101, 1000), Outlook(2, 501, 1, 501)),
        (smalls(400, 50, 50), Outlook(3, 500, 1, 100)),
        (smalls(700, 700), Outlook(2, 1400, 1, 1400)),
        # Eight are merged to four full ones, and the ninth is left alone.
        (smalls(*[500] * 9), Outlook(9, 4500, 1, 4000)),
        # Five leave 400 of 3400, another four 600 of 2600: those two are merged to a full one.
        (smalls(*[680] * 5, *[650] * 4), Outlook(9, 6000, 3, 7000)),
        (smalls(10, 10) + smalls(10, 10, first=3, rolledup=True), Outlook(4, 40, 2, 40)),
        (smalls(10, 10) + smalls(10, 10, first=3, group=OTHERS[1]), Outlook(4, 40, 2, 40)),
    ],
)
def test_the_outlook_tells_the_debt_and_the_work(segments: list[Candidate], expected: Outlook) -> None:
    assert outlook(segments, POLICY) == expected


POLICIES = st.builds(
    CompactionPolicy,
    target_bytes=st.just(1000),
    fanout=st.sampled_from([2, 3, 4, 8]),
    cold_seconds=st.sampled_from([0.0, 600.0]),
    settle_seconds=st.sampled_from([0.0, 600.0]),
)
SIZES = st.one_of(st.integers(1, 40), st.integers(100, 749), st.integers(240, 260), st.integers(750, 2500))
RECORDS = st.one_of(st.integers(1, 20), st.integers(1, 6).map(lambda n: 10**n), st.integers(1, 1_000_000))
TIMES = st.sampled_from([HOT, END, COLD, LATER])
SEGMENTS = st.lists(
    st.tuples(
        st.sampled_from([GROUP, GROUP, GROUP, *OTHERS]), st.booleans(), SIZES, RECORDS, st.sampled_from([BEGIN, COLD])
    ),
    max_size=30,
).map(lambda them: [Candidate(number, *one) for number, one in enumerate(them)])
ALIKE = st.lists(st.tuples(SIZES, RECORDS | st.just(100), TIMES), max_size=9).map(
    lambda them: [Candidate(number, GROUP, False, *one) for number, one in enumerate(them)]
)
TWINS = st.lists(st.sampled_from([(250, 10), (250, 12), (120, 10), (400, 10), (7, 10)]), max_size=20).map(
    lambda them: [Candidate(number, GROUP, False, *one, BEGIN) for number, one in enumerate(them)]
)


def heaps(segments: Iterable[Candidate], policy: CompactionPolicy) -> list[list[Candidate]]:
    """The small segments that may be merged with one another, by records."""
    found: dict[Any, list[Candidate]] = {}
    for one in sorted(segments, key=lambda one: (one.records, one.bytes, -one.segment_id), reverse=True):
        if one.bytes < policy.target_bytes * 3 / 4:
            found.setdefault((*one.group, one.rolledup), []).append(one)
    return list(found.values())


def waits_for_more(heap: Sequence[Candidate], policy: CompactionPolicy, now: int) -> bool:
    hour_end = {10: END, 9: END - 3_600_000}[heap[0].group.hour] - 86_400_000 * (heap[0].group.dateint == 20_250_614)
    return now - hour_end < policy.cold_seconds * 1000 or any(
        now - one.created_ms < policy.settle_seconds * 1000 for one in heap
    )


def is_full_run(run: Sequence[Candidate], policy: CompactionPolicy) -> bool:
    size, most = sum(one.bytes for one in run), max(one.records for one in run)
    return FULL * policy.target_bytes <= size <= policy.target_bytes and sum(one.records for one in run) >= 2 * most


def is_crowd(members: Sequence[Candidate], policy: CompactionPolicy) -> bool:
    tiers = {tier_of(one.records, policy.fanout) for one in members}
    fits = sum(one.bytes for one in members) <= policy.target_bytes
    return len(members) >= policy.fanout and len(tiers) == 1 and fits


def must_plan(heap: Sequence[Candidate], policy: CompactionPolicy, now: int) -> bool:
    """Another way to whether something is to be merged: every run and every subset of a fanout is tried."""
    if not waits_for_more(heap, policy, now):
        return len(heap) > 2 or (len(heap) == 2 and heap[1].records * policy.fanout > heap[0].records)
    runs = [heap[begin:end] for begin, end in combinations(range(len(heap) + 1), 2)]
    # A run that could take its next neighbour in is not looked at: the longer one is.
    longest = [
        run
        for run in runs
        if (following := heap.index(run[-1]) + 1) == len(heap)
        or sum(one.bytes for one in run) + heap[following].bytes > policy.target_bytes
    ]
    return any(is_full_run(run, policy) for run in longest) or any(
        is_crowd(members, policy) for members in combinations(heap, policy.fanout)
    )


@settings(max_examples=500, deadline=None)
@given(segments=ALIKE, policy=POLICIES, now=TIMES)
def test_something_is_planned_exactly_when_there_is_something_to_do(
    segments: list[Candidate], policy: CompactionPolicy, now: int
) -> None:
    expected = any(must_plan(heap, policy, now) for heap in heaps(segments, policy))
    assert bool(plan(segments, policy, now)) == expected


@settings(max_examples=500, deadline=None)
@given(segments=SEGMENTS, policy=POLICIES, now=TIMES)
def test_no_merge_breaks_a_rule(segments: list[Candidate], policy: CompactionPolicy, now: int) -> None:
    merges = plan(segments, policy, now)
    taken = Counter(segment_id for merge in merges for segment_id in merge.segment_ids)
    heap_of = {one.segment_id: heap for heap in heaps(segments, policy) for one in heap}

    assert max(taken.values(), default=1) == 1, "a segment is in two merges"
    assert taken.keys() <= heap_of.keys(), "a full segment is merged"
    for merge in merges:
        heap = heap_of[merge.segment_ids[0]]
        members = [one for one in heap if one.segment_id in merge.segment_ids]
        assert len(members) == len(merge.segment_ids) >= 2, "strangers are merged"
        assert list(merge.segment_ids) == sorted(merge.segment_ids)
        assert merge.group == members[0].group
        assert (merge.bytes, merge.records) == (sum(m.bytes for m in members), sum(m.records for m in members))
        assert (merge.reason != "cold") == waits_for_more(heap, policy, now)
        if merge.reason == "full":
            assert is_full_run(members, policy)
        elif merge.reason == "tier":
            assert is_crowd(members, policy)
        else:
            assert merge.bytes <= policy.fanout * policy.target_bytes
    for heap in heap_of.values():
        left = [one for one in heap if one.segment_id not in taken]
        if waits_for_more(heap, policy, now):
            assert not any(is_crowd(smallest, policy) for smallest in smallest_of_tiers(left, policy))
        elif any(one.segment_id in taken for one in heap):
            worth = sum(one.records for one in heap[1:]) * policy.fanout > heap[0].records
            assert (heap[0].segment_id in taken) == worth, "the base is rewritten for little, or left for much"
            assert len([one for one in left if worth or one is not heap[0]]) <= 1, "a segment is left out"


def smallest_of_tiers(heap: Sequence[Candidate], policy: CompactionPolicy) -> list[list[Candidate]]:
    """The fanout of the smallest files of each tier."""
    tiers: dict[int, list[Candidate]] = {}
    for one in sorted(heap, key=lambda one: one.bytes):
        tiers.setdefault(tier_of(one.records, policy.fanout), []).append(one)
    return [members[: policy.fanout] for members in tiers.values()]


@settings(max_examples=200, deadline=None)
@given(segments=SEGMENTS | TWINS, policy=POLICIES, now=TIMES, data=st.data())
def test_the_order_of_the_segments_does_not_matter(
    segments: list[Candidate], policy: CompactionPolicy, now: int, data: st.DataObject
) -> None:
    shuffled = data.draw(st.permutations(segments))
    assert plan(iter(shuffled), policy, now) == plan(segments, policy, now)
    assert settled(iter(shuffled), policy, now) == settled(segments, policy, now)
    assert outlook(iter(shuffled), policy) == outlook(segments, policy)


@settings(max_examples=200, deadline=None)
@given(segments=SEGMENTS, policy=POLICIES, now=TIMES)
def test_groups_are_planned_as_if_they_were_alone(
    segments: list[Candidate], policy: CompactionPolicy, now: int
) -> None:  # fmt: skip
    groups = sorted({one.group for one in segments})
    alone = [plan([one for one in segments if one.group == group], policy, now) for group in groups]
    assert plan(segments, policy, now) == [merge for merges in alone for merge in merges]


def steps(work: Callable[[], object]) -> int:
    """Lines of the planner's module that run in ``work``."""
    count = 0

    def trace(frame: FrameType, event: str, _: object) -> Any:
        nonlocal count
        count += event == "line"
        return trace if frame.f_code.co_filename == compaction.__file__ else None

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        work()
    finally:
        sys.settrace(before)
    return count


def many(groups: int, size: int) -> list[Candidate]:
    """Groups of segments of many sizes."""
    return [
        Candidate(index * size + number, GROUP._replace(instance_num=index), False, number * 37 % 990 + 1, number, 0)
        for index in range(groups)
        for number in range(size)
    ]


PILES = {
    "alike": lambda n: smalls(*[1] * n),
    "nothing fits": lambda n: smalls(*[501 + number % 200 for number in range(n)]),
    # Each run is full, and its first is as large as all others: so nothing is packed, and the next is tried.
    "nothing doubles": lambda n: [replace(one, records=1 << max(0, 50 - one.segment_id)) for one in smalls(*[1] * n)],
    "of many sizes": lambda n: many(1, n),
}


@pytest.mark.parametrize("now", [HOT, LATER])
def test_twice_the_groups_are_twice_the_work(now: int) -> None:
    once, twice = many(1000, 12), many(2000, 12)
    assert steps(lambda: plan(twice, POLICY, now)) <= 2.1 * steps(lambda: plan(once, POLICY, now))
    assert steps(lambda: outlook(twice, POLICY)) <= 2.1 * steps(lambda: outlook(once, POLICY))


@pytest.mark.parametrize("now", [HOT, LATER])
@pytest.mark.parametrize("pile", PILES.values(), ids=PILES.keys())
def test_twice_the_segments_of_an_hour_are_twice_the_work(pile: Callable[[int], list[Candidate]], now: int) -> None:
    once, twice = pile(500), pile(1000)
    assert steps(lambda: plan(twice, POLICY, now)) <= 2.2 * steps(lambda: plan(once, POLICY, now))
