"""What would break between decoder and writer: records of real exports that no reader of the segments would see."""

from __future__ import annotations

import gzip
from collections import Counter
from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from bench.grow import real_data
from lakerunner_dagster.lake.errors import ConservationBreach
from lakerunner_dagster.lake.model import HOUR_MS
from lakerunner_dagster.lake.segments import build as build_module
from lakerunner_dagster.lake.segments.build import Built, build
from lakerunner_dagster.lake.segments.ids import raw_identity
from lakerunner_dagster.lake.segments.shared import spread
from lakerunner_dagster.lake.segments.split import split_by_hour
from lakerunner_dagster.lake.settings import Limits
from lakerunner_dagster.lake.signals import Signal
from lakerunner_dagster.lake.telemetry.decode import Decoded, decode
from lakerunner_dagster.lake.telemetry.metric_rows import Codes, merge_in_order
from lakerunner_dagster.lake.telemetry.raw import RawPayload
from tests.lake.segments.tables import ORGANIZATION, SOURCE

RECORDS = {
    Signal.LOGS: {"logs_122666952": 1775, "logs_201988403": 1434, "otel-logs": 525},
    Signal.METRICS: {
        "metrics_221198848": 16_633,
        "metrics_377055286": 15_018,
        "metrics_427904409": 16_438,
        "otel-metrics": 695,
    },
    Signal.TRACES: {"otel-traces": 246, "traces_244872953": 257},
}
"""Records of each real file, from the README that came with them."""

pytestmark = pytest.mark.skipif(not real_data().is_dir(), reason=f"no real telemetry in {real_data()}")


def payloads(signal: Signal) -> list[RawPayload]:
    return [
        RawPayload(
            raw_object_id=100 + ordinal,
            key=f"{name}.binpb.gz",
            identity=raw_identity("lake", name, ""),
            event_time_ms=1_767_000_000_000,
            payload=gzip.decompress((real_data() / signal / f"{name}.binpb.gz").read_bytes()),
        )
        for ordinal, name in enumerate(RECORDS[signal])
    ]


def segments(signal: Signal, files: list[RawPayload]) -> tuple[Decoded, list[Built]]:
    decoded = decode(signal, files, ORGANIZATION, Limits())
    return decoded, [
        build(
            rows,
            source=SOURCE,
            signal=signal,
            payload_ids=[file.raw_object_id for file in files],
            inputs=[file.identity for file in files],
            operation="ingest",
            original_keys=decoded.original_keys,
            ingest_dateint=20251231,
        )
        for _, _, rows in split_by_hour(decoded.table)
    ]


@pytest.mark.parametrize("signal", Signal)
def test_every_record_of_every_file_is_read_by_duckdb_or_rejected_with_a_reason(signal: Signal, tmp_path: Path) -> None:
    files = payloads(signal)
    decoded, built = segments(signal, files)
    for segment in built:
        path = tmp_path / segment.output.segment.key
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(segment.data)

    assert not decoded.failures
    assert decoded.records_read == tuple(RECORDS[signal].values())
    credited: Counter[int] = Counter()
    for segment in built:
        credited.update({given.input_id: given.records for given in segment.output.inputs})
    for ordinal, file in enumerate(files):
        rejected = sum(decoded.rejected[ordinal].values())
        assert credited[file.raw_object_id] + rejected == decoded.records_read[ordinal]

    standing_for = "sum(chq_points)" if signal is Signal.METRICS else "count(*)"
    with duckdb.connect() as connection:
        lake = connection.read_parquet(f"{tmp_path}/db/**/*.parquet", union_by_name=True, filename=True)
        found = lake.aggregate(
            f"filename, count(*), {standing_for}, min(chq_timestamp), max(chq_timestamp), "
            f"min(chq_timestamp // {HOUR_MS}) = max(chq_timestamp // {HOUR_MS})",
            "filename",
        ).fetchall()
    for filename, rows, records, first, last, one_hour in found:
        [segment] = [one for one in built if filename == str(tmp_path / one.output.segment.key)]
        index = segment.output.segment
        assert (index.record_count, index.records) == (rows, records)
        assert (index.start_ms, index.end_ms) == (first, last + (index.frequency_ms or 1))
        assert one_hour
    assert len(found) == len(built)
    assert sum(records for _, _, records, *_ in found) == credited.total()


@pytest.mark.parametrize("signal", Signal)
def test_the_order_in_which_files_are_read_changes_no_byte(signal: Signal) -> None:
    files = payloads(signal)
    _, built = segments(signal, files)
    _, again = segments(signal, files[::-1])
    assert [one.output.segment for one in again] == [one.output.segment for one in built]
    assert [Counter(one.output.inputs) for one in again] == [Counter(one.output.inputs) for one in built]
    for one, other in zip(again, built, strict=True):
        assert one.data.equals(other.data), one.output.segment.key


@pytest.mark.parametrize("signal", [Signal.LOGS, Signal.TRACES])
def test_no_value_changes_between_decoder_and_file(signal: Signal) -> None:
    decoded, built = segments(signal, payloads(signal))
    expected = {row.pop("chq_id"): row for row in spread(decoded.table.drop_columns(["_file"])).to_pylist()}
    found = 0
    for segment in built:
        for row in pq.read_table(pa.BufferReader(segment.data)).to_pylist():
            decoded_row = expected[row.pop("chq_id")]
            assert row == {name: decoded_row.get(name) for name in row}
            assert not [name for name, value in decoded_row.items() if value is not None and name not in row]
            found += 1
    assert found == len(expected)


def test_a_metric_segments_index_row_lists_the_names_types_and_counts_that_duckdb_reads(tmp_path: Path) -> None:
    _, built = segments(Signal.METRICS, payloads(Signal.METRICS))
    numbers = {"gauge": 1, "sum": 2, "histogram": 3}
    path = tmp_path / "segment.parquet"
    for segment in built:
        path.write_bytes(segment.data)
        with duckdb.connect() as connection:
            rows = connection.read_parquet(str(path))
            listed = rows.aggregate("metric_name, min(chq_point_type)", "metric_name").order("metric_name").fetchall()
            [(count, sketches, tied)] = rows.aggregate(
                "sum(chq_rollup_count), count(chq_sketch), "
                "count(*) - count(DISTINCT (metric_name, chq_tid, chq_timestamp, chq_start_tsns))"
            ).fetchall()
        index = segment.output.segment
        assert index.metric_names == tuple(name for name, _ in listed)
        assert index.metric_types == tuple(numbers[kind] for _, kind in listed)
        assert index.rollup_count == pytest.approx(count)
        assert tied == 0, "two rows are of one series, bucket and start"
        assert sketches > 0
        assert index.frequency_ms == 10_000
        assert index.end_ms % 10_000 == 0


def test_points_that_merging_loses_are_noticed_before_anything_is_written(monkeypatch: pytest.MonkeyPatch) -> None:
    def losing(rows: pa.Table, codes: Codes) -> tuple[pa.Table, Codes]:
        merged, codes = merge_in_order(rows, codes)
        return merged.slice(1), codes[1:]

    monkeypatch.setattr(build_module, "merge_in_order", losing)
    with pytest.raises(ConservationBreach, match="records went into a segment"):
        segments(Signal.METRICS, payloads(Signal.METRICS)[3:])
