"""Demo traffic: the same for the same seed, whole, and nothing that the lake would set aside."""

from __future__ import annotations

import gzip

import pytest

from lakerunner_dagster.lake.notifications.routing import route
from lakerunner_dagster.lake.settings import Limits
from lakerunner_dagster.lake.signals import Signal
from lakerunner_dagster.lake.telemetry.decode import decode
from lakerunner_dagster.lake.telemetry.raw import RawPayload
from lakerunner_dagster.local.demo import ORGANIZATIONS, DemoTraffic

FROM_MS = 1_790_000_000_000
TO_MS = FROM_MS + 10_000


def traffic(seed: int = 1) -> DemoTraffic:
    return DemoTraffic(ORGANIZATIONS[0], "edge", seed)


def test_a_second_start_that_tells_another_story() -> None:
    assert traffic().files(FROM_MS, TO_MS) == traffic().files(FROM_MS, TO_MS)
    assert traffic().files(FROM_MS, TO_MS) != traffic(seed=2).files(FROM_MS, TO_MS)


@pytest.mark.parametrize("signal", Signal)
def test_a_demo_record_that_the_lake_does_not_take(signal: Signal) -> None:
    (file,) = (file for file in traffic().files(FROM_MS, TO_MS) if file.signal is signal)
    payload = RawPayload(1, file.key, "0" * 24, TO_MS, gzip.decompress(file.data))
    decoded = decode(signal, [payload], ORGANIZATIONS[0].organization_id, Limits())
    assert decoded.table.num_rows == file.records > 0
    assert dict(decoded.rejected[0]) == {}


def test_a_demo_file_under_a_key_that_leads_elsewhere() -> None:
    for file in traffic().files(FROM_MS, TO_MS):
        found = route(file.key, [])
        assert (found.organization_id, found.collector, found.signal) == (
            ORGANIZATIONS[0].organization_id,
            "edge",
            file.signal,
        )


def test_counters_that_do_not_grow_from_file_to_file() -> None:
    growing = traffic()
    first, second = (growing.files(FROM_MS + step * 10_000, TO_MS + step * 10_000)[1] for step in range(2))

    def counted(data: bytes, event_time_ms: int) -> dict[int, float]:
        payload = RawPayload(1, "key", "0" * 24, event_time_ms, gzip.decompress(data))
        rows = decode(Signal.METRICS, [payload], ORGANIZATIONS[0].organization_id, Limits()).table.to_pylist()
        return {row["chq_tid"]: row["chq_last"] for row in rows if row["metric_name"] == "http_server_requests"}

    before, after = counted(first.data, TO_MS), counted(second.data, TO_MS + 10_000)
    assert before
    assert all(after[series] >= before[series] for series in before if series in after)
    assert sum(after.values()) > sum(before.values())
