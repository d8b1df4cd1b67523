"""The warm process that runs are forked from: replaced when it dies or code changes, bounded, ended with it."""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace

import dagster as dg
import psutil
import pytest
from dagster._core.errors import DagsterUserCodeUnreachableError
from dagster._core.launcher import WorkerStatus
from dagster._core.storage.tags import GRPC_INFO_TAG

from lakerunner_dagster.launcher import fork
from lakerunner_dagster.launcher.errors import ZygoteFailed
from lakerunner_dagster.launcher.process import RunProcess, executing
from tests.launcher.conftest import Open
from tests.launcher.platform import Launching, starting
from tests.waiting import eventually

MEMORY_LIMIT_BYTES = 400 * 1024 * 1024

EXECUTING = """
import dataclasses, json, signal
from lakerunner_dagster.launcher.process import executing
with executing() as process:
    print(json.dumps(dataclasses.asdict(process)), flush=True)
    signal.pause()
"""

STARTS_A_THREAD = """
import threading
threading.Thread(target=threading.Event().wait, name="from-the-start", daemon=True).start()
"""


def test_when_a_zygote_is_killed_its_runs_end_truly_and_the_next_run_has_a_new_one(opened: Open) -> None:
    running = opened()
    first, second = running.run("waiting"), running.run("waiting")
    living, dying = running.begun(first), running.begun(second)
    (zygote,) = running.zygotes()
    zygote.kill()
    eventually(lambda: not running.zygotes(), "the zygote is reaped")
    assert running.launcher.check_run_worker_health(running.loaded(first)).status is WorkerStatus.RUNNING
    third = running.run("simple")
    assert running.wait(third) is dg.DagsterRunStatus.SUCCESS
    assert [one.pid for one in running.zygotes()] != [zygote.pid]
    os.kill(dying.pid, signal.SIGKILL)
    eventually(lambda: not dying.is_alive(), "its process is gone")
    health = running.launcher.check_run_worker_health(running.loaded(second))
    assert (health.status, "is gone" in str(health.msg)) == (WorkerStatus.FAILED, True)
    assert running.launcher.terminate(second)
    assert running.status(second) is dg.DagsterRunStatus.CANCELED
    running.place.end(first)
    assert running.wait(first) is dg.DagsterRunStatus.SUCCESS
    eventually(lambda: not living.is_alive(), "its process ends")


def test_a_killed_run_takes_no_zygote_with_it_whatever_the_zygote_hears_at_once(opened: Open) -> None:
    running = opened()
    older, newer = running.run("waiting"), running.run("waiting")
    dying, _ = running.begun(older), running.begun(newer)
    (zygote,) = running.zygotes()
    zygote.suspend()
    os.kill(dying.pid, signal.SIGKILL)
    eventually(lambda: not dying.is_alive(), "its process is gone")
    zygote.resume()
    assert running.wait(older) is dg.DagsterRunStatus.FAILURE
    assert "SIGKILL (signal 9)" in running.failure(older)
    running.place.end(newer)
    assert running.wait(newer) is dg.DagsterRunStatus.SUCCESS
    running.succeeded("simple")
    assert running.zygotes() == [zygote]


def test_a_zygote_keeps_no_connection_of_its_look_at_the_storage(opened: Open) -> None:
    running = opened()
    run = running.run("waiting")
    child = running.begun(run)
    (zygote,) = running.zygotes()
    assert zygote.net_connections() == []
    assert psutil.Process(child.pid).net_connections()  # which is how one would be seen
    running.place.end(run)
    assert running.wait(run) is dg.DagsterRunStatus.SUCCESS


def test_a_storage_that_does_not_answer_leaves_a_zygote_that_forks(
    opened: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    running = opened()
    monkeypatch.setenv("LAKERUNNER_DAGSTER_DATABASE_URL", "postgresql+psycopg2://nobody@127.0.0.1:9/nothing")
    context = running.context(running.create("simple"))
    assert running.launcher._zygote(context).pid  # a run of it could not report anything
    assert len(running.zygotes()) == 1


def test_a_run_that_holds_too_much_memory_is_ended_and_says_both_numbers(opened: Open) -> None:
    running = opened(memory_limit_bytes=MEMORY_LIMIT_BYTES)
    run, other = running.run("hungry"), running.run("simple")
    assert running.wait(run) is dg.DagsterRunStatus.FAILURE
    assert f"the limit is {MEMORY_LIMIT_BYTES} " in running.failure(run)
    held = int(running.failure(run).split("it held ")[1].split()[0])
    assert held > MEMORY_LIMIT_BYTES
    assert running.wait(other) is dg.DagsterRunStatus.SUCCESS


def test_new_runs_have_reloaded_code_while_old_ones_end_with_theirs(opened: Open) -> None:
    running = opened()
    old = running.run("waiting")
    running.begun(old)
    (zygote,) = running.zygotes()
    code = running.place.code / "location.py"
    code.write_text(code.read_text().replace('VERSION = "first"', 'VERSION = "second version"'))
    running.reload()
    new = running.run("simple")
    assert running.wait(new) is dg.DagsterRunStatus.SUCCESS, running.messages(new)
    assert running.place.mark(f"simple-{new}") == "second version"
    assert zygote.is_running()
    running.place.end(old)
    assert running.wait(old) is dg.DagsterRunStatus.SUCCESS
    assert running.place.mark(f"ended-{old}") == "first"
    eventually(lambda: zygote not in running.zygotes(), "the old zygote ends with its last child")
    assert len(running.zygotes()) == 1


def test_a_launch_beyond_the_bound_waits_for_a_place(opened: Open) -> None:
    running = opened(max_children=1)
    first = running.run("waiting")
    running.begun(first)
    second = running.create("simple")
    with ThreadPoolExecutor(1) as threads:
        launch = threads.submit(running.launch, second)
        eventually(lambda: running.status(second) is dg.DagsterRunStatus.STARTING, "the second run is to start")
        assert running.place.mark(f"simple-{second}") is None
        running.place.end(first)
        launch.result()
    assert running.wait(second) is dg.DagsterRunStatus.SUCCESS
    assert running.wait(first) is dg.DagsterRunStatus.SUCCESS


def test_a_run_that_is_canceled_while_it_waits_for_a_place_gives_it_up(opened: Open) -> None:
    running = opened(max_children=1)
    first = running.run("waiting")
    running.begun(first)
    second = running.create("simple")
    with ThreadPoolExecutor(1) as threads:
        launch = threads.submit(running.launch, second)
        eventually(lambda: running.status(second) is dg.DagsterRunStatus.STARTING, "the second run is to start")
        assert running.launcher.terminate(second)
        launch.result()
    assert running.status(second) is dg.DagsterRunStatus.CANCELED
    running.place.end(first)
    assert running.wait(first) is dg.DagsterRunStatus.SUCCESS


def test_without_a_place_in_time_the_run_goes_back_to_the_queue(opened: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fork, "PLACE_SECONDS", 0.0)
    running = opened(max_children=1)
    first = running.run("waiting")
    running.begun(first)
    second = running.create("simple")
    running.instance.report_dagster_event(starting(), run_id=second)
    with pytest.raises(DagsterUserCodeUnreachableError, match="1 runs of its code location go"):
        running.launcher.launch_run(running.context(second))  # the error that Dagster's queue knows
    running.place.end(first)
    assert running.wait(first) is dg.DagsterRunStatus.SUCCESS


def test_a_process_ends_after_its_number_of_runs(opened: Open) -> None:
    running = opened(runs_per_child=2)
    first = running.succeeded("simple")
    process = running.free(first)
    second = running.succeeded("simple")
    assert running.process(second).pid == process.pid
    eventually(lambda: not process.is_running(), "it ends")
    assert running.process(running.succeeded("simple")).pid != process.pid


def test_with_one_run_for_each_process_none_waits_for_another(opened: Open) -> None:
    running = opened(runs_per_child=1)
    pid = running.process(running.succeeded("simple")).pid
    eventually(lambda: not psutil.pid_exists(pid), "it ends")


def test_a_process_that_no_run_comes_for_is_let_go(opened: Open) -> None:
    running = opened(free_seconds=0.1)
    pid = running.process(running.succeeded("simple")).pid
    eventually(lambda: not psutil.pid_exists(pid), "it ends")
    running.succeeded("simple")


def test_free_processes_end_with_their_zygote(opened: Open) -> None:
    running = opened()
    process = running.free(running.succeeded("simple"))
    (zygote,) = running.zygotes()
    os.kill(zygote.pid, signal.SIGKILL)
    eventually(lambda: not process.is_running() or process.status() == psutil.STATUS_ZOMBIE, "it ends")
    running.succeeded("simple")


def test_free_processes_end_when_their_code_is_replaced(opened: Open) -> None:
    running = opened()
    process = running.free(running.succeeded("simple"))
    running.reload()
    running.succeeded("simple")
    eventually(lambda: not process.is_running(), "it ends")


def test_code_that_starts_a_thread_is_run_by_the_code_server_with_one_warning_that_names_it(
    opened: Open, caplog: pytest.LogCaptureFixture
) -> None:
    running = opened(fallback=True)
    code = running.place.code / "location.py"
    code.write_text(code.read_text() + STARTS_A_THREAD)
    running.reload()
    with caplog.at_level(logging.WARNING, "lakerunner_dagster"):
        runs = [running.run("simple") for _ in range(2)]
    (warning,) = [record.getMessage() for record in caplog.records if record.name.startswith("lakerunner_dagster")]
    assert "from-the-start (of Python)" in warning
    assert {running.wait(run) for run in runs} == {dg.DagsterRunStatus.SUCCESS}
    going = running.run("waiting")
    eventually(lambda: running.place.mark(f"begun-{going}") is not None, "it begins")
    assert GRPC_INFO_TAG in running.loaded(going).tags
    assert running.launcher.check_run_worker_health(running.loaded(going)).status is WorkerStatus.RUNNING
    assert running.launcher.terminate(going)
    assert running.wait(going) is dg.DagsterRunStatus.CANCELED


def test_where_nothing_can_be_forked_the_code_server_runs_it(opened: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    running = opened(fallback=True)
    monkeypatch.setattr(sys, "platform", "plan9")
    run = running.run("simple")
    assert running.wait(run) is dg.DagsterRunStatus.SUCCESS
    assert running.zygotes() == []


def test_without_a_fallback_a_run_fails_and_says_why(opened: Open) -> None:
    running = opened(fallback=False)
    code = running.place.code / "location.py"
    code.write_text(code.read_text() + STARTS_A_THREAD)
    running.reload()
    run = running.create("simple")
    with pytest.raises(ZygoteFailed, match="from-the-start"):
        running.launch(run)
    assert running.status(run) is dg.DagsterRunStatus.FAILURE


@contextmanager
def _daemon(running: Launching) -> Iterator[subprocess.Popen[bytes]]:
    """Another process that opens the same platform and launches a run of ``waiting``, in a session of its own."""
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.launcher.daemon", str(running.place.home.parent)], start_new_session=True
    )
    try:
        yield process
    finally:
        for one in psutil.process_iter():
            if os.getsid(one.pid) == process.pid:
                one.kill()
        process.wait()


def test_when_the_daemon_is_killed_its_runs_end_truly_and_nothing_is_left(opened: Open) -> None:
    running = opened()
    with _daemon(running) as daemon:
        eventually(lambda: running.place.mark("daemon") is not None, "the daemon has launched a run")
        run = running.place.mark("daemon") or ""
        process = running.begun(run)
        zygote = psutil.Process(process.pid).parent()
        assert zygote is not None
        daemon.kill()
        daemon.wait()
        assert running.launcher.check_run_worker_health(running.loaded(run)).status is WorkerStatus.RUNNING
        running.place.end(run)
        assert running.wait(run) is dg.DagsterRunStatus.SUCCESS
        eventually(lambda: not process.is_alive(), "its process ends")
        eventually(lambda: not zygote.is_running() or zygote.status() == psutil.STATUS_ZOMBIE, "its zygote ends")


def test_a_run_can_be_canceled_from_another_process_than_its_daemon(opened: Open) -> None:
    running = opened()
    with _daemon(running):
        eventually(lambda: running.place.mark("daemon") is not None, "the daemon has launched a run")
        run = running.place.mark("daemon") or ""
        running.begun(run)
        assert running.launcher.terminate(run)
        assert running.wait(run) is dg.DagsterRunStatus.CANCELED


def test_a_recycled_process_id_is_never_taken_for_the_run() -> None:
    with executing() as me:
        assert me.is_alive()
        assert RunProcess.of(me.tag()) == me
        recycled = replace(me, started=me.started - 1)
        assert not recycled.is_alive()
        assert not recycled.interrupt()  # we would be interrupted
        elsewhere = replace(me, machine="another boot")
        assert not elsewhere.is_alive()
        assert not elsewhere.interrupt()


def test_a_process_that_waits_to_be_reaped_has_ended() -> None:
    with subprocess.Popen([sys.executable, "-c", EXECUTING], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        identity = RunProcess(**json.loads(process.stdout.readline()))
        assert identity.is_alive()
        assert identity.interrupt()
        eventually(lambda: not identity.is_alive(), "it ends")
        assert not identity.interrupt()
    assert process.returncode == -signal.SIGTERM
