"""Files that survive: whole or absent after a crash, and disk errors that say what to do.

A file is written beside its place, flushed, and renamed; the folder is flushed so that the rename outlives a power cut.
Knows nothing about what is written.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path

from shared.errors import DiskError

REFUSALS = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST, errno.ELOOP)
"""Access is denied, or the disk is read-only, or a file or a loop of links stands where a folder is needed."""


def write_atomically(path: Path, data: bytes, *, mode: int = 0o666) -> None:
    """Write a file so that readers, and a crash at any moment, see the old content or the new one, never a part.

    Args:
        path: The file.
        data: Its whole content.
        mode: Its permissions, less what the process's umask takes away.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    with replacing(path, temporary), os.fdopen(descriptor, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


@contextlib.contextmanager
def replacing(path: Path, temporary: Path) -> Iterator[None]:
    """Let ``temporary``, which the ``with`` block writes and flushes, become ``path``; it is gone where that fails."""
    try:
        yield
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_directory(path.parent)


def sync_directory(path: Path) -> None:
    """Flush a folder's entries to the disk, so that a rename survives a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Turn the operating system's disk errors into ``DiskError`` with the place and the free bytes.

    Raises:
        DiskError: The disk is full, over quota, read-only, access is denied, or a file or a loop of links stands where
            a folder is needed.
    """
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise DiskError(
                f"no space left for {path} ({free_bytes(path)} bytes free)",
                next_step="free some space and run the same command again; nothing was lost",
            ) from error
        if error.errno in REFUSALS:
            raise DiskError(
                f"{path} cannot be written: {error.strerror}",
                next_step="change its permissions or choose another folder",
            ) from error
        raise


def make_folder(path: Path, *, mode: int = 0o777) -> None:
    """Make a folder and those above it where they are missing; ``mode`` is that of the folder.

    Raises:
        OSError: It cannot be made; where the system makes no folders, such as in /proc, that is a denied access too.
    """
    try:
        path.mkdir(mode, parents=True, exist_ok=True)
    except FileNotFoundError as error:  # though those above it are there or were made
        raise PermissionError(errno.EACCES, "no folder can be made there", str(path)) from error


def free_bytes(path: Path) -> int:
    """Return the free bytes of the file system that holds ``path`` or its nearest existing parent."""
    while not os.access(path, os.F_OK):  # also past a folder that may not be looked into
        path = path.parent
    return shutil.disk_usage(path).free
