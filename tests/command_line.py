"""``lakerunner`` as a person uses it: arguments in; text and exit code out."""

from __future__ import annotations

import io
import re
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass

from lakerunner_dagster.cli import main

CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069]")
"""What a terminal obeys instead of showing it."""


@dataclass(frozen=True)
class Ended:
    """A command that has ended: what it printed, and its exit code."""

    code: int
    out: str
    err: str


def lakerunner(*arguments: str) -> Ended:
    """Run a command in this process, with the settings of its environment and current directory."""
    out, err = io.StringIO(), io.StringIO()
    code = 0
    with redirect_stdout(out), redirect_stderr(err):
        try:
            main(arguments)
        except SystemExit as ended:
            code = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
    assert not CONTROL.search(out.getvalue() + err.getvalue()), "a terminal would obey what others have written"
    return Ended(code, out.getvalue(), err.getvalue())


def done(*arguments: str) -> str:
    """What a command prints that must succeed, and complains of nothing."""
    ended = lakerunner(*arguments)
    assert (ended.code, ended.err) == (0, "")
    return ended.out


def refused(*arguments: str) -> str:
    """The one message of a command that must fail, which is no trace."""
    ended = lakerunner(*arguments)
    assert ended.code == 1
    assert ended.err.startswith("error: ")
    assert "Traceback" not in ended.err
    return ended.err
