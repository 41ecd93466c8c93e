"""Runs an application on a loopback address, and the queue of its texts beside it, until a signal ends both.

The socket is bound before anything is loaded, so a port in use is known at once, and the address printed is the one
that answers. Addresses of other machines' networks are refused: what a person types stays on this machine.
"""

from __future__ import annotations

import contextlib
import ipaddress
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from types import FrameType

import uvicorn
from starlette.types import ASGIApp

from device_client.serving.text_queue import TextQueue
from shared.errors import Conflict, InvalidRequest

_SECONDS_TO_FINISH = 3
"""How long answers that are being written go on after a signal."""


@contextlib.contextmanager
def listening(host: str, port: int) -> Iterator[socket.socket]:
    """Listen on a loopback address inside the ``with`` block.

    Args:
        host: Its name or number.
        port: 0 takes a free one.

    Raises:
        InvalidRequest: The address is not a loopback address.
        Conflict: The port is in use, or may not be used.
    """
    address = "127.0.0.1" if host == "localhost" else host
    try:
        family = socket.AF_INET6 if ipaddress.ip_address(address).version == 6 else socket.AF_INET
        is_loopback = ipaddress.ip_address(address).is_loopback
    except ValueError:
        is_loopback, family = False, socket.AF_INET
    if not is_loopback or not 0 <= port < 1 << 16:
        raise InvalidRequest(
            f"--host {host} --port {port}",
            needed="a loopback address (127.0.0.1, ::1 or localhost) and a port from 0 to 65535",
            next_step="leave --host out; to reach the server from another machine, forward its port by ssh -L",
        )
    try:
        listener = socket.create_server((address, port), family=family)
    except OSError as error:
        raise Conflict(
            f"cannot listen on {address} port {port}: {error.strerror}",
            needed="a free port",
            next_step="--port 0 takes any, or end the program that listens there",
            param="port",
        ) from error
    # asyncio leaves sockets of protocol 0, as these are, with Nagle's delay: 40 ms for each small piece of an answer.
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    with listener:
        yield listener


def serve_until_signal(app: ASGIApp, queue: TextQueue, listener: socket.socket, tell_ready: Callable[[], None]) -> None:
    """Answer requests until SIGINT or SIGTERM; what is being written then has some seconds to end.

    Args:
        app: Answers requests.
        queue: Writes its texts.
        listener: Bound.
        tell_ready: Called once requests are answered.
    """
    writing = threading.Thread(target=queue.serve, name="texts", daemon=True)
    config = uvicorn.Config(
        app, log_level="warning", access_log=False, lifespan="off", timeout_graceful_shutdown=_SECONDS_TO_FINISH,
        server_header=False,
    )  # fmt: skip
    server = _Server(config, tell_ready)
    # uvicorn raises the signal again after its shutdown; the exit status shall tell that this one went well.
    signal.signal(signal.SIGTERM, server.stop)
    signal.signal(signal.SIGINT, server.stop)
    writing.start()
    try:
        server.run(sockets=[listener])
    finally:
        queue.close()
        writing.join()


class _Server(uvicorn.Server):
    """Says when it is ready."""

    def __init__(self, config: uvicorn.Config, tell_ready: Callable[[], None]) -> None:
        super().__init__(config)
        self._tell_ready = tell_ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._tell_ready()

    def stop(self, _number: int, _frame: FrameType | None) -> None:
        """End as soon as possible: a signal that comes before uvicorn listens for it, or after."""
        self.should_exit = True
