"""What would break if an identity changed or collided: retries would leave orphans, chq_ids would lead nowhere."""

from __future__ import annotations

from typing import Any
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lakerunner_dagster.lake.segments.ids import inputs_digest, raw_identity, segment_id
from lakerunner_dagster.lake.signals import Signal

WORK: dict[str, Any] = {
    "organization_id": UUID(int=1),
    "instance_num": 1,
    "signal": Signal.LOGS,
    "frequency_ms": 0,
    "dateint": 20251224,
    "hour": 7,
    "inputs": ["a", "b"],
    "operation": "ingest",
    "code_version": "1",
    "ordinal": 0,
}


def test_the_same_work_has_the_id_it_had_in_earlier_releases() -> None:
    assert segment_id(**WORK) == 4101674259646473475
    assert (
        raw_identity("lake", "otel-raw/a/b/logs/c.binpb.gz", "d41d8cd98f00b204e9800998ecf8427e")
        == "431a96c5a2654b8edbaa7c12"
    )


@pytest.mark.parametrize(
    "other",
    [
        {"organization_id": UUID(int=2)},
        {"instance_num": 2},
        {"signal": Signal.TRACES},
        {"frequency_ms": 10_000},
        {"dateint": 20251225},
        {"hour": 8},
        {"inputs": ["a"]},
        {"inputs": ["ab"]},
        {"inputs": ['a", "b']},
        {"inputs": []},
        {"operation": "rebuild"},
        {"code_version": "2"},
        {"ordinal": 1},
    ],
    ids=str,
)
def test_other_work_never_overwrites_a_segment(other: dict[str, Any]) -> None:
    assert segment_id(**WORK | other) != segment_id(**WORK)


@given(inputs=st.lists(st.text(), max_size=5), ordinal=st.integers(0, 9))
def test_a_segment_id_fits_the_contract_and_knows_no_order(inputs: list[str], ordinal: int) -> None:
    work = WORK | {"ordinal": ordinal}
    found = segment_id(**work | {"inputs": inputs})
    assert 0 < found < 2**63
    assert segment_id(**work | {"inputs": [*reversed(inputs), *inputs]}) == found
    assert inputs_digest(reversed(inputs)) == inputs_digest(inputs)


def test_parts_of_a_raw_identity_do_not_run_into_each_other() -> None:
    parts = [("ab", "c", "d"), ("a", "bc", "d"), ("ab", "", "cd"), ("ab", "c", ""), ("ab", "cd", "")]
    identities = {raw_identity(*part) for part in parts}
    assert len(identities) == len(parts)
    assert all(len(identity) == 24 and int(identity, 16) >= 0 for identity in identities)
