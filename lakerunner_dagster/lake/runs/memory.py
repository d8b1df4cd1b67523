"""The memory that this process has needed at most.

What belongs here: asking the system. What does not: bounding it (``transform.CHUNK_BYTES``).
"""

from __future__ import annotations

import re
import resource
import sys
from pathlib import Path


def peak_memory_bytes() -> int:
    """Highest resident set of this process so far, in bytes.

    Linux's VmHWM comes first: getrusage also counts what a parent had before it started this program.
    """
    status = Path("/proc/self/status")
    if status.exists():
        peak = re.search(r"^VmHWM:\s+(\d+) kB$", status.read_text(encoding="ascii"), re.MULTILINE)
        if peak:
            return int(peak[1]) * 1024
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
