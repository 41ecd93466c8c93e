"""The TLS handshake of a connection that already stands in the table: clients that never end it are closed too.

asyncio's own servers tell their protocol of a connection after its handshake, so those that never begin one would be
counted by nobody. Costs nothing once HTTP has taken over.
"""

from __future__ import annotations

import asyncio
import ssl

from cloud_service.serving.connection_table import ConnectionTable, peer_of


class TlsGate(asyncio.Protocol):
    """One connection until its handshake is done.

    Args:
        table: Where it is counted.
        context: Certificate and key.
        inner: What speaks on the secured connection.
    """

    def __init__(self, table: ConnectionTable, context: ssl.SSLContext, inner: asyncio.Protocol) -> None:
        self.peer = ""
        self._table = table
        self._context = context
        self._inner = inner
        self._since = asyncio.get_running_loop().time()
        self._early = bytearray()
        self._is_done = False
        self._raw: asyncio.Transport | None = None
        self._handshake: asyncio.Task[None] | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Take in a connection, where there is room, and begin the handshake."""
        self._raw = transport
        address = transport.get_extra_info("peername")
        self.peer = peer_of(address[0]) if address else ""
        self._table.admit(self)
        if not transport.is_closing():
            self._handshake = asyncio.get_running_loop().create_task(self._secure(transport))

    def data_received(self, data: bytes) -> None:
        """Keep what arrives together with the handshake's end."""
        self._early += data

    def connection_lost(self, exc: Exception | None) -> None:
        """Leave the table; pass on what was meant for HTTP and planned before it took over."""
        self._table.forget(self)
        if self._is_done:
            self._inner.connection_lost(exc)

    @property
    def idle_rank(self) -> tuple[bool, float]:
        """Waiting since the connection was made."""
        return False, self._since

    def is_overdue(self, now: float) -> bool:
        """Whether the handshake took as long as a request's head may take."""
        return now - self._since > self._table.limits.header_timeout_seconds

    def abort(self) -> None:
        """Close the connection."""
        if self._raw is not None:
            self._raw.abort()

    async def _secure(self, raw: asyncio.Transport) -> None:
        loop, patience = asyncio.get_running_loop(), self._table.limits.header_timeout_seconds
        try:
            secured = await loop.start_tls(raw, self, self._context, server_side=True, ssl_handshake_timeout=patience)
        except OSError:  # ssl.SSLError is one: no TLS, no common version, or a client that left
            secured = None
        self._table.forget(self)
        if secured is None or secured.is_closing():
            raw.abort()
            return
        self._is_done = True
        self._inner.connection_made(secured)
        secured.set_protocol(self._inner)
        if self._early:
            self._inner.data_received(bytes(self._early))
