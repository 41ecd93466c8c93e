"""The one door to the network: GET, and nothing else.

Redirects are not followed and statuses are not judged here; that is the registry's business. Connections are kept open
and used again, by any thread. The standard library's HTTP is used since a pull is bound by hashing: a layer that copies
each byte once more is felt, and so is the time that a larger library takes to import.
"""

from __future__ import annotations

import contextlib
import http.client
import re
import ssl
import threading
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Protocol
from urllib.parse import quote, urlsplit

from device_client.download.connection import (
    Connection,
    connect,
    proxy_authorization,
    proxy_failed,
    reason_of,
    wants_authentication,
)
from device_client.download.proxies import Proxy, ProxySettings
from device_client.download.retry import TransientError
from shared.errors import NetworkError

STALL_SECONDS = 30.0
BLOCK_BYTES = 1024 * 1024
"""The most that is read at once: so much that the threads seldom have to take turns, which is what costs."""

_DEFAULT_PORTS = {"http": 80, "https": 443}
_SAFE = "/%:@!$&'()*+,;=?~[]"
_LINE = re.compile(r"[\x20-\x7e]*")
_ADDRESS = "the server sent to an unusable address"


@dataclass(frozen=True, slots=True)
class Response:
    """An answer whose body was not read yet.

    Attributes:
        status: HTTP status.
        headers: Header fields, names in lower case; values of a repeated one are joined by commas.
        body: The body's bytes as they arrive; raises ``TransientError`` when the connection breaks or stalls.
        via: The proxy that it came through, in words; empty where there was none.
    """

    status: int
    headers: Mapping[str, str]
    body: Iterator[bytes]
    via: str = ""


class Transport(Protocol):
    """Sends GET requests; may be used from several threads."""

    def get(self, url: str, headers: Mapping[str, str]) -> AbstractContextManager[Response]:
        """Send one request; leaving the context closes the answer, read or not.

        Raises:
            TransientError: No answer came.
            NetworkError: None can come: the address, the proxy or the server's certificate is unusable.
            Unauthorized: The proxy wants user and password.
        """


class _Route(NamedTuple):
    """Where a connection leads."""

    scheme: str
    host: str
    port: int
    proxy: Proxy | None

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        place = host if self.port == _DEFAULT_PORTS[self.scheme] else f"{host}:{self.port}"
        return f"{place} through {self.proxy}" if self.proxy else place


class HttpTransport:
    """The real transport.

    Args:
        proxies: Which proxies to use.
        ca_file: File with the certificates that are trusted; None trusts those of the system and of certifi.
        stall_seconds: How long a connection may stay silent, or bring less than 1 KiB.
        block_bytes: The most that is read at once.
    """

    def __init__(
        self,
        *,
        proxies: ProxySettings | None = None,
        ca_file: Path | None = None,
        stall_seconds: float = STALL_SECONDS,
        block_bytes: int = BLOCK_BYTES,
    ) -> None:
        self._proxies, self._ca_file, self._stall_seconds = proxies or ProxySettings(), ca_file, stall_seconds
        self._block_bytes = block_bytes
        self._idle: dict[_Route, list[Connection]] = {}
        self._lock = threading.Lock()
        self._tls_context: ssl.SSLContext | None = None

    def close(self) -> None:
        """Close all connections that are not in use."""
        with self._lock:
            for connections in self._idle.values():
                for connection in connections:
                    connection.close()
            self._idle.clear()

    @contextmanager
    def get(self, url: str, headers: Mapping[str, str]) -> Iterator[Response]:
        """Send one request; see ``Transport.get``."""
        route, head = self._prepare(url, headers)
        connection, answer = self._send(route, head)
        body = _Body(connection, answer, route, self._block_bytes)
        try:
            fields: dict[str, str] = {}
            for name, value in answer.getheaders():
                key = name.lower()
                fields[key] = f"{fields[key]}, {value}" if key in fields else value
            yield Response(answer.status, fields, body, f" through {route.proxy}" if route.proxy else "")
        finally:
            if body.is_whole and not answer.will_close:
                with self._lock:
                    self._idle.setdefault(route, []).append(connection)
            else:
                connection.close()

    def _prepare(self, url: str, headers: Mapping[str, str]) -> tuple[_Route, bytes]:
        """Return where a request goes and its bytes."""
        try:
            parts = urlsplit(url)
            host = (parts.hostname or "").encode("ascii" if url.isascii() else "idna").decode()
            route = _Route(parts.scheme, host, parts.port or _DEFAULT_PORTS[parts.scheme], self._proxies.proxy_for(url))
        except (ValueError, KeyError) as error:  # UnicodeError is a ValueError
            raise NetworkError(f"{_ADDRESS}: {error}") from error
        place = str(route._replace(proxy=None))
        target = quote(parts.path or "/", safe=_SAFE) + ("?" + quote(parts.query, safe=_SAFE) if parts.query else "")
        fields = {"Host": place, **headers}
        if route.proxy is not None and route.proxy.scheme == "http" and route.scheme == "http":
            target = f"http://{place}{target}"
            if (authorization := proxy_authorization(route.proxy)) is not None:
                fields["Proxy-Authorization"] = authorization
        lines = [f"GET {target} HTTP/1.1", *(f"{name}: {value}" for name, value in fields.items())]
        if not host or " " in place or not all(_LINE.fullmatch(line) for line in lines):
            raise NetworkError(_ADDRESS)
        return route, "\r\n".join([*lines, "", ""]).encode("ascii")

    def _send(self, route: _Route, head: bytes) -> tuple[Connection, http.client.HTTPResponse]:
        while True:
            connection = self._connection(route)
            was_used = connection.is_used
            try:
                answer = connection.request(head)
            except TimeoutError as error:
                connection.close()
                raise TransientError(f"{route} did not answer in time") from error
            except (OSError, http.client.HTTPException) as error:
                connection.close()
                if was_used and isinstance(error, ConnectionError):
                    continue  # the server closed it while it was idle; a new one is tried once
                if route.proxy is not None:
                    raise proxy_failed(route.proxy, f"broke the connection: {reason_of(error)}") from error
                raise TransientError(f"{route}: {reason_of(error)}") from error
            if answer.status == http.client.PROXY_AUTHENTICATION_REQUIRED and route.proxy is not None:
                connection.close()
                raise wants_authentication(route.proxy)
            return connection, answer

    def _connection(self, route: _Route) -> Connection:
        """Return an open connection that nobody uses, or a new one."""
        while True:
            with self._lock:
                idle = self._idle.get(route)
                kept = idle.pop() if idle else None
            if kept is None:
                return connect(*route, self._tls, stall_seconds=self._stall_seconds)
            if not kept.has_ended:
                return kept
            kept.close()

    def _tls(self) -> ssl.SSLContext:
        with self._lock:
            if self._tls_context is None:
                self._tls_context = _trusted_certificates(self._ca_file)
            return self._tls_context


class _Body(Iterator[bytes]):
    """The bytes of one answer as they arrive.

    Attributes:
        is_whole: Whether all of them were read, so that the connection can carry another request.
    """

    def __init__(
        self, connection: Connection, answer: http.client.HTTPResponse, route: _Route, block_bytes: int
    ) -> None:
        self._connection, self._answer, self._route, self._block_bytes = connection, answer, route, block_bytes
        self._left = None if answer.chunked else answer.length
        self.is_whole = self._left == 0

    def __next__(self) -> bytes:
        if self.is_whole:
            raise StopIteration
        try:
            if self._left is None:
                data = self._answer.read1(self._block_bytes)
            else:
                data = self._connection.read1(min(self._block_bytes, self._left))
                self._left -= len(data)
        except TimeoutError as error:
            raise TransientError(f"{self._route} did not answer in time: it stalled", is_stall=True) from error
        except (OSError, http.client.HTTPException) as error:
            raise TransientError(f"{self._route}: {reason_of(error)}") from error
        if not data and self._left:
            raise TransientError(f"{self._route}: the connection ended {self._left} bytes too early")
        self.is_whole = self._left == 0 or not data
        if not data:
            raise StopIteration
        return data


def _trusted_certificates(file: Path | None) -> ssl.SSLContext:
    try:
        context = ssl.create_default_context(cafile=file)
    except OSError as error:  # ssl.SSLError is one
        raise NetworkError(
            f"SSL_CERT_FILE names {file}, which cannot be used: {reason_of(error)}",
            needed="a PEM file with the certificates of trusted authorities",
            next_step="set SSL_CERT_FILE to such a file, or unset it",
        ) from error
    if file is None:
        with contextlib.suppress(ImportError):
            import certifi  # for systems whose own list is empty, as it is in small containers

            context.load_verify_locations(certifi.where())
    return context
