"""Every real file ends with exactly the counts that its README tells, in lrdb and in the Parquet."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench.grow import real_data
from lakerunner_dagster.lake.model import RawState
from lakerunner_dagster.lake.signals import Signal
from tests.lake.world import World

RECORDS = {
    "logs_122666952": 1775,
    "logs_201988403": 1434,
    "otel-logs": 525,
    "metrics_221198848": 16_633,
    "metrics_377055286": 15_018,
    "metrics_427904409": 16_438,
    "otel-metrics": 695,
    "otel-traces": 246,
    "traces_244872953": 257,
}
"""Records of each file of ``otlp``, by the README beside it, which counted with the reference library."""


@pytest.fixture(scope="module")
def real_files() -> Path:
    folder = real_data()
    if not folder.is_dir():
        pytest.skip(f"no real telemetry at {folder}: set LAKERUNNER_REAL_DATA")
    return folder


@pytest.mark.parametrize("signal", list(Signal))
def test_no_record_of_a_real_file_is_lost_or_told_twice(world: World, real_files: Path, signal: Signal) -> None:
    files = sorted((real_files / signal).glob("*.binpb.gz"))
    for file in files:
        world.send(signal, file.name, file.read_bytes())
    steps = world.ingest(signal)
    expected = {file.name: RECORDS[file.name.removesuffix(".binpb.gz")] for file in files}

    books = world.query("SELECT key, state, records_read, records_rejected FROM raw_objects WHERE signal = %s", signal)
    assert {key.rpartition("/")[2]: read for key, _, read, _ in books} == expected
    assert {state for _, state, *_ in books} == {RawState.INGESTED}
    rejected = sum(of_file for *_, of_file in books)
    records = sum(expected.values())

    assert world.records(signal) + rejected == records
    stands_for = "sum(chq_points)" if signal is Signal.METRICS else "count(DISTINCT chq_id)"
    assert world.select(signal, f"{stands_for}::bigint") == [(records - rejected,)]
    assert sum(step.records_read for step in steps) == records
    assert sum(step.records_written for step in steps) == records - rejected
    assert world.breaches() == []
