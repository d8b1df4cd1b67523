"""An HTTP proxy that fails as it is told: what an object store says on a bad day, and what a network does.

What belongs here: faults of HTTP. What does not: how each cloud words a refusal (the tests' tables of answers).
"""

from __future__ import annotations

import socket
from collections import deque
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from enum import Enum, auto
from http.client import HTTPConnection, HTTPResponse
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Event, Lock, Thread
from types import MappingProxyType
from urllib.parse import urlsplit

from lakerunner_dagster.local.postgres import free_port

HOP = frozenset({"connection", "keep-alive", "transfer-encoding", "content-length"})
"""Headers of one connection, which are not passed on."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What is answered without asking the server behind; ``headers`` beyond Content-Length."""

    status: int
    body: str = ""
    headers: MappingProxyType[str, str] = field(default_factory=lambda: MappingProxyType({}))


class Fault(Enum):
    """What happens to a request that the server behind would answer well.

    ``PASS``: nothing. ``LOSE``: it is carried out, and the connection is closed without an answer. ``HALF``: the answer
    breaks off in the middle of its body. ``HANG``: it is neither carried out nor answered.
    """

    PASS = auto()
    LOSE = auto()
    HALF = auto()
    HANG = auto()


@dataclass(frozen=True, slots=True)
class Asked:
    """A request as it came in; ``path`` with its query."""

    method: str
    path: str
    headers: MappingProxyType[str, str]


class FaultyProxy:
    """Passes requests on to ``target`` (``http://host:port…``), but for those that a script says otherwise of.

    ``endpoint`` is the target's with this proxy's address. ``asked`` has every request, in order.
    """

    def __init__(self, target: str) -> None:
        url = urlsplit(target)
        assert url.hostname is not None
        assert url.port is not None
        self.target = (url.hostname, url.port)
        self.asked: list[Asked] = []
        self._script: deque[Answer | Fault] = deque()
        self._for_ever: Answer | Fault | None = None
        self._lock = Lock()
        self.closed = Event()
        proxy = self

        class Handler(_Handler):
            faulty = proxy

        port = free_port()
        self._server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
        self._server.daemon_threads = True
        self._server.block_on_close = False
        self.endpoint = url._replace(netloc=f"127.0.0.1:{port}").geturl()
        Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()

    def script(self, *answers: Answer | Fault) -> None:
        """What becomes of the next requests, one after the other; later ones are passed on. ``asked`` begins anew."""
        with self._lock:
            self._script = deque(answers)
            self._for_ever = None
            self.asked.clear()

    def always(self, answer: Answer | Fault) -> None:
        """What becomes of every request from now on. ``asked`` begins anew."""
        self.script()
        self._for_ever = answer

    def methods(self) -> Iterable[str]:
        """The methods of the requests that came, in order."""
        return [asked.method for asked in self.asked]

    def close(self) -> None:
        self.closed.set()
        self._server.shutdown()
        self._server.server_close()

    def next(self, asked: Asked) -> Answer | Fault:
        """Note a request, and say what becomes of it."""
        with self._lock:
            self.asked.append(asked)
            return self._script.popleft() if self._script else self._for_ever or Fault.PASS


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    faulty: FaultyProxy

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002  # the name is the base class's
        """``asked`` has what came."""

    def _request(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        headers = MappingProxyType({name.lower(): value for name, value in self.headers.items()})
        answer = self.faulty.next(Asked(self.command, self.path, headers))
        if isinstance(answer, Answer):
            self._send(answer.status, dict(answer.headers), answer.body.encode())
        elif answer is Fault.HANG:
            self.faulty.closed.wait()
            self._break_off()
        else:
            self._pass_on(body, answer)

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = _request  # noqa: N815  # the names are the base class's

    def _pass_on(self, body: bytes, fault: Fault) -> None:
        connection = HTTPConnection(*self.faulty.target, timeout=60)
        try:
            kept = {name: value for name, value in self.headers.items() if name.lower() not in HOP}
            connection.request(self.command, self.path, body=body if self.command != "HEAD" else None, headers=kept)
            received = connection.getresponse()
            content = received.read()
        finally:
            connection.close()
        if fault is Fault.LOSE:
            self._break_off()
            return
        told = {name: value for name, value in received.headers.items() if name.lower() not in HOP}
        half = len(content) // 2 if fault is Fault.HALF else None
        self._send(received.status, told, content, self._length(received, content), half)

    def _length(self, received: HTTPResponse, content: bytes) -> str:
        """The length to announce: an answer to HEAD has no body and yet tells one."""
        return received.headers.get("Content-Length") or "0" if self.command == "HEAD" else str(len(content))

    def _send(
        self,
        status: int,
        headers: dict[str, str],
        body: bytes,
        length: str | None = None,
        half: int | None = None,
    ) -> None:
        self.send_response_only(status)
        for name, value in headers.items():
            self.send_header(name, value)
        if status not in {204, 304}:
            self.send_header("Content-Length", length if length is not None else str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            with suppress(OSError):
                self.wfile.write(body[:half])
        if half is not None:
            self._break_off()

    def _break_off(self) -> None:
        self.close_connection = True
        with suppress(OSError):
            self.wfile.flush()
            self.connection.shutdown(socket.SHUT_RDWR)
