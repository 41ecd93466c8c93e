"""Who may call: API keys and their scopes, as dependencies of the routes.

``Authorization: Bearer zo_…`` everywhere. Reads also take HTTP Basic with the key as the password, because that is what
OCI clients and browsers know; other methods do not, since a browser would send it along from any web page.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable

from fastapi import Request

from cloud_service.settings import is_loopback
from cloud_service.storage.keys import ApiKey, KeyStore, Scope
from shared.errors import Forbidden, Unauthorized

_READS = ("GET", "HEAD")


class Access:
    """Decides who may call.

    Args:
        keys: The service's keys; None lets everybody in (only on a loopback address).
    """

    def __init__(self, keys: KeyStore | None) -> None:
        self._keys = keys

    def needs(self, scope: Scope | None) -> Callable[[Request], str]:
        """Return a dependency that gives the caller's key id and refuses callers without ``scope``.

        None stands for any valid key. The dependency raises Unauthorized or Forbidden.
        """

        def check(request: Request) -> str:
            if self._keys is None:
                return _local_caller(request)
            key = self._authenticate(self._keys, request)
            if scope is not None:
                key.check_scope(scope)
            return key.id

        return check

    @staticmethod
    def _authenticate(keys: KeyStore, request: Request) -> ApiKey:
        header = request.headers.get("authorization")
        if header is None:
            raise Unauthorized(
                "no key",
                needed="the header Authorization: Bearer zo_…",
                next_step="ask the operator for one: zo-cloud keys create --data FOLDER",
            )
        return keys.authenticate(_token(header, is_read=request.method in _READS))


def _local_caller(request: Request) -> str:
    # Without keys the only guard is the address; a web page whose name was made to point at it must not get through.
    if not is_loopback(request.url.hostname or ""):
        raise Forbidden(f"host {request.url.hostname!r}", needed="a loopback address, because keys are switched off")
    return "local"


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
