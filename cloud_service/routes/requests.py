"""What surrounds every request: its id, its log line, a limit to its body, its metrics, and the last resort for errors.

Plain ASGI, so that streams pass through untouched.
"""

from __future__ import annotations

import logging
import secrets
import time

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from cloud_service.json_logs import request_id
from cloud_service.routes.metrics import RequestMetrics
from cloud_service.routes.problems import http_error_response, internal_error

MAX_BODY_BYTES = 64 * 1024
REQUEST_ID_HEADER = "x-request-id"
_logger = logging.getLogger(__name__)


class RequestEnvelope:
    """Wraps an application.

    Args:
        app: The application.
        metrics: Where requests are counted.
    """

    def __init__(self, app: ASGIApp, metrics: RequestMetrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        token = request_id.set(secrets.token_hex(8))
        try:
            await _Exchange(self._app, scope, receive, send, self._metrics).run()
        finally:
            request_id.reset(token)


class _Exchange:
    """One request and its response."""

    def __init__(self, app: ASGIApp, scope: Scope, receive: Receive, send: Send, metrics: RequestMetrics) -> None:
        self._app, self._scope, self._receive, self._send, self._metrics = app, scope, receive, send, metrics
        self._status: int | None = None
        self._body_bytes = 0

    async def run(self) -> None:
        started = time.perf_counter()
        try:
            if _declared_bytes(self._scope) > MAX_BODY_BYTES:
                await self._answer(http_error_response(Request(self._scope), _too_large()))
            else:
                await self._app(self._scope, self._receive_limited, self._send_with_id)
        except Exception:
            _logger.exception("unexpected error")
            if self._status is not None:
                raise
            await self._answer(internal_error(self._scope["path"]))
        finally:
            self._log(time.perf_counter() - started)

    async def _answer(self, response: ASGIApp) -> None:
        await response(self._scope, self._receive, self._send_with_id)

    async def _receive_limited(self) -> Message:
        message = await self._receive()
        self._body_bytes += len(message.get("body", b""))
        if self._body_bytes > MAX_BODY_BYTES:
            raise _too_large()
        return message

    async def _send_with_id(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self._status = message["status"]
            identified = (REQUEST_ID_HEADER.encode(), (request_id.get() or "").encode())
            message = {**message, "headers": [*message.get("headers", []), identified]}
        await self._send(message)

    def _log(self, seconds: float) -> None:
        method, status = self._scope["method"], self._status or 499
        route = getattr(self._scope.get("route"), "path", "unknown")
        self._metrics.observe(method, route, status, seconds)
        _logger.info(
            "%s %s %d",
            method,
            self._scope["path"],
            status,
            extra={
                "method": method,
                "path": self._scope["path"],
                "status": status,
                "milliseconds": round(seconds * 1e3),
            },
        )


def _declared_bytes(scope: Scope) -> int:
    declared = Headers(scope=scope).get("content-length", "0")
    return int(declared[:20]) if declared.isascii() and declared.isdigit() else 0


def _too_large() -> HTTPException:
    return HTTPException(413, f"a body above {MAX_BODY_BYTES} bytes")
