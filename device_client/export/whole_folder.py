"""A folder that appears whole or not at all.

Its files are written into a folder beside it and flushed; that folder gets its name at the end. Whatever stops that,
Ctrl-C and SIGTERM included, removes the unfinished folder. Only a SIGKILL or a power cut leaves it, under a name that
begins with a dot and ends with ``.partial``.
"""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from device_client.download.partial import Disk, check_room
from device_client.interrupts import sigterm_as_interrupt
from shared.durable_files import disk_errors, sync_directory
from shared.errors import InvalidRequest


@contextmanager
def whole_folder(target: Path, needed_bytes: int, *, mode: int = 0o777) -> Iterator[Path]:
    """Yield an empty folder that becomes ``target`` at the end of the ``with`` block.

    Args:
        target: A path where there is nothing yet, or an empty folder.
        needed_bytes: What will be written.
        mode: The folder's permissions, less what the process's umask takes away.

    Raises:
        InvalidRequest: There is something at ``target`` already.
        DiskError: There is not so much room, or the place cannot be written.
    """
    check_absent(target)
    target = target.absolute()
    check_room(needed_bytes, target, Disk())
    made = _missing_parents(target)
    unfinished = target.with_name(f".{target.name}.{secrets.token_hex(4)}.partial")
    try:
        with sigterm_as_interrupt(), disk_errors(target):
            target.parent.mkdir(parents=True, exist_ok=True)
            unfinished.mkdir(mode=mode)
            yield unfinished
            for path in unfinished.rglob("*"):
                _flush(path)
            sync_directory(unfinished)
            unfinished.rename(target)
            sync_directory(target.parent)
    except BaseException:
        shutil.rmtree(unfinished, ignore_errors=True)
        for parent in made:
            if parent.is_dir() and not any(parent.iterdir()):
                parent.rmdir()
        raise


def check_absent(target: Path) -> None:
    """Refuse a place where something is already.

    Raises:
        InvalidRequest: There is a file, or a folder that is not empty.
    """
    if target.is_dir() and not any(target.iterdir()):
        return
    if target.exists() or target.is_symlink():
        raise InvalidRequest(
            f"{target} holds other files" if target.is_dir() else f"{target} exists already",
            needed="a new or empty folder",
            next_step="name another folder; nothing is ever overwritten",
        )


def _missing_parents(target: Path) -> list[Path]:
    return [parent for parent in target.parents if not parent.exists()]


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
