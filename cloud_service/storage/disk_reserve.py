"""A few megabytes kept back on the data folder's disk, so that a job can be ended where nothing else can be written.

On a full disk even "cancel" would fail: the database has to write the transition down. Then half of the reserve is
given up for it, the next time half of the rest, and so on; ``fill`` takes it back when there is room again. Knows
nothing about jobs.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from shared.durable_files import free_bytes

RESERVE_BYTES = 4 * 1024 * 1024
_LEAST_BYTES = 64 * 1024
"""Less than this is not worth halving: the last step gives up all of it."""


class DiskReserve:
    """The file at ``path``.

    Args:
        path: Where it lies: on the disk that it is to help.
        size_bytes: What to keep back.
    """

    def __init__(self, path: Path, size_bytes: int = RESERVE_BYTES) -> None:
        self._path = path
        self._size_bytes = size_bytes

    def fill(self) -> None:
        """Keep the whole reserve back, if the disk has several times as much free; else leave it as it is."""
        if self._held_bytes() >= self._size_bytes or free_bytes(self._path) < 4 * self._size_bytes:
            return
        with contextlib.suppress(OSError), self._path.open("ab") as file:  # another process may have been faster
            os.posix_fallocate(file.fileno(), 0, self._size_bytes)

    def give(self) -> bool:
        """Free half of what is held, and return whether anything was."""
        held = self._held_bytes()
        if held == 0:
            return False
        os.truncate(self._path, held // 2 if held >= 2 * _LEAST_BYTES else 0)
        return True

    def _held_bytes(self) -> int:
        try:
            return self._path.stat().st_size
        except FileNotFoundError:
            return 0
