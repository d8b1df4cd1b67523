"""What would break if a fingerprint were wrong: a query would not find the segment that holds what it seeks."""

from __future__ import annotations

import random

import pyarrow as pa
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from lakerunner_dagster.lake.segments import parquet
from lakerunner_dagster.lake.segments.fingerprints import (
    INDEXED,
    MOST_TRIGRAMS,
    Depth,
    exists_fingerprint,
    index_fingerprints,
    value_fingerprints,
)


def naive_hash(text: str) -> int:
    """The contract's words, one by one: h·31 + byte over the UTF-8 bytes, in wrapping int64."""
    value = 0
    for byte in text.encode():
        value = (value * 31 + byte) % 2**64
    return value - 2**64 if value >= 2**63 else value


def naive_fingerprints(field: str, values: list[str]) -> set[int]:
    found = {f"{field}:{value}" for value in values if value}
    if INDEXED[field] is Depth.TRIGRAMS:
        found |= {f"{field}:{value[at : at + 3]}" for value in values for at in range(len(value) - 2)}
    return {naive_hash(text) for text in found}


def test_the_vectors_of_the_contract() -> None:
    assert exists_fingerprint("resource_service_name") == -7421396210046370992
    assert exists_fingerprint("span_trace_id") == 5450394539053759372
    assert 921231586932607246 in value_fingerprints("resource_service_name", pa.array(["test-service"]), Depth.EXACT)
    assert 5341645454625328437 in value_fingerprints("chq_telemetry_type", pa.array(["traces"]), Depth.TRIGRAMS)
    assert naive_hash("hello world") == 88006926820958916  # of the oracle itself


TEXT = st.text(max_size=12) | st.text("ab", max_size=6) | st.text("aé€\U0001f600", max_size=6)


@settings(max_examples=200, deadline=None)
@given(field=st.sampled_from(sorted(INDEXED)), values=st.lists(TEXT, unique=True, max_size=8))
@example(field="resource_service_name", values=[])
@example(field="resource_service_name", values=[""])
@example(field="resource_service_name", values=["", "ab", "", "abc", "abcd", "c", ""])
def test_value_fingerprints_equal_the_naive_ones(field: str, values: list[str]) -> None:
    values = list(dict.fromkeys(values))
    found = value_fingerprints(field, pa.array(values, pa.string()), INDEXED[field]).tolist()
    assert found == sorted(naive_fingerprints(field, values))


def test_many_and_large_values_are_hashed_in_pieces_without_loss() -> None:
    random_of = random.Random(1)
    values = ["".join(random_of.choices("abcdé", k=random_of.randrange(3000))) for _ in range(400)]
    values.insert(200, "x" * 300_000 + "é" * 300_000)
    found = value_fingerprints("resource_file", pa.array(values).slice(7), Depth.TRIGRAMS).tolist()
    grams = {value[at : at + 3] for value in values[7:] for at in range(len(value) - 2)}
    assert found == sorted({naive_hash(f"resource_file:{text}") for text in {*grams, *values[7:]} if text})


def test_trace_ids_are_all_found_though_their_trigrams_are_few() -> None:
    random_of = random.Random(2)
    ids = [f"{random_of.getrandbits(128):032x}" for _ in range(30_000)]
    found = set(value_fingerprints("span_trace_id", pa.array(ids), Depth.TRIGRAMS).tolist())
    assert found == {
        *(naive_hash(f"span_trace_id:{trace_id}") for trace_id in ids),
        *(naive_hash(f"span_trace_id:{number:03x}") for number in range(16**3)),
    }


def test_random_text_does_not_flood_the_index() -> None:
    random_of = random.Random(3)
    names = ["".join(chr(random_of.randrange(0x4E00, 0x9FFF)) for _ in range(1000)) for _ in range(200)]
    found = value_fingerprints("resource_service_name", pa.array(names), Depth.TRIGRAMS).tolist()
    assert {naive_hash(f"resource_service_name:{name}") for name in names} <= set(found)
    assert len(found) == len(names) + MOST_TRIGRAMS


@pytest.mark.parametrize("encode", [False, True], ids=["plain", "encoded"])
def test_a_table_is_indexed_by_what_its_rows_hold(*, encode: bool) -> None:
    table = pa.table(
        {
            "resource_service_name": ["cart", None, "cart", "cart"],
            "log_level": pa.array(["INFO", "INFO", "WARN", "WARN"]),
            "resource_k8s_cluster_name": pa.array([None] * 4, pa.string()),
            "span_parent_span_id": ["", "", "", ""],
            "chq_timestamp": [1, 2, 3, 4],
            "attr_size": pa.array(["1", None, None, None]),
        }
    )
    expected = {naive_hash(f"{name}:.*") for name in table.column_names if name != "resource_k8s_cluster_name"}
    expected |= naive_fingerprints("resource_service_name", ["cart"]) | naive_fingerprints(
        "log_level", ["INFO", "WARN"]
    )
    assert index_fingerprints(parquet.encode(table) if encode else table) == tuple(sorted(expected))
