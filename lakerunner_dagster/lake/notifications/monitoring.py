"""What tells the outside how an adapter is: /healthz, /readyz and /metrics, and a small server for them.

What belongs here: listening on an address, and those three routes. What does not: what an adapter counts (``metrics``),
and what it does.
"""

from __future__ import annotations

import socket
import threading
import time
from typing import TYPE_CHECKING, Self

import uvicorn
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from lakerunner_dagster.lake.errors import ConfigurationError
from lakerunner_dagster.lake.notifications.metrics import CONTENT_TYPE

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from types import TracebackType

    from starlette.requests import Request

    from lakerunner_dagster.lake.notifications.metrics import AdapterMetrics
    from lakerunner_dagster.lake.settings import Settings

CONNECTIONS = 1024
"""Connections at once, idle ones included; further ones are answered 503."""

GRACE_SECONDS = 30
"""How long requests under way may take once a server is to end."""


class Pulse:
    """When each loop of an adapter has last turned; safe to share between threads."""

    def __init__(self, stall_seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._stall_seconds = stall_seconds
        self._clock = clock
        self._beats: dict[str, float] = {}
        self._lock = threading.Lock()

    def beat(self, loop: str = "loop") -> None:
        """A loop is alive now."""
        with self._lock:
            self._beats[loop] = self._clock()

    def stalled(self) -> list[str]:
        """The loops that have not turned for too long."""
        with self._lock:
            now = self._clock()
            return sorted(loop for loop, beat in self._beats.items() if now - beat > self._stall_seconds)


class Server:
    """An application on an address: it listens from its construction on, and answers while ``run`` runs.

    ConfigurationError, naming the ``settings`` of the address, when it cannot be listened on.
    """

    def __init__(self, routes: Sequence[Route], host: str, port: int, settings: str) -> None:
        self._socket = _listening(host, port, settings)
        self._server = uvicorn.Server(
            uvicorn.Config(
                Starlette(routes=routes),
                log_config=None,
                access_log=False,
                server_header=False,
                proxy_headers=False,
                lifespan="off",
                ws="none",
                limit_concurrency=CONNECTIONS,
                timeout_graceful_shutdown=GRACE_SECONDS,
            )
        )

    @property
    def url(self) -> str:
        """Where it listens, with the port that it was given."""
        host, port = self._socket.getsockname()[:2]
        return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"

    def run(self) -> None:
        """Answer until ``stop`` or, in the main thread, SIGINT or SIGTERM; requests under way are answered first."""
        self._server.run(sockets=[self._socket])

    def stop(self) -> None:
        """Let ``run`` return soon; may be called from any thread."""
        self._server.should_exit = True


class Monitor:
    """The server beside an adapter that has none of its own, for the length of a ``with`` block."""

    def __init__(
        self, metrics: AdapterMetrics, troubles: Callable[[], list[str]], pulse: Pulse, settings: Settings
    ) -> None:
        self._server = Server(
            monitor_routes(metrics, troubles, pulse),
            settings.monitor_host,
            settings.monitor_port,
            "LAKERUNNER_MONITOR_HOST and LAKERUNNER_MONITOR_PORT",
        )
        self._thread = threading.Thread(target=self._server.run, name="monitor", daemon=True)
        self.url = self._server.url

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.stop()
        self._thread.join()


def monitor_routes(
    metrics: AdapterMetrics, troubles: Callable[[], list[str]], pulse: Pulse | None = None
) -> list[Route]:
    """``/healthz``: 503 when a loop hangs. ``/readyz``: 503 and what is away. ``/metrics``: for Prometheus.

    An adapter without a pulse has no loop but the server's own: where that hangs, nobody answers. ``troubles`` names
    what does not answer; it may take seconds, and is called in a thread.
    """

    async def alive(_request: Request) -> Response:
        stalled = pulse.stalled() if pulse is not None else []
        return JSONResponse({"stalled": stalled} if stalled else {"status": "alive"}, 503 if stalled else 200)

    async def ready(_request: Request) -> Response:
        found = await run_in_threadpool(troubles)
        return JSONResponse({"troubles": found}, status_code=503 if found else 200)

    async def metrics_text(_request: Request) -> Response:
        return Response(metrics.render(), media_type=CONTENT_TYPE)

    return [Route("/healthz", alive), Route("/readyz", ready), Route("/metrics", metrics_text)]


def _listening(host: str, port: int, settings: str) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=1024)
    except OSError as error:
        raise ConfigurationError(
            f"cannot listen on {host} port {port} ({error.strerror}): choose another by {settings} (0 takes a free one)"
        ) from error
