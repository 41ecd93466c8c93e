"""Who may call: programs on this machine that name it, with the key where there is one.

    Host       another name than this machine's own: a web page whose name was made to point here (DNS rebinding)
    Origin     a web page of another host; no answer has headers that would let it read anything
    key        ``Authorization: Bearer …``, compared in constant time
    size       a body above ``MOST_BODY_BYTES``

Runs before anything else reads the request; what it refuses is answered as OpenAI's interface answers errors. Knows
nothing about models.
"""

from __future__ import annotations

import hmac
import re
from collections.abc import Mapping

from starlette.datastructures import Headers
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from device_client.serving.openai_api import ApiError

MOST_BODY_BYTES = 8 << 20
_NAME = r"(127\.0\.0\.1|localhost|\[::1\])(:\d{1,5})?"
_HOST = re.compile(_NAME, re.IGNORECASE)
_ORIGIN = re.compile(f"https?://{_NAME}", re.IGNORECASE)


class Guard:
    """Lets through to an application what ``check_request`` does not refuse.

    Args:
        app: The application.
        api_key: What callers have to present; None wants nothing.
        public_path: The path that needs no key.
    """

    def __init__(self, app: ASGIApp, api_key: str | None, public_path: str) -> None:
        self._app, self._api_key, self._public_path = app, api_key, public_path

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request, or pass it on."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        try:
            check_request(Headers(scope=scope), self._api_key, is_public=scope["path"] == self._public_path)
        except ApiError as error:
            answer = JSONResponse(error.body, status_code=error.status, headers=error.headers)
            await answer(scope, receive, send)
            return
        await self._app(scope, _limited(receive), send)


def _limited(receive: Receive) -> Receive:
    """Return what ends a request whose body turns out larger than it may be."""
    seen = 0

    async def limited() -> Message:
        nonlocal seen
        message = await receive()
        seen += len(message.get("body", b""))
        return {"type": "http.disconnect"} if seen > MOST_BODY_BYTES else message

    return limited


def check_request(headers: Mapping[str, str], api_key: str | None, *, is_public: bool = False) -> None:
    """Refuse a request that may not be answered.

    Args:
        headers: The request's, with lower-case names.
        api_key: What it has to present; None wants nothing.
        is_public: Whether it needs no key.

    Raises:
        ApiError: It may not.
    """
    if not _HOST.fullmatch(headers.get("host", "")):
        raise ApiError(
            403, "This server answers to 127.0.0.1 and localhost only; the request names another host.",
            code="host_not_allowed",
        )  # fmt: skip
    origin = headers.get("origin")
    if origin is not None and not _ORIGIN.fullmatch(origin):
        raise ApiError(403, "This server does not answer web pages of other hosts.", code="origin_not_allowed")
    length = headers.get("content-length", "")
    if length.isdecimal() and int(length) > MOST_BODY_BYTES:
        raise ApiError(413, f"The request is larger than {MOST_BODY_BYTES} bytes.", code="request_too_large")
    presented = headers.get("authorization", "").removeprefix("Bearer ").strip()
    if api_key is not None and not is_public and not hmac.compare_digest(presented.encode(), api_key.encode()):
        raise ApiError(
            401, "The key is missing or wrong. Send it as: Authorization: Bearer KEY", kind="authentication_error",
            code="invalid_api_key", headers={"www-authenticate": "Bearer"},
        )  # fmt: skip
