"""Sends part of a file into a connected socket without copying it through this process (``sendfile``).

Costs a system call for each piece that the socket takes, a few megabytes before the other connections of the event
loop get their turn. Where the file is not in the page cache, the call waits for the disk. Knows nothing about HTTP.
"""

from __future__ import annotations

import asyncio
import os
import socket
import sys
from collections.abc import Iterator
from concurrent.futures import Future, InvalidStateError
from contextlib import contextmanager, nullcontext, suppress

TURN_BYTES = 8 * 1024 * 1024
UNSENT_BYTES = 128 * 1024


class FileTransfer:
    """One span of a file on its way into a socket; in whichever event loop ``run`` is awaited.

    Args:
        connection: A non-blocking socket that nothing else is written to meanwhile. It is duplicated, since the event
            loop lets nobody wait for a socket that it has a transport for.
        file: Descriptor of an open regular file; its own position stays as it is. It is duplicated too, so that the
            caller may close it while another thread still sends.
        offset: Where the span begins.
        count: Its bytes.
    """

    def __init__(self, connection: socket.socket, file: int, offset: int, count: int) -> None:
        self.position = offset
        self._connection = connection.dup()
        self._file = os.dup(file)
        self._end = offset + count
        self._finished: Future[None] = Future()

    async def run(self, *, is_alone: bool) -> None:
        """Send the span; to be called once.

        Args:
            is_alone: Whether no other transfer runs. Then the reader is what is waited for, and TCP is asked for full
                segments and to wake the sender early (see ``_prompt``); with several, the sender is, and waking it
                more often only costs.

        Raises:
            ConnectionError: The peer closed the connection, or ``stop`` was called.
            EOFError: The file is shorter than the span.
        """
        loop = asyncio.get_running_loop()
        try:
            with self._connection, _prompt(self._connection) if is_alone else nullcontext():
                loop.add_writer(self._connection, self._send_piece)
                try:
                    await asyncio.wrap_future(self._finished)
                finally:
                    loop.remove_writer(self._connection)
        finally:
            os.close(self._file)

    def stop(self) -> None:
        """Let ``run`` end; for use when the connection is lost, from any thread."""
        self._finish(ConnectionAbortedError())

    def _send_piece(self) -> None:
        """Send what the socket takes, a turn's worth at most; the event loop calls this whenever it takes more."""
        turn = min(self.position + TURN_BYTES, self._end)
        while self.position < turn:
            try:
                sent = os.sendfile(self._connection.fileno(), self._file, self.position, turn - self.position)
            except BlockingIOError:
                return
            except OSError as error:
                self._finish(error)
                return
            if sent == 0:
                self._finish(EOFError(f"{self._end - self.position} bytes are missing"))
                return
            self.position += sent
        if self.position == self._end:
            self._finish(None)

    def _finish(self, error: Exception | None) -> None:
        with suppress(InvalidStateError):  # stopped, or finished, before
            if error is None:
                self._finished.set_result(None)
            else:
                self._finished.set_exception(error)


@contextmanager
def _prompt(connection: socket.socket) -> Iterator[None]:
    """Let the kernel report the socket as writable as soon as it holds little unsent data, and send full segments.

    By default it waits until a third of its buffer of megabytes is free; a reader on the same machine then waits for
    the sender. The end of the block sends the last, shorter segment. Only Linux has both options.
    """
    if sys.platform != "linux" or connection.family == socket.AF_UNIX:
        yield
        return
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, UNSENT_BYTES)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_CORK, 1)
    try:
        yield
    finally:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_CORK, 0)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, 0)  # the system's own
