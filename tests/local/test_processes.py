"""Child processes: none outlives its parent, and each ends when it is told to."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from lakerunner_dagster.local.processes import Children

SLEEPER = [sys.executable, "-c", "import time; print('up', flush=True); time.sleep(600)"]
STUBBORN = [
    sys.executable,
    "-c",
    "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('up', flush=True); time.sleep(600)",
]
PARENT = """
import sys, time
from pathlib import Path
from lakerunner_dagster.local.processes import Children
children = Children(Path(sys.argv[1]), {})
print(children.start("sleeper", sys.argv[2:]).process.pid, flush=True)
time.sleep(600)
"""


def eventually(holds: Callable[[], bool], seconds: float = 20.0) -> bool:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if holds():
            return True
        time.sleep(0.01)
    return False


def gone(process_id: int) -> bool:
    return not psutil.pid_exists(process_id) or psutil.Process(process_id).status() == psutil.STATUS_ZOMBIE


def test_a_child_that_ended_is_named_with_its_last_words(tmp_path: Path) -> None:
    children = Children(tmp_path, {"WORD": "out of luck"})
    children.start("sleeper", SLEEPER)
    children.start("quitter", [sys.executable, "-c", "import os, sys; print(os.environ['WORD']); sys.exit(3)"])
    try:
        assert eventually(lambda: children.ended() is not None)
        ended = children.ended()
        assert ended is not None
        assert (ended.name, ended.process.returncode, ended.tail()) == ("quitter", 3, "out of luck")
    finally:
        children.stop()


@pytest.mark.parametrize("command", [SLEEPER, STUBBORN])
def test_a_child_that_will_not_end_is_killed(tmp_path: Path, command: list[str]) -> None:
    children = Children(tmp_path, {})
    child = children.start("child", command)
    assert eventually(lambda: "up" in child.tail())
    children.stop(grace_seconds=0.5)
    assert child.process.returncode in {-signal.SIGTERM, -signal.SIGKILL}


def test_a_grandchild_that_outlives_its_parent(tmp_path: Path) -> None:
    children = Children(tmp_path, {})
    code = (
        f"import subprocess; print(subprocess.Popen({SLEEPER!r}, stdout=subprocess.DEVNULL).pid, flush=True); input()"
    )
    child = children.start("parent", [sys.executable, "-c", f"{code}"])
    assert eventually(lambda: child.tail()[:1].isdigit() and "EOFError" in child.tail())
    grandchild = int(child.tail().splitlines()[0])
    children.stop()
    assert eventually(lambda: gone(grandchild))


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a child that its parent has died")
def test_kill_of_the_parent_leaves_no_child_behind(tmp_path: Path) -> None:
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT, str(tmp_path), *SLEEPER], stdout=subprocess.PIPE, text=True
    )
    assert parent.stdout is not None
    child = int(parent.stdout.readline())
    os.kill(parent.pid, signal.SIGKILL)
    parent.communicate()
    assert eventually(lambda: gone(child))
