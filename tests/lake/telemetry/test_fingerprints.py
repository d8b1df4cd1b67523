"""Fingerprints tell kinds apart and instances not, and do not depend on what else is in the batch."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue
from opentelemetry.proto.resource.v1.resource_pb2 import Resource
from opentelemetry.proto.trace.v1.trace_pb2 import ResourceSpans, ScopeSpans, Span

from lakerunner_dagster.lake.settings import Limits
from lakerunner_dagster.lake.signals import Signal
from lakerunner_dagster.lake.telemetry.decode import decode
from lakerunner_dagster.lake.telemetry.fingerprints import KINDS_OF_WORK, message_fingerprints
from tests.lake.telemetry.otlp import EVENT_TIME_MS, ORGANIZATION, payload


def of(*messages: str | None) -> list[int | None]:
    found: list[int | None] = message_fingerprints(pa.array(messages, pa.string())).to_pylist()
    return found


@pytest.mark.parametrize(
    "alike",
    [
        ("user 17 logged in", "user 4711 logged in"),
        ("took 1.5ms", "took 230ms"),
        ("request d3ad2e02-1b14-9128-a0a9-64daba7e956e done", "request 0b1e2d3c-ffff-4444-aaaa-bbbbccccddd0 done"),
        ("from 10.0.0.1:8080 to 10.0.0.2:443", "from 192.168.7.9:1 to 172.16.0.1:65535"),
        ("ids [1, 2, 3]", "ids [42]"),
        ("at 2025-07-23T21:58:50.146Z ok", "at 2026-01-01T00:00:00.000Z ok"),
        ('"GET /user/7 HTTP/1.1" 200', '"GET /user/81 HTTP/2" 404'),
    ],
)
def test_messages_of_one_template_have_one_fingerprint(alike: tuple[str, str]) -> None:
    first, second = of(*alike)
    assert first == second


def test_messages_of_different_templates_differ() -> None:
    found = of("user 17 logged in", "user 17 logged out", "17", "", "User logged in")
    assert len(set(found)) == len(found)


def test_a_fingerprint_is_fixed_for_ever_and_null_without_a_message() -> None:
    known = -6096515556904819925  # xxh64 of "user * logged in"
    assert of("user 17 logged in", None, "user 18 logged in") == [known, None, known]


def span(name: str, attributes: dict[str, Any]) -> Span:
    return Span(
        start_time_unix_nano=EVENT_TIME_MS * 1_000_000,
        name=name,
        kind=Span.SPAN_KIND_CLIENT,
        attributes=pairs(attributes),
    )


def of_spans(resource: dict[str, str], *spans: Span) -> list[int]:
    request = ExportTraceServiceRequest(
        resource_spans=[
            ResourceSpans(resource=Resource(attributes=pairs(resource)), scope_spans=[ScopeSpans(spans=spans)])
        ]
    )
    limits = Limits.model_construct(columns=1)
    decoded = decode(Signal.TRACES, [payload(request.SerializeToString())], ORGANIZATION, limits)
    found: list[int] = decoded.table["chq_fingerprint"].to_pylist()
    return found


def span_fingerprint(name: str, resource: dict[str, str] | None = None, /, **attributes: str) -> int:
    """Attribute keys are given with ``__`` for ``.``."""
    (found,) = of_spans(resource or {}, span(name, attributes))
    return found


def pairs(attributes: dict[str, Any]) -> list[KeyValue]:
    return [KeyValue(key=key.replace("__", "."), value=AnyValue(string_value=text)) for key, text in attributes.items()]


def test_spans_are_told_apart_by_their_work_not_by_their_instance() -> None:
    query = span_fingerprint("a", db__system="mysql", db__name="shop", db__operation="SELECT")
    assert query == span_fingerprint("b", db__system="mysql", db__name="shop", db__operation="SELECT", peer="10.0.0.1")
    assert query != span_fingerprint("a", db__system="mysql", db__name="shop", db__operation="INSERT")
    assert query == span_fingerprint("a", db__system__name="mysql", db__namespace="shop", db__operation__name="SELECT")
    assert span_fingerprint("GET", http__method="GET", http__route="/a") != span_fingerprint(
        "GET", http__method="GET", http__route="/b"
    )
    assert span_fingerprint("publish", messaging__system="kafka") != span_fingerprint(
        "publish", messaging__system="sqs"
    )


def test_spans_without_known_work_are_told_apart_by_the_template_of_their_name() -> None:
    assert span_fingerprint("job 17") == span_fingerprint("job 18", other="x")
    assert span_fingerprint("job 17") != span_fingerprint("task 17")


@pytest.mark.parametrize("key", ["k8s.cluster.name", "k8s.namespace.name", "service.name"])
def test_spans_of_different_places_differ(key: str) -> None:
    assert span_fingerprint("a", {key: "x"}) != span_fingerprint("a", {key: "y"})
    assert span_fingerprint("a", {key: "x", "host.name": "1"}) == span_fingerprint("a", {key: "x", "host.name": "2"})


def test_a_span_has_its_fingerprint_whatever_many_others_are_beside_it() -> None:
    keys = [part[0] for work in KINDS_OF_WORK for part in work]
    spans = [span(f"job {n}", {key: f"{key} {n}" for key in keys[n % 3 :]}) for n in range(300)]
    together = of_spans({"service.name": "s"}, *spans)
    assert len(set(together)) == 300
    assert together[::50] == [of_spans({"service.name": "s"}, one)[0] for one in spans[::50]]
