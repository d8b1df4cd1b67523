"""What would break if places were not shared: one tenant's backlog would be everybody's."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from lakerunner_dagster.lake.planning.fairness import fair_share

ORGANIZATIONS = st.sampled_from("abcd")
WAITING = st.lists(st.tuples(ORGANIZATIONS, st.integers()), max_size=30, unique=True)
ACTIVE = st.dictionaries(ORGANIZATIONS, st.integers(0, 6))
PLACES = st.integers(-2, 12)


def shared(waiting: list[tuple[str, int]], active: dict[str, int], places: int) -> list[tuple[str, int]]:
    return fair_share(waiting, lambda item: item[0], active, places)


def test_a_backlog_keeps_nobody_else_waiting() -> None:
    backlog = [("big", number) for number in range(1000)]
    assert shared([*backlog, ("small", 0)], {"big": 3}, 1) == [("small", 0)]
    assert shared([*backlog, ("small", 0)], {}, 3) == [("big", 0), ("small", 0), ("big", 1)]


def test_who_is_alone_has_every_place_in_the_order_of_waiting() -> None:
    assert shared([("a", 3), ("a", 1), ("a", 2)], {"a": 9}, 2) == [("a", 3), ("a", 1)]


@given(WAITING, ACTIVE, PLACES)
def test_no_place_is_left_empty_and_none_given_twice(
    waiting: list[tuple[str, int]], active: dict[str, int], places: int
) -> None:
    chosen = shared(waiting, active, places)
    assert len(chosen) == min(max(places, 0), len(waiting))
    assert not Counter(chosen) - Counter(waiting)


@given(WAITING, ACTIVE, PLACES)
def test_whoever_still_waits_has_as_many_runs_as_anybody_who_was_given_one(
    waiting: list[tuple[str, int]], active: dict[str, int], places: int
) -> None:
    chosen = shared(waiting, active, places)
    given_runs = Counter(organization for organization, _ in chosen)
    runs = Counter(active) + given_runs
    left = {organization for organization, _ in waiting} - {
        organization
        for organization, count in Counter(o for o, _ in waiting).items()
        if given_runs[organization] == count
    }
    for poor in left:
        assert all(runs[poor] >= runs[rich] - 1 for rich in given_runs)


@given(WAITING, ACTIVE, PLACES)
def test_an_organizations_own_work_goes_longest_wait_first(
    waiting: list[tuple[str, int]], active: dict[str, int], places: int
) -> None:
    chosen = shared(waiting, active, places)
    for organization in "abcd":
        own = [item for item in waiting if item[0] == organization]
        mine = [item for item in chosen if item[0] == organization]
        assert mine == own[: len(mine)]
