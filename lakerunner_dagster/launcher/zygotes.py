"""The launcher's side of its zygotes: started when first needed, replaced when code changes or one has died.

What belongs here: which zygote serves a run, and asking it. What does not: the zygote's own side (``zygote``).
"""

from __future__ import annotations

import os
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from lakerunner_dagster.launcher import protocol
from lakerunner_dagster.launcher.errors import ZygoteFailed, ZygoteLost
from lakerunner_dagster.launcher.threads import QUIET_ENVIRONMENT

START_SECONDS = 180.0
"""Loading the definitions must end by then."""

ANSWER_SECONDS = 60.0
AGAIN_SECONDS = 60.0
"""A zygote that could not be started is not tried again for so long, unless the code changes."""


class Launched(StrEnum):
    """What has become of a launch."""

    GOES = "goes"
    ALREADY_GOES = "already goes"
    NO_PLACE = "no place"


@dataclass(frozen=True, slots=True)
class Code:
    """The code of a location as it is now: the server that has loaded it, and the interpreter and origin to load."""

    location: str
    server_id: str
    executable: str


class ZygoteHandle:
    """A running zygote. Closing the handle lets it end with its last child."""

    def __init__(self, executable: str, load: protocol.Load) -> None:
        """Start it and wait until it has loaded; ZygoteFailed, with its own words, where it cannot."""
        self._channel, theirs = protocol.pair()
        with theirs:
            self._process = _spawn(executable, theirs)
        # Its exit code is nobody's news, but somebody must take it.
        threading.Thread(target=self._process.wait, name=f"zygote-{self.pid}-reaper", daemon=True).start()
        try:
            answer = self._ask(load.message(), START_SECONDS)
        except ZygoteLost as error:
            self.close()
            raise ZygoteFailed(f"the process that runs are forked from ended as it started: {error}") from error
        if "error" in answer:
            self.close()
            raise ZygoteFailed(str(answer["error"]))

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    def launch(self, run_id: str) -> Launched:
        """Have a child forked for a run. ZygoteFailed where it cannot fork, ZygoteLost where it has ended."""
        with self._request({"ask": protocol.Ask.LAUNCH, "run_id": run_id}) as answers:
            answer = _answer(answers, ANSWER_SECONDS)
            if "error" in answer:
                raise ZygoteFailed(str(answer["error"]))
            if "full" in answer:
                return Launched.NO_PLACE
            if "claimed" in answer:
                return Launched.ALREADY_GOES
            try:
                protocol.send(answers, {"go": True})
            except OSError as error:
                raise ZygoteLost(f"the child of zygote {self.pid} ended before it was told to go: {error}") from error
            return Launched.GOES

    def fate(self, run_id: str) -> str | None:
        """Why a run's child ended that did not tell so itself; None where this zygote knows of none."""
        try:
            fate = self._ask({"ask": protocol.Ask.FATE, "run_id": run_id}, ANSWER_SECONDS)["fate"]
        except ZygoteLost:
            return None
        return str(fate) if fate is not None else None

    def close(self) -> None:
        """Ask for nothing any more."""
        self._channel.close()

    def _ask(self, message: Mapping[str, Any], seconds: float) -> dict[str, Any]:
        with self._request(message) as answers:
            return _answer(answers, seconds)

    def _request(self, message: Mapping[str, Any]) -> socket.socket:
        """Send a request; the socket on which its answer will come."""
        ours, theirs = protocol.pair()
        with theirs:
            try:
                protocol.send(self._channel, message, theirs)
            except OSError as error:
                ours.close()
                raise ZygoteLost(f"zygote {self.pid} is gone: {error}") from error
        return ours


def _answer(answers: socket.socket, seconds: float) -> dict[str, Any]:
    answers.settimeout(seconds)
    try:
        answer = protocol.receive(answers)
    except TimeoutError:
        raise ZygoteLost(f"no answer within {seconds:g} s") from None
    if answer is None:
        raise ZygoteLost("it ended without an answer")
    return answer


def _spawn(executable: str, channel: socket.socket) -> subprocess.Popen[bytes]:
    # It stays in our process group, as a code server does: what is sent to the group reaches its children too.
    try:
        return subprocess.Popen(  # noqa: S603  # the interpreter of the code location
            [executable, "-m", "lakerunner_dagster.launcher.zygote", str(channel.fileno())],
            stdin=subprocess.DEVNULL,
            env={**os.environ, **QUIET_ENVIRONMENT},
            pass_fds=[channel.fileno()],
        )
    except OSError as error:
        raise ZygoteFailed(f"no process can be started with {executable}: {error}") from error


class Zygotes:
    """One zygote for each code location, of the code that it has now. Any number of threads may ask."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._running: dict[str, tuple[Code, ZygoteHandle]] = {}
        self._failed: dict[Code, tuple[float, ZygoteFailed]] = {}

    def serving(self, code: Code, load: Callable[[], protocol.Load]) -> ZygoteHandle:
        """The zygote of this code, started where there is none; one of other code ends with its last child."""
        with self._lock:
            of, handle = self._running.get(code.location, (None, None))
            if handle is not None and of == code:
                return handle
            self._let_go(code.location)
            since, error = self._failed.get(code, (0.0, None))
            if error is not None and time.monotonic() - since < AGAIN_SECONDS:
                raise error
            return self._start(code, load())

    def _start(self, code: Code, load: protocol.Load) -> ZygoteHandle:
        try:
            handle = ZygoteHandle(code.executable, load)
        except ZygoteFailed as error:
            self._failed = {code: (time.monotonic(), error)}
            raise
        self._running[code.location] = (code, handle)
        return handle

    def lost(self, handle: ZygoteHandle) -> None:
        """Have the next run start another in place of this one."""
        with self._lock:
            for location, (_, known) in list(self._running.items()):
                if known is handle:
                    self._let_go(location)

    def fate(self, run_id: str) -> str | None:
        """Why a run's child ended, where one of the zygotes that serve has buried it."""
        with self._lock:
            handles = [handle for _, handle in self._running.values()]
        return next((fate for handle in handles if (fate := handle.fate(run_id)) is not None), None)

    def close(self) -> None:
        """Let go of all of them."""
        with self._lock:
            for location in list(self._running):
                self._let_go(location)

    def _let_go(self, location: str) -> None:
        _, handle = self._running.pop(location, (None, None))
        if handle is not None:
            handle.close()
