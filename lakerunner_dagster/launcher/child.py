"""What a forked child does: execute one run, or tell of one whose process could not.

What belongs here: the life of a child. What does not: when one is forked (``zygote``).

A run is executed by the function behind ``dagster api execute_run``, so that its events are those of any other run
worker. What comes before it: the child lays claim to its run, says who it is, and waits for the launcher's word. So
there is no launch of which nobody knows whether it has happened, and no run with two processes.
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
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path

from dagster import DagsterInstance, DagsterRunStatus
from dagster._cli.api import _execute_run_command_body
from dagster._cli.utils import get_instance_for_cli
from dagster._core.instance.ref import InstanceRef
from dagster._utils.interrupts import capture_interrupts, check_captured_interrupt

from lakerunner_dagster.launcher import protocol
from lakerunner_dagster.launcher.output import mirror_by_threads
from lakerunner_dagster.launcher.process import RunProcess

INTERRUPTS = {signal.SIGINT, signal.SIGTERM}
WORD_SECONDS = 60.0
"""How long a child waits for the launcher's word before it gives up."""

REPORT_ATTEMPTS = 6
MOST_REASON_BYTES = 4000

_ENDED_ITSELF = b"\0"
_OOM_SCORE = "300"


def live(run_id: str, instance_ref: InstanceRef, launcher: socket.socket, end: int) -> None:
    """Execute a run, from the fork to the process's end; called with ``INTERRUPTS`` blocked.

    Through the pipe ``end`` the zygote learns that the run has told of its own end, or what went wrong instead.
    """
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    with capture_interrupts():
        signal.pthread_sigmask(signal.SIG_UNBLOCK, INTERRUPTS)
        claim = _claim(run_id)
        if claim is None:
            with suppress(OSError):
                protocol.send(launcher, {"claimed": True})
        elif _is_told_to_go(launcher):
            try:
                _go(run_id, instance_ref)
            except BaseException as error:  # its reason must reach the zygote, whatever it is
                os.write(end, f"{type(error).__name__}: {error}".encode()[:MOST_REASON_BYTES])
                raise
        os.write(end, _ENDED_ITSELF)
        _wait_for_what_it_started()


def _wait_for_what_it_started() -> None:
    """Threads and processes, as at the end of a child of multiprocessing, which a stock run is: so without atexit.

    Handlers inherited from the zygote would tidy up what is its own, as temporary directories of modules.
    """
    threading._shutdown()  # type: ignore[attr-defined]  # noqa: SLF001
    multiprocessing.util._exit_function()  # type: ignore[attr-defined]  # noqa: SLF001


def what_was_said(end: int) -> str | None:
    """What a child said of its end, read when it has ended: None where all is well, "" where it said nothing."""
    try:
        said = os.read(end, MOST_REASON_BYTES)
    except BlockingIOError:  # a process that it has left behind holds the pipe
        return ""
    return None if said.endswith(_ENDED_ITSELF) else said.decode(errors="replace")


def _claim(run_id: str) -> socket.socket | None:
    """The one claim on a run that this machine gives, for as long as we live; None where another process has it."""
    claim = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        claim.bind(f"\0lakerunner-run-{run_id}")  # an abstract name: the kernel frees it when its holder ends
    except OSError:
        claim.close()
        return None
    return claim


def _is_told_to_go(launcher: socket.socket) -> bool:
    launcher.settimeout(WORD_SECONDS)
    try:
        protocol.send(launcher, {"process": asdict(RunProcess.this())})
        return protocol.receive(launcher) is not None
    except OSError:
        return False
    finally:
        launcher.close()


def _go(run_id: str, instance_ref: InstanceRef) -> None:
    _differ_from_siblings(run_id)
    mirror_by_threads()
    with get_instance_for_cli(instance_ref=instance_ref) as instance:
        # Told before the run's state is looked at. Who cancels it writes the state first and looks for the process
        # then, so that one of the two sees the other.
        instance.add_run_tags(run_id, RunProcess.this().tag())
        if not _end_if_canceled(instance, run_id):
            _execute_run_command_body(run_id, instance, lambda _event: None, set_exit_code_on_failure=False)
            if check_captured_interrupt():  # one that came before any step could take it
                _end_if_canceled(instance, run_id)


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
