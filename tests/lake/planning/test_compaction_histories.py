"""Hours from their first segment to their last merge: that planning ends, where it ends, and what it costs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import cycle

import pytest
from hypothesis import given, settings, target
from hypothesis import strategies as st

from lakerunner_dagster.lake.planning.compaction import outlook, plan, settled
from lakerunner_dagster.lake.settings import CompactionPolicy
from tests.lake.planning.hours import Hour

Step = Callable[[Hour, Iterator[tuple[float, float]]], object]

POLICIES = st.builds(
    CompactionPolicy,
    target_bytes=st.just(1000),
    fanout=st.sampled_from([2, 3, 4, 8]),
    cold_seconds=st.just(600.0),
    settle_seconds=st.sampled_from([0.0, 600.0]),
)
FATES = st.lists(
    st.tuples(st.floats(0.3, 1.0) | st.sampled_from([0.3, 0.5, 1.0]), st.sampled_from([0.0, 1.0, 1.0, 3.0])),
    min_size=1,
    max_size=12,
).map(cycle)
SIZES = st.integers(1, 40) | st.integers(100, 749) | st.sampled_from([250, 400, 500]) | st.integers(750, 2500)
RECORDS = st.integers(1, 20) | st.integers(0, 6).map(lambda n: 10**n) | st.integers(1, 1_000_000)


def coming(count: int, records: int, size: int) -> Step:
    def step(hour: Hour, _: object) -> None:
        for _ in range(count):
            hour.come(records, size)

    return step


def waiting(seconds: float) -> Step:
    return lambda hour, _: hour.wait(seconds)


def looking(hour: Hour, fates: Iterator[tuple[float, float]]) -> None:
    hour.look(fates)


def settling(hour: Hour, fates: Iterator[tuple[float, float]]) -> None:
    hour.settle()
    hour.look(fates)


HISTORIES = st.lists(
    st.one_of(
        st.builds(coming, st.sampled_from([1, 1, 2, 8, 20]), RECORDS, SIZES),
        st.builds(waiting, st.sampled_from([1.0, 300.0, 1800.0, 3600.0, 4200.0])),
        st.just(looking),
        st.just(settling),
    ),
    max_size=60,
)


def lived(policy: CompactionPolicy, history: list[Step], fates: Iterator[tuple[float, float]]) -> Hour:
    """An hour after all that."""
    hour = Hour(policy)
    for step in history:
        step(hour, fates)
    return hour


@settings(max_examples=500, deadline=None)
@given(policy=POLICIES, history=HISTORIES, fates=FATES)
def test_planning_comes_to_rest_with_two_small_segments(
    policy: CompactionPolicy, history: list[Step], fates: Iterator[tuple[float, float]]
) -> None:
    hour = lived(policy, history, fates)
    small = len(hour.small)
    assert hour.finish(fates) <= small, "a look that merged left as many small segments"
    assert len(hour.small) <= 2
    assert sum(one.records for one in hour.segments.values()) == hour.costs.R
    assert settled(hour.segments.values(), policy, hour.now_ms)


@settings(max_examples=300, deadline=None)
@given(policy=POLICIES, history=HISTORIES, fates=FATES)
def test_a_hot_hour_comes_to_rest(
    policy: CompactionPolicy, history: list[Step], fates: Iterator[tuple[float, float]]
) -> None:
    hour = Hour(policy)
    for step in history:
        if step not in (settling, looking):
            step(hour, fates)
            hour.now_ms = min(hour.now_ms, round(hour.cold_ms) - 1)
    small = len(hour.small)
    looks = 0
    while hour.look(fates):
        looks += 1
    assert looks <= small
    assert not settled(hour.segments.values(), policy, hour.now_ms) or not hour.segments


@settings(max_examples=300, deadline=None)
@given(policy=POLICIES, history=HISTORIES, fates=FATES)
def test_settled_means_that_nothing_is_planned_at_any_later_time(
    policy: CompactionPolicy, history: list[Step], fates: Iterator[tuple[float, float]]
) -> None:
    hour = lived(policy, history, fates)
    for later_ms in (0, 600_000, 1_200_000, 10**12):
        now_ms = hour.now_ms + later_ms
        if settled(hour.segments.values(), policy, hour.now_ms):
            assert plan(hour.segments.values(), policy, now_ms) == []
    hour.settle()
    done = settled(hour.segments.values(), policy, hour.now_ms)
    assert done == (plan(hour.segments.values(), policy, hour.now_ms) == [])


@settings(max_examples=500, deadline=None)
@given(policy=POLICIES, history=HISTORIES, fates=FATES)
def test_no_history_costs_more_than_the_bound(
    policy: CompactionPolicy, history: list[Step], fates: Iterator[tuple[float, float]]
) -> None:
    hour = lived(policy, history, fates)
    hour.finish(fates)
    costs = hour.costs
    target(costs.hot / max(1, costs.hot_bound), label="hot")
    target(costs.cold / max(1, costs.cold_bound), label="cold")
    assert costs.hot <= costs.hot_bound
    assert costs.cold <= costs.cold_bound
    assert costs.missed_bound >= costs.M


@settings(max_examples=300, deadline=None)
@given(policy=POLICIES, history=HISTORIES, fates=FATES)
def test_the_outlook_is_what_then_happens(
    policy: CompactionPolicy, history: list[Step], fates: Iterator[tuple[float, float]]
) -> None:
    hour = lived(policy, history, fates)
    foreseen = outlook(hour.segments.values(), policy)
    assert (foreseen.segments, foreseen.bytes) == (len(hour.small), sum(one.bytes for one in hour.small))

    merges = []
    hour.settle()
    while planned := hour.look():
        merges += planned
        hour.settle()
    assert (foreseen.merges, foreseen.bytes_to_read) == (len(merges), sum(merge.bytes for merge in merges))
    after = outlook(hour.segments.values(), policy)
    assert (after.merges, after.bytes_to_read) == (0, 0)


def crumbs_beside_a_pile(hour: Hour) -> None:
    """A base, a pile of stragglers just too small to be worth it, and again and again one record that comes alone."""
    hour.come(80_000, 600)
    hour.come(9_000, 60)
    hour.come(900, 6)
    hour.finish()
    for _ in range(100):
        hour.come(1, 1)
        hour.finish()


def stragglers_worth_the_base(hour: Hour) -> None:
    """Again and again a straggler just large enough that the base is rewritten for it."""
    hour.come(10_000, 1)
    base = 10_000
    for _ in range(40):
        hour.settle()
        hour.come(base // 8 + 1, 1)
        hour.finish()
        base += base // 8 + 1
    assert len(hour.segments) == 1


def merges_that_halve(hour: Hour) -> None:
    """Pairs that would be full, and shrink to half a target again: each merge doubles and none finishes."""
    for _ in range(512):
        hour.come(1, 400)
        while hour.look(cycle([(0.5, 1.0)])):
            pass


def merges_that_leave_much(hour: Hour) -> None:
    """More than can be merged at once, and all of it shrinks too far to fill anything."""
    for _ in range(500):
        hour.come(1, 740)
    hour.finish(cycle([(0.3, 1.0)]))


@pytest.mark.parametrize(
    ("history", "fanout", "term"),
    [
        (crumbs_beside_a_pile, 8, "k"),
        (stragglers_worth_the_base, 8, "L"),
        (merges_that_halve, 8, "M"),
        (merges_that_leave_much, 2, "Q"),
    ],
)
def test_no_term_of_the_bound_can_be_left_out(history: Callable[[Hour], None], fanout: int, term: str) -> None:
    hour = Hour(CompactionPolicy(target_bytes=1000, fanout=fanout))
    history(hour)
    costs = hour.costs
    assert costs.hot <= costs.hot_bound
    assert costs.cold <= costs.cold_bound
    setattr(costs, term, 0)
    assert costs.hot > costs.hot_bound or costs.cold > costs.cold_bound


@pytest.mark.parametrize("segments", [180, 1000, 4000])
def test_an_hour_of_equal_segments_is_rewritten_once_a_tier(segments: int) -> None:
    """The everyday case: three targets of bytes for each 1000 segments, looked at every five minutes."""
    hour = Hour(CompactionPolicy(target_bytes=1000, fanout=8))
    for number in range(segments):
        hour.come(100, 3)
        hour.wait(3600 / segments)
        if number % (segments // 12) == 0:
            hour.look()
    hour.finish()
    costs = hour.costs
    assert costs.hot + costs.cold <= 4 * costs.R
    assert len(hour.segments) <= 3 * segments / 750 + 2
