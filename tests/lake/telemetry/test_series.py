"""Series ids are the contract's: its vectors, the plain hash, and independence of everything else in the batch."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue

from bench.plain_loop.metrics import series_id
from lakerunner_dagster.lake.settings import Limits
from lakerunner_dagster.lake.telemetry.attributes import Attributes, read_attributes
from lakerunner_dagster.lake.telemetry.series import RESOURCE_KEYS, named_series, series_ids

LIMITS = Limits.model_construct()


def attributes_of(*parents: dict[str, str]) -> Attributes:
    lists = [
        [KeyValue(key=key, value=AnyValue(string_value=text)).SerializeToString() for key, text in parent.items()]
        for parent in parents
    ]
    return read_attributes(pa.array(lists, pa.list_(pa.binary())), LIMITS)


def ids_of(*points: dict[str, str], name: str = "m", kind: str = "gauge", resource: dict[str, str]) -> list[int]:
    nothing = np.zeros(len(points), np.int64)
    named = named_series(pa.array([kind]), pa.array([name]))
    ids = series_ids(
        attributes_of(*points),
        np.arange(len(points)),
        named=named,
        name_of=nothing,
        resources=attributes_of(resource),
        resource_of=nothing,
    )
    return list(ids.tolist())


def test_the_vectors_of_the_contract() -> None:
    assert ids_of({}, name="test_metric", resource={"service.name": "my-service"}) == [4261145125547256768]
    assert ids_of(
        {"http.status": "200", "http.method": "GET"},
        name="http_server_requests",
        kind="count",
        resource={"k8s.pod.name": "pod-123", "service.version": "1.0.0", "service.name": "my-service"},
    ) == [-7350676297560190200]


def test_all_twelve_resource_keys_count_and_no_other() -> None:
    base = {"service.name": "shop"}
    [alone] = ids_of({}, resource=base)
    for key in RESOURCE_KEYS:
        assert ids_of({}, resource={**base, key.upper(): "other"} if key != "service_name" else {key: "x"}) != [alone]
    for other in ("host.name", "_app", "app\0", "service.instance.id"):
        assert ids_of({}, resource={**base, other: "x"}) == [alone]


def test_the_first_key_in_sorted_order_counts_of_those_that_normalise_alike() -> None:
    [plain] = ids_of({"a.b": "1"}, resource={})
    assert ids_of({"a_b": "2", "a.b": "1"}, resource={}) == [plain]
    assert ids_of({"a_b": "1"}, resource={}) == [plain]
    assert ids_of({"a_b": "1", "a.b": ""}, resource={}) == [plain]
    assert ids_of({"a.b": "1", "_hidden": "x", "k" * 300: "y"}, resource={}) == [plain]


keys = st.sampled_from(["a", "b.c", "b_c", "B", "method", "status"])
texts = st.sampled_from(["", "x", "yy", "é"]) | st.text(st.characters(exclude_categories=["Cs"]), max_size=60)


@settings(deadline=None)
@given(
    points=st.lists(st.dictionaries(keys, texts, max_size=4), min_size=1, max_size=60),
    resource=st.dictionaries(st.sampled_from(["app", "service.name", "k8s.pod.ip", "os"]), texts, max_size=3),
)
def test_an_id_is_the_plain_hash_of_the_point_s_own_pairs(
    points: list[dict[str, str]], resource: dict[str, str]
) -> None:
    expected = []
    for point in points:
        pairs = {"metric_name": "m", "chq_metric_type": "gauge"}
        for group, attributes in (("resource", resource), ("attr", point)):
            for key in sorted(attributes):
                if attributes[key] and (group == "attr" or key != "os"):
                    pairs.setdefault(f"{group}_{key.lower().replace('.', '_')}", attributes[key])
        expected.append(series_id(pairs))
    assert ids_of(*points, resource=resource) == expected


@pytest.mark.parametrize("length", [1, 1_000, 200_000])
def test_a_long_value_is_hashed_whole(length: int) -> None:
    assert ids_of({"a": "z" * length}, {"a": "z"}, resource={}) == [
        series_id({"metric_name": "m", "chq_metric_type": "gauge", "attr_a": "z" * size}) for size in (length, 1)
    ]


def test_many_points_of_few_values_meet_the_looked_up_hashes() -> None:
    points = [{"a": str(number % 7), "b": str(number % 3)} for number in range(5_000)]
    expected = {
        (one["a"], one["b"]): series_id(
            {"metric_name": "m", "chq_metric_type": "gauge", "attr_a": one["a"], "attr_b": one["b"]}
        )
        for one in points[:21]
    }
    assert ids_of(*points, resource={}) == [expected[one["a"], one["b"]] for one in points]
