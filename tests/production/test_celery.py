"""docs/deployment.md, Celery: what it configures executes a real run, in a real worker, by way of a real Redis."""

from __future__ import annotations

import importlib.util
import os
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from lakerunner_dagster.lake.signals import Signal
from lakerunner_dagster.local.demo import ORGANIZATIONS
from tests.docs.blocks import configurations
from tests.e2e.conftest import PATIENCE_SECONDS
from tests.lake.requests import logs, minutes
from tests.lake.world import now_ms
from tests.production.supervised import Observer, Production
from tests.servers.redis import Redis
from tests.waiting import eventually

RECORDS = 7
RUNS = "SELECT status FROM runs JOIN run_tags USING (run_id) WHERE key = 'dagster-celery/task_id'"
GOING = "SELECT run_id FROM runs WHERE status IN ('QUEUED', 'STARTING', 'STARTED', 'CANCELING')"
CLAIMED = "SELECT box_id FROM boxes WHERE state = 'claimed'"
PUBLISHED = "SELECT coalesce(sum(records), 0)::int FROM log_seg WHERE published"


@pytest.fixture
def production(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Production]:
    """A production whose runs go by Celery, as the page has it, with the worker that it names."""
    if importlib.util.find_spec("dagster_celery") is None:
        pytest.skip("needs dagster-celery[redis], which make setup installs")
    redis = Redis(tmp_path)
    redis.start()
    monkeypatch.setenv("CELERY_BROKER_URL", redis.url)
    monkeypatch.setenv("CELERY_RESULT_BACKEND", redis.url)
    configured = configurations()["Celery"]
    configured["run_monitoring"] |= {"poll_interval_seconds": 2, "max_runtime_seconds": 20}
    with tempfile.TemporaryDirectory(prefix="lakerunner-test-") as name:
        Path(name).chmod(0o711)
        production = Production(Path(name), configured)
        try:
            production.start()
            production.run("worker", "celery", "-A", "dagster_celery.app", "worker", "-Q", "dagster", "-c", "1")
            yield production
        finally:
            production.stop()
            redis.stop()


def _put(production: Production, name: str) -> None:
    key = f"otel-raw/{ORGANIZATIONS[0].organization_id}/edge/{Signal.LOGS}/{name}.binpb.gz"
    production.store.put(key, logs(name, minutes(now_ms() - RECORDS * 60_000, RECORDS)))


def test_boxes_are_ingested_by_a_worker_of_celery_and_once_though_it_is_killed(production: Production) -> None:
    with Observer(production.lrdb_url) as lrdb, Observer(production.dagster_url) as dagster:
        _put(production, "first")
        eventually(lambda: lrdb.column(PUBLISHED) == [RECORDS], "the file is queryable", PATIENCE_SECONDS)
        assert production.ended() is None
        eventually(lambda: dagster.column(GOING) == [], "its run has ended", PATIENCE_SECONDS)
        assert dagster.column(RUNS) == ["SUCCESS"]

        _put(production, "second")
        eventually(lambda: lrdb.column(CLAIMED) != [], "a run has the box of the next one", PATIENCE_SECONDS)
        os.killpg(production.pid("worker"), signal.SIGKILL)

        def ends() -> bool:
            production.keep_up()
            return lrdb.column(PUBLISHED) == [2 * RECORDS] and dagster.column(GOING) == []

        eventually(ends, "another run has ingested it, and the killed one counts no longer as going", PATIENCE_SECONDS)
        assert lrdb.column("SELECT DISTINCT state FROM boxes") == ["done"]
        assert set(dagster.column(RUNS)) <= {"SUCCESS", "FAILURE"}
