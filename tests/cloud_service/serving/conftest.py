"""A small application behind the service's protocol, on a socket of this machine, in a thread of this process."""

from __future__ import annotations

import contextlib
import functools
import socket
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import uvicorn

from cloud_service.serving.connection_table import ConnectionLimits, ConnectionTable
from cloud_service.serving.protocol import GuardedProtocol
from cloud_service.serving.server import listen
from cloud_service.serving.transfer_threads import TransferThreads

Address = tuple[str, int]


class _Server(uvicorn.Server):
    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.is_up = threading.Event()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.is_up.set()


@contextlib.contextmanager
def _serving(app: Any, **limits: Any) -> Iterator[Address]:
    table, transfers = ConnectionTable(ConnectionLimits(**limits)), TransferThreads()
    config = uvicorn.Config(
        app,
        http=functools.partial(GuardedProtocol, table, transfers),  # type: ignore[arg-type]
        lifespan="off",
        log_config=None,
        timeout_graceful_shutdown=1,
    )
    with listen("127.0.0.1", 0) as listener, contextlib.closing(transfers):
        server = _Server(config)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        address = listener.getsockname()
        thread.start()
        try:
            assert server.is_up.wait(10)
            yield address
        finally:
            server.should_exit = True
            thread.join(20)
    assert not thread.is_alive()


@pytest.fixture
def serve() -> Iterator[Callable[..., Address]]:
    """Serves ASGI applications: ``serve(app, max_connections=8)`` returns the address."""
    with contextlib.ExitStack() as servers:
        yield lambda app, **limits: servers.enter_context(_serving(app, **limits))
