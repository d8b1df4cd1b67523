"""Which process executes a run, told so that it is never mistaken for another one.

What belongs here: the identity of a process, kept in a tag of its run, and what can be asked of it. What does not: what
its state means for the run (``fork``).

A process id is given to another process sooner or later. Together with the time at which the kernel started the
process, the boot and the namespace of process ids it is given to one only.

A process executes other runs later. So a run's process has an ear while it executes the run: a pipe of which the kernel
says by SIGTERM that something was written into it. Who wants to interrupt the run writes, and not after its end: the
pipe has gone with it, so that no interrupt can reach the wrong run.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import signal
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path

from dagster._core.storage.tags import HIDDEN_TAG_PREFIX

PROCESS_TAG = f"{HIDDEN_TAG_PREFIX}lakerunner_process"

_STATE, _START_TICKS = 0, 19
"""Fields of ``/proc/{pid}/stat`` behind the command's name: proc(5), fields 3 and 22."""


@cache
def _machine() -> str:
    """The boot of this machine, and our namespace of process ids in it."""
    return f"{Path('/proc/sys/kernel/random/boot_id').read_text().strip()} {Path('/proc/self/ns/pid').readlink()}"


def _stat(pid: int) -> list[str] | None:
    """The fields of a process behind its name, which may hold anything; None where there is no such process."""
    try:
        return Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None


@dataclass(frozen=True, slots=True)
class RunProcess:
    """A process: its id, when it was started (clock ticks since boot), on which machine, and its ear's descriptor."""

    pid: int
    started: int
    machine: str
    host: str
    ear: int
    ear_inode: int

    @classmethod
    def of(cls, tags: Mapping[str, str]) -> RunProcess | None:
        """The process of the run with these tags; None where none has begun it."""
        return cls(**json.loads(tags[PROCESS_TAG])) if PROCESS_TAG in tags else None

    def tag(self) -> dict[str, str]:
        """The tag that tells of it."""
        return {PROCESS_TAG: json.dumps(asdict(self))}

    def is_of_this_machine(self) -> bool:
        """Whether it could be seen from here at all."""
        return self.machine == _machine()

    def is_alive(self) -> bool:
        """Whether it executes the run still; one that has ended and waits to be reaped does not."""
        stat = _stat(self.pid) if self.is_of_this_machine() else None
        if stat is None or int(stat[_START_TICKS]) != self.started or stat[_STATE] in "ZX":
            return False
        try:
            return self._ear.stat().st_ino == self.ear_inode
        except (FileNotFoundError, ProcessLookupError):
            return False

    def interrupt(self) -> bool:
        """Ask it to end the run, as SIGTERM does; False where it executes it no more."""
        if not self.is_of_this_machine():
            return False
        try:
            bell = os.open(self._ear, os.O_WRONLY | os.O_NONBLOCK)
        except OSError as error:
            if error.errno not in {errno.ENOENT, errno.ESRCH, errno.ENXIO}:
                raise
            return False
        try:
            # Looked at while the pipe is held: from here on it cannot become another one.
            if os.fstat(bell).st_ino != self.ear_inode or not self.is_alive():
                return False
            os.write(bell, b"!")
        except BrokenPipeError:
            return False
        finally:
            os.close(bell)
        return True

    @property
    def _ear(self) -> Path:
        return Path(f"/proc/{self.pid}/fd/{self.ear}")

    def __str__(self) -> str:
        return f"process {self.pid} of {self.host}"


@contextmanager
def executing() -> Iterator[RunProcess]:
    """The calling process, with an ear for as long as the context lasts; for the main thread."""
    stat = _stat(os.getpid())
    assert stat is not None  # noqa: S101  # we are
    ear, bell = os.pipe()  # the bell is kept: a pipe also says so when its last writer goes
    try:
        fcntl.fcntl(ear, fcntl.F_SETOWN, os.getpid())
        fcntl.fcntl(ear, fcntl.F_SETSIG, signal.SIGTERM)
        fcntl.fcntl(ear, fcntl.F_SETFL, os.O_ASYNC | os.O_NONBLOCK)
        yield RunProcess(
            pid=os.getpid(),
            started=int(stat[_START_TICKS]),
            machine=_machine(),
            host=socket.gethostname(),
            ear=ear,
            ear_inode=os.fstat(ear).st_ino,
        )
    finally:
        os.close(ear)
        os.close(bell)


def resident_bytes(pid: int) -> int:
    """What a process holds in memory, pages shared with the process that forked it included; 0 where it is gone."""
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (FileNotFoundError, ProcessLookupError):
        return 0
