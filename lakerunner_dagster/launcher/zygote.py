"""The zygote: a process with one code location loaded and nothing open, which forks the children that execute runs.

What belongs here: which child gets a run, forking, reaping, and the bounds on number and memory. What does not: what is
loaded (``warmth``), what a child does (``child``), and who asks (``zygotes``).

A run goes to the child that has become free last, and where none is free a child is forked. One that stays free is let
go. The zygote has one thread and sleeps until its launcher asks for something, or a child has something
to say or ends. When the launcher closes the channel, by its own death at the latest, it takes no more requests, lets
free children go, and ends with its last child.
"""

from __future__ import annotations

import math
import os
import selectors
import signal
import socket
import sys
import time
import traceback
from collections import OrderedDict
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
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
    """A child: its run, or None where it is free since a time (monotonic s), or tells of another one's end.

    ``launcher`` is where the launcher gives its word for the run; ``said`` is the child's last word on it; ``held``
    what it held in memory when that was over its limit.
    """

    pid: int
    handle: int
    channel: socket.socket
    run_id: str | None = None
    launcher: socket.socket | None = None
    free_since: float | None = None
    said: dict[str, Any] | None = None
    held: int | None = None

    def give(self, run_id: str, launcher: socket.socket) -> bool:
        """Have it execute a run; False where it has ended."""
        try:
            protocol.send(self.channel, {"run_id": run_id}, launcher)
        except OSError:
            return False
        self.has(run_id, launcher)
        return True

    def has(self, run_id: str, launcher: socket.socket) -> None:
        """It has been given a run: keep the launcher's socket for as long as it has."""
        self.forget_launcher()
        self.run_id, self.free_since, self.said = run_id, None, None
        self.launcher = socket.socket(fileno=launcher.detach())

    def forget_launcher(self) -> None:
        """Close the socket of the last run's launcher."""
        if self.launcher is not None:
            self.launcher.close()
        self.launcher = None

    def let_go(self) -> None:
        """Have it end, for it will get no run any more."""
        self.free_since = None
        with suppress(OSError):  # it has ended by itself
            self.channel.shutdown(socket.SHUT_WR)

    def hear(self) -> bool:
        """Take what it has to say; False where it will say nothing more."""
        word = protocol.receive(self.channel)
        if word is None:
            return False
        self.said = word
        if word.get("free"):
            self.run_id, self.free_since = None, time.monotonic()
        return True


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
        self._poll.register(channel, selectors.EVENT_READ, self._answer)
        self._serves = True

    def serve(self) -> None:
        """Serve until nobody asks and nobody lives."""
        signal.signal(signal.SIGTERM, self._retire)
        signal.signal(signal.SIGINT, self._retire)
        while self._serves or self._children:
            for key, _ in self._poll.select(self._patience()):
                key.data()
            self._hold_to_limit()
            self._let_free_go()

    def _retire(self, _number: int, _frame: object) -> None:
        # As if the launcher had closed it, which thereby learns that there is no more to ask of us.
        with suppress(OSError):
            self._channel.shutdown(socket.SHUT_RDWR)

    def _patience(self) -> float | None:
        if self._load.memory_limit_bytes and any(one.run_id for one in self._children.values()):
            return MEMORY_POLL_SECONDS
        since = [one.free_since for one in self._children.values() if one.free_since is not None]
        return max(0.0, min(since) + self._load.free_seconds - time.monotonic()) if since else None

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
        elif not self._is_given_to_free(run_id, launcher):
            self._fork_for(run_id, launcher)

    def _is_given_to_free(self, run_id: str, launcher: socket.socket) -> bool:
        free = [one for one in self._children.values() if one.free_since is not None]
        latest_first = sorted(free, key=lambda one: one.free_since or 0, reverse=True)
        return any(one.give(run_id, launcher) for one in latest_first)

    def _fork_for(self, run_id: str, launcher: socket.socket) -> None:
        if threads.count() != 1:
            protocol.send(launcher, {"error": f"the zygote has other threads: {self._watch.culprits()}"})
            return
        work = protocol.Work(run_id, launcher)
        try:
            forked = self._fork(lambda us: child.live(work, us, self._instance_ref, self._load.runs_per_child))
        except OSError as error:
            protocol.send(launcher, {"error": f"no process can be forked: {error}"})
        else:
            forked.has(run_id, launcher)

    def _fork(self, life: Callable[[socket.socket], None]) -> _Child:
        ours, theirs = protocol.pair()
        ours.setblocking(False)
        # What arrives before the child can handle it waits: our own handler is not for it.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, child.INTERRUPTS)
        try:
            pid = os.fork()
            if pid == 0:
                ours.close()
                self._become(life, theirs)
            forked = _Child(pid, os.pidfd_open(pid), ours)
            self._children[forked.handle] = forked
            self._poll.register(forked.handle, selectors.EVENT_READ, partial(self._bury, forked))
            self._poll.register(ours, selectors.EVENT_READ, partial(self._hear, forked))
            return forked
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
            theirs.close()

    def _become(self, life: Callable[[socket.socket], None], zygote: socket.socket) -> NoReturn:
        """In the child: let go of what is the zygote's, live, and end without returning into the zygote's frames."""
        code = 1
        try:
            self._channel.close()
            self._poll.close()
            for sibling in self._children.values():
                os.close(sibling.handle)
                sibling.channel.close()
                sibling.forget_launcher()
            life(zygote)
            code = 0
        except BaseException:  # noqa: BLE001  # nothing may pass: below is the zygote's loop
            traceback.print_exc()
        finally:
            with suppress(Exception):
                sys.stdout.flush()
                sys.stderr.flush()
            os._exit(code)

    def _hear(self, living: _Child) -> None:
        # Buried since the poll? Then its handle's number may be another one's already.
        if self._children.get(living.handle) is living and not living.hear():
            self._poll.unregister(living.channel)

    def _bury(self, dead: _Child) -> None:
        """Reap a child; where it could not tell how its run ended, have it told.

        Not so where its launcher has not given its word yet: it finds that it cannot, and launches the run again.
        """
        _, status = os.waitpid(dead.pid, 0)
        with suppress(BlockingIOError):  # a process that it has left behind holds its end
            while dead.hear():
                pass
        for each in (dead.handle, dead.channel):
            if each in self._poll.get_map():
                self._poll.unregister(each)
        os.close(dead.handle)
        dead.channel.close()
        del self._children[dead.handle]
        has_begun = dead.launcher is not None and protocol.is_told_to_go(dead.launcher)
        dead.forget_launcher()
        if not has_begun or dead.run_id is None or (dead.said and "ended" in dead.said):
            return
        reason = self._reason(dead, status, str((dead.said or {}).get("reason", "")))
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

        def life(_zygote: socket.socket) -> None:
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            signal.signal(signal.SIGINT, signal.SIG_IGN)
            child.tell(run_id, self._instance_ref, reason)

        try:
            self._fork(life)
        except OSError as error:  # run monitoring will find it
            sys.stderr.write(f"the end of run {run_id} cannot be told: {error}. {reason}\n")

    def _let_free_go(self) -> None:
        due = time.monotonic() - self._load.free_seconds if self._serves else math.inf
        for one in self._children.values():
            if one.free_since is not None and one.free_since <= due:
                one.let_go()

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
