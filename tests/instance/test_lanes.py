"""Lanes: two runs that must not meet have the same tag, and new data never waits for a rebuild."""

from __future__ import annotations

import pytest

from lakerunner_dagster.instance.lanes import TRIGGER_TAG, Trigger, lane_tags, trigger_of

LOGS_LANE = "lakerunner/lane.log_segments"


def test_a_run_without_a_trigger_is_a_persons() -> None:
    assert trigger_of({}) is Trigger.PERSON
    assert trigger_of({TRIGGER_TAG: "dispatcher"}) is Trigger.DISPATCHER


def test_two_days_of_a_source_share_a_lane() -> None:
    monday = lane_tags(["log_segments"], {"dagster/partition": "2026-02-02|acme/web"})
    tuesday = lane_tags(["log_segments"], {"dagster/partition": "2026-02-03|acme/web"})
    assert monday == tuesday == {TRIGGER_TAG: "person", LOGS_LANE: "person acme/web"}


def test_a_rebuild_and_new_data_have_lanes_of_their_own() -> None:
    partition = {"dagster/partition": "2026-02-02|acme/web"}
    person = lane_tags(["log_segments"], partition)
    dispatcher = lane_tags(["log_segments"], partition | {TRIGGER_TAG: "dispatcher"})
    assert person[LOGS_LANE] != dispatcher[LOGS_LANE]


def test_a_backfill_of_one_source_has_its_lane_and_one_of_many_has_none() -> None:
    start, end = "dagster/asset_partition_range_start", "dagster/asset_partition_range_end"
    one = lane_tags(["log_segments"], {start: "2026-02-01|acme/web", end: "2026-02-28|acme/web"})
    assert one[LOGS_LANE] == "person acme/web"
    many = lane_tags(["log_segments"], {start: "2026-02-01|acme/db", end: "2026-02-28|acme/web"})
    assert many == {TRIGGER_TAG: "person"}


@pytest.mark.parametrize("assets", [[], ["log_segments", "metric_segments"]])
def test_a_run_has_a_lane_for_each_of_its_assets(assets: list[str]) -> None:
    tags = lane_tags(assets, {"dagster/partition": "2026-02-02|acme/web"})
    assert set(tags) == {TRIGGER_TAG, *(f"lakerunner/lane.{name}" for name in assets)}
