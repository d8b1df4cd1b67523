"""What would break if a merge held more the more it merges: the machine, where a day is large."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lakerunner_dagster.lake.segments import budget, parquet
from lakerunner_dagster.lake.segments.merge import MergeInput
from lakerunner_dagster.lake.signals import Signal
from tests.lake.segments.merging import given, merged, parted
from tests.lake.segments.tables import log_rows

PARTS, ROWS, TEXT_BYTES = 16, 4000, 1000
DICTIONARY_BYTES = ROWS // 2 * TEXT_BYTES


@pytest.fixture(autouse=True)
def small_tables(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is held at least is little, so that few rows tell whether it is more."""
    monkeypatch.setattr(parquet, "ROW_GROUP_ROWS", 1000)
    for name, rows in {"LEAST_AHEAD": 50, "MOST_AHEAD": 250, "AT_ONCE": 1000, "_SPILL_ROWS": 500}.items():
        monkeypatch.setattr(budget, name, rows)


@contextmanager
def counted() -> Iterator[pa.MemoryPool]:
    """A pool of its own for what Arrow allocates meanwhile."""
    usual = pa.default_memory_pool()
    pool = pa.proxy_memory_pool(usual)
    pa.set_memory_pool(pool)
    try:
        yield pool
    finally:
        pa.set_memory_pool(usual)


def peak_bytes(inputs: Sequence[MergeInput], directory: Path, memory_bytes: int) -> int:
    """The most that Arrow held at once while they were merged."""
    with counted() as pool:
        [one] = merged(inputs, directory, memory_bytes=memory_bytes)
    assert one.output.segment.record_count == sum(each.segment.record_count for each in inputs)
    return int(pool.max_memory())


@pytest.mark.parametrize("memory_bytes", [1, 1 << 30])
def test_four_times_the_rows_take_no_more_memory(memory_bytes: int, tmp_path: Path) -> None:
    peaks = []
    for count in (8_000, 32_000):
        directory = tmp_path / str(count)
        directory.mkdir()
        inputs = given(Signal.LOGS, parted(log_rows(count), 8), directory)
        peaks.append(peak_bytes(inputs, directory, memory_bytes))
    assert peaks[1] < 1.3 * peaks[0]


def with_long_texts(directory: Path) -> list[MergeInput]:
    """Segments of one row group whose messages, each there twice, make a dictionary of ``DICTIONARY_BYTES``."""
    tables = []
    for part in range(PARTS):
        rows = log_rows(ROWS, seed=part)
        texts = pa.array([f"{part:08}{number // 2:0{TEXT_BYTES - 8}}" for number in range(ROWS)])
        ids = pa.array([f"{part:024x}-{number:08x}" for number in range(ROWS)])
        for name, column in {"log_message": texts, "chq_id": ids}.items():
            rows = rows.set_column(rows.schema.get_field_index(name), name, column)
        tables.append(rows)
    return given(Signal.LOGS, tables, directory)


def test_large_dictionaries_of_the_inputs_count_in_the_memory_allowed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(parquet, "ROW_GROUP_ROWS", ROWS)
        inputs = with_long_texts(tmp_path)
    allowed = 10 * DICTIONARY_BYTES
    while_one_is_read = 5 * DICTIONARY_BYTES  # as it is in the file, as texts, as codes, and as both are copied
    assert peak_bytes(inputs, tmp_path, allowed) < allowed + while_one_is_read < PARTS * DICTIONARY_BYTES


def test_a_column_of_many_texts_comes_out_without_a_dictionary(tmp_path: Path) -> None:
    [one] = merged(with_long_texts(tmp_path), tmp_path)
    footer = pq.read_metadata(one.path)
    groups = [footer.row_group(group) for group in range(footer.num_row_groups)]
    columns = {group.column(at).path_in_schema: group.column(at) for group in groups for at in range(group.num_columns)}
    assert not columns["log_message"].has_dictionary_page
    assert columns["resource_service_name"].has_dictionary_page
