"""``python -m bench [NAME ...]``: the measurements named, or all of them, each in a process of its own.

What belongs here: which there are. What does not: any of them (the modules beside this one).
"""

from __future__ import annotations

import subprocess
import sys

MEASUREMENTS = (
    "ingest",
    "large",
    "compaction",
    "rollup",
    "notify",
    "intake",
    "listing",
    "runs",
    "dagster_overhead",
    "dagster_storage",
    "history",
    "partitions",
    "scale",
    "month",
)


def main(names: list[str]) -> None:
    """Run the named measurements one after the other; each prints its table."""
    unknown = sorted(set(names) - set(MEASUREMENTS))
    if unknown:
        sys.exit(f"no measurement {', '.join(unknown)}: there are {', '.join(MEASUREMENTS)}")
    for name in names or MEASUREMENTS:
        subprocess.run([sys.executable, "-m", f"bench.{name}"], check=True)


if __name__ == "__main__":
    main(sys.argv[1:])
