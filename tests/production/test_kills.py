"""Whatever is killed, and whenever: each record is queryable once, each box done once, each run at a true end."""

from __future__ import annotations

import math
import os
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from pathlib import Path

import duckdb
import psutil
import pytest

from lakerunner_dagster.lake.segments.columns import POINTS
from lakerunner_dagster.lake.signals import Signal
from lakerunner_dagster.launcher.process import PROCESS_TAG, RunProcess
from lakerunner_dagster.local.demo import ORGANIZATIONS
from tests.e2e.conftest import FINISHED, PATIENCE_SECONDS
from tests.lake.requests import expected, gauges, logs, minutes
from tests.lake.world import now_ms
from tests.launcher.platform import is_zygote
from tests.production.supervised import Observer, Production
from tests.waiting import eventually

SEED = int(os.environ.get("TEST_KILLS_SEED", "20261126"))
"""Another one is another order of the kills."""

KILLS_EACH = 3
EVERY_SECONDS = 0.7
RECORDS = 20


class Feed:
    """A file of logs, then one of metrics, and so on, at a steady pace."""

    def __init__(self, production: Production) -> None:
        self._store = production.store
        self._next = 0.0
        self.fed: dict[Signal, list[str]] = {Signal.LOGS: [], Signal.METRICS: []}

    def ends(self) -> None:
        """Store no more."""
        self._next = math.inf

    def turn(self) -> None:
        """Store the next file, if its time has come."""
        if time.monotonic() < self._next:
            return
        self._next = time.monotonic() + EVERY_SECONDS
        kind, names = min(self.fed.items(), key=lambda item: len(item[1]))
        name = f"{kind}_{len(names)}"
        write = logs if kind is Signal.LOGS else gauges
        key = f"otel-raw/{ORGANIZATIONS[0].organization_id}/edge/{kind}/{name}.binpb.gz"
        self._store.put(key, write(name, minutes(now_ms() - RECORDS * 60_000, RECORDS)))
        names.append(name)


class Killing:
    """A production with a feed, and what can be killed in it: for each, the process id at a moment that would hurt."""

    def __init__(self, production: Production) -> None:
        self.production = production
        self.feed = Feed(production)
        self.lrdb, self.dagster = Observer(production.lrdb_url), Observer(production.dagster_url)
        self.victims: dict[str, Callable[[], int | None]] = {
            "run": self._run,
            "zygote": self._zygote,
            "daemon": self._daemon,
            "code server": self._code_server,
            "PostgreSQL": self._postgres,
            "a process of PostgreSQL": self._backend,
        }

    def _run(self) -> int | None:
        """The process of a run that has a box."""
        runs = ", ".join(f"'{run}'" for run in self.lrdb.column(f"SELECT run_id FROM {CLAIMED}"))
        tags = f"SELECT value FROM run_tags WHERE key = '{PROCESS_TAG}' AND run_id IN ({runs})"
        known = [RunProcess.of({PROCESS_TAG: tag}) for tag in (self.dagster.column(tags) if runs else [])]
        return next((process.pid for process in known if process is not None and process.is_alive()), None)

    def _zygote(self) -> int | None:
        """What a run was forked from that goes."""
        parents = psutil.Process(run).parents() if (run := self._run()) is not None else []
        return parents[0].pid if parents and is_zygote(parents[0]) else None

    def _daemon(self) -> int | None:
        """The daemon, while a run goes that it has launched."""
        run, daemon = self._run(), self.production.pid("daemon")
        return daemon if run is not None and daemon in [one.pid for one in psutil.Process(run).parents()] else None

    def _code_server(self) -> int | None:
        """The code server, in the middle of a tick."""
        ticks = self.dagster.column("SELECT 1 FROM job_ticks WHERE status = 'STARTED'")
        return self.production.pid("code server") if ticks and self.production.code_server_answers() else None

    def _postgres(self) -> int | None:
        """All of PostgreSQL, while a run has a box."""
        return self.production.postgres.process_id if self.lrdb.column(f"SELECT 1 FROM {CLAIMED}") else None

    def _backend(self) -> int | None:
        """The process behind a connection to lrdb, in the middle of a transaction."""
        return next(iter(self.lrdb.column(IN_TRANSACTION)), None)

    def kill(self, victim: str) -> None:
        """Kill it at such a moment, and see it dead."""
        killed: list[psutil.Process] = []

        def is_hit() -> bool:
            with suppress(psutil.NoSuchProcess):  # it has ended meanwhile
                pid = self.victims[victim]()
                if pid is not None:
                    process = psutil.Process(pid)
                    process.kill()
                    killed.append(process)
            return bool(killed)

        self.eventually(is_hit, f"a moment to kill {victim}")
        eventually(lambda: not _lives(killed[-1]), f"{victim} is dead")

    def eventually(self, condition: Callable[[], bool], what: str) -> None:
        """Wait with everything kept up and the feed going on."""

        def holds() -> bool:
            self.production.keep_up()
            self.feed.turn()
            return condition()

        eventually(holds, what, PATIENCE_SECONDS)

    def close(self) -> None:
        self.lrdb.close()
        self.dagster.close()

    def unfinished(self) -> dict[str, list[int]]:
        """How much is not at its end yet; an empty list where nobody knows now."""
        return {
            "files": self.lrdb.column(f"SELECT {sum(map(len, self.feed.fed.values()))} - count(*) FROM {INGESTED}"),
            "boxes": self.lrdb.column("SELECT count(*) FROM boxes WHERE state <> 'done'"),
            "runs": self.dagster.column(f"SELECT count(*) FROM runs WHERE status NOT IN {FINISHED_STATUSES}"),
        }

    def finish(self) -> None:
        """Feed no more, and wait until all of it has come to its end."""
        self.feed.ends()
        try:
            self.eventually(lambda: set(map(tuple, self.unfinished().values())) == {(0,)}, "the end")
        except AssertionError as error:
            raise AssertionError(f"{error}: {self.unfinished()}") from None


CLAIMED = "boxes WHERE state = 'claimed' AND lease_until > now()"
INGESTED = "raw_objects WHERE state = 'ingested'"
IN_TRANSACTION = """
    SELECT pid FROM pg_stat_activity
    WHERE datname = current_database() AND xact_start IS NOT NULL AND pid <> pg_backend_pid()
"""
FINISHED_STATUSES = f"({', '.join(repr(status) for status in sorted(FINISHED))})"


def _lives(process: psutil.Process) -> bool:
    try:
        return process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


@pytest.fixture
def killing() -> Iterator[Killing]:
    with tempfile.TemporaryDirectory(prefix="lakerunner-test-") as name:
        Path(name).chmod(0o711)
        production = Production(Path(name))
        try:
            production.start()
            with closing(Killing(production)) as killing:
                yield killing
        finally:
            production.stop()


def _published(killing: Killing, kind: Signal, what: str) -> Counter[str]:
    """``what`` of every row of the finest tier's published segments, by DuckDB from the bucket."""
    finest = {
        Signal.LOGS: "log_seg WHERE published",
        Signal.METRICS: "metric_seg WHERE published AND frequency_ms = 10000",
    }
    ids = set(killing.lrdb.column(f"SELECT segment_id FROM {finest[kind]}"))
    files = [path for path in killing.production.bucket.glob("db/**/tbl_*.parquet") if int(path.stem[4:]) in ids]
    assert len(files) == len(ids)
    statement = f"SELECT {what} FROM read_parquet({[str(path) for path in files]}, union_by_name = true) GROUP BY 1"
    return Counter(dict(duckdb.execute(statement).fetchall()))


def test_kills_at_any_moment_lose_nothing_double_nothing_and_leave_nothing_behind(killing: Killing) -> None:
    plan = list(killing.victims) * KILLS_EACH
    random.Random(SEED).shuffle(plan)
    for victim in plan:
        killing.kill(victim)

    killing.finish()

    names = killing.feed.fed
    assert _published(killing, Signal.LOGS, "log_message, count(*)") == expected(
        **dict.fromkeys(names[Signal.LOGS], RECORDS)
    )
    assert _published(killing, Signal.METRICS, f"metric_name, sum({POINTS})") == Counter(
        dict.fromkeys(names[Signal.METRICS], RECORDS)
    )
    ends = set(killing.dagster.column("SELECT DISTINCT status FROM runs"))
    assert ends == {"SUCCESS", "FAILURE"}, "a killed run has failed, and nobody has canceled any"
    check = [sys.executable, "-m", "lakerunner_dagster.cli", "lrdb", "check"]
    checked = subprocess.run(
        check, env=os.environ | dict(killing.production.environment()), capture_output=True, text=True, check=False
    )
    assert checked.returncode == 0, checked.stdout

    services = {killing.production.pid(name) for name in ("daemon", "code server", "adapter")}
    eventually(
        lambda: all(
            one.pid in services or (is_zygote(one) and one.ppid() in services) for one in killing.production.processes()
        ),
        "runs and the zygotes of killed daemons are gone",
    )
    killing.production.stop()
    assert killing.production.processes() == []
