"""Reads the files of a foreign folder without ever leaving it: no link out of it, no device, no pipe, nothing endless.

    open      without side effects (O_PATH), links followed
    check     the path of the open descriptor lies inside; a regular file; not too long
    read      the descriptor that was checked, never the name a second time

So whoever may write into the folder, even while it is read, cannot make a reader publish another file or wait for
ever. Links inside the folder may point to other files inside it. A snapshot in a hub's cache is excepted by rule: its
files are links to ``blobs`` beside it, so it may use everything in that repository's own cache folder. Costs three
system calls a file. Needs Linux with /proc. Knows nothing about what the files mean.
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path

from shared.errors import UnsupportedModel, ZoError

MAX_JSON_BYTES = 64 * 1024 * 1024
"""Longest JSON file of a model that is read."""

MAX_DOCUMENT_BYTES = 4 * 1024 * 1024
"""Longest licence, model card or template."""

_CACHED_REPOSITORY = re.compile(r"(models|datasets)--.+")
_COMMIT = re.compile(r"[0-9a-f]{40}")
_KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}
_PIECE_BYTES = 1024 * 1024


@dataclass(frozen=True, slots=True)
class ContainedFile:
    """An open regular file, for as long as the ``with`` statement that opened it lasts.

    Attributes:
        name: Its name in the folder.
        descriptor: Open for reading.
        size: Bytes when it was opened.
    """

    name: str
    descriptor: int
    size: int

    @property
    def path(self) -> Path:
        """A path that opens this very file, for libraries that want one; it has no suffix."""
        return _path_of(self.descriptor)

    def stream(self) -> BufferedReader:
        """Return the file as a stream from its beginning; the caller closes it."""
        return self.path.open("rb")

    def digest(self) -> str:
        """Return ``sha256:…`` of the content."""
        digest, left = hashlib.sha256(), self.size
        with self.stream() as stream:
            while left and (piece := stream.read(min(left, _PIECE_BYTES))):
                digest.update(piece)
                left -= len(piece)
        return f"sha256:{digest.hexdigest()}"


class ContainedFolder:
    """A folder that somebody else has made.

    Args:
        root: The folder. No part of its path is a link (``Path.resolve``), else nothing in it is found inside it.
        error: What a refusal is raised as.
        what: What the folder is called in messages.
    """

    def __init__(self, root: Path, *, error: type[ZoError] = UnsupportedModel, what: str = "model folder") -> None:
        self.root = root
        self._error = error
        self._what = what
        self._boundary = root.absolute()
        if _COMMIT.fullmatch(root.name) and root.parent.name == "snapshots":
            repository = self._boundary.parent.parent
            if _CACHED_REPOSITORY.fullmatch(repository.name):
                self._boundary = repository

    def names(self, subfolder: str = "") -> list[str]:
        """Return the names of everything directly in the folder that is not itself a folder, sorted.

        A link or a pipe is named too, so that it is refused when it is opened rather than passed over.

        Raises:
            The error given: The subfolder is missing, or is a link out of the folder.
        """
        with self._pinned(subfolder) as descriptor:
            kind = stat.S_IFMT(os.fstat(descriptor).st_mode)
            if kind != stat.S_IFDIR:
                raise self._refusal(f"{subfolder} is not a folder", "a folder")
            with os.scandir(_path_of(descriptor)) as entries:
                return sorted(entry.name for entry in entries if not entry.is_dir())

    def has(self, name: str) -> bool:
        """Whether there is something of that name, whatever it is."""
        return os.path.lexists(self.root / name)

    @contextmanager
    def open(self, name: str, *, max_bytes: int | None = None) -> Iterator[ContainedFile]:
        """Open a file of the folder.

        Args:
            name: Relative to the folder.
            max_bytes: Longest file that is opened; None means any.

        Raises:
            The error given: There is no such file, it is not a regular file inside the folder, or it is too long.
        """
        with self._pinned(name) as pinned:
            facts = os.fstat(pinned)
            if not stat.S_ISREG(facts.st_mode):
                kind = _KINDS.get(stat.S_IFMT(facts.st_mode), "not a regular file")
                raise self._refusal(f"{name} is {kind}", "a regular file")
            if max_bytes is not None and facts.st_size > max_bytes:
                raise self._refusal(f"{name}: {facts.st_size} bytes", f"at most {max_bytes} bytes")
            descriptor = self._opened(_path_of(pinned), name, os.O_RDONLY | os.O_NONBLOCK)
            try:
                yield ContainedFile(name, descriptor, facts.st_size)
            finally:
                os.close(descriptor)

    def read(self, name: str, *, max_bytes: int) -> bytes:
        """Return the content of a file of the folder.

        Raises:
            The error given: As ``open``.
        """
        with self.open(name, max_bytes=max_bytes) as file, file.stream() as stream:
            return stream.read(max_bytes)

    @contextmanager
    def _pinned(self, name: str) -> Iterator[int]:
        """Hold what ``name`` leads to, without opening it, once it is known to lie inside."""
        descriptor = self._opened(self.root / name, name, os.O_PATH)
        try:
            target = _path_of(descriptor).readlink()
            if not target.is_relative_to(self._boundary):
                raise self._refusal(f"{name or self.root.name} is a link out of the {self._what}", "a regular file")
            yield descriptor
        finally:
            os.close(descriptor)

    def _opened(self, path: Path, name: str, flags: int) -> int:
        try:
            return os.open(path, flags | os.O_CLOEXEC)
        except FileNotFoundError as error:
            found = f"{name} is a link to what is not there" if self.has(name) else f"there is no {name}"
            raise self._refusal(found, f"a complete {self._what}") from error
        except OSError as error:
            found = "is a loop of links" if error.errno == errno.ELOOP else f"cannot be opened: {error.strerror}"
            raise self._refusal(f"{name[:80]} {found}", "a readable file") from error
        except ValueError as error:  # a NUL or a lone surrogate
            raise self._refusal(f"{name[:80]!r} cannot be the name of a file", "a plain file name") from error

    def _refusal(self, found: str, needed: str) -> ZoError:
        return self._error(found, needed=needed, next_step=f"repair the {self._what}: copy the files themselves there")


def _path_of(descriptor: int) -> Path:
    return Path(f"/proc/self/fd/{descriptor}")
