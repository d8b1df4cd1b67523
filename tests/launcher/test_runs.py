"""Runs that are forked: they succeed, fail, are canceled and die as any run of Dagster does, and each says why."""

from __future__ import annotations

import os
import signal
import socket
from concurrent.futures import ThreadPoolExecutor

import dagster as dg
import psutil
import pytest
from dagster._core.launcher import WorkerStatus

from lakerunner_dagster.launcher import child, protocol
from lakerunner_dagster.launcher.process import executing
from tests.launcher.platform import Launching, starting
from tests.waiting import eventually


def test_a_run_succeeds_and_its_output_is_in_the_compute_log(shared: Launching) -> None:
    run = shared.run("simple")
    assert shared.wait(run) is dg.DagsterRunStatus.SUCCESS, shared.messages(run)
    assert shared.place.mark(f"simple-{run}") == "first"
    manager = shared.instance.compute_log_manager
    captured = [
        entry.dagster_event.logs_captured_data
        for entry in shared.instance.all_logs(run, of_type=dg.DagsterEventType.LOGS_CAPTURED)
        if entry.dagster_event
    ]
    (key,) = [(run, "compute_logs", data.file_key) for data in captured]
    data = manager.get_log_data(key)
    assert data.stdout is not None
    assert b"said on stdout" in data.stdout
    assert data.stderr is not None
    assert b"said on stderr" in data.stderr


def test_the_events_of_a_run_are_those_that_dagsters_own_run_worker_writes(shared: Launching) -> None:
    run = shared.run("simple")
    shared.wait(run)
    pid = shared.process(run).pid
    eventually(lambda: f"Process for run exited (pid: {pid})." in shared.messages(run), "its process has gone")
    assert f"Started process for run (pid: {pid})." in shared.messages(run)


def test_no_process_is_started_to_mirror_a_runs_output(shared: Launching) -> None:
    run = shared.run("waiting")
    process = psutil.Process(shared.begun(run).pid)
    assert process.children() == []
    shared.place.end(run)
    assert shared.wait(run) is dg.DagsterRunStatus.SUCCESS


def test_a_failing_run_fails_by_its_own_error(shared: Launching) -> None:
    run = shared.run("failing")
    assert shared.wait(run) is dg.DagsterRunStatus.FAILURE
    failed = shared.instance.all_logs(run, of_type=dg.DagsterEventType.STEP_FAILURE)
    assert "as it should be" in str([entry.dagster_event and entry.dagster_event.step_failure_data for entry in failed])
    assert "process" not in shared.failure(run)


@pytest.mark.parametrize(
    ("asset", "reason"),
    [
        ("leaving", "ended with exit code 3"),
        ("leaving_in_silence", "ended with exit code 0"),
        ("crashing", "was ended by SIGSEGV (signal 11)"),
    ],
)
def test_a_run_whose_process_dies_fails_at_once_and_says_how(shared: Launching, asset: str, reason: str) -> None:
    run = shared.run(asset)  # nobody monitors runs here: whoever reaps the process tells of it
    assert shared.wait(run) is dg.DagsterRunStatus.FAILURE
    assert reason in shared.failure(run)
    health = shared.launcher.check_run_worker_health(shared.loaded(run))
    assert health.status is WorkerStatus.FAILED
    assert health.msg is not None
    assert reason in health.msg


def test_a_killed_run_names_the_signal(shared: Launching) -> None:
    run = shared.run("waiting")
    process = shared.begun(run)
    going = shared.launcher.check_run_worker_health(shared.loaded(run))
    assert going.status is WorkerStatus.RUNNING
    assert f"process {process.pid}" in (shared.launcher.get_run_worker_debug_info(shared.loaded(run)) or "")
    os.kill(process.pid, signal.SIGKILL)
    assert shared.wait(run) is dg.DagsterRunStatus.FAILURE
    assert "SIGKILL (signal 9)" in shared.failure(run)


def test_a_canceled_run_is_interrupted_and_ends_as_canceled(shared: Launching) -> None:
    run = shared.run("waiting")
    process = shared.begun(run)
    assert shared.launcher.terminate(run)
    assert shared.wait(run) is dg.DagsterRunStatus.CANCELED
    assert "DagsterExecutionInterruptedError" in str(shared.instance.all_logs(run))
    eventually(lambda: not process.is_alive(), "its process ends")
    assert not shared.launcher.terminate(run)


def test_a_run_that_is_canceled_before_its_process_begins_is_not_executed(shared: Launching) -> None:
    run = shared.create("simple")
    shared.instance.report_dagster_event(starting(), run_id=run)
    assert shared.launcher.terminate(run)
    assert shared.status(run) is dg.DagsterRunStatus.CANCELING
    shared.launcher.launch_run(shared.context(run))
    assert shared.wait(run) is dg.DagsterRunStatus.CANCELED
    assert shared.place.mark(f"simple-{run}") is None


def test_a_killed_run_that_was_being_canceled_is_canceled(shared: Launching) -> None:
    run = shared.run("waiting")
    process = shared.begun(run)
    shared.instance.report_run_canceling(shared.loaded(run))
    os.kill(process.pid, signal.SIGKILL)
    assert shared.wait(run) is dg.DagsterRunStatus.CANCELED
    assert "SIGKILL" in shared.messages(run)


@pytest.mark.parametrize(
    ("before", "end"),
    [
        (dg.DagsterRunStatus.STARTING, dg.DagsterRunStatus.FAILURE),
        (dg.DagsterRunStatus.CANCELING, dg.DagsterRunStatus.CANCELED),
    ],
)
def test_a_run_whose_end_could_not_be_written_ends_as_soon_as_it_can_be(
    shared: Launching, monkeypatch: pytest.MonkeyPatch, before: dg.DagsterRunStatus, end: dg.DagsterRunStatus
) -> None:
    run = shared.create("simple")
    shared.instance.report_dagster_event(starting(), run_id=run)

    def silenced(*_: object, **_named: object) -> int:
        """As Dagster does it: what the storage answers to its events is swallowed, and all of them are lost."""
        if before is dg.DagsterRunStatus.CANCELING:
            shared.instance.report_run_canceling(shared.loaded(run))
        return 0

    monkeypatch.setattr(child, "_execute_run_command_body", silenced)
    monkeypatch.setattr(child, "_differ_from_siblings", lambda _run_id: None)
    with executing() as process:
        assert not child._go(run, process, shared.instance.get_ref())
    assert shared.status(run) is end
    assert "has written no end" in shared.messages(run)


def _given(running: Launching, run: str) -> tuple[socket.socket, psutil.Process]:
    """A run's process that waits for the word to go, and the socket on which its launcher would give it."""
    running.instance.report_dagster_event(starting(), run_id=run)
    answers = running.launcher._zygote(running.context(run))._request({"ask": protocol.Ask.LAUNCH, "run_id": run})
    answer = protocol.receive(answers)
    assert answer is not None
    return answers, psutil.Process(answer["process"]["pid"])


def test_a_run_whose_process_dies_before_it_is_told_to_go_is_its_launchers_to_launch_again(shared: Launching) -> None:
    run = shared.create("simple")
    answers, process = _given(shared, run)
    with answers:
        process.kill()
        assert protocol.receive(answers) is None  # which is how the launcher learns of it
        with pytest.raises(BrokenPipeError):
            protocol.send(answers, {"go": True})
    eventually(lambda: not process.is_running(), "it is reaped")
    assert shared.launcher._zygotes.fate(run) is None
    shared.launcher.launch_run(shared.context(run))
    assert shared.wait(run) is dg.DagsterRunStatus.SUCCESS, shared.messages(run)


def test_a_run_whose_process_dies_before_it_hears_that_it_is_told_to_go_fails_at_once(shared: Launching) -> None:
    run = shared.create("simple")
    answers, process = _given(shared, run)
    process.suspend()
    with answers:
        protocol.send(answers, {"go": True})  # the launcher has done its part, and launches it no more
    process.kill()
    assert shared.wait(run) is dg.DagsterRunStatus.FAILURE
    assert "SIGKILL (signal 9)" in shared.failure(run)


def test_of_two_launches_of_a_run_at_once_one_executes_it(shared: Launching) -> None:
    run = shared.create("waiting")
    shared.instance.report_dagster_event(starting(), run_id=run)
    context = shared.context(run)
    with ThreadPoolExecutor(2) as threads:
        for launch in [threads.submit(shared.launcher.launch_run, context) for _ in range(2)]:
            launch.result()
    shared.begun(run)
    shared.place.end(run)
    assert shared.wait(run) is dg.DagsterRunStatus.SUCCESS
    assert shared.messages(run).count("Started process for run") == 1
    assert shared.messages(run).count("this launch is ignored") == 1


def test_runs_of_one_zygote_share_no_random_state(shared: Launching) -> None:
    runs = [shared.run("chance") for _ in range(3)]
    assert {shared.wait(run) for run in runs} == {dg.DagsterRunStatus.SUCCESS}
    drawn = [(shared.place.mark(f"chance-{run}") or "").split() for run in runs]
    for each in zip(*drawn, strict=True):
        assert len(set(each)) == len(runs), drawn
