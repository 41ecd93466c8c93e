"""Who may call: API keys and their scopes. The key is looked at before anything else of a request is read.

``Authorization: Bearer zo_…`` everywhere. Reads also take HTTP Basic with the key as the password, because that is what
OCI clients and browsers know; other methods do not, since a browser would send it along from any web page.

Two steps, because FastAPI reads a request's body before its dependencies run: ``KeyFirst`` refuses callers without a
valid key and costs one look-up in the database; the dependencies of ``Access.needs`` check the scope.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Awaitable, Callable

import anyio.to_thread
from fastapi import Request
from starlette.types import ASGIApp, Receive, Send
from starlette.types import Scope as AsgiScope

from cloud_service.routes.problems import zo_error_response
from cloud_service.routes.wrong_keys import TooManyWrongKeys, WrongKeys
from cloud_service.serving.connection_table import peer_of
from cloud_service.serving.protocol import KEEP_CONNECTION
from cloud_service.settings import is_loopback
from cloud_service.storage.keys import LOCAL_CALLER, ApiKey, KeyStore, Scope
from shared.errors import Forbidden, Unauthorized, ZoError

PUBLIC_PATHS = frozenset({"/healthz", "/readyz"})
_READS = ("GET", "HEAD")
_KEY = "zo_cloud.key"


class Access:
    """Decides who may call.

    Args:
        keys: The service's keys; None lets everybody in (only on a loopback address).
    """

    def __init__(self, keys: KeyStore | None) -> None:
        self._keys = keys

    def needs(self, scope: Scope | None) -> Callable[[Request], Awaitable[str]]:
        """Return a dependency that gives the caller's key id and refuses callers without ``scope``.

        None stands for any valid key. The dependency raises Forbidden; it reads what ``KeyFirst`` found, so it needs
        neither the database nor a thread.
        """

        async def check(request: Request) -> str:
            return _caller(request.scope[_KEY], scope)

        return check

    def recheck(self, request: Request, scope: Scope | None) -> str:
        """Return the caller's key id after another look-up, for long answers: the key may have been revoked.

        Raises:
            Unauthorized: The key is not valid any more.
            Forbidden: It lacks ``scope``.
        """
        return _caller(self.authenticate(request), scope)

    def authenticate(self, request: Request) -> ApiKey | None:
        """Return the caller's key, or None where the service needs none.

        Raises:
            Unauthorized: There is no key, or one that is not valid.
            Forbidden: No key is needed, but the request is not for a loopback address.
        """
        if self._keys is None:
            _check_local(request)
            return None
        return self._keys.authenticate(presented_key(request))


class KeyFirst:
    """Answers requests without a valid key before their body is read; ``PUBLIC_PATHS`` need none.

    Only a request with a valid key keeps its connection where the service is full.

    Args:
        app: The application.
        access: Who may call.
        wrong_keys: How often a client may be wrong.
    """

    def __init__(self, app: ASGIApp, access: Access, wrong_keys: WrongKeys) -> None:
        self._app, self._access, self._wrong_keys = app, access, wrong_keys

    async def __call__(self, scope: AsgiScope, receive: Receive, send: Send) -> None:
        """Pass one request on, with its key, or refuse it."""
        if scope["type"] == "http" and scope["path"] not in PUBLIC_PATHS:
            request = Request(scope)
            try:
                scope[_KEY] = await anyio.to_thread.run_sync(self._access.authenticate, request)
            except ZoError as error:
                await self._refusal(request, error)(scope, receive, send)
                return
            if (keep := scope.get("extensions", {}).get(KEEP_CONNECTION)) is not None:
                keep()
        await self._app(scope, receive, send)

    def _refusal(self, request: Request, error: ZoError) -> ASGIApp:
        try:
            if isinstance(error, Unauthorized) and "authorization" in request.headers:
                self._wrong_keys.count(peer_of(request.client.host) if request.client else "")
        except TooManyWrongKeys as too_many:
            response = zo_error_response(request, too_many)
            response.headers["Retry-After"] = str(too_many.retry_after_seconds)
            return response
        return zo_error_response(request, error)


def presented_key(request: Request) -> str:
    """Return the key that a request presents, valid or not; empty where its header cannot be read as one.

    Raises:
        Unauthorized: There is no ``Authorization`` header.
    """
    header = request.headers.get("authorization")
    if header is None:
        raise Unauthorized(
            "no key",
            needed="the header Authorization: Bearer zo_…; for reads also any user name with the key as password",
            next_step="ask the operator for one: zo-cloud keys create --data FOLDER",
        )
    return _token(header, is_read=request.method in _READS)


def _caller(key: ApiKey | None, scope: Scope | None) -> str:
    if key is None:
        return LOCAL_CALLER
    if scope is not None:
        key.check_scope(scope)
    return key.id


def _check_local(request: Request) -> None:
    # Without keys the only guard is the address; a web page whose name was made to point at it must not get through.
    if not is_loopback(request.url.hostname or ""):
        raise Forbidden(f"host {request.url.hostname!r}", needed="a loopback address, because keys are switched off")


def _token(header: str, *, is_read: bool) -> str:
    method, _, value = header.partition(" ")
    if method.lower() == "bearer":
        return value.strip()
    if method.lower() == "basic" and is_read:
        try:
            return base64.b64decode(value, validate=True).decode().partition(":")[2]
        except (binascii.Error, UnicodeDecodeError):
            return ""
    return ""
