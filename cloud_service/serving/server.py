"""The server process around an ASGI application: its socket, its descriptors, its signals, uvicorn as its loop."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import resource
import signal
import socket
import ssl
import threading
from types import FrameType
from typing import Any

import uvicorn

from cloud_service.serving.connection_table import ConnectionLimits, ConnectionTable
from cloud_service.serving.protocol import GuardedProtocol
from cloud_service.serving.tls_gate import TlsGate
from cloud_service.serving.transfer_threads import TransferThreads
from cloud_service.settings import Settings
from shared.errors import Conflict

_BACKLOG = 256
"""Connections that wait to be accepted; asyncio accepts as many in one go, above the limit until it looks."""
_logger = logging.getLogger(__name__)


def run_server(app: Any, settings: Settings, listener: socket.socket, is_stopping: threading.Event) -> None:
    """Serve ``app`` on ``listener`` until SIGTERM or SIGINT, then let open requests finish.

    Args:
        app: An ASGI application.
        settings: Limits, TLS, trusted proxies and the time to drain.
        listener: The socket, from ``listen``.
        is_stopping: Set as soon as the signal comes, so that streams and workers can end.
    """
    _allow_many_descriptors()
    table, transfers = ConnectionTable(_limits(settings)), TransferThreads()
    context = _tls_context(settings)

    def make_protocol(**given: Any) -> asyncio.Protocol:
        http = GuardedProtocol(table, transfers, **given)
        return http if context is None else TlsGate(table, context, http)

    config = uvicorn.Config(
        app,
        http=make_protocol,  # type: ignore[arg-type]  # uvicorn only calls it
        ws="none",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=bool(settings.forwarded_allow_ips),
        forwarded_allow_ips=list(settings.forwarded_allow_ips),
        backlog=_BACKLOG,
        timeout_graceful_shutdown=settings.drain_seconds,
    )
    # uvicorn raises the signal again after its shutdown; the exit status shall tell that this one went well.
    signal.signal(signal.SIGTERM, lambda _number, _frame: None)
    signal.signal(signal.SIGINT, lambda _number, _frame: None)
    with contextlib.closing(transfers):
        _Server(config, is_stopping, _url(settings, listener)).run(sockets=[listener])


def listen(host: str, port: int) -> socket.socket:
    """Return a listening socket.

    Raises:
        Conflict: The port is in use, or the address is not this machine's.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        listener = socket.create_server((host, port), family=family)
        # asyncio leaves sockets of protocol 0, as these are, with Nagle's delay: 40 ms for each small answer.
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return listener
    except OSError as error:
        raise Conflict(
            f"cannot listen on {host} port {port}: {error.strerror}",
            needed="a free port and an address of this machine",
            next_step="give another --port; 0 takes any free one",
            param="port",
        ) from error


class _Server(uvicorn.Server):
    """Tells event streams and workers to stop as soon as the signal comes, and logs where it listens."""

    def __init__(self, config: uvicorn.Config, is_stopping: threading.Event, url: str) -> None:
        super().__init__(config)
        self._is_stopping = is_stopping
        self._url = url

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        _logger.info("listening on %s", self._url, extra={"event": "listening", "url": self._url})

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self._is_stopping.set()
        super().handle_exit(sig, frame)


def _allow_many_descriptors() -> None:
    """Raise the soft limit of open files to the hard one: the soft one is often 1,024, for programs that use select."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(OSError, ValueError):  # some systems refuse what they call the hard limit
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _tls_context(settings: Settings) -> ssl.SSLContext | None:
    if settings.tls_certificate is None or settings.tls_key is None:
        return None
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(settings.tls_certificate, settings.tls_key)
    return context


def _limits(settings: Settings) -> ConnectionLimits:
    return ConnectionLimits(
        header_timeout_seconds=settings.header_timeout_seconds,
        body_timeout_seconds=settings.body_timeout_seconds,
        write_stall_seconds=settings.write_stall_seconds,
        max_connections=settings.max_connections,
        max_connections_per_address=settings.max_connections_per_address,
    )


def _url(settings: Settings, listener: socket.socket) -> str:
    host = f"[{settings.host}]" if ":" in settings.host else settings.host
    return f"{'https' if settings.has_tls else 'http'}://{host}:{listener.getsockname()[1]}"
