"""Opens files that a job's process made, as the service, without being led elsewhere.

A job could leave a link to the signing key where its report should be, a FIFO that blocks the reader, or a file that
never ends. So every folder on the way is opened without following links, what is opened must be a regular file, and its
length is known before a byte is read. Knows nothing about what the files mean.
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from shared.errors import IntegrityError, LimitExceeded

_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


@contextlib.contextmanager
def open_untrusted(folder: Path, name: str) -> Iterator[BinaryIO]:
    """Open the regular file ``name`` below ``folder`` for reading.

    Args:
        folder: A folder that only the service changes.
        name: Relative path of the file; everything on it may be the work of a job.

    Raises:
        FileNotFoundError: There is nothing of that name.
        IntegrityError: A link, a folder, a device or a FIFO is in its place or on the way.
    """
    *folders, last = Path(name).parts
    with contextlib.ExitStack() as opened:
        try:
            descriptor = os.open(folder, _FOLDER)
            opened.callback(os.close, descriptor)
            for part in folders:
                descriptor = os.open(part, _FOLDER, dir_fd=descriptor)
                opened.callback(os.close, descriptor)
            file = opened.enter_context(os.fdopen(os.open(last, _FILE, dir_fd=descriptor), "rb"))
        except FileNotFoundError:
            raise
        except OSError as error:
            raise IntegrityError(
                f"{name} of the job cannot be opened: {error.strerror}", needed="a regular file, not a link"
            ) from error
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise IntegrityError(f"{name} of the job is not a regular file", needed="a regular file")
        yield file


def read_untrusted(folder: Path, name: str, *, max_bytes: int) -> bytes:
    """Return the content of a small file; see ``open_untrusted``.

    Raises:
        FileNotFoundError: There is nothing of that name.
        IntegrityError: It is not a regular file.
        LimitExceeded: It is longer than ``max_bytes``.
    """
    with open_untrusted(folder, name) as file:
        data = file.read(max_bytes + 1)
    if len(data) > max_bytes:
        raise LimitExceeded(f"{name} of the job has more than {max_bytes} bytes", needed=f"at most {max_bytes} bytes")
    return data
