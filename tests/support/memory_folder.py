"""A temporary folder in memory, for tests that flush many small files to a disk that others use too."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path

_IN_MEMORY = Path("/dev/shm")  # noqa: S108 - the folders in it have random names


@contextlib.contextmanager
def memory_folder() -> Iterator[Path]:
    """Give an empty folder, on a disk where the machine has no file system in memory."""
    with tempfile.TemporaryDirectory(prefix="zo-", dir=_IN_MEMORY if _IN_MEMORY.is_dir() else None) as folder:
        yield Path(folder)
