"""What would break if killed runs left their files for ever, or a living one lost its own."""

from __future__ import annotations

import os
import signal
from multiprocessing import get_context
from multiprocessing.synchronize import Event
from pathlib import Path

import pytest

from lakerunner_dagster.lake.runs.scratch import scratch_directory


@pytest.fixture(autouse=True)
def room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    return tmp_path


def _use(directory: str, ready: Event, leave: Event) -> None:
    os.environ["TMPDIR"] = directory
    with scratch_directory() as own:
        (own / "rows").write_bytes(b"x" * 100)
        ready.set()
        leave.wait()


def test_nothing_is_left_when_the_block_ends_however_it_ends(room: Path) -> None:
    def fail() -> None:
        with scratch_directory() as own:
            (own / "file").touch()
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert list(room.iterdir()) == []


def test_what_a_killed_run_has_left_goes_and_what_a_living_one_uses_stays(room: Path) -> None:
    context = get_context("spawn")
    children = []
    for _ in range(2):
        ready, leave = context.Event(), context.Event()
        child = context.Process(target=_use, args=(str(room), ready, leave))
        child.start()
        assert ready.wait(60)
        children.append((child, leave))
    (killed, _), (living, leave) = children
    assert killed.pid is not None
    os.kill(killed.pid, signal.SIGKILL)
    killed.join()
    with scratch_directory():
        assert len(list(room.glob("*/rows"))) == 1
    leave.set()
    living.join()
    assert list(room.iterdir()) == []
