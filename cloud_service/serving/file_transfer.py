"""Sends part of a file into a connected socket without copying it through this process (``sendfile``).

Costs one system call for each piece; a piece is short enough that other connections of the event loop get their turn.
Where the file is not in the page cache, the call waits for the disk. Knows nothing about HTTP.
"""

from __future__ import annotations

import asyncio
import os
import socket

PIECE_BYTES = 1024 * 1024


class FileTransfer:
    """One span of a file on its way into a socket.

    Args:
        connection: A non-blocking socket that nothing else is written to meanwhile. It is duplicated, since the event
            loop lets nobody wait for a socket that it has a transport for.
        file: Descriptor of an open regular file; its own position stays as it is.
        offset: Where the span begins.
        count: Its bytes.
    """

    def __init__(self, connection: socket.socket, file: int, offset: int, count: int) -> None:
        self.position = offset
        self._connection = connection
        self._file = file
        self._end = offset + count
        self._writable: asyncio.Future[None] | None = None
        self._is_stopped = False

    async def run(self) -> None:
        """Send the span.

        Raises:
            ConnectionError: The peer closed the connection, or ``stop`` was called.
            EOFError: The file is shorter than the span.
        """
        connection = os.dup(self._connection.fileno())
        try:
            while self.position < self._end and not self._is_stopped:
                try:
                    sent = os.sendfile(
                        connection, self._file, self.position, min(PIECE_BYTES, self._end - self.position)
                    )
                except BlockingIOError:
                    await self._wait_until_writable(connection)
                    continue
                if sent == 0:
                    raise EOFError(f"{self._end - self.position} bytes are missing")
                self.position += sent
                await asyncio.sleep(0)
        finally:
            os.close(connection)
        if self._is_stopped:
            raise ConnectionAbortedError

    def stop(self) -> None:
        """Let ``run`` end; for use when the connection is lost."""
        self._is_stopped = True
        self._wake()

    def _wake(self) -> None:
        if self._writable is not None and not self._writable.done():
            self._writable.set_result(None)

    async def _wait_until_writable(self, connection: int) -> None:
        loop = asyncio.get_running_loop()
        self._writable = loop.create_future()
        loop.add_writer(connection, self._wake)
        try:
            await self._writable
        finally:
            loop.remove_writer(connection)
