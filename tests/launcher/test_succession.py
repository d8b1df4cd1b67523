"""Runs that one process executes one after the other: none reaches into the next, and what is left ends the process."""

from __future__ import annotations

import os
import signal
import threading

import dagster as dg
import psutil
import pytest
from dagster._core.instance.ref import InstanceRef
from dagster._utils.interrupts import capture_interrupts, check_captured_interrupt

from lakerunner_dagster.launcher import child, protocol
from lakerunner_dagster.launcher.fork import FREE_SECONDS
from lakerunner_dagster.launcher.process import RunProcess
from tests.launcher.platform import Launching
from tests.waiting import eventually

SUCCESS = dg.DagsterRunStatus.SUCCESS


def test_the_next_run_is_executed_by_the_process_that_has_become_free(shared: Launching) -> None:
    process = shared.free(shared.succeeded("simple"))
    runs = [shared.succeeded("simple")]
    shared.free(runs[-1])
    runs.append(shared.succeeded("simple"))
    assert [shared.process(run).pid for run in runs] == [process.pid] * 2
    for run in runs:  # each run has events and output of its own, not those of the ones before
        assert shared.messages(run).count("Started process for run") == 1
        assert shared.place.mark(f"simple-{run}") == "first"


@pytest.mark.parametrize("asset", ["failing", "lingering"])
def test_a_process_in_which_something_may_be_left_ends_with_its_run(shared: Launching, asset: str) -> None:
    run = shared.run(asset)
    shared.wait(run)
    pid = shared.process(run).pid
    shared.place.end(run)
    eventually(lambda: not psutil.pid_exists(pid), "it ends")
    assert shared.process(shared.succeeded("simple")).pid != pid


def test_a_canceled_run_takes_its_process_with_it(shared: Launching) -> None:
    run = shared.run("waiting")
    pid = shared.begun(run).pid
    assert shared.launcher.terminate(run)
    assert shared.wait(run) is dg.DagsterRunStatus.CANCELED
    eventually(lambda: not psutil.pid_exists(pid), "it ends")


def test_a_process_that_holds_much_memory_does_not_wait_for_a_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threading, "enumerate", lambda: [threading.main_thread()])
    monkeypatch.setattr(child, "resident_bytes", lambda _pid: child.MOST_IDLE_BYTES)
    assert child._is_as_forked()
    monkeypatch.setattr(child, "resident_bytes", lambda _pid: child.MOST_IDLE_BYTES + 1)
    assert not child._is_as_forked()


def test_who_cancels_a_run_that_has_ended_does_not_interrupt_the_next_one_of_its_process(shared: Launching) -> None:
    ended = shared.process(shared.succeeded("simple"))
    eventually(lambda: not ended.is_alive(), "the process is free")
    run = shared.run("waiting")
    going = shared.begun(run)
    assert going.pid == ended.pid
    assert not ended.interrupt()
    assert going.is_alive()
    shared.place.end(run)
    assert shared.wait(run) is SUCCESS


def test_an_interrupt_that_comes_as_a_run_ends_is_not_the_next_ones(
    shared: Launching, monkeypatch: pytest.MonkeyPatch
) -> None:
    heard = []

    def interrupted(_run_id: str, process: RunProcess, _ref: InstanceRef) -> bool:
        heard.append(process.interrupt())
        return True

    monkeypatch.setattr(child, "_go", interrupted)
    launcher, answers = protocol.pair()
    protocol.send(launcher, {"go": True})
    with launcher, capture_interrupts():
        assert child._execute(protocol.Work("interrupted at its end", answers), shared.instance.get_ref())
        assert heard == [True]
        assert not check_captured_interrupt()


def test_a_free_process_that_is_killed_fails_no_run(shared: Launching) -> None:
    before = shared.succeeded("simple")
    process = shared.free(before)
    process.kill()
    eventually(lambda: not process.is_running(), "it is reaped")
    assert shared.process(shared.succeeded("simple")).pid != process.pid
    assert shared.status(before) is SUCCESS


def test_a_free_process_that_is_told_to_end_does_so_at_once_and_interrupts_no_run(shared: Launching) -> None:
    before = shared.succeeded("simple")
    process = shared.free(before)
    process.terminate()
    assert shared.process(shared.succeeded("simple")).pid != process.pid  # launched before it may have ended
    eventually(lambda: not process.is_running(), "it is reaped", seconds=FREE_SECONDS / 2)
    assert shared.status(before) is SUCCESS


def test_who_is_told_to_end_between_two_runs_takes_none_any_more() -> None:
    ours, theirs = protocol.pair()
    launcher, answers = protocol.pair()
    with ours, theirs, launcher, answers, capture_interrupts():
        protocol.send(ours, {"run_id": "the next one"}, answers)
        os.kill(os.getpid(), signal.SIGTERM)
        assert child._next(theirs) is None


def test_a_run_whose_process_is_killed_fails_though_runs_before_it_have_succeeded(shared: Launching) -> None:
    before = shared.succeeded("simple")
    process = shared.free(before)
    run = shared.run("waiting")
    assert shared.begun(run).pid == process.pid
    process.kill()
    assert shared.wait(run) is dg.DagsterRunStatus.FAILURE
    assert "SIGKILL (signal 9)" in shared.failure(run)
    assert shared.status(before) is SUCCESS
    shared.succeeded("simple")
