"""HTTP/1.1 for clients that may be slow, many or hostile: uvicorn's protocol with limits, and files sent by the kernel.

Each connection stands in a ``ConnectionTable``, which closes those that take too long and makes room for new ones.
Applications may answer with ``http.response.zerocopysend`` (an extension of ASGI): a span of an open file, framed by
h11 like any other body and sent by ``FileTransfer``; over TLS, which has to see the bytes, it is read piece by piece.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import socket
import struct
import termios
from typing import Any

import h11
from uvicorn.config import Config
from uvicorn.protocols.http.h11_impl import H11Protocol, RequestResponseCycle
from uvicorn.server import ServerState

from cloud_service.serving.connection_table import ConnectionTable, peer_of
from cloud_service.serving.file_transfer import FileTransfer
from cloud_service.serving.transfer_threads import TransferThreads

ZERO_COPY_SEND = "http.response.zerocopysend"
KEEP_CONNECTION = "zo_cloud.keep_connection"
"""In ``scope["extensions"]``: a function that the application calls once it knows that the request is welcome."""

MAX_DISCARDED_BYTES = 1024 * 1024
"""Of a body that goes on after its request was answered; then the connection is closed."""
_COPY_BYTES = 256 * 1024


class GuardedProtocol(H11Protocol):
    """One connection.

    Args:
        table: Where it is counted.
        transfers: What sends files.
        config: Uvicorn's settings.
        server_state: Uvicorn's connections and tasks.
        app_state: What the application's lifespan left.
        _loop: The event loop; the name is uvicorn's.
    """

    cycle: RequestResponseCycle | None  # type: ignore[assignment]  # None until the first request

    def __init__(
        self,
        table: ConnectionTable,
        transfers: TransferThreads,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self._wrapped_app = self.app
        self.app = self._answer
        self.peer = ""
        self._table = table
        self._transfers = transfers
        self._since = self.loop.time()  # the connection, the last head or the last answer
        self._welcome_since = self._since  # the connection, or the last answer to a welcome request
        self._is_welcome = False  # the request that is being answered, or the last one
        self._discarded_bytes = 0
        self._transfer: FileTransfer | None = None
        self._unsent: tuple[int, int, int] | None = None
        self._unsent_since = self._since

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Take in a connection, where there is room."""
        super().connection_made(transport)
        self.peer = peer_of(self.client[0]) if self.client else ""
        self._table.admit(self)

    def connection_lost(self, exc: Exception | None) -> None:
        """Leave the table and end what is being sent."""
        self._table.forget(self)
        super().connection_lost(exc)
        if self._transfer is not None:
            self._transfer.stop()

    def data_received(self, data: bytes) -> None:
        """Read bytes of requests."""
        before = self.cycle
        super().data_received(data)
        if self.cycle is not before:
            self._since = self.loop.time()
            self._discarded_bytes = 0
        elif not self._is_answering and self.conn.their_state is h11.SEND_BODY:
            self._discarded_bytes += len(data)
            if self._discarded_bytes > MAX_DISCARDED_BYTES:
                self.abort()

    def on_response_complete(self) -> None:
        """Begin to wait for the next request."""
        self._since = self.loop.time()
        if self._is_welcome:
            self._welcome_since = self._since
        super().on_response_complete()

    @property
    def idle_rank(self) -> tuple[bool, float] | None:
        """None where a welcome request is being answered; else those come first that are longest without one.

        Who still takes the answer to a welcome request comes after all others. A request that nobody called welcome
        counts as none: else a client could keep its place by asking without a key again and again.
        """
        if not self._is_welcome:
            return (False, self._welcome_since)
        return None if self._is_answering else (self.transport.get_write_buffer_size() > 0, self._welcome_since)

    def is_overdue(self, now: float) -> bool:
        """Whether the head, the body or the reader took longer than allowed."""
        limits = self._table.limits
        if self._is_sending:
            if not self._is_answering:
                self._since = now  # time to take the answer is not time to send the next request
            return self._is_stalled(now)
        self._unsent = None
        if self.conn.their_state is h11.SEND_BODY:
            return now - self._since > limits.body_timeout_seconds
        return not self._is_answering and now - self._since > limits.header_timeout_seconds

    def abort(self) -> None:
        """Close the connection at once; where an answer is cut short, reset it, so that the kernel keeps none of it."""
        if self._is_sending:
            reset = struct.pack("ii", 1, 0)
            self.transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, reset)
        if self.cycle is not None:
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        self.transport.abort()

    @property
    def _is_answering(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    @property
    def _is_sending(self) -> bool:
        return self._transfer is not None or self.transport.get_write_buffer_size() > 0

    def _is_stalled(self, now: float) -> bool:
        # What the kernel still holds shrinks as the peer acknowledges; a socket counts as writable much later.
        position = 0 if self._transfer is None else self._transfer.position
        unsent = (position, self.transport.get_write_buffer_size(), _bytes_in_kernel(self.transport))
        if unsent != self._unsent:
            self._unsent, self._unsent_since = unsent, now
        return now - self._unsent_since > self._table.limits.write_stall_seconds

    async def _answer(self, scope: Any, receive: Any, send: Any) -> None:
        """Run the application with the extensions."""
        self._is_welcome = False
        cycle = self.cycle
        assert cycle is not None  # noqa: S101 - made for this request

        async def send_or_transfer(message: Any) -> None:
            if message["type"] != ZERO_COPY_SEND:
                await send(message)
                return
            if cycle.response_started and not cycle.disconnected and scope["method"] != "HEAD":
                await self._send_file(cycle, message["file"], message["offset"], message["count"])
            await send({"type": "http.response.body", "body": b"", "more_body": message.get("more_body", False)})

        extensions = {ZERO_COPY_SEND: {}, KEEP_CONNECTION: self._keep}
        scope["extensions"] = {**scope.get("extensions", {}), **extensions}
        await self._wrapped_app(scope, receive, send_or_transfer)

    def _keep(self) -> None:
        self._is_welcome = True

    async def _send_file(self, cycle: RequestResponseCycle, file: int, offset: int, count: int) -> None:
        for piece in self.conn.send_with_data_passthrough(h11.Data(data=_Span(count))) or ():  # type: ignore[arg-type]
            if not isinstance(piece, _Span):
                self.transport.write(piece)
                continue
            try:
                if self.transport.get_extra_info("ssl_object") is None:
                    await self._transfer_span(cycle, file, offset, count)
                else:
                    await self._copy_span(cycle, file, offset, count)
            except (ConnectionError, TimeoutError):
                self.abort()
            except (OSError, EOFError) as error:
                self.logger.error("a file cannot be sent to its end: %s", error)
                self.abort()
            if cycle.disconnected:
                return

    async def _transfer_span(self, cycle: RequestResponseCycle, file: int, offset: int, count: int) -> None:
        await self._written()
        if cycle.disconnected:
            return
        connection = self.transport.get_extra_info("socket")
        self._transfer = FileTransfer(connection, file, offset, count)
        try:
            await self._transfers.run(self._transfer)
        finally:
            self._transfer = None

    async def _copy_span(self, cycle: RequestResponseCycle, file: int, offset: int, count: int) -> None:
        end = offset + count
        while offset < end and not cycle.disconnected:
            piece = await self.loop.run_in_executor(None, os.pread, file, min(_COPY_BYTES, end - offset), offset)
            if not piece:
                raise EOFError(f"{end - offset} bytes are missing")
            offset += len(piece)
            self.transport.write(piece)
            await self.flow.drain()

    async def _written(self) -> None:
        """Wait until the transport holds nothing: what the kernel sends next must come after it."""
        self.transport.set_write_buffer_limits(high=0)
        try:
            await self.flow.drain()
        finally:
            self.transport.set_write_buffer_limits()


class _Span:
    """Stands for bytes of a file in h11's framing, which needs their number alone."""

    def __init__(self, count: int) -> None:
        self._count = count

    def __len__(self) -> int:
        return self._count


def _bytes_in_kernel(transport: asyncio.Transport) -> int:
    """Return the bytes that were written to the socket and that its peer has not acknowledged."""
    try:
        answer = fcntl.ioctl(transport.get_extra_info("socket").fileno(), termios.TIOCOUTQ, bytes(4))
    except OSError:
        return 0
    return int(struct.unpack("i", answer)[0])
