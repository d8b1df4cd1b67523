"""Records and their attributes are checked apart: together that takes and refuses what upb does of the whole."""

from __future__ import annotations

from functools import reduce
from random import Random

import pytest
from google.protobuf.message import DecodeError
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue

from lakerunner_dagster.lake.settings import Limits
from lakerunner_dagster.lake.signals import Signal
from lakerunner_dagster.lake.telemetry.decode import decode
from lakerunner_dagster.lake.telemetry.wire import REQUESTS
from tests.lake.telemetry.metric_requests import REQUESTS as METRIC_REQUESTS
from tests.lake.telemetry.otlp import ORGANIZATION, delimited, mutated, payload

PLACES = {
    "log record": (Signal.LOGS, (1, 2, 2, 6)),
    "span": (Signal.TRACES, (1, 2, 2, 9)),
    "event of a span": (Signal.TRACES, (1, 2, 2, 11, 3)),
    "link of a span": (Signal.TRACES, (1, 2, 2, 13, 4)),
    "gauge": (Signal.METRICS, (1, 2, 2, 5, 1, 7)),
    "sum": (Signal.METRICS, (1, 2, 2, 7, 1, 7)),
    "histogram": (Signal.METRICS, (1, 2, 2, 9, 1, 9)),
    "exponential histogram": (Signal.METRICS, (1, 2, 2, 10, 1, 1)),
    "summary": (Signal.METRICS, (1, 2, 2, 11, 1, 7)),
    "exemplar of a sum": (Signal.METRICS, (1, 2, 2, 7, 1, 5, 7)),
}
"""The fields' numbers on the way from a request to an attribute."""

GOOD = KeyValue(key="key", value=AnyValue(string_value="text")).SerializeToString()
DAMAGED = {
    "bad utf-8 in the key": GOOD.replace(b"key", b"k\xffy"),
    "bad utf-8 in the value": GOOD.replace(b"text", b"te\xff\xff"),
    "cut short": GOOD[:-1],
    "a length beyond the end": GOOD.replace(b"\x0a\x03key", b"\x0a\x7fkey"),
    "field zero": b"\x00\x01" + GOOD,
    "an unclosed group": GOOD + b"\x1b",
    "a closed group that nobody knows": GOOD + b"\x1b\x1c",
    "a number in the key's place": GOOD + b"\x08\x07",
    "nothing": b"",
}


def request(path: tuple[int, ...], *attributes: bytes) -> bytes:
    *way, last = path
    record = b"".join(delimited(last, attribute) for attribute in attributes)
    return reduce(lambda inner, number: delimited(number, inner), reversed(way), record)


def nested(depth: int) -> bytes:
    """An attribute that is an array of an array of … a string."""
    value = AnyValue(string_value="core").SerializeToString()
    for _ in range(depth):
        value = delimited(5, delimited(1, value))
    return delimited(1, b"deep") + delimited(2, value)


def refused_by_upb(signal: Signal, data: bytes) -> bool:
    try:
        REQUESTS[signal].FromString(data)
    except DecodeError:
        return True
    return False


def refused(signal: Signal, *requests: bytes) -> dict[int, str]:
    payloads = [payload(data, number) for number, data in enumerate(requests, start=1)]
    decoded = decode(signal, payloads, ORGANIZATION, Limits.model_construct())
    return {ordinal: error.reason for ordinal, error in decoded.failures.items()}


@pytest.mark.parametrize("attribute", DAMAGED.values(), ids=DAMAGED.keys())
@pytest.mark.parametrize(("signal", "path"), PLACES.values(), ids=PLACES.keys())
def test_a_damaged_attribute_is_refused_wherever_upb_refuses_it(
    signal: Signal, path: tuple[int, ...], attribute: bytes
) -> None:
    damaged = request(path, GOOD, attribute, GOOD)
    expected = {1: "corrupt_protobuf"} if refused_by_upb(signal, damaged) else {}
    assert refused(signal, request(path, GOOD), damaged, request(path, GOOD, GOOD)) == expected


@pytest.mark.parametrize(("signal", "path"), PLACES.values(), ids=PLACES.keys())
def test_an_attribute_may_be_as_deep_as_upb_takes_it_where_it_stands(signal: Signal, path: tuple[int, ...]) -> None:
    deepest = max(depth for depth in range(60) if not refused_by_upb(signal, request(path, nested(depth))))
    too_deep = request(path, nested(deepest + 1))
    assert refused(signal, request(path, nested(deepest)), too_deep) == {1: "corrupt_protobuf"}


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(whole=METRIC_REQUESTS, seed=st.integers(0, 2**32))
def test_damaged_metrics_are_taken_or_refused_exactly_as_upb_does(
    whole: ExportMetricsServiceRequest, seed: int
) -> None:
    damaged = mutated(whole.SerializeToString(), Random(seed))
    expected = {0: "corrupt_protobuf"} if refused_by_upb(Signal.METRICS, damaged) else {}
    assert refused(Signal.METRICS, damaged) == expected
