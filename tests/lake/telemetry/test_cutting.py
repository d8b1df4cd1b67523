"""What would break if a large request were cut: a record lost, told twice, or told otherwise than in the whole."""

from __future__ import annotations

import gzip
import json
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import pytest
from google.protobuf.message import DecodeError, Message
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, InstrumentationScope, KeyValue
from opentelemetry.proto.logs.v1.logs_pb2 import LogRecord, ResourceLogs, ScopeLogs
from opentelemetry.proto.metrics.v1.metrics_pb2 import Gauge, Metric, NumberDataPoint, ResourceMetrics, ScopeMetrics

from lakerunner_dagster.lake.byte_ranges import FileRanges
from lakerunner_dagster.lake.errors import InputError
from lakerunner_dagster.lake.segments.shared import spread
from lakerunner_dagster.lake.settings import Limits
from lakerunner_dagster.lake.signals import Signal
from lakerunner_dagster.lake.telemetry import cutting
from lakerunner_dagster.lake.telemetry.cutting import cut
from lakerunner_dagster.lake.telemetry.decode import Decoded, decode
from tests.lake.requests import resource
from tests.lake.telemetry import metric_requests, otlp
from tests.lake.telemetry.otlp import EVENT_TIME_MS, ORGANIZATION, delimited, mutated, payload, tangled

LIMITS = Limits.model_construct()
KEY = "otel-raw/a/b/logs/large.binpb"
NOW_NS = EVENT_TIME_MS * 1_000_000
REQUESTS = {**otlp.REQUESTS, Signal.METRICS: metric_requests.REQUESTS}

fuzz = settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large]
)


def decoded_in_pieces(signal: Signal, pieces: Sequence[bytes]) -> list[Decoded]:
    """Each piece decoded by itself, its records numbered on from the one before."""
    found: list[Decoded] = []
    for piece in pieces:
        before = sum(one.records_read[0] for one in found)
        found.append(decode(signal, [replace(payload(piece), first_ordinal=before)], ORGANIZATION, LIMITS))
    return found


def rows(decoded: Decoded) -> Counter[str]:
    """What each row says, whichever of its attributes have got a column."""
    return Counter(json.dumps(_told(row, decoded), sort_keys=True, default=repr) for row in _plain(decoded))


def _plain(decoded: Decoded) -> list[dict[str, Any]]:
    listed: list[dict[str, Any]] = spread(decoded.table.drop_columns(["_file"])).to_pylist()
    return listed


def _told(row: dict[str, Any], decoded: Decoded) -> dict[str, Any]:
    attributes: defaultdict[str, list[str]] = defaultdict(list)
    for group, texts in json.loads(row.pop("chq_overflow") or "{}").items():
        for key, text in texts.items():
            attributes[f"{group} {key}"] += text if isinstance(text, list) else [text]
    for column, key in decoded.original_keys.items():
        if (text := row.pop(column)) is not None:
            attributes[f"{column.partition('_')[0]} {key}"].append(text)
    known = {name: value for name, value in row.items() if value is not None}
    return known | {"attributes": {key: sorted(texts) for key, texts in attributes.items()}}


def cut_or_refused(signal: Signal, request: bytes, max_bytes: int) -> tuple[list[bytes], InputError | None]:
    try:
        return list(cut(signal, request, KEY, max_bytes)), None
    except InputError as error:
        return [], error


def assert_cut_as_the_whole(signal: Signal, request: bytes, max_bytes: int) -> int:
    """How many pieces there are; 0 where the request cannot be cut so small."""
    whole = decode(signal, [payload(request)], ORGANIZATION, LIMITS)
    pieces, refusal = cut_or_refused(signal, request, max_bytes)
    if refusal is not None:
        assert refusal.reason in {"part_too_large", *(error.reason for error in whole.failures.values())}
        assert KEY in str(refusal)
        return 0
    assert max(map(len, pieces)) <= max_bytes
    parts = decoded_in_pieces(signal, pieces)
    failures = [error.reason for part in parts for error in part.failures.values()]
    if whole.failures:
        assert failures[:1] == [whole.failures[0].reason]
        return 0
    assert failures == []
    assert sum(part.records_read[0] for part in parts) == whole.records_read[0]
    assert sum((Counter(part.rejected[0]) for part in parts), Counter()) == whole.rejected[0]
    assert sum((rows(part) for part in parts), Counter()) == rows(whole)
    return len(pieces)


@pytest.mark.parametrize("signal", list(Signal))
@fuzz
@given(data=st.data(), max_bytes=st.integers(60, 1500))
def test_the_pieces_of_a_request_say_what_it_says(signal: Signal, data: st.DataObject, max_bytes: int) -> None:
    request: Message = data.draw(REQUESTS[signal])
    assert_cut_as_the_whole(signal, request.SerializeToString(), max_bytes)


@pytest.mark.parametrize("signal", list(Signal))
@fuzz
@given(data=st.data(), seed=st.integers(0, 2**32), max_bytes=st.integers(60, 1500))
def test_the_pieces_of_a_tangled_request_say_what_upb_says_of_the_whole(
    signal: Signal, data: st.DataObject, seed: int, max_bytes: int
) -> None:
    request: Message = data.draw(REQUESTS[signal])
    assert_cut_as_the_whole(signal, tangled(request, Random(seed)), max_bytes)


@pytest.mark.parametrize("signal", list(Signal))
@fuzz
@given(data=st.data(), seed=st.integers(0, 2**32), max_bytes=st.integers(60, 1500), window=st.integers(16, 200))
def test_a_damaged_request_is_refused_in_pieces_as_it_is_whole(
    signal: Signal, data: st.DataObject, seed: int, max_bytes: int, window: int
) -> None:
    request: Message = data.draw(REQUESTS[signal])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cutting, "WINDOW_BYTES", window)
        assert_cut_as_the_whole(signal, mutated(request.SerializeToString(), Random(seed)), max_bytes)


@pytest.mark.parametrize("signal", list(Signal))
def test_real_files_are_cut_at_every_level(real_data: Path, signal: Signal) -> None:
    requests = [gzip.decompress(file.read_bytes()) for file in (real_data / signal).glob("*.binpb.gz")]
    for request in sorted(requests, key=len)[:2]:
        assert assert_cut_as_the_whole(signal, request, len(request) // 10) > 5


def logs(records: int, *, ahead: bytes = b"", behind: bytes = b"") -> bytes:
    """A request of one resource and scope, whose other fields stand before and behind its records."""
    wire = b"".join(
        delimited(2, LogRecord(time_unix_nano=NOW_NS, body=AnyValue(string_value=f"record {n}")).SerializeToString())
        for n in range(records)
    )
    return delimited(1, delimited(1, resource("shop").SerializeToString()) + delimited(2, ahead + wire + behind))


SCOPE = delimited(1, InstrumentationScope(name="scope", attributes=[KeyValue(key="a")]).SerializeToString())


@pytest.mark.parametrize(
    ("ahead", "behind"),
    [
        (SCOPE, b""),
        (b"", SCOPE),
        (SCOPE, SCOPE),
        (b"\x0b\x08\x01\x12\x02ab\x13\x14\x0c", b"\x10\x05"),
        (b"\x8a\x80\x80\x80\x00\x00", b"\x0a\x80\x80\x80\x80\x80\x80\x80\x80\x80\x00"),
        (b"\x3d" + bytes(4), b"\x39" + bytes(8)),
    ],
    ids=["scope first", "scope last", "scope in two", "group and another type", "long numbers", "unknown fixed fields"],
)
def test_what_records_inherit_is_in_each_piece_wherever_it_stands(ahead: bytes, behind: bytes) -> None:
    request = logs(200, ahead=ahead, behind=behind)
    assert assert_cut_as_the_whole(Signal.LOGS, request, 400) > 10


@pytest.mark.parametrize(
    "bad",
    [
        b"\x0f",
        b"\x0c",
        b"\x0b",
        b"\x12",
        b"\x12\x05ab",
        b"\x08" + b"\xff" * 10 + b"\x01",
        b"\x12" + b"\xff" * 9 + b"\x01",
        b"\x92\x80\x80\x80\x10\x00",
        b"\x92\x80\x80\x80\x80\x00\x00",
        b"\x08",
        b"\x09\0\0",
    ],
    ids=[
        "no wire type",
        "end of no group",
        "group without end",
        "no length",
        "length beyond the end",
        "number of 11 bytes",
        "length of 2^64-1",
        "tag beyond 32 bits",
        "tag of 6 bytes",
        "no number",
        "cut off",
    ],
)
def test_a_broken_field_behind_all_records_is_found_as_upb_finds_it(bad: bytes) -> None:
    for request in (logs(200, behind=bad), logs(200) + bad):
        with pytest.raises(DecodeError):
            ExportLogsServiceRequest.FromString(request)
        assert_cut_as_the_whole(Signal.LOGS, request, 400)
        with pytest.raises(InputError) as caught:
            list(cut(Signal.LOGS, request, KEY, 400))
        assert caught.value.reason == "corrupt_protobuf"


def points(count: int) -> list[NumberDataPoint]:
    return [NumberDataPoint(time_unix_nano=NOW_NS, as_double=float(number)) for number in range(count)]


def metrics(*wire: bytes) -> bytes:
    """A request of metrics given as the wire has them."""
    return delimited(1, delimited(2, b"".join(delimited(2, metric) for metric in wire)))


def test_a_metric_is_cut_between_its_points() -> None:
    metric = Metric(name="queue.length", unit="1", gauge=Gauge(data_points=points(500)))
    few = Metric(name="few", gauge=Gauge(data_points=points(2)))
    scope = ScopeMetrics(metrics=[few, metric, few])
    request = ExportMetricsServiceRequest(resource_metrics=[ResourceMetrics(scope_metrics=[scope])])
    assert assert_cut_as_the_whole(Signal.METRICS, request.SerializeToString(), 600) > 10


def test_a_large_metric_with_two_kinds_of_data_is_refused_and_a_small_one_is_as_upb_has_it() -> None:
    gauge = delimited(5, Gauge(data_points=points(30)).SerializeToString())
    small = delimited(1, b"two") + gauge + delimited(7, Gauge(data_points=points(10)).SerializeToString())
    assert assert_cut_as_the_whole(Signal.METRICS, metrics(small, small), 900) == 2
    with pytest.raises(InputError, match="in several pieces") as caught:
        list(cut(Signal.METRICS, metrics(small, small), KEY, 600))
    assert caught.value.reason == "part_too_large"


def test_what_cannot_be_cut_is_refused_with_its_size() -> None:
    record = LogRecord(body=AnyValue(string_value="x" * 500))
    one = ResourceLogs(scope_logs=[ScopeLogs(log_records=[record] * 3)])
    with pytest.raises(InputError, match=f"{record.ByteSize()} bytes that cannot be cut") as caught:
        list(cut(Signal.LOGS, ExportLogsServiceRequest(resource_logs=[one]).SerializeToString(), KEY, 400))
    assert caught.value.reason == "part_too_large"


def test_what_would_be_repeated_is_a_small_part_of_each_piece() -> None:
    large = resource("x" * 150)
    one = ResourceLogs(resource=large, scope_logs=[ScopeLogs(log_records=[LogRecord()] * 500)])
    request = ExportLogsServiceRequest(resource_logs=[one]).SerializeToString()
    with pytest.raises(InputError, match="more than 100 besides") as caught:
        list(cut(Signal.LOGS, request, KEY, 415))
    assert caught.value.reason == "part_too_large"
    assert sum(map(len, cut(Signal.LOGS, request, KEY, 1000))) < 2 * len(request)


def test_a_file_is_cut_as_its_bytes_are(tmp_path: Path) -> None:
    request = logs(500, ahead=SCOPE)
    path = tmp_path / "request"
    path.write_bytes(request)
    with FileRanges(path) as ranges:
        assert list(cut(Signal.LOGS, ranges, KEY, 1000)) == list(cut(Signal.LOGS, request, KEY, 1000))
