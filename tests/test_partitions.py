"""Partition keys: what a sensor writes is what an asset reads."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta

import dagster as dg
import pytest

from lakerunner_dagster.lake.settings import Limits
from lakerunner_dagster.partitions import SOURCES_NAME, DaySource, new_sources


def _dateint(day: date) -> int:
    return int(day.strftime("%Y%m%d"))


@pytest.mark.parametrize("source_key", ["acme/web", "a/b.c_d-e", "acme/x|y"])
def test_a_partition_comes_back_from_its_key(source_key: str) -> None:
    partition = DaySource(20260201, source_key)
    assert DaySource.of(partition.key) == DaySource.of(str(partition.key)) == partition
    assert partition.key == f"2026-02-01|{source_key}"


def test_days_are_partitions_from_the_first_of_the_lake_to_today() -> None:
    today = datetime.now(UTC).date()
    first = Limits().first_date
    assert DaySource(_dateint(first), "acme/web").exists
    assert DaySource(_dateint(today), "acme/web").exists
    assert not DaySource(_dateint(first - timedelta(days=1)), "acme/web").exists
    assert not DaySource(_dateint(today + timedelta(days=2)), "acme/web").exists
    assert not DaySource(19700101, "acme/web").exists


def test_a_source_is_added_once() -> None:
    with dg.DagsterInstance.ephemeral() as instance:
        instance.add_dynamic_partitions(SOURCES_NAME, ["acme/web"])
        assert new_sources(instance, ["acme/web"]) == []
        (request,) = new_sources(instance, ["zeta/db", "acme/web", "acme/db"])
        assert request.partition_keys == ["acme/db", "zeta/db"]
        assert request.partitions_def_name == SOURCES_NAME
