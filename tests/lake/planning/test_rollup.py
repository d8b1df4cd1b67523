"""What would break if slots were computed apart that can only be replaced together, or too many at once."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lakerunner_dagster.lake.model import HOUR_MS
from lakerunner_dagster.lake.planning.rollup import pieces
from lakerunner_dagster.lake.tiers import TIERS, Tier, tier_above

SLOT = 600_000
MINUTE = 60_000
FIRST, LAST = TIERS[60_000], TIERS[3_600_000]


def slot(number: int) -> int:
    return HOUR_MS + number * SLOT


@pytest.mark.parametrize(
    ("dirty", "standing", "expected"),
    [
        ([], [(0, 6)], []),
        ([2], [], [(2, 3)]),
        ([2, 3], [], [(2, 3), (3, 4)]),
        ([2], [(2, 3)], [(2, 3)]),
        ([2], [(0, 6)], [(0, 6)]),
        ([1, 5], [(0, 6)], [(0, 6)]),
        ([0], [(0, 2), (1, 3), (4, 6)], [(0, 3)]),
        ([0, 4], [(0, 2), (4, 6)], [(0, 2), (4, 6)]),
        ([0], [(3, 6)], [(0, 1)]),
    ],
)
def test_a_piece_holds_all_of_the_segments_that_it_touches(
    dirty: list[int], standing: list[tuple[int, int]], expected: list[tuple[int, int]]
) -> None:
    found = pieces(FIRST, map(slot, dirty), [(slot(first), slot(last)) for first, last in standing])
    assert found == [(slot(first), slot(last)) for first, last in expected]


def test_a_segment_with_a_bucket_of_a_slot_is_of_the_whole_slot() -> None:
    assert pieces(FIRST, [slot(1)], [(slot(0) + 9 * MINUTE, slot(1) + MINUTE)]) == [(slot(0), slot(2))]


@st.composite
def segments(draw: st.DrawFn) -> tuple[int, int]:
    first = draw(st.integers(0, 59))
    return slot(0) + first * MINUTE, slot(0) + draw(st.integers(first + 1, 60)) * MINUTE


@given(st.sets(st.integers(0, 5)), st.lists(segments(), max_size=8))
def test_pieces_cover_what_is_dirty_cut_nothing_and_overlap_nowhere(
    dirty: set[int], standing: list[tuple[int, int]]
) -> None:
    found = pieces(FIRST, map(slot, dirty), standing)
    assert all(any(start <= slot(number) < end for start, end in found) for number in dirty)
    assert all(start % SLOT == 0 and end % SLOT == 0 for start, end in found)
    assert all(one[1] <= other[0] for one, other in pairwise(found))
    for start, end in found:
        for first, last in standing:
            assert first >= end or last <= start or (start <= first and last <= end)
        reachable = {number for number in dirty if start <= slot(number) < end}
        assert reachable, "a piece is computed for no dirty slot"


@given(st.integers(0, 2**42), st.integers(1, 2 * HOUR_MS), st.sampled_from(list(TIERS.values())))
def test_slots_divide_the_hour_and_hold_the_time(start_ms: int, length_ms: int, tier: Tier) -> None:
    slots = tier.slots(start_ms, start_ms + length_ms)
    assert slots[0] <= start_ms < slots[0] + tier.slot_ms
    assert slots[-1] < start_ms + length_ms <= slots[-1] + tier.slot_ms
    assert HOUR_MS % tier.slot_ms == 0
    assert tier.slot_ms % tier.frequency_ms == 0
    assert all(one % tier.slot_ms == 0 for one in slots)


def test_each_tier_is_computed_from_the_next_finer_one() -> None:
    assert [tier.finer_ms for tier in TIERS.values()] == [10_000, 60_000, 300_000, 1_200_000]
    assert tier_above(10_000) == FIRST
    assert tier_above(1_200_000) == LAST
    assert tier_above(3_600_000) is None
    assert tier_above(0) is None
