"""Lanes: two runs that must not meet have the same tag, and new data never waits for a rebuild."""

from __future__ import annotations

import pytest

from lakerunner_dagster.instance.lanes import BACKGROUND_TAG, TRIGGER_TAG, Trigger, lane_tags, trigger_of

LOGS_LANE = "lakerunner/lane.log_segments"
PERSON = {TRIGGER_TAG: "person", BACKGROUND_TAG: "true"}


def test_a_run_without_a_trigger_is_a_persons() -> None:
    assert trigger_of({}) is Trigger.PERSON
    assert trigger_of({TRIGGER_TAG: "dispatcher"}) is Trigger.DISPATCHER


def test_two_days_of_a_source_share_a_lane() -> None:
    monday = lane_tags(["log_segments"], {"dagster/partition": "2026-02-02|acme/web"})
    tuesday = lane_tags(["log_segments"], {"dagster/partition": "2026-02-03|acme/web"})
    assert monday == tuesday == PERSON | {LOGS_LANE: "person acme/web"}


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
    assert many == PERSON


@pytest.mark.parametrize("assets", [[], ["log_segments", "metric_segments"]])
def test_a_run_has_a_lane_for_each_of_its_assets(assets: list[str]) -> None:
    tags = lane_tags(assets, {"dagster/partition": "2026-02-02|acme/web"})
    assert set(tags) == {*PERSON, *(f"lakerunner/lane.{name}" for name in assets)}


def test_only_new_data_is_not_in_the_background() -> None:
    dispatched = {"dagster/partition": "2026-02-02|acme/web", TRIGGER_TAG: "dispatcher"}
    assert BACKGROUND_TAG not in lane_tags(["log_segments"], dispatched)
    assert lane_tags(["compacted_log_segments"], dispatched)[BACKGROUND_TAG] == "true"
