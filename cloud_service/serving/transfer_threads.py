"""Which thread sends a file: the lone transfer stays with the connections, several share threads of their own.

One thread that sends to several readers keeps one core busy with the kernel's work (``sendfile`` holds no lock of the
interpreter) and makes every other request wait for its turn. Each thread runs an event loop, and so many transfers.
"""

from __future__ import annotations

import asyncio
import itertools
import threading

from cloud_service.serving.file_transfer import FileTransfer

_THREADS = 4


class TransferThreads:
    """Runs the transfers of one service; its threads start with the first that is not alone."""

    def __init__(self) -> None:
        self._loops: list[asyncio.AbstractEventLoop] = []
        self._turn = itertools.count()
        self._running = 0

    async def run(self, transfer: FileTransfer) -> None:
        """Send a span; from the event loop of the connections alone.

        Raises:
            ConnectionError: The peer closed the connection, or the transfer was stopped.
            EOFError: The file is shorter than the span.
        """
        is_alone = self._running == 0
        self._running += 1
        try:
            if is_alone:
                # A hand-over to another thread for each piece costs a tenth, and nobody else has to wait.
                await transfer.run(is_alone=True)
            else:
                sending = asyncio.run_coroutine_threadsafe(transfer.run(is_alone=False), self._next_loop())
                await asyncio.wrap_future(sending)
        finally:
            self._running -= 1

    def close(self) -> None:
        """End the threads, once no transfer runs."""
        for loop in self._loops:
            loop.call_soon_threadsafe(loop.stop)
        self._loops.clear()

    def _next_loop(self) -> asyncio.AbstractEventLoop:
        if len(self._loops) < _THREADS:
            loop = asyncio.new_event_loop()
            threading.Thread(target=_run, args=(loop,), name="transfers", daemon=True).start()
            self._loops.append(loop)
            return loop
        return self._loops[next(self._turn) % _THREADS]


def _run(loop: asyncio.AbstractEventLoop) -> None:
    try:
        loop.run_forever()
    finally:
        loop.close()
