"""What would break if a key were routed wrongly: an organization would see another's telemetry, or nobody any."""

from __future__ import annotations

from uuid import UUID

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lakerunner_dagster.lake.errors import InputError
from lakerunner_dagster.lake.lrdb.profiles import PrefixMapping
from lakerunner_dagster.lake.notifications.routing import Route, route, uninteresting
from lakerunner_dagster.lake.signals import Signal

ONE = UUID("9f1c7e0a-1f5b-4a8e-9a43-5f3f6d2b7c11")
TWO = UUID("00000000-0000-4000-8000-000000000002")


def mapped(prefix: str, organization_id: UUID, collector: str, signal: Signal) -> PrefixMapping:
    return PrefixMapping("lake", prefix, signal, organization_id, collector)


def refusal(key: str, mappings: list[PrefixMapping] | None = None) -> str:
    with pytest.raises(InputError) as caught:
        route(key, mappings or [])
    return caught.value.reason


@pytest.mark.parametrize(
    ("rest", "signal"),
    [
        ("logs/x.binpb.gz", Signal.LOGS),
        ("2026/04/metrics/x.binpb", Signal.METRICS),
        ("traces/logs/metrics_1.gz", Signal.TRACES),
        ("logs_122666952.binpb.gz", Signal.LOGS),
        ("2026/24/19/metrics_1_2.binpb.gz", Signal.METRICS),
        ("logs", Signal.LOGS),
        ("LOGS/traces_1", Signal.TRACES),
        ("logs_1/traces_1", Signal.TRACES),
        ("a b/ü/%41/+/traces_1", Signal.TRACES),
    ],
)
def test_the_signal_is_told_by_the_first_path_element_else_by_the_file_name(rest: str, signal: Signal) -> None:
    assert route(f"otel-raw/{ONE}/edge/{rest}", []) == Route(ONE, "edge", signal)


@pytest.mark.parametrize("rest", ["x.binpb.gz", "otel-logs.binpb.gz", "Logs_1", "_logs", "log_1", ""])
def test_a_key_that_tells_no_signal_is_refused(rest: str) -> None:
    assert refusal(f"otel-raw/{ONE}/edge/{rest}") == "no_signal"
    assert refusal(f"otel-raw/{ONE}/edge") == "no_signal"


@pytest.mark.parametrize("collector", ["a", "0", "Edge-1.eu_west", "a..b", "x" * 64])
def test_collectors_that_can_be_a_key_are_taken(collector: str) -> None:
    assert route(f"otel-raw/{ONE}/{collector}/logs/x", []).collector == collector


@pytest.mark.parametrize(
    "collector",
    [
        "",
        ".",
        "..",
        "-a",
        "_a",
        ".a",
        "a b",
        "a+b",
        "a%b",
        "ü",
        "a'b",
        'a"b',
        "x" * 65,
        "a\n",
        "a|b",
        "a,b",
        "a...b",
        "a...",
    ],
)
def test_collectors_that_would_break_a_key_are_refused(collector: str) -> None:
    assert refusal(f"otel-raw/{ONE}/{collector}/logs/x") == "bad_collector_name"


def test_an_organization_in_capitals_is_the_same_organization() -> None:
    assert route(f"otel-raw/{str(ONE).upper()}/edge/logs/x", []).organization_id == ONE


@pytest.mark.parametrize(
    "key",
    [
        "otel-raw/not-a-uuid/edge/logs/x",
        f"otel-raw/{{{ONE}}}/edge/logs/x",
        f"otel-raw/urn:uuid:{ONE}/edge/logs/x",
        f"otel-raw/{ONE.hex}/edge/logs/x",
        f"otel-raw/{ONE}",
        f"otel-raw//{ONE}/edge/logs/x",
        f"/otel-raw/{ONE}/edge/logs/x",
        f"Otel-raw/{ONE}/edge/logs/x",
        f"backup/otel-raw/{ONE}/edge/logs/x",
        "otel-raw/logs/x",
        "logs-raw/x",
        "x",
        "",
    ],
)
def test_other_keys_need_a_mapping(key: str) -> None:
    assert refusal(key) == "no_route"


def test_the_longest_mapped_prefix_decides() -> None:
    short = mapped("logs-raw/", ONE, "all", Signal.LOGS)
    long = mapped("logs-raw/eu/", TWO, "eu", Signal.LOGS)
    other = mapped("metrics-raw/eu/berlin/", TWO, "eu", Signal.METRICS)
    for mappings in ([short, long, other], [other, long, short]):
        assert route("logs-raw/eu/1.gz", mappings) == Route(TWO, "eu", Signal.LOGS)
        assert route("logs-raw/us/1.gz", mappings) == Route(ONE, "all", Signal.LOGS)
        assert refusal("traces-raw/1.gz", mappings) == "no_route"


@pytest.mark.parametrize(
    ("key", "signal"),
    [
        ("otel-raw/logs/1.gz", Signal.LOGS),
        ("otel-raw/metrics/1.gz", Signal.METRICS),
        ("otel-raw/x/traces_1.gz", Signal.TRACES),
        ("otel-raw/traces-raw/1.gz", Signal.TRACES),
    ],
)
def test_a_prefix_mapped_for_every_signal_takes_the_key_s_own(key: str, signal: Signal) -> None:
    mappings = [mapped("otel-raw/", ONE, "edge", each) for each in Signal]
    assert route(key, mappings).signal == signal
    assert refusal("otel-raw/1.gz", mappings) == "no_route"


def test_a_mapping_is_no_way_around_the_organization_in_the_key() -> None:
    mapping = mapped("otel-raw/", TWO, "edge", Signal.LOGS)
    assert route(f"otel-raw/{ONE}/edge/logs/x", [mapping]).organization_id == ONE
    assert refusal(f"otel-raw/{ONE}/edge/x", [mapping]) == "no_signal"


def test_a_mapped_collector_must_be_one_too() -> None:
    assert refusal("logs-raw/1", [mapped("logs-raw/", ONE, "a b", Signal.LOGS)]) == "bad_collector_name"


@pytest.mark.parametrize(
    ("key", "reason"),
    [("db/a", "segment"), ("db/", "directory"), ("a/", "directory"), ("dbx/a", None), ("a/db/b", None), ("db", None)],
)
def test_what_is_none_of_ours_is_told_by_its_key(key: str, reason: str | None) -> None:
    assert uninteresting(key) == reason


@settings(max_examples=200, deadline=None)
@given(st.lists(st.text(max_size=5) | st.sampled_from(["otel-raw", str(ONE), "logs", "..", "edge"]), max_size=6))
def test_any_key_has_a_route_or_a_reason(elements: list[str]) -> None:
    found = outcome("/".join(elements), [mapped("edge", TWO, "edge", Signal.LOGS)])
    if isinstance(found, InputError):
        assert found.reason in {"bad_collector_name", "no_signal", "no_route"}
    else:
        assert found.organization_id == TWO or elements[:2] == ["otel-raw", str(ONE)]


def outcome(key: str, mappings: list[PrefixMapping]) -> Route | InputError:
    try:
        return route(key, mappings)
    except InputError as error:
        return error
