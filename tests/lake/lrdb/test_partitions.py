"""Day leaves: there before the insert, whoever makes them, and in nobody's way."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from uuid import UUID, uuid4

import pytest

from lakerunner_dagster.lake.lrdb.connection import Lrdb
from lakerunner_dagster.lake.lrdb.partitions import ensure_partitions
from lakerunner_dagster.lake.signals import SIGNALS, Signal
from tests.lake.lrdb.work import DAY, one


def leaves(lrdb: Lrdb, signal: Signal, *organization_ids: UUID) -> int:
    """How many day leaves these organizations have."""
    branches = [f"{SIGNALS[signal].segment_table}_{organization_id.hex}" for organization_id in organization_ids]
    return int(one(lrdb, "SELECT count(*) FROM pg_inherits WHERE inhparent::regclass::text = ANY(%s)", branches))


@pytest.mark.parametrize("signal", list(Signal))
def test_leaves_are_made_once(lrdb: Lrdb, signal: Signal) -> None:
    organization_id = uuid4()
    for _ in range(2):
        ensure_partitions(lrdb, signal, organization_id, [DAY, DAY + 1, DAY])
    assert leaves(lrdb, signal, organization_id) == 2


def test_the_last_day_of_a_year_has_a_leaf(lrdb: Lrdb) -> None:
    organization_id = uuid4()
    ensure_partitions(lrdb, Signal.LOGS, organization_id, [20251231, 20260101])
    assert leaves(lrdb, Signal.LOGS, organization_id) == 2


def test_many_that_make_the_same_leaves_at_once_all_succeed(lrdb: Lrdb) -> None:
    organizations = [uuid4() for _ in range(3)]
    days = [DAY + day for day in range(4)]
    work = [(organization, days[start:]) for organization in organizations for start in range(4)] * 2
    with ThreadPoolExecutor(10) as pool:
        done = [pool.submit(ensure_partitions, lrdb, Signal.METRICS, *task) for task in work]
        for future in done:
            future.result()
    assert leaves(lrdb, Signal.METRICS, *organizations) == 12


def test_a_reader_and_a_writer_at_work_do_not_keep_a_new_leaf_waiting(lrdb: Lrdb) -> None:
    organization_id = uuid4()
    ensure_partitions(lrdb, Signal.LOGS, organization_id, [DAY])
    with ThreadPoolExecutor(1) as pool, lrdb.transaction() as conn:
        conn.execute("SELECT count(*) FROM log_seg")
        conn.execute("LOCK TABLE log_seg IN ROW EXCLUSIVE MODE")
        for made in ((organization_id, [DAY + 1]), (another := uuid4(), [DAY])):
            pool.submit(ensure_partitions, lrdb, Signal.LOGS, *made).result(timeout=60)
    assert leaves(lrdb, Signal.LOGS, organization_id, another) == 3


@pytest.mark.parametrize("dateint", [20260230, 0, 1, 202601, -20260101])
def test_a_day_that_is_none_is_refused(lrdb: Lrdb, dateint: int) -> None:
    with pytest.raises(ValueError, match=r"day|year|month"):
        ensure_partitions(lrdb, Signal.LOGS, organization_id := uuid4(), [dateint])
    assert leaves(lrdb, Signal.LOGS, organization_id) == 0
