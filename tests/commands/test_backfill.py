"""What would break if a person could not see, start, follow and repeat the rebuild of a range of days."""

from __future__ import annotations

from pathlib import Path

import dagster as dg
import pytest
from dagster._core.storage.tags import BACKFILL_ID_TAG

import lakerunner_dagster
from lakerunner_dagster.commands import backfill
from lakerunner_dagster.instance import backfills
from lakerunner_dagster.lake.errors import ConfigurationError
from lakerunner_dagster.lake.model import HOUR_MS
from lakerunner_dagster.lake.signals import Signal
from lakerunner_dagster.lake.tiers import TIERS
from lakerunner_dagster.partitions import DaySource
from tests.command_line import done, lakerunner, refused
from tests.commands.daemon import daemon_at_work
from tests.lake.requests import gauges
from tests.lake.world import DAY, NOON_MS, World

SOURCE_KEY = "acme/edge"
RANGE = ("--from", "2026-02-01", "--to", "2026-02-03")


def points(world: World, name: str, start_ms: int = NOON_MS) -> None:
    world.send(Signal.METRICS, name, gauges("queue.length", [start_ms + n * 10_000 for n in range(30)]), start_ms)
    world.ingest(Signal.METRICS)


def rows(out: str) -> list[list[str]]:
    """The rows of a table of sources, by their cells' words."""
    return [line.split() for line in out.splitlines() if line.strip().startswith(SOURCE_KEY)]


def days(world: World) -> None:
    """Two days with metrics, rolled up."""
    points(world, "a")
    points(world, "b", NOON_MS - 24 * HOUR_MS)
    world.roll_up()


def test_a_dry_run_says_what_would_be_read_and_launches_nothing(world: World, instance: dg.DagsterInstance) -> None:
    days(world)
    out = done("backfill", "rollups", *RANGE, "--tier", "1m", "--tier", "1h", "--dry-run")
    assert [row[:3] for row in rows(out)] == [
        [SOURCE_KEY, "metric_rollup_1m", "2:"],
        [SOURCE_KEY, "metric_rollup_1h", "2:"],
    ]
    assert "2026-02-02 to 2026-02-03" in out
    assert "nothing is launched" in out
    assert list(instance.get_backfills()) == []
    assert "raw_" not in done("backfill", "ingest", *RANGE, "--signal", "metrics", "--dry-run")
    assert "compacted_metric_segments" in done("backfill", "compact", *RANGE, "--signal", "metrics", "--dry-run")


def test_a_chain_that_was_never_computed_is_planned_to_its_end(world: World) -> None:
    points(world, "a")
    out = done("backfill", "rollups", *RANGE, "--dry-run")
    assert [row[1:3] for row in rows(out)] == [[tier.asset, "1:"] for tier in TIERS.values()]
    assert [row[1] for row in rows(done("backfill", "rollups", *RANGE, "--tier", "1h", "--dry-run"))] == []


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--from", "2026-02-03", "--to", "2026-02-01"), "is before"),
        ((*RANGE, "--tier", "2m"), "the tiers are 1m, 5m, 20m, 1h"),
        ((*RANGE, "--source", "acme/nobody"), "there is no source"),
    ],
)
def test_what_cannot_be_is_refused_with_what_can(world: World, arguments: tuple[str, ...], said: str) -> None:
    days(world)
    assert said in refused("backfill", "rollups", *arguments)


def test_an_installed_package_without_a_home_does_not_look_into_a_dagster_of_its_own(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("DAGSTER_HOME", raising=False)
    monkeypatch.setattr(lakerunner_dagster, "__file__", str(tmp_path / "lakerunner_dagster" / "__init__.py"))
    with pytest.raises(ConfigurationError, match="Set DAGSTER_HOME"):
        backfills.dagster_instance()


def test_days_without_anything_to_do_start_nothing(world: World, instance: dg.DagsterInstance) -> None:
    assert "nothing to do" in done("backfill", "rollups", *RANGE)
    days(world)
    assert "nothing to do" in done("backfill", "rollups", *RANGE, "--stale")
    assert list(instance.get_backfills()) == []


def test_only_days_of_another_code_version_are_stale_also_once_they_are_compacted(world: World) -> None:
    days(world)
    world.compact(Signal.METRICS)
    with world.lake.lrdb.transaction() as conn:
        conn.execute(
            "UPDATE lineage SET code_version = '0'"
            " WHERE operation = 'rollup' AND frequency_ms = 60000 AND dateint = %s",
            (DAY,),
        )
    out = done("backfill", "rollups", *RANGE, "--stale", "--dry-run")
    assert [row[1:4] for row in rows(out)] == [["metric_rollup_1m", "1:", "2026-02-03"]]


def test_the_same_request_goes_on_with_its_backfill_and_another_has_its_own(
    world: World, instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    days(world)

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(backfill, "_watch", interrupted)
    assert "launched backfill" in lakerunner("backfill", "rollups", *RANGE).out
    assert "goes on with backfill" in lakerunner("backfill", "rollups", *RANGE).out
    assert "launched backfill" in lakerunner("backfill", "rollups", *RANGE, "--tier", "1m").out
    titles = {one.backfill_id: one.title for one in instance.get_backfills()}
    assert list(titles.values()) == ["rollups 2026-02-01 to 2026-02-03"] * 2


def test_a_backfill_is_dagsters_own_and_its_runs_do_the_days_anew(
    world: World, instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    days(world)
    ran = daemon_at_work(monkeypatch)
    before = world.select(Signal.METRICS, "sum(chq_points)::bigint, count(*)", 3_600_000)
    ended = lakerunner("backfill", "rollups", *RANGE)
    out = ended.out
    assert ended.code == 0
    assert f"launched backfill {ran[0]}" in out
    assert len(rows(out)) == 2 * len(TIERS)
    assert world.select(Signal.METRICS, "sum(chq_points)::bigint, count(*)", 3_600_000) == before
    for tier in TIERS.values():
        materialised = instance.get_materialized_partitions(dg.AssetKey(tier.asset))
        assert materialised == {str(DaySource(day, SOURCE_KEY).key) for day in (DAY, DAY - 1)}
    assert world.breaches() == []


def test_why_a_run_of_a_backfill_failed_is_told(world: World, instance: dg.DagsterInstance) -> None:
    from lakerunner_dagster.definitions import defs  # noqa: PLC0415 - as above

    points(world, "a")
    world.roll_up()
    done("organization", "retention", "acme", "metrics", "1", "--frequency", "10")
    done("maintain", "retention")
    instance.add_dynamic_partitions("sources", [SOURCE_KEY])
    job = defs.resolve_implicit_global_asset_job_def().get_subset(asset_selection={dg.AssetKey("metric_rollup_1m")})
    job.execute_in_process(
        instance=instance,
        partition_key=str(DaySource(DAY, SOURCE_KEY).key),
        tags={BACKFILL_ID_TAG: "b1"},
        raise_on_error=False,
    )
    ((_, why),) = backfills.failures(instance, "b1")
    assert "past its retention" in why
