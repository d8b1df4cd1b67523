"""A range of days done anew by people: in the UI's dialog with a real browser, and by the command."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from lakerunner_dagster.instance.lanes import TRIGGER_TAG, Trigger
from lakerunner_dagster.lake.lrdb import check, coverage
from lakerunner_dagster.lake.model import dateint_of, day_start_ms
from lakerunner_dagster.lake.signals import Signal
from lakerunner_dagster.lake.tiers import TIERS
from lakerunner_dagster.local.demo import ORGANIZATIONS
from lakerunner_dagster.partitions import DaySource
from tests.e2e.browser import needs_chromium, page
from tests.e2e.conftest import PATIENCE_SECONDS, ROOT, Deployment
from tests.lake.requests import gauges
from tests.waiting import eventually

ACME = ORGANIZATIONS[0]
COLLECTOR = "backfill"
SOURCE = f"{ACME.name}/{COLLECTOR}"
POINTS = 40
PATIENCE_MS = PATIENCE_SECONDS * 1000


@pytest.fixture(scope="module")
def days(deployment: Deployment) -> list[date]:
    """Three days of metrics of one source, ingested, that no run has rolled up yet."""
    today = datetime.now(UTC).date()
    found = [today - timedelta(days=back) for back in (3, 2, 1)]
    keys = []
    for day in found:
        start_ms = day_start_ms(int(day.strftime("%Y%m%d")))
        key = f"otel-raw/{ACME.organization_id}/{COLLECTOR}/{Signal.METRICS}/{day}.binpb.gz"
        path = deployment.watched / key
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(gauges("backfilled", [start_ms + number * 45_000 for number in range(POINTS)]))
        keys.append(key)
    for key in keys:
        deployment.wait_until_queryable(key, POINTS)
    return found


def rolled_up(deployment: Deployment, frequency_ms: int) -> list[tuple[int, int, int]]:
    """(dateint, segment_id, points) of the source's published segments of a tier."""
    with deployment.lrdb.connection() as conn:
        return conn.execute(
            """
            SELECT dateint, segment_id, records FROM metric_seg s
            JOIN organization_buckets b USING (organization_id, instance_num)
            WHERE b.collector_name = %s AND frequency_ms = %s AND published ORDER BY 1, 2
            """,
            (COLLECTOR, frequency_ms),
        ).fetchall()


def partitions(days: list[date]) -> list[str]:
    return [str(DaySource(int(day.strftime("%Y%m%d")), SOURCE).key) for day in days]


def wait_until_done_by_a_person(deployment: Deployment, partition: str) -> None:
    """Return when a run of a backfill has materialised a partition: the stage does it too, by itself."""

    def holds() -> bool:
        runs = {shown.run_id for shown in deployment.ui.materialisations("metric_rollup_1m", partition)}
        return any(deployment.ui.run(run)[1].get(TRIGGER_TAG) == Trigger.PERSON for run in runs)

    eventually(holds, f"{partition} done by a backfill", PATIENCE_SECONDS)


def picture(ui: Page, name: str) -> None:
    """A picture of the page for docs/images, where the environment says in which directory."""
    if "SCREENSHOTS" in os.environ:
        ui.screenshot(path=Path(os.environ["SCREENSHOTS"]) / name)


@needs_chromium
def test_three_days_chosen_in_the_dialog_become_green_and_hold_every_point(
    deployment: Deployment, days: list[date]
) -> None:
    with page() as ui:
        ui.goto(f"{deployment.ui.url}/assets/metric_rollup_1m", wait_until="domcontentloaded")
        ui.get_by_role("button", name="Materialize").first.click(timeout=PATIENCE_MS)
        dialog = ui.get_by_role("dialog")
        dialog.get_by_placeholder(re.compile(r"^ex: ")).fill(f"[{days[0]}...{days[-1]}]")
        dialog.get_by_text("Select a partition or create one").click()
        ui.get_by_role("menuitem").filter(has_text=SOURCE).first.click()
        ui.keyboard.press("Escape")
        expect(ui.get_by_placeholder("Filter partitions")).to_be_hidden()
        expect(dialog.get_by_text("3 partitions", exact=True).first).to_be_visible()
        picture(ui, "backfill-dialog.png")
        dialog.get_by_role("button", name="Launch backfill").click()

        for partition in partitions(days):
            wait_until_done_by_a_person(deployment, partition)
        ui.goto(f"{deployment.ui.url}/assets/metric_rollup_1m?view=partitions", wait_until="domcontentloaded")
        expect(ui.get_by_text(re.compile(r"Materialized \(([3-9]|\d\d+)\)"))).to_be_visible(timeout=PATIENCE_MS)
        ui.get_by_text(str(days[-1]), exact=True).filter(visible=True).last.click()
        ui.get_by_text(SOURCE, exact=True).filter(visible=True).last.click()
        expect(ui.get_by_text("records written").first).to_be_visible(timeout=PATIENCE_MS)
        picture(ui, "backfill-partitions.png")

    found = rolled_up(deployment, 60_000)
    assert [(dateint, points) for dateint, _, points in found] == [
        (dateint_of(day_start_ms(int(day.strftime("%Y%m%d")))), POINTS) for day in days
    ]
    with deployment.lrdb.snapshot() as conn:
        first = found[0][0]
        assert [hole for hole in coverage.holes(conn, ACME.organization_id, first) if hole.frequency_ms == 60_000] == []
        assert check.breaches(conn) == []


def test_the_command_follows_its_backfill_to_the_end_and_twice_changes_nothing(
    deployment: Deployment, days: list[date]
) -> None:
    command = [sys.executable, "-m", "lakerunner_dagster.cli", "backfill", "rollups"]
    span = ["--from", str(days[0]), "--to", str(days[-1]), "--source", SOURCE]
    printed, published = [], []
    for _ in range(2):
        ended = subprocess.run(
            [*command, *span],
            check=False,
            capture_output=True,
            text=True,
            timeout=PATIENCE_SECONDS,
            cwd=deployment.project,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
        )
        assert ended.returncode == 0, ended.stdout + ended.stderr
        printed.append(ended.stdout)
        published.append({tier: rolled_up(deployment, tier) for tier in TIERS})
    assert all(f"{3 * len(TIERS)} partitions done, 0 not done" in text for text in printed)
    assert published[0] == published[1]
    assert {tier: [points for *_, points in rows] for tier, rows in published[0].items()} == dict.fromkeys(
        TIERS, [POINTS] * 3
    )
