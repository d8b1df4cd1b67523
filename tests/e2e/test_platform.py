"""The whole path with nothing replaced: a file or an event in, rows in a published segment out, and seen in the UI."""

from __future__ import annotations

import http.client
import json
import os
from contextlib import closing
from datetime import UTC, datetime
from hashlib import md5
from http import HTTPStatus
from pathlib import Path
from urllib.parse import quote_plus

import pytest

from lakerunner_dagster.instance.lanes import BACKGROUND_TAG, TRIGGER_TAG
from lakerunner_dagster.lake.lrdb import check
from lakerunner_dagster.lake.signals import Signal
from lakerunner_dagster.lake.stages import STAGES
from lakerunner_dagster.local.demo import ORGANIZATIONS
from tests.e2e.browser import needs_chromium, page
from tests.e2e.conftest import PATIENCE_SECONDS, REMOTE_BUCKET, Deployment
from tests.lake.requests import gauges, logs, minutes
from tests.lake.world import now_ms

ACME, GLOBEX = ORGANIZATIONS


def _key(organization: str, collector: str, signal: Signal, name: str) -> str:
    return f"otel-raw/{organization}/{collector}/{signal}/{name}"


def _put(bucket: Path, key: str, data: bytes) -> str:
    (bucket / key).parent.mkdir(parents=True, exist_ok=True)
    (bucket / key).write_bytes(data)
    return key


def _recent(count: int) -> list[int]:
    return minutes(now_ms() - count * 60_000, count)


@pytest.fixture(scope="module")
def dropped(deployment: Deployment) -> str:
    """Key of a file of 7 log records in the watched bucket."""
    key = _key(str(ACME.organization_id), "edge", Signal.LOGS, "dropped.binpb.gz")
    return _put(deployment.watched, key, logs("dropped", _recent(7)))


@pytest.fixture(scope="module")
def told(deployment: Deployment, dropped: str) -> str:
    """Key of a file of 5 data points in a bucket that nobody watches, told of twice in one event by HTTP."""
    assert dropped, "both are on their way at once"
    key = _key(str(GLOBEX.organization_id), "far-away", Signal.METRICS, "a name+with%41 ünï.binpb.gz")
    data = gauges("told", _recent(5))
    _put(deployment.remote, key, data)
    record = {
        "eventName": "ObjectCreated:Put",
        "eventTime": datetime.now(UTC).isoformat(),
        "s3": {
            "bucket": {"name": REMOTE_BUCKET},
            "object": {
                "key": quote_plus(key, safe="/"),
                "size": len(data),
                "eTag": md5(data, usedforsecurity=False).hexdigest(),
            },
        },
    }
    with closing(http.client.HTTPConnection("127.0.0.1", deployment.http_port, timeout=60)) as connection:
        connection.request("POST", "/", json.dumps({"Records": [record, record]}))
        assert connection.getresponse().status == HTTPStatus.OK
    return key


def test_an_event_by_http_brings_a_new_source_in(deployment: Deployment, told: str) -> None:
    deployment.wait_until_queryable(told, 5)
    partition = deployment.partition(told)
    assert partition.endswith("|globex/far-away")
    assert deployment.wait_until_materialised("metric_segments", partition).counts["records written"] == 5


def test_a_file_in_the_bucket_becomes_queryable_and_its_day_green(deployment: Deployment, dropped: str) -> None:
    deployment.wait_until_queryable(dropped, 7)
    partition = deployment.partition(dropped)
    assert partition.endswith("|acme/edge")
    deployment.wait_until_materialised("raw_logs", partition)
    shown = deployment.wait_until_materialised("log_segments", partition)
    assert shown.counts["records written"] == 7
    status, tags = deployment.wait_until_finished(shown.run_id)
    assert (status, tags[TRIGGER_TAG]) == ("SUCCESS", "dispatcher")


def test_the_materialise_button_rebuilds_the_day_with_the_same_records(deployment: Deployment, dropped: str) -> None:
    deployment.wait_until_queryable(dropped, 7)
    partition = deployment.partition(dropped)
    run_id = deployment.ui.materialise("log_segments", partition)

    status, tags = deployment.wait_until_finished(run_id)

    assert status == "SUCCESS"
    assert (tags[TRIGGER_TAG], tags["lakerunner/lane.log_segments"]) == ("person", "person acme/edge")
    assert deployment.queryable(dropped) == 7
    latest = deployment.ui.materialisations("log_segments", partition)[0]
    assert (latest.run_id, latest.counts["records written"]) == (run_id, 7)
    assert deployment.ui.checks("log_segments") == {
        "conservation": True,
        "freshness": True,
        "quarantined_files": True,
    }


def test_small_segments_are_merged_by_the_platform_itself(deployment: Deployment) -> None:
    keys = [_key(str(ACME.organization_id), "small", Signal.LOGS, f"{number}.binpb.gz") for number in range(2)]
    for key in keys:
        _put(deployment.watched, key, logs(key.rpartition("/")[2], [now_ms()] * 4))
        deployment.wait_until_queryable(key, 4)  # a box of its own, and a segment of its own
    shown = deployment.wait_until_materialised("compacted_log_segments", deployment.partition(keys[0]))
    assert (shown.counts["segments superseded"], shown.counts["records written"]) == (2, 8)
    status, tags = deployment.wait_until_finished(shown.run_id)
    assert (status, tags[TRIGGER_TAG], tags[BACKGROUND_TAG]) == ("SUCCESS", "dispatcher", "true")
    assert [deployment.queryable(key) for key in keys] == [4, 4]


def test_every_sensor_runs_and_no_tick_has_failed(deployment: Deployment, dropped: str) -> None:
    deployment.wait_until_queryable(dropped, 7)
    assert deployment.ui.sensors() == {
        f"{stage.identifier}_{role}": [] for stage in STAGES.values() for role in ("boxer", "dispatcher")
    }


def test_lrdb_keeps_its_promises(deployment: Deployment, dropped: str) -> None:
    deployment.wait_until_queryable(dropped, 7)
    with deployment.lrdb.snapshot() as conn:
        assert check.breaches(conn) == []


@needs_chromium
def test_a_browser_finds_the_materialisation_on_the_assets_page(deployment: Deployment, dropped: str) -> None:
    deployment.wait_until_queryable(dropped, 7)
    partition = deployment.partition(dropped)
    deployment.wait_until_materialised("log_segments", partition)
    with page() as ui:
        ui.set_default_timeout(PATIENCE_SECONDS * 1000)
        ui.goto(f"{deployment.ui.url}/assets/log_segments?view=events")
        ui.get_by_text(partition).first.wait_for()
        ui.get_by_text("records written").first.wait_for()
        if "SCREENSHOT" in os.environ:  # where to put a picture of the page, for the README
            ui.screenshot(path=os.environ["SCREENSHOT"])
