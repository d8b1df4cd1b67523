"""What would break if a segment were not a pure function of its rows, or its index row not that of its file."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lakerunner_dagster.lake.errors import ContractBreach
from lakerunner_dagster.lake.model import Contribution, CreatedBy
from lakerunner_dagster.lake.segments.build import Built, build
from lakerunner_dagster.lake.segments.fingerprints import exists_fingerprint
from lakerunner_dagster.lake.segments.ids import inputs_digest
from lakerunner_dagster.lake.signals import SIGNALS, Signal
from tests.lake.segments.tables import (
    HOUR,
    LOG_KEYS,
    ORGANIZATION,
    SOURCE,
    SPAN_KEYS,
    dictionaries,
    log_rows,
    shuffled,
    span_rows,
)

IDS = [71, 72, 73]


def built(rows: pa.Table, signal: Signal = Signal.LOGS, **other: Any) -> Built:
    given: dict[str, Any] = {
        "source": SOURCE,
        "signal": signal,
        "payload_ids": IDS,
        "inputs": ["one", "two", "three"],
        "operation": "ingest",
        "original_keys": LOG_KEYS if signal is Signal.LOGS else SPAN_KEYS,
        "ingest_dateint": 20251225,
    }
    return build(rows, **given | other)


@pytest.fixture
def lake(tmp_path: Path) -> Iterator[duckdb.DuckDBPyConnection]:
    with duckdb.connect() as connection:
        connection.execute(f"SET file_search_path = '{tmp_path}'")
        yield connection


def put(segment: Built, tmp_path: Path) -> str:
    path = tmp_path / segment.output.segment.key
    path.parent.mkdir(parents=True)
    path.write_bytes(segment.data)
    return str(path)


@pytest.mark.parametrize(
    ("signal", "rows"), [(Signal.LOGS, log_rows(3000)), (Signal.TRACES, span_rows(3000))], ids=["logs", "traces"]
)
def test_the_index_row_says_what_duckdb_reads_from_the_file(
    signal: Signal, rows: pa.Table, tmp_path: Path, lake: duckdb.DuckDBPyConnection
) -> None:
    result = built(rows, signal)
    segment = result.output.segment
    file = lake.read_parquet(put(result, tmp_path))

    count, first, last = file.aggregate("count(*), min(chq_timestamp), max(chq_timestamp)").fetchall()[0]
    assert (segment.record_count, segment.records, segment.rollup_count) == (count, count, 0.0)
    assert (segment.start_ms, segment.end_ms) == (first, last + 1)
    assert segment.file_size == len(bytes(result.data))
    assert segment.key == f"db/{ORGANIZATION}/collector-1/20251224/{signal}/00/tbl_{segment.segment_id}.parquet"
    assert (segment.dateint, segment.hour, segment.ingest_dateint) == (20251224, 0, 20251225)
    assert (segment.instance_num, segment.frequency_ms, segment.created_by) == (3, 0, CreatedBy.INGEST)

    keys = ", ".join(f"{key} NULLS LAST" for key in (*SIGNALS[signal].sort_keys, "chq_tsns", "chq_id"))
    in_file = file.project("chq_id").fetchall()
    assert in_file == lake.sql(f"SELECT chq_id FROM file ORDER BY {keys}").fetchall()
    assert Counter(chq_id for (chq_id,) in in_file) == Counter(rows["chq_id"].to_pylist())

    present = {name for name in file.columns if file.filter(f'"{name}" IS NOT NULL').limit(1).fetchall()}
    assert {exists_fingerprint(name) for name in present} <= set(segment.fingerprints)
    assert not {exists_fingerprint(name) for name in set(file.columns) - present} & set(segment.fingerprints)
    assert list(segment.fingerprints) == sorted(set(segment.fingerprints))
    services = tuple(
        value
        for (value,) in lake.sql(
            "SELECT DISTINCT resource_service_name AS s FROM file WHERE s IS NOT NULL ORDER BY s"
        ).fetchall()
    )
    assert segment.stream_ids == (services if signal is Signal.LOGS else None)
    assert segment.stream_id_field == ("resource_service_name" if signal is Signal.LOGS else None)
    labels = {"resource_service_name", "attr_db_system"} if signal is Signal.TRACES else set(LOG_KEYS) - {"attr_never"}
    assert segment.label_name_map == {name: key for name, key in (LOG_KEYS | SPAN_KEYS).items() if name in labels}
    assert set(file.columns) >= labels
    assert not {"attr_never", "_file"} & set(file.columns)


def test_every_value_of_every_row_is_in_the_file() -> None:
    rows = log_rows(500)
    read = pq.read_table(pa.BufferReader(built(rows).data)).to_pylist()
    expected = {row["chq_id"]: row for row in rows.drop_columns(["_file", "attr_never"]).to_pylist()}
    assert {row["chq_id"]: row for row in read} == expected


def test_the_footer_tells_where_the_file_comes_from() -> None:
    footer = pq.read_metadata(pa.BufferReader(built(log_rows(50)).data)).metadata
    columns = json.loads(footer.pop(b"lakerunner.columns"))
    assert columns == {name: key for name, key in LOG_KEYS.items() if name != "attr_never"}
    assert footer == {
        b"lakerunner.organization": str(ORGANIZATION).encode(),
        b"lakerunner.signal": b"logs",
        b"lakerunner.frequency_ms": b"0",
        b"lakerunner.inputs": inputs_digest(["one", "two", "three"]).encode(),
        b"lakerunner.code_version": SIGNALS[Signal.LOGS].code_version.encode(),
    }


@pytest.mark.parametrize("signal", [Signal.LOGS, Signal.TRACES])
def test_the_same_rows_are_the_same_bytes_in_whatever_order_files_are_read(signal: Signal) -> None:
    rows = log_rows(2000) if signal is Signal.LOGS else span_rows(2000)
    first = built(rows, signal)
    for seed in range(3):
        again = built(shuffled(rows, seed), signal, inputs=["three", "one", "two"])
        assert again.data.equals(first.data)
        assert again.output == first.output
    encoded = built(dictionaries(shuffled(rows, 9), unused=("another hour's",)), signal)
    assert encoded.data.equals(first.data)
    assert encoded.output == first.output


def test_other_work_on_the_same_rows_writes_another_object() -> None:
    rows = log_rows(50)
    keys = {
        built(rows, **other).output.segment.key
        for other in ({}, {"operation": "rebuild"}, {"ordinal": 1}, {"inputs": ["one"]})
    }
    assert len(keys) == 4


def test_each_raw_object_is_credited_with_its_records_and_no_others() -> None:
    rows = log_rows(300, files=2)  # the third object has no row in this hour
    counts = Counter(rows["_file"].to_pylist())
    assert built(rows).output.inputs == (Contribution(71, counts[0]), Contribution(72, counts[1]))


def test_rows_of_two_hours_are_refused() -> None:
    rows = log_rows(2)
    times = pa.array([HOUR, HOUR + 3_600_000])
    rows = rows.set_column(rows.column_names.index("chq_timestamp"), "chq_timestamp", times)
    with pytest.raises(ContractBreach, match="one UTC hour alone"):
        built(rows)


def test_one_row_is_a_segment() -> None:
    segment = built(log_rows(1)).output.segment
    assert segment.end_ms == segment.start_ms + 1
    assert segment.record_count == 1


def test_rows_without_a_service_still_sort() -> None:
    rows = log_rows(100).drop_columns(["resource_service_name"])
    segment = built(rows).output.segment
    assert segment.stream_ids is None
    assert segment.stream_id_field is None
