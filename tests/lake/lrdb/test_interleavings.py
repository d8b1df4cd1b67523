"""Runs that are killed, stalled, replaced and rebuilt in any order: each record is published once, and none is lost."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    initialize,
    invariant,
    rule,
    run_state_machine_as_test,
)

from lakerunner_dagster.lake.errors import ConservationBreach, LeaseLost, SwapConflict
from lakerunner_dagster.lake.lrdb import boxes, check
from lakerunner_dagster.lake.lrdb.connection import Lrdb
from lakerunner_dagster.lake.model import ClaimedBox, Source
from lakerunner_dagster.lake.settings import Settings
from lakerunner_dagster.lake.signals import Signal
from lakerunner_dagster.lake.stages import ingest_stage
from tests.lake.lrdb.conftest import disconnect, empty
from tests.lake.lrdb.work import (
    DAY,
    add_source,
    box_pending,
    claim,
    do,
    expire,
    notification,
    notify,
    one,
    output,
    publish_box,
    replace_hour,
    visible_records,
)

PATIENT = Settings(box_attempts=1_000_000, lease_seconds=3600.0, retry_backoff_seconds=0.0)


def drain(lrdb: Lrdb, source: Source) -> None:
    """What is left is worked off by runs that nothing happens to."""
    with lrdb.transaction() as conn:
        boxes.reopen_failed(conn, ingest_stage(Signal.LOGS).name, source, DAY)
    do(lrdb, "UPDATE boxes SET lease_until = now() - interval '1 second' WHERE state = 'claimed'")
    box_pending(lrdb)
    while (box := claim(lrdb, source, run="last", settings=PATIENT)) is not None:
        publish_box(lrdb, box)


def rebuild(lrdb: Lrdb, source: Source) -> None:
    """Replace the hour by one segment of what is ingested at this moment."""
    with lrdb.connection() as conn:
        known = conn.execute("SELECT raw_object_id FROM raw_objects WHERE state = 'ingested'").fetchall()
    read = {raw_object_id: 10 for (raw_object_id,) in known}
    if read:
        with contextlib.suppress(SwapConflict):
            replace_hour(lrdb, source, [output(source, read)], read)


def assert_whole(lrdb: Lrdb) -> None:
    """Every object is ingested, every record published once."""
    with lrdb.snapshot() as conn:
        assert check.breaches(conn) == []
    assert one(lrdb, "SELECT count(*) FROM raw_objects WHERE state <> 'ingested'") == 0
    assert one(lrdb, "SELECT count(*) FROM boxes WHERE state <> 'done'") == 0
    assert visible_records(lrdb) == 10 * one(lrdb, "SELECT count(*) FROM raw_objects")


class Runs(RuleBasedStateMachine):
    """Several runs in one thread, between whose transactions anything may happen; leases may be long gone."""

    lrdb: Lrdb
    url: str
    held = Bundle("held")

    @initialize()
    def begin(self) -> None:
        empty(self.url)
        self.edge = add_source(self.lrdb, "acme", "edge")

    @rule(count=st.integers(1, 3), again=st.booleans())
    def objects_are_notified(self, count: int, again: bool) -> None:  # noqa: FBT001  # drawn by hypothesis
        told = [notification(self.edge) for _ in range(count)]
        notify(self.lrdb, *told, *(told if again else []))

    @rule()
    def boxes_are_closed(self) -> None:
        box_pending(self.lrdb)

    @rule(target=held, run=st.sampled_from("abc"))
    def a_run_claims(self, run: str) -> ClaimedBox | None:
        return claim(self.lrdb, self.edge, run=run)

    @rule(box=held)
    def a_lease_expires(self, box: ClaimedBox | None) -> None:
        if box is not None:
            expire(self.lrdb, box.lease.box_id)

    @rule(box=held)
    def a_heart_beats(self, box: ClaimedBox | None) -> None:
        if box is not None:
            with contextlib.suppress(LeaseLost), self.lrdb.transaction() as conn:
                boxes.heartbeat(conn, box.lease)

    @rule(box=held)
    def a_run_publishes(self, box: ClaimedBox | None) -> None:
        if box is not None:
            with contextlib.suppress(LeaseLost):
                publish_box(self.lrdb, box)

    @rule(box=held)
    def a_run_publishes_what_it_got_wrong(self, box: ClaimedBox | None) -> None:
        if box is not None and box.members:
            wrong = [output(self.edge, {member.raw_object_id: 9 for member in box.members})]
            with pytest.raises((LeaseLost, ConservationBreach)):
                publish_box(self.lrdb, box, wrong)

    @rule(box=consumes(held))
    def a_run_gives_back(self, box: ClaimedBox | None) -> None:
        if box is not None:
            with contextlib.suppress(LeaseLost), self.lrdb.transaction() as conn:
                boxes.release(conn, box.lease, "StoreUnavailable", "no answer", 0.0)

    @rule()
    def failed_boxes_are_opened_again(self) -> None:
        with self.lrdb.transaction() as conn:
            boxes.reopen_failed(conn, ingest_stage(Signal.LOGS).name, self.edge, DAY)

    @rule()
    def the_day_is_rebuilt(self) -> None:
        rebuild(self.lrdb, self.edge)

    @invariant()
    def nothing_is_lost_or_doubled(self) -> None:
        ingested = one(self.lrdb, "SELECT count(*) FROM raw_objects WHERE state = 'ingested'")
        assert visible_records(self.lrdb) == 10 * ingested

    def teardown(self) -> None:
        drain(self.lrdb, self.edge)
        assert_whole(self.lrdb)


@pytest.fixture
def machine(shared_url: str) -> Iterator[type[Runs]]:
    disconnect(shared_url)
    with Lrdb(shared_url) as opened:

        class Opened(Runs):
            lrdb = opened
            url = shared_url

        yield Opened


def test_no_order_of_events_loses_or_doubles_a_record(machine: type[Runs]) -> None:
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=50, stateful_step_count=30, deadline=None, suppress_health_check=list(HealthCheck)
        ),
    )


@pytest.mark.parametrize("seed", [1, 2])
def test_no_race_of_runs_boxers_and_rebuilds_loses_or_doubles_a_record(lrdb: Lrdb, edge: Source, seed: int) -> None:
    told = [notification(edge) for _ in range(120)]

    def boxer(luck: random.Random) -> None:
        notify(lrdb, *luck.sample(told, 12))
        with contextlib.suppress(SwapConflict):
            box_pending(lrdb)

    def run(luck: random.Random) -> None:
        box = claim(lrdb, edge, run=f"run{luck.random()}", settings=PATIENT)
        if box is None:
            return
        fate = luck.random()
        if fate < 0.2:  # killed
            return
        if fate < 0.5:  # stalled beyond its lease, and going on
            expire(lrdb, box.lease.box_id)
        with contextlib.suppress(LeaseLost):
            if fate > 0.9:
                with lrdb.transaction() as conn:
                    boxes.release(conn, box.lease, "StoreUnavailable", "no answer", 0.0)
            else:
                publish_box(lrdb, box)

    def act(number: int) -> None:
        luck = random.Random(seed * 1000 + number)
        actions: list[Callable[[random.Random], None]] = [boxer, run, run, run, lambda _: rebuild(lrdb, edge)]
        luck.choice(actions)(luck)

    with ThreadPoolExecutor(8) as pool:
        for _ in pool.map(act, range(160)):
            pass
    notify(lrdb, *told)
    drain(lrdb, edge)
    assert_whole(lrdb)
    assert visible_records(lrdb) == 10 * len(told)
