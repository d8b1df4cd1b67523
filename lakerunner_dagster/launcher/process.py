"""Which process executes a run, told so that it is never mistaken for another one.

What belongs here: the identity of a process, kept in a tag of its run, and what can be asked of it. What does not: what
its state means for the run (``fork``).

A process id is given to another process sooner or later. Together with the time at which the kernel started the
process, the boot and the namespace of process ids it is given to one only.
"""

from __future__ import annotations

import json
import os
import signal
import socket
from collections.abc import Mapping
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
    """A process: its id, when it was started (clock ticks since boot), and on which machine."""

    pid: int
    started: int
    machine: str
    host: str

    @classmethod
    def this(cls) -> RunProcess:
        """The calling process."""
        stat = _stat(os.getpid())
        assert stat is not None  # noqa: S101  # we are
        return cls(os.getpid(), int(stat[_START_TICKS]), _machine(), socket.gethostname())

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
        """Whether it goes on; one that has ended and waits to be reaped does not."""
        stat = _stat(self.pid) if self.is_of_this_machine() else None
        return stat is not None and int(stat[_START_TICKS]) == self.started and stat[_STATE] not in "ZX"

    def interrupt(self) -> bool:
        """Ask it to end, as SIGTERM does; False where it is gone."""
        try:
            handle = os.pidfd_open(self.pid)
        except ProcessLookupError:
            return False
        try:
            # Looked at while the handle is held: from here on it cannot become another process.
            if not self.is_alive():
                return False
            signal.pidfd_send_signal(handle, signal.SIGTERM)
        except ProcessLookupError:
            return False
        finally:
            os.close(handle)
        return True

    def __str__(self) -> str:
        return f"process {self.pid} of {self.host}"


def resident_bytes(pid: int) -> int:
    """What a process holds in memory, pages shared with the process that forked it included; 0 where it is gone."""
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (FileNotFoundError, ProcessLookupError):
        return 0
