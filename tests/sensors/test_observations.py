"""What a boxer tells about raw objects: each once, none lost, and not too often."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lakerunner_dagster.lake.lrdb.intake import Observed
from lakerunner_dagster.sensors.observations import CHECK_MS, FORGET_MS, TELL_MS, Observations, Seen

NOW = 1_770_000_000_000
A, B = "2026-02-01|acme/web", "2026-02-02|acme/web"


def test_a_new_partition_is_told_about_at_once_and_then_each_minute() -> None:
    first = Observations().with_observed({A: Observed(2, 20)})
    assert first.due(NOW) == {A: Seen(2, 20)}
    second = first.told(NOW).with_observed({A: Observed(1, 10)})
    assert second.due(NOW + TELL_MS - 1) == {}
    assert second.with_observed({A: Observed(4, 40)}).due(NOW + TELL_MS) == {A: Seen(5, 50, NOW)}


def test_a_partition_with_nothing_new_is_not_told_about() -> None:
    assert Observations().with_observed({A: Observed(1, 1)}).told(NOW).due(NOW + 10 * TELL_MS) == {}


def test_the_cursor_does_not_grow_with_the_days() -> None:
    old = Observations().with_observed({A: Observed(1, 1)}).told(NOW)
    later = old.with_observed({B: Observed(1, 1)}).told(NOW + FORGET_MS)
    assert set(later.partitions) == {B}


def test_the_checks_are_due_at_the_first_tick_and_every_five_minutes() -> None:
    assert Observations().check_due(NOW)
    assert not Observations().checked(NOW).check_due(NOW + CHECK_MS - 1)
    assert Observations().checked(NOW).check_due(NOW + CHECK_MS)


@pytest.mark.parametrize("cursor", [None, "", "{}", "not json", '{"partitions": 3}', '[["1"]]'])
def test_a_cursor_of_another_version_begins_anew(cursor: str | None) -> None:
    assert Observations.of_cursor(cursor) == Observations()


@given(
    st.lists(
        st.tuples(
            st.dictionaries(st.sampled_from([A, B]), st.builds(Observed, st.integers(1, 9), st.integers(0, 99))),
            st.integers(0, 2 * TELL_MS),
        )
    )
)
def test_what_is_told_adds_up_to_what_was_observed(ticks: list[tuple[dict[str, Observed], int]]) -> None:
    state, now, told = Observations(), NOW, 0
    for observed, wait in ticks:
        state = Observations.of_cursor(state.cursor).with_observed(observed)
        told += sum(seen.objects for seen in state.due(now).values())
        state, now = state.told(now), now + wait
    told += sum(seen.objects for seen in state.due(now + TELL_MS).values())
    assert told == sum(seen.objects for observed, _ in ticks for seen in observed.values())
