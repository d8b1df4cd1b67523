"""The HTTP adapter: any event format by POST, acknowledged only once Kafka has what came of it.

What belongs here: HTTP: who may post, how much, and which status says what. What does not: formats (``events``) and
what becomes of them (``intake``).
"""

from __future__ import annotations

import asyncio
import hmac
import logging
import time
from ipaddress import ip_address
from typing import TYPE_CHECKING

from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from lakerunner_dagster.lake.errors import BusUnavailable, ConfigurationError, InputError, LakeDatabaseUnavailable
from lakerunner_dagster.lake.notifications.batching import Batches, TooManyWait
from lakerunner_dagster.lake.notifications.events import Parsed, parse
from lakerunner_dagster.lake.notifications.metrics import AdapterMetrics
from lakerunner_dagster.lake.notifications.monitoring import Server, monitor_routes

if TYPE_CHECKING:
    from collections.abc import Sequence

    from starlette.requests import Request

    from lakerunner_dagster.lake.errors import LakeError
    from lakerunner_dagster.lake.notifications.intake import AcceptReport, Intake
    from lakerunner_dagster.lake.settings import Settings

    Taken = tuple[Parsed, AcceptReport]

logger = logging.getLogger(__name__)

ADAPTER = "http"

RETRY_AFTER_SECONDS = 5
BODY_SECONDS = 30.0
"""How long a sender may take over its body."""

DISCARDED_BODIES = 16
"""How many times the allowed size is read and thrown away, so that a sender hears why before the connection closes."""


class HttpAdapter:
    """Listens from its construction on, answers while ``run`` runs. ``POST /`` takes notifications.

    ConfigurationError when the address is taken, or lies off loopback without a token.
    """

    def __init__(self, intake: Intake, settings: Settings) -> None:
        token = settings.http_token.get_secret_value() if settings.http_token is not None else ""
        if not token and not _is_loopback(settings.http_host):
            raise ConfigurationError(
                f"LAKERUNNER_HTTP_HOST is {settings.http_host}, which others can reach, and there is no token: "
                "set LAKERUNNER_HTTP_TOKEN to a long random text, or listen on 127.0.0.1"
            )
        self.metrics = AdapterMetrics(ADAPTER)
        self._intake = intake
        self._batches: Batches[Taken] = Batches(self._take)
        self._token = token.encode()
        self._body_bytes = settings.http_body_bytes
        self._server = Server(
            self._routes(), settings.http_host, settings.http_port, "LAKERUNNER_HTTP_HOST and LAKERUNNER_HTTP_PORT"
        )

    @property
    def url(self) -> str:
        """Where it listens, with the port that it was given."""
        return self._server.url

    def run(self) -> None:
        """Answer until ``stop`` or, in the main thread, SIGINT or SIGTERM; requests under way are answered first."""
        self._server.run()

    def stop(self) -> None:
        """Let ``run`` return soon; may be called from any thread."""
        self._server.stop()

    def _routes(self) -> list[Route]:
        return [
            Route("/", self._notified, methods=["POST"]),
            Route("/", self._preflight, methods=["OPTIONS"]),
            *monitor_routes(self.metrics, self._intake.troubles),
        ]

    async def _notified(self, request: Request) -> Response:
        started = time.perf_counter()
        self.metrics.count("received")
        try:
            self._authorize(request)
            body = await self._body(request)
        except HTTPException as refusal:
            self.metrics.count_reasons("failed", {f"http_{refusal.status_code}": 1})
            raise
        response = await self._answer(body)
        self.metrics.observe(time.perf_counter() - started)
        return response

    async def _answer(self, body: bytes) -> Response:
        """The answer tells a body's sender whether to send it again."""
        try:
            parsed, report = await self._batches.outcome(body)
        except InputError as error:
            self.metrics.count_reasons("failed", {error.reason: 1})
            logger.warning("notification refused (%s): %s; it begins %a", error.reason, error, body[:200])
            return JSONResponse({"error": error.reason, "message": str(error)}, status_code=400)
        except TooManyWait as error:
            return self._come_again("busy", error)
        except (BusUnavailable, LakeDatabaseUnavailable) as error:
            return self._come_again("unavailable", error)
        ignored = parsed.ignored + report.ignored
        self.metrics.count("produced", report.produced)
        self.metrics.count_reasons("ignored", ignored)
        self.metrics.count_reasons("dead_letters", report.dead)
        if parsed.handshake is not None:
            return JSONResponse({"validationResponse": parsed.handshake})
        return JSONResponse({"produced": report.produced, "dead_letters": report.dead, "ignored": ignored})

    def _come_again(self, why: str, error: LakeError) -> Response:
        self.metrics.count_reasons("failed", {why: 1})
        logger.warning("notification not taken, its sender is to come again: %s", error)
        return JSONResponse(
            {"error": why, "message": "Kafka or lrdb is away, or too many send: send it again"},
            status_code=503,
            headers={"Retry-After": str(RETRY_AFTER_SECONDS)},
        )

    def _take(self, bodies: Sequence[bytes]) -> list[Taken | InputError]:
        """What bodies say, done; what cannot be read changes nothing for the others."""
        said = [_parsed(body) for body in bodies]
        readable = [parsed for parsed in said if isinstance(parsed, Parsed)]
        reports = iter(self._intake.accept_each([parsed.entries for parsed in readable], ADAPTER))
        return [(parsed, next(reports)) if isinstance(parsed, Parsed) else parsed for parsed in said]

    def _authorize(self, request: Request) -> None:
        scheme, _, given = request.headers.get("authorization", "").partition(" ")
        accepted = scheme.lower() == "bearer" and hmac.compare_digest(given.strip().encode("latin-1"), self._token)
        if self._token and not accepted:
            raise HTTPException(401, "send the header Authorization: Bearer <token>", {"WWW-Authenticate": "Bearer"})

    async def _body(self, request: Request) -> bytes:
        """The body, read to its end even where it is too large: a sender that is cut off does not hear why."""
        body = bytearray()
        size = 0
        try:
            async with asyncio.timeout(BODY_SECONDS):
                async for chunk in request.stream():
                    size += len(chunk)
                    if size <= self._body_bytes:
                        body += chunk
                    elif size > DISCARDED_BODIES * self._body_bytes:
                        break
        except ClientDisconnect as error:
            raise HTTPException(400, "the sender has gone") from error
        except TimeoutError as error:
            raise HTTPException(408, f"the body did not come within {BODY_SECONDS:g} s") from error
        if size > self._body_bytes:
            raise HTTPException(
                413,
                f"the body has more than {self._body_bytes} bytes: send fewer events at once",
                {"Connection": "close"},
            )
        return bytes(body)

    async def _preflight(self, request: Request) -> Response:
        """CloudEvents' handshake: may this origin post here? It may ask without a token: what it posts needs one."""
        origin = request.headers.get("webhook-request-origin")
        if origin is None:
            return Response(status_code=204, headers={"Allow": "OPTIONS, POST"})
        return Response(
            status_code=200,
            headers={"Allow": "OPTIONS, POST", "WebHook-Allowed-Origin": origin, "WebHook-Allowed-Rate": "*"},
        )


def _parsed(body: bytes) -> Parsed | InputError:
    try:
        return parse(body)
    except InputError as error:
        return error


def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
