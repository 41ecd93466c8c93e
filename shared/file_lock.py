"""Locks between processes: a file that one process holds until it closes it or ends, however it ends.

Advisory and local (``flock``): it keeps this project's own processes apart, and a SIGKILL leaves nothing behind.
"""

from __future__ import annotations

import contextlib
import fcntl
from collections.abc import Iterator
from pathlib import Path

from shared.durable_files import disk_errors, make_folder
from shared.errors import ZoError


@contextlib.contextmanager
def exclusive(path: Path, *, busy: ZoError | None = None) -> Iterator[None]:
    """Hold the lock ``path`` inside the ``with`` block; its folder is made where it is missing.

    Args:
        path: The lock file, empty.
        busy: What to raise where another process holds it; None waits.

    Raises:
        DiskError: The file cannot be made.
    """
    with disk_errors(path):
        make_folder(path.parent)
        file = path.open("a")
    with file:
        acquire(file.fileno(), busy=busy)
        yield


def acquire(descriptor: int, *, busy: ZoError | None = None) -> None:
    """Lock an open file until it is closed; where another process holds it raise ``busy``, or wait if that is None."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | (fcntl.LOCK_NB if busy else 0))
    except BlockingIOError as error:
        raise busy from error  # type: ignore[misc]
