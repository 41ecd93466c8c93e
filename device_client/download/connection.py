"""A connection to a server: directly or through a proxy, with TLS or without; and when it counts as stalled.

    direct           TCP, then TLS for https
    HTTP proxy       CONNECT for https; for http the proxy is asked for the whole address
    SOCKS 5 proxy    RFC 1928, with user and password by RFC 1929

A connection is stalled when the time spent waiting for its bytes reaches ``stall_seconds`` and fewer than 1 KiB came in
it: silence and a drip are the same failure. Time that the reader spends elsewhere does not count. Knows nothing about
requests and answers.
"""

from __future__ import annotations

import base64
import http.client
import io
import ipaddress
import select
import socket
import ssl
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, cast

from device_client.download.proxies import Proxy
from device_client.download.retry import LEAST_BYTES, TransientError
from shared.errors import NetworkError, Unauthorized

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

CONNECT_SECONDS = 15.0
_READ_BYTES = 64 * 1024
_MOST_INTERIM_ANSWERS = 8
_NO_TLS = frozenset({"WRONG_VERSION_NUMBER", "HTTP_REQUEST", "RECORD_LAYER_FAILURE"})
"""What OpenSSL calls an answer that is not TLS."""


class Stalled(TimeoutError):
    """The other side sends nothing, or next to nothing."""


class Connection:
    """An open connection.

    Args:
        sock: Connected; TLS is spoken already where it is to be spoken.
        stall_seconds: How long to wait for 1 KiB.
    """

    def __init__(self, sock: socket.socket, stall_seconds: float) -> None:
        self._sock, self.is_used = sock, False
        self._sock.settimeout(stall_seconds)
        self._reader = io.BufferedReader(_WatchedReader(sock, stall_seconds), _READ_BYTES)

    def request(self, head: bytes, method: str = "GET") -> http.client.HTTPResponse:
        """Send the head of a request and return the answer, whose body was not read yet.

        Raises:
            OSError: The connection broke or stalled.
            http.client.HTTPException: What came is not HTTP.
        """
        self._sock.sendall(head)
        for _ in range(_MOST_INTERIM_ANSWERS):
            # HTTPResponse asks its socket for a file to read from, and for nothing else.
            response = http.client.HTTPResponse(cast("socket.socket", self), method=method)
            response.begin()
            if response.status >= http.client.OK:
                self.is_used = True
                return response
        raise http.client.HTTPException("it sends interim answers only")

    def makefile(self, _: str) -> io.BufferedReader:
        """Return what answers are read from; closing it leaves the connection open."""
        return cast("io.BufferedReader", _Unclosed(self._reader))

    def read1(self, count: int) -> bytes:
        """Return up to ``count`` bytes as soon as there are any; nothing at the end."""
        return self._reader.read1(count)

    @property
    def has_ended(self) -> bool:
        """Whether the other side has closed it, or said something unasked."""
        return bool(select.select([self._sock], [], [], 0)[0])

    def close(self) -> None:
        """Close the connection."""
        self._sock.close()


class _Unclosed:
    """A reader that outlives the answers read from it."""

    def __init__(self, reader: io.BufferedReader[_WatchedReader]) -> None:
        self.read1, self.read, self.readline = reader.read1, reader.read, reader.readline

    def flush(self) -> None:
        """Answers flush what they read from; there is nothing to flush."""

    def close(self) -> None:
        """Leave the connection open."""


class _WatchedReader(io.RawIOBase):
    """Reads a socket and keeps the account of waiting."""

    def __init__(self, sock: socket.socket, stall_seconds: float) -> None:
        self._sock, self._stall_seconds = sock, stall_seconds
        self._waited_seconds, self._received_bytes = 0.0, 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: WriteableBuffer) -> int:
        begin = time.monotonic()
        count = self._sock.recv_into(buffer)
        self._waited_seconds += time.monotonic() - begin
        self._received_bytes += count
        if self._waited_seconds >= self._stall_seconds:
            if 0 < self._received_bytes < LEAST_BYTES:
                raise Stalled(f"{self._received_bytes} bytes in {self._waited_seconds:.0f} s")
            self._waited_seconds, self._received_bytes = 0.0, 0
        return count


def connect(
    scheme: str, host: str, port: int, proxy: Proxy | None, tls: Callable[[], ssl.SSLContext], *, stall_seconds: float
) -> Connection:
    """Open a connection to a server.

    Args:
        scheme: ``http`` or ``https``.
        host: The server's host.
        port: The server's port.
        proxy: What to go through, or None.
        tls: Returns which certificates are trusted; called for https only.
        stall_seconds: How long a connection may stay silent.

    Raises:
        TransientError: It failed in a way that may be gone at the next attempt.
        NetworkError: The proxy refuses, or the server's certificate is not trusted.
        Unauthorized: The proxy wants user and password.
    """
    sock = _dial(host, port, proxy, min(stall_seconds, CONNECT_SECONDS))
    try:
        if proxy is not None and proxy.scheme != "http":
            _ask_socks(sock, proxy, host, port)
        elif proxy is not None and scheme == "https":
            _ask_http(sock, proxy, host, port, stall_seconds)
        if scheme == "https":
            sock = _encrypted(sock, tls(), host)
        return Connection(sock, stall_seconds)
    except BaseException:
        sock.close()
        raise


def proxy_authorization(proxy: Proxy) -> str | None:
    """Return the value of Proxy-Authorization, or None where the proxy's address has no user."""
    if proxy.user is None:
        return None
    return "Basic " + base64.b64encode(f"{proxy.user}:{proxy.password or ''}".encode()).decode()


def wants_authentication(proxy: Proxy) -> Unauthorized:
    """Return the error for a proxy that answers 407."""
    has_user = proxy.user is not None
    return Unauthorized(
        f"{proxy} {'refuses the user name and password of its address' if has_user else 'wants a user name'}",
        needed="a user name and a password that the proxy accepts",
        next_step=f"write them into {proxy.variable}: {proxy.scheme}://USER:PASSWORD@{proxy.host}:{proxy.port}",
    )


def reason_of(error: Exception) -> str:
    """Return what went wrong, without the tail of numbers that the system adds."""
    return getattr(error, "strerror", None) or str(error) or type(error).__name__


def proxy_failed(proxy: Proxy, what: str) -> TransientError:
    """Return the error for a proxy that cannot be used now."""
    return TransientError(
        f"{proxy} {what}",
        needed="a proxy that works, or none",
        next_step=f"check {proxy.variable}; servers that need no proxy are named in NO_PROXY",
    )


def _dial(host: str, port: int, proxy: Proxy | None, seconds: float) -> socket.socket:
    try:
        return socket.create_connection((proxy.host, proxy.port) if proxy else (host, port), timeout=seconds)
    except (OSError, UnicodeError) as error:
        reason = "no answer in time" if isinstance(error, TimeoutError) else reason_of(error)
        if proxy is not None:
            raise proxy_failed(proxy, f"cannot be reached: {reason}") from error
        raise TransientError(f"{host}:{port}: {reason}") from error


def _ask_http(sock: socket.socket, proxy: Proxy, host: str, port: int, stall_seconds: float) -> None:
    """Let an HTTP proxy connect to the server (RFC 9110, 9.3.6)."""
    address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    authorization = proxy_authorization(proxy)
    field = f"Proxy-Authorization: {authorization}\r\n" if authorization else ""
    head = f"CONNECT {address} HTTP/1.1\r\nHost: {address}\r\nUser-Agent: zo-device\r\n{field}\r\n"
    try:
        answer = Connection(sock, stall_seconds).request(head.encode("latin-1", "replace"), method="CONNECT")
    except TimeoutError as error:
        raise proxy_failed(proxy, "did not answer in time") from error
    except (OSError, http.client.HTTPException) as error:
        raise proxy_failed(proxy, f"broke the connection: {reason_of(error)}") from error
    if answer.status == http.client.PROXY_AUTHENTICATION_REQUIRED:
        raise wants_authentication(proxy)
    if answer.status >= http.client.INTERNAL_SERVER_ERROR:
        raise proxy_failed(proxy, f"cannot connect to {address}: it answers {answer.status}")
    if not http.client.OK <= answer.status < http.client.MULTIPLE_CHOICES:
        raise _refused(proxy, address, f"answers {answer.status}")


def _ask_socks(sock: socket.socket, proxy: Proxy, host: str, port: int) -> None:
    """Let a SOCKS 5 proxy connect to the server."""
    try:
        methods = b"\x00" if proxy.user is None else b"\x00\x02"
        sock.sendall(bytes([5, len(methods)]) + methods)
        method = _exactly(sock, 2)[1]
        if method == 2 and proxy.user is not None:
            user, password = proxy.user.encode()[:255], (proxy.password or "").encode()[:255]
            sock.sendall(bytes([1, len(user)]) + user + bytes([len(password)]) + password)
            method = _exactly(sock, 2)[1]
        if method != 0:
            raise wants_authentication(proxy)
        sock.sendall(b"\x05\x01\x00" + _socks_address(host, port, is_local=proxy.scheme == "socks5") + port.to_bytes(2))
        _, code, _, kind = _exactly(sock, 4)
        _exactly(sock, {1: 4, 4: 16}.get(kind) or _exactly(sock, 1)[0])
        _exactly(sock, 2)
    except ValueError as error:  # the name of the server has a form that no name has
        raise NetworkError("the server sent to an unusable address") from error
    except OSError as error:
        raise proxy_failed(proxy, f"broke the connection: {reason_of(error)}") from error
    if code == 2:
        raise _refused(proxy, f"{host}:{port}", "does not allow it")
    if code != 0:
        raise proxy_failed(proxy, f"cannot connect to {host}:{port}: SOCKS code {code}")


def _socks_address(host: str, port: int, *, is_local: bool) -> bytes:
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        if not is_local:
            name = host.encode("idna")
            return bytes([3, len(name)]) + name
        address = ipaddress.ip_address(socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][4][0])
    return bytes([1 if address.version == 4 else 4]) + address.packed


def _exactly(sock: socket.socket, count: int) -> bytes:
    data = b""
    while len(data) < count:
        if not (part := sock.recv(count - len(data))):
            raise ConnectionResetError("it closed the connection")
        data += part
    return data


def _refused(proxy: Proxy, address: str, how: str) -> NetworkError:
    return NetworkError(
        f"{proxy} refuses to connect to {address}: it {how}",
        needed="a proxy that allows this server, or none",
        next_step=f"ask who runs the proxy; if the server can be reached without it, name it in NO_PROXY "
        f"or unset {proxy.variable}",
    )


def _encrypted(sock: socket.socket, tls: ssl.SSLContext, host: str) -> ssl.SSLSocket:
    try:
        return tls.wrap_socket(sock, server_hostname=host)
    except ssl.SSLCertVerificationError as error:
        raise NetworkError(
            f"the certificate of {host} is not trusted: {error.verify_message}",
            needed="a certificate by an authority that this machine trusts",
            next_step="where an own authority signs it, set SSL_CERT_FILE to the file with its certificate; else "
            "somebody may be in between: do not use this network",
        ) from error
    except ssl.SSLError as error:
        if error.reason not in _NO_TLS:
            raise TransientError(f"{host}: {reason_of(error)}") from error
        raise NetworkError(
            f"{host} does not speak TLS at this port",
            needed="a server that speaks https",
            next_step="check the port; if the server is meant to speak http, write http://",
        ) from error
    except OSError as error:
        raise TransientError(f"{host}: {reason_of(error)}") from error
