"""How a run's process ended, in a sentence.

What belongs here: the words. What does not: who is told (``child``).
"""

from __future__ import annotations

import os
import signal

MiB = 1024 * 1024


def exit_reason(pid: int, status: int) -> str:
    """Why a process ended, by its wait status: the signal by name, or the exit code."""
    code = os.waitstatus_to_exitcode(status)
    if code >= 0:
        return f"The run's process {pid} ended with exit code {code}, in the middle of the run."
    name = signal.Signals(-code).name if -code in set(signal.Signals) else "a signal"
    memory = " The kernel sends it where memory is short." if -code == signal.SIGKILL else ""
    return f"The run's process {pid} was ended by {name} (signal {-code}).{memory}"


def over_limit(pid: int, resident: int, limit: int) -> str:
    """Why a process was ended that held more memory than it may; both numbers in bytes."""
    return (
        f"The run's process {pid} was ended: it held {resident} bytes ({resident / MiB:.0f} MiB) of memory, and the "
        f"limit is {limit} ({limit / MiB:.0f} MiB, memory_limit_bytes of the run launcher in dagster.yaml)."
    )
