"""Encoded sketches are DataDog's bytes, say what was counted, and are refused when they are anything else."""

from __future__ import annotations

import struct
from contextlib import suppress

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.plain_loop import sketches as plain
from lakerunner_dagster.lake.errors import InputError
from lakerunner_dagster.lake.telemetry.sketch import MOST, Sketches, gathered
from lakerunner_dagster.lake.telemetry.sketch_encoding import decoded, encoded
from tests.lake.telemetry.test_sketch import lists, of_values

MAPPING = b"\x02" + struct.pack("<dd", 1.01 / 0.99, 0.0)

counted = st.lists(
    st.tuples(
        st.floats(allow_nan=False, allow_infinity=False) | st.sampled_from([0.0, 1.0, -1.0]),
        st.integers(1, 300) | st.sampled_from([MOST, MOST - 1, 2**44 + 12_345, 2**32, 2**20 - 1]),
    ),
    max_size=30,
)


def sketches_of(columns: list[list[tuple[float, int]]]) -> Sketches:
    owners = np.repeat(np.arange(len(columns)), [len(column) for column in columns])
    flat = [pair for column in columns for pair in column]
    numbers, counts = np.array([value for value, _ in flat]), np.array([count for _, count in flat], np.int64)
    return gathered(owners, numbers, counts, len(columns))


@settings(deadline=None)
@given(columns=st.lists(counted, max_size=6))
def test_every_sketch_survives_its_encoding(columns: list[list[tuple[float, int]]]) -> None:
    sketches = sketches_of(columns)
    assert lists(decoded(encoded(sketches))) == lists(sketches)


@settings(deadline=None)
@given(columns=st.lists(counted, min_size=1, max_size=4))
def test_the_bytes_are_those_of_the_plain_encoder_and_its_decoder_reads_them(
    columns: list[list[tuple[float, int]]],
) -> None:
    blobs = encoded(sketches_of(columns)).to_pylist()
    for column, blob in zip(columns, blobs, strict=True):
        sketch: plain.Sketch = {}
        for value, count in column:
            plain.count_into(sketch, value, count)
        assert blob == plain.encode(sketch)
        assert plain.decode(blob) == sketch


@pytest.mark.parametrize("greatest", [1023, 1024, MOST])
def test_many_sketches_at_once_have_the_bytes_of_each_alone(greatest: int) -> None:
    """So many that counts are looked up where they are small."""
    rng = np.random.default_rng(1)
    values = np.round(rng.lognormal(1, 3, (400, 8)) * rng.choice([-1.0, 0.0, 1.0, 1.0, 1.0], (400, 8)), 2)
    counts = rng.integers(1, 40, values.shape)
    counts[-1, -1] = greatest
    columns = [list(zip(*column, strict=True)) for column in zip(values.tolist(), counts.tolist(), strict=True)]
    blobs = encoded(sketches_of(columns))
    assert blobs.to_pylist() == [encoded(sketches_of([column]))[0].as_py() for column in columns]
    assert lists(decoded(blobs)) == lists(sketches_of(columns))


@pytest.mark.parametrize(
    ("values", "body"),
    [
        ([], ""),
        ([0.0], "0402"),  # zero count: varfloat(1) is 02
        ([1.0], "05010002"),  # positive store, one bin, index 0, count 1
        ([1.0, 1.0], "05010003"),
        ([1.0, 1.0, 1.0], "05010004"),
        ([-1.0], "07010002"),
        ([100.0], "0501cc0302"),  # index 230 is zigzag 460
        ([0.5], "05014502"),  # index -35 is zigzag 69
        ([1.0, 1.03, -1.0, 0.0], "0502" + "0002" + "0202" + "07010002" + "0402"),
        ([-1.03, -1.0], "0702" + "0002" + "0202"),
    ],
)
def test_small_sketches_have_the_bytes_worked_out_by_hand(values: list[float], body: str) -> None:
    assert encoded(of_values(values))[0].as_py().hex() == MAPPING.hex() + body


@pytest.mark.parametrize(
    "blob",
    [
        None,
        b"",
        MAPPING[:-1],
        b"\x02" + struct.pack("<dd", 1.02, 0.0),  # another gamma
        b"\x02" + struct.pack("<dd", 1.01 / 0.99, 1.0),  # another index offset
        b"\x06" + MAPPING[1:],  # another mapping
        MAPPING + bytes.fromhex("05"),  # a store without a number of bins
        MAPPING + bytes.fromhex("050100"),  # a bin without a count
        MAPPING + bytes.fromhex("05030002"),  # fewer bins than said
        MAPPING + bytes.fromhex("05ffffffffffffff7f0002"),  # very many bins
        MAPPING + bytes.fromhex("050100" + "80" * 9 + "02"),  # a number of ten bytes
        MAPPING + bytes.fromhex("0501008d"),  # ends inside a number
        MAPPING + bytes.fromhex("0d01000202"),  # contiguous counts, which we never write
        MAPPING + bytes.fromhex("0501feffffff0f02"),  # an index of no double
        MAPPING + bytes.fromhex("05010001"),  # half a value
        MAPPING + bytes.fromhex("0402" * 4),  # four blocks
    ],
)
def test_bytes_that_are_no_sketch_of_this_lake_are_refused_with_the_reason(blob: bytes | None) -> None:
    good = encoded(of_values([1.0, 2.0]))[0].as_py()
    with pytest.raises(InputError, match="rebuild") as refused:
        decoded(pa.array([good, blob, good], pa.binary()))
    assert refused.value.reason == "corrupt_sketch"


@settings(deadline=None)
@given(body=st.binary(max_size=40))
def test_random_bytes_are_read_or_refused_and_nothing_else(body: bytes) -> None:
    with suppress(InputError):
        sketches = decoded(pa.array([MAPPING + body], pa.binary()))
        assert lists(decoded(encoded(sketches))) == lists(sketches)


def test_a_store_without_a_bin_holds_nothing() -> None:
    good = encoded(of_values([1.0, 2.0]))[0].as_py()
    blobs = [MAPPING + bytes.fromhex("0500"), good, MAPPING + bytes.fromhex("07000500")]
    assert lists(decoded(pa.array(blobs, pa.binary()))) == lists(of_values([], [1.0, 2.0], []))


def test_a_slice_of_encodings_is_read_as_what_it_shows() -> None:
    blobs = encoded(of_values([1.0], [2.0, -3.0], [0.0], []))
    assert lists(decoded(blobs.slice(1, 2))) == lists(of_values([2.0, -3.0], [0.0]))
    assert len(decoded(blobs.slice(4))) == 0
