"""The child processes of the development platform: started in order, watched, stopped in reverse.

What belongs here: processes as such. What does not: what they do (``dev`` says which are started).
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from functools import partial
from typing import IO, TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

POLL_SECONDS = 0.05

_PR_SET_PDEATHSIG = 1
_LIBC = ctypes.CDLL(None) if sys.platform == "linux" else None


def _prepare_to_end() -> None:
    # Runs in the child before exec. A shell's background job ignores SIGINT, its children inherit that, and Dagster
    # treats SIGTERM as SIGINT: it could not be stopped.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    # Without this a parent killed by SIGKILL leaves servers behind that hold ports.
    if _LIBC is not None:
        _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


@dataclass(frozen=True, slots=True)
class Child:
    """A started process and the file that its output goes to."""

    name: str
    process: subprocess.Popen[bytes]
    log: Path

    def tail(self, lines: int = 15) -> str:
        """The last lines of its output, for an error message."""
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])


class Children:
    """Processes that live and die together.

    Each gets a session of its own, so that a Ctrl-C in the terminal reaches us alone and we stop them in order.
    """

    def __init__(self, log_directory: Path, environment: Mapping[str, str]) -> None:
        self._log_directory = log_directory
        self._environment = {**os.environ, **environment}
        self._children: list[Child] = []

    def start(self, name: str, command: Sequence[str], **environment: str) -> Child:
        """Start ``command``; its output goes to ``{log directory}/{name}.log``, begun anew.

        ``environment`` comes on top of what all children get.
        """
        self._log_directory.mkdir(parents=True, exist_ok=True)
        log = self._log_directory / f"{name}.log"
        with log.open("wb") as output:
            child = Child(name, self._spawn(command, output, {**self._environment, **environment}), log)
        self._children.append(child)
        return child

    @staticmethod
    def _spawn(command: Sequence[str], output: IO[bytes], environment: dict[str, str]) -> subprocess.Popen[bytes]:
        return subprocess.Popen(  # noqa: S603  # our own commands
            list(command),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=environment,
            start_new_session=True,
            preexec_fn=_prepare_to_end,  # noqa: PLW1509  # two system calls that take no lock
        )

    def ended(self) -> Child | None:
        """The first child that is no longer running, if any."""
        return next((child for child in self._children if child.process.poll() is not None), None)

    def stop(self, grace_seconds: float = 20.0) -> None:
        """Ask each to end, the last started first, then what it started; kill who does not end within the grace."""
        while self._children:
            child = self._children.pop()
            # The child first and alone: it may know better in which order its own children end.
            child.process.terminate()
            _wait_until(partial(_has_ended, child.process), grace_seconds)
            _signal_group(child.process.pid, signal.SIGTERM)
            _wait_until(partial(_group_is_empty, child.process), grace_seconds)
            _signal_group(child.process.pid, signal.SIGKILL)
            child.process.wait()


def _wait_until(holds: Callable[[], bool], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not holds() and time.monotonic() < deadline:
        time.sleep(POLL_SECONDS)


def _has_ended(process: subprocess.Popen[bytes]) -> bool:
    return process.poll() is not None


def _group_is_empty(leader: subprocess.Popen[bytes]) -> bool:
    leader.poll()  # a leader that nobody has waited for still counts as a member
    return not _signal_group(leader.pid, 0)


def _signal_group(group: int, number: int) -> bool:
    """Signal every process of a group; False when there is none."""
    try:
        os.killpg(group, number)
    except ProcessLookupError:
        return False
    return True
