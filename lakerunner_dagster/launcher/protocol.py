"""What launcher, zygote and child say to each other: a JSON object a packet, over unnamed unix sockets.

What belongs here: the messages and how they travel. What does not: what is done about them.

The launcher and its zygote share a socket pair, the channel, on which only requests go. Each request brings a socket of
its own for the answer: so threads need no lock, an answer can come from the zygote or from a child that it has forked,
and whoever waits for one that never comes sees its socket close. Having no name, a socket leaves no file behind, and
nobody else can connect to it.
"""

from __future__ import annotations

import json
import socket
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any

MOST_BYTES = 1024 * 1024
"""A packet is no larger: the largest is an instance reference, of some kilobytes."""


class Ask(StrEnum):
    """What a launcher asks of a zygote."""

    LOAD = "load"
    LAUNCH = "launch"
    FATE = "fate"


@dataclass(frozen=True, slots=True)
class Load:
    """The first request: what to load, and the bounds to keep.

    ``instance_ref`` and ``repository_origin`` are serialized by Dagster. A child executes at most ``runs_per_child``
    runs, and ends when it has been free for ``free_seconds``. The memory limit is of a child's resident bytes; None:
    none.
    """

    instance_ref: str
    repository_origin: str
    max_children: int
    runs_per_child: int
    free_seconds: float
    memory_limit_bytes: int | None

    def message(self) -> dict[str, Any]:
        """As a packet has it."""
        return {"ask": Ask.LOAD, **asdict(self)}

    @classmethod
    def of(cls, message: Mapping[str, Any]) -> Load:
        """From a packet."""
        return cls(**{name: message[name] for name in cls.__slots__})


@dataclass(frozen=True, slots=True)
class Work:
    """A run to execute, and the socket of the launcher that waits for its answer."""

    run_id: str
    launcher: socket.socket


def pair() -> tuple[socket.socket, socket.socket]:
    """Two connected sockets, on which a packet arrives whole or not at all."""
    return socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)


def send(to: socket.socket, message: Mapping[str, Any], answer: socket.socket | None = None) -> None:
    """Send a packet, with the socket for its answer; OSError where nobody is there to take it."""
    data = [json.dumps(message).encode()]
    if answer is None:
        to.sendmsg(data)
    else:
        socket.send_fds(to, data, [answer.fileno()])


def say(to: socket.socket, message: Mapping[str, Any]) -> None:
    """Send a packet if somebody is there to take it."""
    with suppress(OSError):
        send(to, message)


def receive(source: socket.socket) -> dict[str, Any] | None:
    """The next packet; None where the other side has gone."""
    try:
        data = source.recv(MOST_BYTES)
    except ConnectionResetError:
        return None
    return dict(json.loads(data)) if data else None


def is_told_to_go(launcher: socket.socket) -> bool:
    """Whether the launcher has given its word for a run; child and zygote both hold the socket on which it does so.

    Where it has not, it cannot any more, and learns that. The word is left for the other one to see.
    """
    launcher.shutdown(socket.SHUT_RDWR)
    try:
        return bool(launcher.recv(1, socket.MSG_PEEK))
    except ConnectionResetError:
        return False


def receive_request(channel: socket.socket) -> tuple[dict[str, Any], socket.socket] | None:
    """The next request and the socket for its answer; None where the launcher has gone."""
    try:
        data, descriptors, _, _ = socket.recv_fds(channel, MOST_BYTES, 1)
    except ConnectionResetError:
        return None
    if not data:
        return None
    return dict(json.loads(data)), socket.socket(fileno=descriptors[0])


def receive_work(zygote: socket.socket) -> Work | None:
    """The next run for a child; None where there is none for it any more."""
    request = receive_request(zygote)
    return Work(str(request[0]["run_id"]), request[1]) if request is not None else None
