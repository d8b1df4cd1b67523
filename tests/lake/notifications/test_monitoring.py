"""What would break if an adapter that hangs, or has lost Kafka, looked well to whoever asks."""

from __future__ import annotations

import json
from urllib.error import HTTPError
from urllib.parse import urlsplit
from urllib.request import urlopen

import pytest

from lakerunner_dagster.lake.errors import ConfigurationError
from lakerunner_dagster.lake.notifications.metrics import AdapterMetrics
from lakerunner_dagster.lake.notifications.monitoring import Monitor, Pulse
from tests.lake.notifications.conftest import Lake


def asked(url: str) -> tuple[int, str]:
    try:
        with urlopen(url, timeout=30) as answer:  # noqa: S310  # an address of ours
            return answer.status, answer.read().decode()
    except HTTPError as refusal:
        with refusal:
            return refusal.code, refusal.read().decode()


def test_a_loop_that_hangs_and_what_is_away_are_told(lake: Lake) -> None:
    now, away = [0.0], ["kafka"]
    pulse = Pulse(stall_seconds=10.0, clock=lambda: now[0])
    with Monitor(AdapterMetrics("x"), lambda: list(away), pulse, lake.settings) as monitor:
        assert asked(f"{monitor.url}/healthz")[0] == 200
        pulse.beat("a")
        pulse.beat("b")
        now[0] = 10.0
        pulse.beat("b")
        assert asked(f"{monitor.url}/healthz")[0] == 200
        now[0] = 10.1
        status, said = asked(f"{monitor.url}/healthz")
        assert (status, json.loads(said)) == (503, {"stalled": ["a"]})
        status, said = asked(f"{monitor.url}/readyz")
        assert (status, json.loads(said)) == (503, {"troubles": ["kafka"]})
        away.clear()
        assert asked(f"{monitor.url}/readyz")[0] == 200


def test_what_is_in_hand_and_how_late_it_is_can_be_read(lake: Lake) -> None:
    now = [1000.0]
    metrics = AdapterMetrics("x", now=lambda: now[0])
    with Monitor(metrics, list, Pulse(10.0), lake.settings) as monitor:
        metrics.hold(3)
        metrics.found("a", 990.0)
        metrics.found("b", None)
        now[0] = 1001.5
        text = asked(f"{monitor.url}/metrics")[1]
        assert 'lakerunner_notifications_in_hand{adapter="x"} 3\n' in text
        assert 'lakerunner_notifications_lag_seconds{adapter="x"} 11.5\n' in text
        metrics.hold(-3)
        metrics.found("a", None)
        text = asked(f"{monitor.url}/metrics")[1]
        assert 'lakerunner_notifications_in_hand{adapter="x"} 0\n' in text
        assert 'lakerunner_notifications_lag_seconds{adapter="x"} 0\n' in text


def test_a_taken_port_is_said_with_the_settings_that_choose_it(lake: Lake) -> None:
    with Monitor(AdapterMetrics("x"), list, Pulse(10.0), lake.settings) as monitor:
        taken = lake.settings.model_copy(update={"monitor_port": urlsplit(monitor.url).port})
        with pytest.raises(ConfigurationError, match="LAKERUNNER_MONITOR_PORT"):
            Monitor(AdapterMetrics("x"), list, Pulse(10.0), taken)
