"""Keeps the service's data for its user alone: folders 0700, files 0600, whatever they were before.

The data folder holds the signing key, the database with the hashes of all keys, and people's models. Blobs are left
as they are, because there are many of them and the folders above them let nobody in; what a job's process may touch
is a matter of its confinement.
"""

from __future__ import annotations

import stat
from collections.abc import Iterator
from pathlib import Path

from shared.durable_files import disk_errors

_FOLDER_MODE = 0o700
_FILE_MODE = 0o600
_DEPTH = 3


def make_private(data: Path) -> None:
    """Make the data folder where it is missing, and take every right of others away from it and what is near its top.

    Raises:
        DiskError: It cannot be made, or belongs to another user.
    """
    with disk_errors(data):
        data.mkdir(parents=True, exist_ok=True, mode=_FOLDER_MODE)
        for path in (data, *_members(data, _DEPTH)):
            status = path.lstat()
            wanted = _FOLDER_MODE if stat.S_ISDIR(status.st_mode) else _FILE_MODE
            is_ours = stat.S_ISDIR(status.st_mode) or stat.S_ISREG(status.st_mode)  # a link's target may be elsewhere
            if is_ours and stat.S_IMODE(status.st_mode) != wanted:
                path.chmod(wanted)


def _members(folder: Path, depth: int) -> Iterator[Path]:
    """Yield what lies in a folder and in its folders, so many levels down."""
    for path in folder.iterdir():
        yield path
        if depth > 1 and path.is_dir() and not path.is_symlink() and path.name != "blobs":
            yield from _members(path, depth - 1)
