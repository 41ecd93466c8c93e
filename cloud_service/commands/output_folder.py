"""The output folder of a preparation that was refused: a new one does not stay behind empty.

What work has left (blobs, checkpoints) stays, for the same command continues from it. Costs a listing of the folder.
Knows nothing about models.
"""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path

from shared.durable_files import disk_errors
from shared.errors import ZoError

_WITHOUT_WORK = frozenset({"oci-layout", "index.json", "input.json"})
"""Files that are there before any work is done; the lock beside the workspace is another."""


@contextlib.contextmanager
def removed_where_refused(folder: Path) -> Iterator[None]:
    """Remove a folder that is made inside the ``with`` statement if an error leaves it without any work.

    Raises:
        ZoError: The error itself.
    """
    was_there = folder.exists()
    try:
        yield
    except ZoError:
        if not was_there and folder.is_dir() and not _has_work(folder):
            with disk_errors(folder):
                shutil.rmtree(folder)
        raise


def _has_work(folder: Path) -> bool:
    files = [path for path in folder.rglob("*") if path.is_symlink() or not path.is_dir()]
    return any(path.name not in _WITHOUT_WORK and path.suffix != ".lock" for path in files)
