"""A reverse proxy on 127.0.0.1 that lets a fault happen to the answers it passes on, on real sockets.

It fetches every answer whole from the server behind it and then lets a fault decide what the client receives of it.
A fault strikes the requests that it was armed for, as often as it was armed for; all others are passed on unchanged.
Every request is kept.
"""

from __future__ import annotations

import contextlib
import http.client
import select
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

from simulated_server import Answer, Request

FOREVER = 1_000_000
_PASSED_ON = ("range", "accept", "authorization")
_PASSED_BACK = ("content-length", "content-range", "content-type", "docker-content-digest", "www-authenticate")


class Line:
    """The connection to the client while one request is answered."""

    def __init__(self, handler: BaseHTTPRequestHandler, closing: threading.Event) -> None:
        self._handler, self._closing = handler, closing

    def send(self, answer: Answer) -> None:
        """Send status, fields and body."""
        self.head(answer)
        self.body(answer.body)

    def head(self, answer: Answer) -> None:
        """Send the status line and the fields."""
        self._handler.send_response(answer.status)
        for name, value in {"Content-Length": str(len(answer.body)), **answer.headers}.items():
            self._handler.send_header(name, value)
        self._handler.end_headers()

    def body(self, data: bytes) -> None:
        """Send bytes of the body; nothing happens where the client has left."""
        try:
            self._handler.wfile.write(data)
        except (BrokenPipeError, ConnectionResetError):
            self.leave()

    def pause(self, seconds: float) -> None:
        """Stay silent for a time that belongs to the fault."""
        self._closing.wait(seconds)

    def silence(self) -> None:
        """Stay silent until the client leaves."""
        while not self.client_has_left() and not self._closing.is_set():
            select.select([self._handler.connection], [], [], 0.05)
        self.leave()

    def leave(self) -> None:
        """Close the connection after this answer."""
        self._handler.close_connection = True

    def client_has_left(self) -> bool:
        """Whether the client has closed the connection."""
        readable, _, _ = select.select([self._handler.connection], [], [], 0)
        try:
            return bool(readable) and not self._handler.connection.recv(1, socket.MSG_PEEK)
        except ConnectionResetError:
            return True

    def reset(self) -> None:
        """End the connection as a line does that breaks: without a farewell."""
        self._handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.leave()


Fault = Callable[[Request, Answer, Line], None]


@dataclass
class _Armed:
    strikes: Callable[[Request], bool]
    fault: Fault
    times: int


@dataclass
class FaultProxy:
    """``url`` is its base URL; ``fetch`` gets a true answer; ``before_answer`` runs before each one is sent."""

    fetch: Callable[[Request], Answer]
    url: str = ""
    before_answer: Callable[[Request], None] = lambda _: None
    requests: list[Request] = field(default_factory=list)
    _armed: list[_Armed] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    closing: threading.Event = field(default_factory=threading.Event)

    def arm(self, strikes: Callable[[Request], bool], fault: Fault, *, times: int = 1) -> None:
        """Let a fault strike the next ``times`` requests that ``strikes`` is true for."""
        self._armed.append(_Armed(strikes, fault, times))

    def disarm(self) -> None:
        """Pass on everything unchanged from now on."""
        self._armed.clear()

    def answer(self, request: Request, line: Line) -> None:
        """Fetch the true answer and send what becomes of it."""
        self.requests.append(request)
        self.before_answer(request)
        answer = self.fetch(request)
        with self._lock:
            armed = next((one for one in self._armed if one.times > 0 and one.strikes(request)), None)
            if armed is not None:
                armed.times -= 1
        fault = armed.fault if armed else _pass_on
        fault(request, answer, line)


@contextlib.contextmanager
def fault_proxy(fetch: Callable[[Request], Answer]) -> Iterator[FaultProxy]:
    """Run a proxy in front of a server: of ``fetched_from(url)``, or of a simulated server's ``answer``."""
    proxy = FaultProxy(fetch)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def do_GET(self) -> None:
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                request = Request(f"http://{self.headers['Host']}{self.path}", dict(self.headers.items()))
                proxy.answer(request, Line(self, proxy.closing))

        def log_message(self, format: str, *arguments: object) -> None:
            pass

    class Listener(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, *_: object) -> None:
            """A client that hangs up is what many of the faults are about."""

    listener = Listener(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=listener.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    proxy.url = f"http://127.0.0.1:{listener.server_address[1]}"
    try:
        yield proxy
    finally:
        proxy.closing.set()
        listener.shutdown()
        listener.server_close()
        thread.join()


def fetched_from(upstream: str) -> Callable[[Request], Answer]:
    """Return what gets the answers of the server at a base URL."""

    def fetch(request: Request) -> Answer:
        connection = http.client.HTTPConnection(urlsplit(upstream).netloc, timeout=10)
        fields = {name: value for name, value in request.headers.items() if name.lower() in _PASSED_ON}
        with contextlib.closing(connection):
            connection.request("GET", request.path, headers=fields)
            response = connection.getresponse()
            kept = {name: value for name, value in response.getheaders() if name.lower() in _PASSED_BACK}
            return Answer(response.status, kept, response.read())

    return fetch


def _pass_on(_: Request, answer: Answer, line: Line) -> None:
    line.send(answer)
