"""What a forked child does: execute runs, one after the other, or tell of one whose process could not.

What belongs here: the life of a child. What does not: when one is forked, and which run it is given (``zygote``).

A run is executed by the function behind ``dagster api execute_run``, so that its events are those of any other run
worker. What comes before it: the child lays claim to its run, says who it is, and waits for the launcher's word. So
there is no launch of which nobody knows whether it has happened, and no run with two processes.

A run that has succeeded leaves its process to the next one, which finds it warm: pages of its own, connections, a heap.
After any other end, or where threads, processes or much memory are left, the process ends with its run.
"""

from __future__ import annotations

import multiprocessing.util
import os
import random
import signal
import socket
import sys
import threading
import time
from contextlib import ExitStack, suppress
from dataclasses import asdict
from pathlib import Path

from dagster import DagsterEventType, DagsterInstance, DagsterRunStatus
from dagster._cli.api import _execute_run_command_body
from dagster._cli.utils import get_instance_for_cli
from dagster._core.instance.ref import InstanceRef
from dagster._utils.interrupts import capture_interrupts, pop_captured_interrupt, raise_interrupts_as

from lakerunner_dagster.launcher import protocol
from lakerunner_dagster.launcher.output import mirror_by_threads
from lakerunner_dagster.launcher.process import RunProcess, executing, resident_bytes

INTERRUPTS = {signal.SIGINT, signal.SIGTERM}
ENDS = {DagsterEventType.RUN_SUCCESS, DagsterEventType.RUN_FAILURE, DagsterEventType.RUN_CANCELED}
WORD_SECONDS = 60.0
"""How long a child waits for the launcher's word before it gives up."""

REPORT_ATTEMPTS = 6
MOST_REASON_CHARACTERS = 4000

MOST_IDLE_BYTES = 1024 * 1024 * 1024
"""A process that holds more than this after a run ends with it."""

_OOM_SCORE = "300"


def live(first: protocol.Work, zygote: socket.socket, instance_ref: InstanceRef, most_runs: int) -> None:
    """Execute runs, from the fork to the process's end; called with ``INTERRUPTS`` blocked.

    It begins with the first, and takes the next one from the zygote for as long as nothing of the last one is left in
    the process. After each it says that the run has told of its own end, or what went wrong instead.
    """
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    with capture_interrupts():
        signal.pthread_sigmask(signal.SIG_UNBLOCK, INTERRUPTS)
        mirror_by_threads()
        work: protocol.Work | None = first
        runs = 0
        while work is not None:
            runs += 1
            try:
                succeeded = _execute(work, instance_ref)
            except BaseException as error:  # its reason must reach the zygote, whatever it is
                protocol.say(zygote, {"reason": f"{type(error).__name__}: {error}"[:MOST_REASON_CHARACTERS]})
                raise
            again = succeeded and runs < most_runs and _is_as_forked()
            protocol.say(zygote, {"ended": True, "free": again})
            work = _next(zygote) if again else None
        _wait_for_what_it_started()


def _next(zygote: socket.socket) -> protocol.Work | None:
    """The next run; None where there is none any more, or where a signal has said since the last one's end to end."""
    try:
        with raise_interrupts_as(KeyboardInterrupt):
            return protocol.receive_work(zygote)
    except KeyboardInterrupt:
        return None


def _is_as_forked() -> bool:
    """Whether nothing of a run is left that would reach into the next one, or that no idle process should hold."""
    threads = [one for one in threading.enumerate() if one is not threading.main_thread() and not one.daemon]
    return not threads and not multiprocessing.active_children() and resident_bytes(os.getpid()) <= MOST_IDLE_BYTES


def _wait_for_what_it_started() -> None:
    """Threads and processes, as at the end of a child of multiprocessing, which a stock run is: so without atexit.

    Handlers inherited from the zygote would tidy up what is its own, as temporary directories of modules.
    """
    threading._shutdown()  # type: ignore[attr-defined]  # noqa: SLF001
    multiprocessing.util._exit_function()  # type: ignore[attr-defined]  # noqa: SLF001


def _execute(work: protocol.Work, instance_ref: InstanceRef) -> bool:
    """Execute a run if it is ours to execute; whether it left all well."""
    with work.launcher, ExitStack() as held:
        claim = _claim(work.run_id)
        if claim is None:
            protocol.say(work.launcher, {"claimed": True})
            return True
        held.enter_context(claim)
        held.callback(pop_captured_interrupt)  # called for this run, heard at its end: none of the next one's
        process = held.enter_context(executing())
        return not _is_told_to_go(work.launcher, process) or _go(work.run_id, process, instance_ref)


def _claim(run_id: str) -> socket.socket | None:
    """The one claim on a run that this machine gives, for as long as we live; None where another process has it."""
    claim = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        claim.bind(f"\0lakerunner-run-{run_id}")  # an abstract name: the kernel frees it when its holder ends
    except OSError:
        claim.close()
        return None
    return claim


def _is_told_to_go(launcher: socket.socket, process: RunProcess) -> bool:
    with launcher:
        launcher.settimeout(WORD_SECONDS)
        with suppress(OSError):
            protocol.send(launcher, {"process": asdict(process)})
            launcher.recv(1, socket.MSG_PEEK)
        return protocol.is_told_to_go(launcher)


def _go(run_id: str, process: RunProcess, instance_ref: InstanceRef) -> bool:
    """Execute a run; whether it has succeeded."""
    _differ_from_siblings(run_id)
    said: set[DagsterEventType] = set()
    with get_instance_for_cli(instance_ref=instance_ref) as instance:
        # Told before the run's state is looked at. Who cancels it writes the state first and looks for the process
        # then, so that one of the two sees the other.
        instance.add_run_tags(run_id, process.tag())
        if not _end_if_canceled(instance, run_id):
            _execute_run_command_body(
                run_id, instance, lambda event: said.add(event.event_type), set_exit_code_on_failure=False
            )
            if not said & ENDS:  # whatever went wrong, Dagster returns as if nothing had
                report_end(
                    instance,
                    run_id,
                    f"The run's process {process.pid} has written no end of it: Dagster's storage did not answer, or "
                    "the run was canceled as it began.",
                )
    return DagsterEventType.RUN_SUCCESS in said


def _differ_from_siblings(run_id: str) -> None:
    """What a fresh interpreter has of its own, and a name and a place in the kernel's order of killing."""
    random.seed()
    if "numpy.random" in sys.modules:
        sys.modules["numpy.random"].seed()
    with suppress(OSError):
        Path("/proc/self/comm").write_text(f"run {run_id[:8]}")
        Path("/proc/self/oom_score_adj").write_text(_OOM_SCORE)  # where memory is short, a run goes before the daemon


def _end_if_canceled(instance: DagsterInstance, run_id: str) -> bool:
    """Whether its cancellation was asked for before its execution could notice."""
    run = instance.get_run_by_id(run_id)
    if run is None or run.status is not DagsterRunStatus.CANCELING:
        return False
    instance.report_run_canceled(run, "The run was canceled before it was executed.")
    return True


def tell(run_id: str, instance_ref: InstanceRef, reason: str) -> None:
    """Report the end of a run whose process could not; tried again while the storage does not answer."""
    for attempt in range(REPORT_ATTEMPTS):
        try:
            with get_instance_for_cli(instance_ref=instance_ref) as instance:
                report_end(instance, run_id, reason)
        except Exception:
            if attempt == REPORT_ATTEMPTS - 1:
                raise
            time.sleep(2.0**attempt)
        else:
            return


def report_end(instance: DagsterInstance, run_id: str, reason: str) -> None:
    """Mark a run as failed for a reason, or as canceled where that was asked for; nothing where it has ended."""
    run = instance.get_run_by_id(run_id)
    if run is None or run.is_finished:
        return
    if run.status is DagsterRunStatus.CANCELING:
        instance.report_run_canceled(run, reason)
    else:
        instance.report_run_failed(run, reason)
