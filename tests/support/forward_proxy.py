"""Proxies between a device and its server, on 127.0.0.1: HTTP with CONNECT, and SOCKS 5."""

from __future__ import annotations

import base64
import contextlib
import select
import socket
import socketserver
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from urllib.parse import urlsplit


@dataclass
class ForwardProxy:
    """``seen`` holds the first line of each request; ``login`` is ``user:password``, or None where nobody is asked.

    ``answers`` is what it says to every request instead of passing it on, such as ``403 Forbidden``.
    """

    login: str | None = None
    answers: str | None = None
    port: int = 0
    seen: list[str] = field(default_factory=list)

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"


class _HttpProxy(socketserver.StreamRequestHandler):
    proxy: ForwardProxy

    def handle(self) -> None:
        while (first := self.rfile.readline().decode().strip()) and self._pass_on(first):
            pass

    def _pass_on(self, first: str) -> bool:
        lines = []
        while (line := self.rfile.readline().decode().strip()) != "":
            lines.append(line)
        self.proxy.seen.append(first)
        expected = base64.b64encode((self.proxy.login or "").encode()).decode()
        if self.proxy.login is not None and f"Proxy-Authorization: Basic {expected}" not in lines:
            self.wfile.write(b"HTTP/1.1 407 Proxy Authentication Required\r\nContent-Length: 0\r\n\r\n")
            return False
        if self.proxy.answers is not None:
            self.wfile.write(f"HTTP/1.1 {self.proxy.answers}\r\nContent-Length: 0\r\n\r\n".encode())
            return False
        method, target, _ = first.split()
        parts = urlsplit(f"//{target}" if method == "CONNECT" else target)
        with socket.create_connection((parts.hostname, parts.port), timeout=10) as server:
            if method == "CONNECT":
                self.wfile.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
            else:
                kept = [line for line in lines if not line.startswith(("Proxy-", "Connection"))]
                path = parts.path + (f"?{parts.query}" if parts.query else "")
                head = [f"{method} {path} HTTP/1.1", *kept, "Connection: close", "", ""]
                server.sendall("\r\n".join(head).encode())
            _relay(self.connection, server)
        return False


class _SocksProxy(socketserver.BaseRequestHandler):
    proxy: ForwardProxy
    request: socket.socket

    def handle(self) -> None:
        methods = self._read(self._read(2)[1])
        if self.proxy.login is None:
            self.request.sendall(b"\x05\x00")
        elif 2 in methods:
            self.request.sendall(b"\x05\x02")
            user = self._read(self._read(2)[1])
            password = self._read(self._read(1)[0])
            is_right = f"{user.decode()}:{password.decode()}" == self.proxy.login
            self.request.sendall(b"\x01\x00" if is_right else b"\x01\x01")
            if not is_right:
                return
        else:
            self.request.sendall(b"\x05\xff")
            return
        kind = self._read(4)[3]
        host = self._read(self._read(1)[0]).decode() if kind == 3 else socket.inet_ntoa(self._read(4))
        port = int.from_bytes(self._read(2), "big")
        self.proxy.seen.append(f"{'name' if kind == 3 else 'address'} {host}:{port}")
        if self.proxy.answers is not None:
            self.request.sendall(bytes([5, int(self.proxy.answers), 0, 1]) + bytes(6))
            return
        with socket.create_connection(("127.0.0.1", port), timeout=10) as server:
            self.request.sendall(b"\x05\x00\x00\x01" + bytes(6))
            _relay(self.request, server)

    def _read(self, count: int) -> bytes:
        data = self.request.recv(count, socket.MSG_WAITALL)
        if len(data) < count:
            raise ConnectionResetError
        return data


def _relay(one: socket.socket, other: socket.socket) -> None:
    """Pass bytes both ways until one side ends."""
    partner = {one: other, other: one}
    with contextlib.suppress(OSError):
        while True:
            for source in select.select([one, other], [], [])[0]:
                if not (data := source.recv(65536)):
                    return
                partner[source].sendall(data)


class _Listener(socketserver.ThreadingTCPServer):
    daemon_threads = True
    allow_reuse_address = True

    def handle_error(self, *_: object) -> None:
        """A client that hangs up is no failure of a proxy."""


@contextlib.contextmanager
def forward_proxy(
    *, kind: str = "http", login: str | None = None, answers: str | None = None
) -> Iterator[ForwardProxy]:
    """Run a proxy; ``kind`` is http or socks. It resolves every name to 127.0.0.1 where it speaks SOCKS."""
    proxy = ForwardProxy(login, answers)
    base = _HttpProxy if kind == "http" else _SocksProxy
    listener = _Listener(("127.0.0.1", 0), type("Handler", (base,), {"proxy": proxy}))
    thread = threading.Thread(target=listener.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    proxy.port = listener.server_address[1]
    try:
        yield proxy
    finally:
        listener.shutdown()
        listener.server_close()
        thread.join()
