"""What would break if a replay's plan told of other objects than a rebuild of its days will find."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from random import Random
from uuid import UUID

from hypothesis import given
from hypothesis import strategies as st

from lakerunner_dagster.lake.planning.replay import DayPlan, KnownDay, RawDay, Sighting, plan
from lakerunner_dagster.lake.signals import Signal

ACME = UUID("6b0dbc7c-2a6b-4a0e-9f5f-0d9b6c0f7a11")
HOMES = {(ACME, "core"): "a", (ACME, "edge"): "b"}

days = st.builds(
    RawDay,
    st.just(ACME),
    st.sampled_from(["core", "edge"]),
    st.sampled_from(list(Signal)),
    st.sampled_from([20260201, 20260202]),
)
rows = st.tuples(days, st.integers(0, 9), st.booleans(), st.booleans())
"""A row of lrdb: its day, stored bytes, whether it is ingested, and whether the store still has it."""
unknown = st.tuples(days, st.integers(0, 9), st.sampled_from(["a", "b", "c"]))
"""An object without a row: the day of its storing, its stored bytes, its bucket."""


@given(st.lists(rows), st.lists(unknown), st.randoms())
def test_every_object_is_counted_once_and_where_it_belongs(
    of_lrdb: list[tuple[RawDay, int, bool, bool]], of_store: list[tuple[RawDay, int, str]], order: Random
) -> None:
    known: defaultdict[RawDay, KnownDay] = defaultdict(KnownDay)
    for day, size, ingested, _ in of_lrdb:
        before = known[day]
        known[day] = KnownDay(before.objects + 1, before.bytes + size, before.ingested + ingested)
    # A known object may have been stored on any day: what lrdb says is what counts.
    sightings = [
        Sighting(day._replace(dateint=20260131), size, "c", day, ingested)
        for day, size, ingested, there in of_lrdb
        if there
    ]
    sightings += [Sighting(day, size, bucket) for day, size, bucket in of_store]
    order.shuffle(sightings)

    def at_home(day: RawDay, bucket: str) -> bool:
        return HOMES[day.organization_id, day.collector] == bucket

    expected = {
        day: DayPlan(
            known=sum(of == day for of, *_ in of_lrdb),
            found=sum(of == day and at_home(of, bucket) for of, _, bucket in of_store),
            elsewhere=sum(of == day and not at_home(of, bucket) for of, _, bucket in of_store),
            unsighted=sum(of == day and ingested and not there for of, _, ingested, there in of_lrdb),
            bytes=sum(size for of, size, *_ in of_lrdb if of == day)
            + sum(size for of, size, bucket in of_store if of == day and at_home(of, bucket)),
        )
        for day in {day for day, *_ in [*of_lrdb, *of_store]}
    }
    planned = plan(known, sightings, HOMES)
    assert planned == expected
    assert list(planned) == sorted(planned)


def test_the_home_of_a_collector_may_become_known_while_its_objects_are_looked_at() -> None:
    day = RawDay(ACME, "new", Signal.LOGS, 20260201)
    homes: dict[tuple[UUID, str], str] = {}

    def looked_at() -> Iterator[Sighting]:
        homes[ACME, "new"] = "a"
        yield Sighting(day, 3, "a")
        yield Sighting(day, 4, "b")

    assert plan({}, looked_at(), homes)[day] == DayPlan(known=0, found=1, elsewhere=1, unsighted=0, bytes=3)
