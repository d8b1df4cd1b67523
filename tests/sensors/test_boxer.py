"""The boxers' sensors on a real lake: what they show of what arrives."""

from __future__ import annotations

import dagster as dg
import pytest

from lakerunner_dagster.lake.errors import ConfigurationError
from lakerunner_dagster.lake.model import RawState
from lakerunner_dagster.lake.signals import SIGNALS, Signal
from lakerunner_dagster.lake.stages import ingest_stage
from lakerunner_dagster.partitions import SOURCES_NAME, DaySource
from lakerunner_dagster.sensors.boxer import boxer_sensor
from tests.lake.requests import logs, minutes
from tests.lake.world import COLLECTOR, DAY, NOON_MS, World

LOGS = SIGNALS[Signal.LOGS]
TODAY = DaySource(DAY, f"acme/{COLLECTOR}")


def _tick(instance: dg.DagsterInstance, cursor: str | None = None) -> dg.SensorResult:
    with dg.build_sensor_context(instance=instance, cursor=cursor) as context:
        result = boxer_sensor(ingest_stage(Signal.LOGS))(context)
    assert isinstance(result, dg.SensorResult)
    return result


def _send(world: World, name: str) -> str:
    return world.send(Signal.LOGS, name, logs(name, minutes(NOON_MS, 3)))


def _materialised(result: dg.SensorResult) -> list[dg.AssetMaterialization]:
    return [event for event in result.asset_events if isinstance(event, dg.AssetMaterialization)]


def test_what_arrives_is_boxed_and_its_day_turns_green(world: World, instance: dg.DagsterInstance) -> None:
    _send(world, "a.binpb.gz")
    _send(world, "b.binpb.gz")

    result = _tick(instance)

    assert set(world.objects().values()) == {RawState.BOXED}
    (event,) = _materialised(result)
    assert (event.asset_key, event.partition) == (dg.AssetKey(LOGS.raw_asset), TODAY.key)
    assert event.metadata["new raw objects"].value == 2
    (addition,) = result.dynamic_partitions_requests or []
    assert (addition.partitions_def_name, addition.partition_keys) == (SOURCES_NAME, [TODAY.source_key])


def test_a_tick_says_what_it_did(world: World, instance: dg.DagsterInstance) -> None:
    key = _send(world, "a.binpb.gz")
    world.notify(key)
    result = _tick(instance)
    assert result.skip_reason is not None
    assert "2 notifications heard, 1 new, 1 known already" in str(result.skip_reason.skip_message)


def test_the_second_object_of_a_minute_is_told_of_with_the_third(world: World, instance: dg.DagsterInstance) -> None:
    _send(world, "a.binpb.gz")
    first = _tick(instance)
    _send(world, "b.binpb.gz")
    second = _tick(instance, first.cursor)
    assert len(_materialised(first)) == 1
    assert _materialised(second) == []
    assert second.cursor is not None
    assert '"objects":1' in second.cursor


def test_the_standing_checks_come_with_the_first_tick_and_not_with_each(
    world: World, instance: dg.DagsterInstance
) -> None:
    world.lake.bus.ensure_topics([LOGS.notification_topic])
    first = _tick(instance)
    second = _tick(instance, first.cursor)
    checks = [event for event in first.asset_events if isinstance(event, dg.AssetCheckEvaluation)]
    assert {check.check_name for check in checks} == {"freshness", "quarantined_files"}
    assert second.asset_events == []


def test_a_tick_without_settings_says_what_to_set(
    instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("LAKERUNNER_DATABASE_URL", raising=False)
    monkeypatch.delenv("LAKERUNNER_KAFKA_BOOTSTRAP_SERVERS", raising=False)
    with pytest.raises(ConfigurationError, match="`lakerunner services up`"):
        _tick(instance)
