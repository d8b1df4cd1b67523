"""The zygote: a process with one code location loaded and nothing open, which forks a child for each run.

What belongs here: forking, reaping, and the bounds on number and memory. What does not: what is loaded (``warmth``),
what a child does (``child``), and who asks (``zygotes``).

It has one thread and sleeps until its launcher asks for something or a child ends. When the launcher closes the
channel, by its own death at the latest, it takes no more requests and ends with its last child.
"""

from __future__ import annotations

import os
import select
import selectors
import signal
import socket
import sys
import traceback
from collections import OrderedDict
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, NoReturn

from dagster._core.instance.ref import InstanceRef
from dagster._serdes import deserialize_value

from lakerunner_dagster.launcher import child, protocol, threads, warmth
from lakerunner_dagster.launcher.exits import exit_reason, over_limit
from lakerunner_dagster.launcher.process import resident_bytes

MEMORY_POLL_SECONDS = 0.25

MOST_FATES = 1000


@dataclass(slots=True)
class _Child:
    """A child: the run that it executes, or None where it tells of another's end; ``held`` over its memory limit."""

    pid: int
    handle: int
    end: int
    run_id: str | None
    held: int | None = None


class Zygote:
    """Serves one launcher, from the loaded definitions to the end of the last child."""

    def __init__(self, channel: socket.socket, load: protocol.Load, watch: threads.ThreadWatch) -> None:
        self._channel = channel
        self._load = load
        self._watch = watch
        self._instance_ref = deserialize_value(load.instance_ref, InstanceRef)
        self._children: dict[int, _Child] = {}
        self._fates: OrderedDict[str, str] = OrderedDict()
        self._poll = selectors.PollSelector()
        self._poll.register(channel, select.POLLIN)
        self._serves = True

    def serve(self) -> None:
        """Serve until nobody asks and nobody lives."""
        signal.signal(signal.SIGTERM, self._retire)
        signal.signal(signal.SIGINT, self._retire)
        while self._serves or self._children:
            for key, _ in self._poll.select(self._patience()):
                if key.fileobj is self._channel:
                    self._answer()
                else:
                    self._bury(self._children[key.fd])
            self._hold_to_limit()

    def _retire(self, _number: int, _frame: object) -> None:
        # As if the launcher had closed it, which thereby learns that there is no more to ask of us.
        with suppress(OSError):
            self._channel.shutdown(socket.SHUT_RDWR)

    def _patience(self) -> float | None:
        return MEMORY_POLL_SECONDS if self._load.memory_limit_bytes and self._children else None

    def _answer(self) -> None:
        request = protocol.receive_request(self._channel)
        if request is None:
            self._poll.unregister(self._channel)
            self._channel.close()
            self._serves = False
            return
        message, launcher = request
        with launcher, suppress(OSError):  # who does not wait for the answer needs none
            if message["ask"] == protocol.Ask.LAUNCH:
                self._launch(message["run_id"], launcher)
            else:
                protocol.send(launcher, {"fate": self._fates.get(message["run_id"])})

    def _launch(self, run_id: str, launcher: socket.socket) -> None:
        if sum(one.run_id is not None for one in self._children.values()) >= self._load.max_children:
            protocol.send(launcher, {"full": self._load.max_children})
        elif threads.count() != 1:
            protocol.send(launcher, {"error": f"the zygote has other threads: {self._watch.culprits()}"})
        else:
            try:
                self._fork(run_id, lambda end: child.live(run_id, self._instance_ref, launcher, end))
            except OSError as error:
                protocol.send(launcher, {"error": f"no process can be forked: {error}"})

    def _fork(self, run_id: str | None, life: Callable[[int], None]) -> None:
        read, write = os.pipe()
        os.set_blocking(read, False)
        # What arrives before the child can handle it waits: our own handler is not for it.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, child.INTERRUPTS)
        try:
            pid = os.fork()
            if pid == 0:
                self._become(life, write)
            handle = os.pidfd_open(pid)
            self._children[handle] = _Child(pid, handle, read, run_id)
            self._poll.register(handle, select.POLLIN)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
            os.close(write)

    def _become(self, life: Callable[[int], None], end: int) -> NoReturn:
        """In the child: let go of what is the zygote's, live, and end without returning into the zygote's frames."""
        code = 1
        try:
            self._channel.close()
            self._poll.close()
            for sibling in self._children.values():
                os.close(sibling.handle)
                os.close(sibling.end)
            life(end)
            code = 0
        except BaseException:  # noqa: BLE001  # nothing may pass: below is the zygote's loop
            traceback.print_exc()
        finally:
            with suppress(Exception):
                sys.stdout.flush()
                sys.stderr.flush()
            os._exit(code)

    def _bury(self, dead: _Child) -> None:
        """Reap a child; where it could not tell how its run ended, have it told."""
        _, status = os.waitpid(dead.pid, 0)
        said = child.what_was_said(dead.end)
        self._poll.unregister(dead.handle)
        os.close(dead.handle)
        os.close(dead.end)
        del self._children[dead.handle]
        if dead.run_id is None or said is None:
            return
        reason = self._reason(dead, status, said)
        self._fates[dead.run_id] = reason
        if len(self._fates) > MOST_FATES:
            self._fates.popitem(last=False)
        self._have_told(dead.run_id, reason)

    def _reason(self, dead: _Child, status: int, said: str) -> str:
        if dead.held is not None and self._load.memory_limit_bytes is not None:
            return over_limit(dead.pid, dead.held, self._load.memory_limit_bytes)
        return f"{exit_reason(dead.pid, status)} {said}".strip()

    def _have_told(self, run_id: str, reason: str) -> None:
        """In a child of its own: telling takes a connection, and may take time."""

        def life(_end: int) -> None:
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            signal.signal(signal.SIGINT, signal.SIG_IGN)
            child.tell(run_id, self._instance_ref, reason)

        try:
            self._fork(None, life)
        except OSError as error:  # run monitoring will find it
            sys.stderr.write(f"the end of run {run_id} cannot be told: {error}. {reason}\n")

    def _hold_to_limit(self) -> None:
        """Kill who holds too much. Resident bytes: limits of address space count what is reserved and never used."""
        limit = self._load.memory_limit_bytes
        if limit is None:
            return
        for one in self._children.values():
            held = resident_bytes(one.pid)
            if one.run_id is not None and one.held is None and held > limit:
                one.held = held
                os.kill(one.pid, signal.SIGKILL)  # not reaped yet, so the id is still its own


def _loaded(watch: threads.ThreadWatch, load: protocol.Load) -> dict[str, Any]:
    """Load; the answer to the launcher."""
    watch.begin()
    try:
        warmth.load(load)
    except Exception:  # noqa: BLE001  # of the user's code, whatever it is
        return {"error": f"the definitions cannot be loaded: {traceback.format_exc()}"}
    finally:
        watch.end()
    if threads.count() != 1:
        return {"error": f"loading the definitions starts threads, and they do not survive a fork: {watch.culprits()}"}
    warmth.freeze()
    return {"ready": os.getpid()}


def main() -> None:
    """Serve the launcher that holds the other end of the channel, whose descriptor is the argument."""
    channel = socket.socket(fileno=int(sys.argv[1]))
    request = protocol.receive_request(channel)
    if request is None:
        return
    watch = threads.ThreadWatch()
    message, launcher = request
    load = protocol.Load.of(message)
    with launcher:
        answer = _loaded(watch, load)
        protocol.send(launcher, answer)
    if "ready" in answer:
        Zygote(channel, load, watch).serve()


if __name__ == "__main__":
    main()
