"""A blob that is not complete yet: its bytes so far, and a journal of the pieces that were verified.

    partial/<hex>.part       the blob at full length, pieces at their places
    partial/<hex>.journal    one line per verified piece: begin end digest

A journal line is appended and flushed after the piece's bytes were flushed, so a line that can be read is true unless
the disk or somebody changed the bytes since; therefore what the journal claims is hashed again before it is believed.
A torn last line matches no piece. Nothing here deletes bytes.
"""

from __future__ import annotations

import errno
import hashlib
import os
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from shared.bundle.config import BundleConfig
from shared.bundle.layout import ImageLayout
from shared.bundle.manifest import Descriptor
from shared.byte_sizes import format_bytes
from shared.durable_files import disk_errors, free_bytes, sync_directory
from shared.errors import DiskError

_READ_BYTES = 1024 * 1024


@dataclass(frozen=True, slots=True)
class Piece:
    """The bytes [begin, end) of a blob and their digest: the least that is fetched again."""

    begin: int
    end: int
    digest: str

    @property
    def size(self) -> int:
        """Bytes of the piece."""
        return self.end - self.begin


def reserve_bytes(descriptor: int, size: int) -> None:
    """Reserve blocks; where the file system cannot, at least give the file its length."""
    try:
        os.posix_fallocate(descriptor, 0, size)
    except OSError as error:
        if error.errno not in (errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL):
            raise
        os.ftruncate(descriptor, size)


@dataclass(frozen=True, slots=True)
class Disk:
    """What is asked of the file system, so that tests can be a full one.

    Attributes:
        free_bytes: Free bytes where a path lies.
        reserve: Reserves that many bytes for an open file.
    """

    free_bytes: Callable[[Path], int] = free_bytes
    reserve: Callable[[int, int], None] = reserve_bytes


def pieces_of(blob: Descriptor, config: BundleConfig) -> list[Piece]:
    """Return the pieces of a layer in order; a short layer is one piece with the layer's own digest."""
    digests = config.chunks.get(blob.digest) or [blob.digest]
    step = config.chunk_bytes if len(digests) > 1 else blob.size
    return [
        Piece(index * step, min((index + 1) * step, blob.size), digest) for index, digest in enumerate(digests) if step
    ]


class PartialBlob:
    """One incomplete blob under ``folder``; its methods may be called from several threads.

    Args:
        folder: Where partial blobs are kept, on the store's file system.
        blob: The blob.
        pieces: Its pieces, in order.
    """

    def __init__(self, folder: Path, blob: Descriptor, pieces: Iterable[Piece]) -> None:
        self.blob = blob
        self.pieces = list(pieces)
        self.whole_lock = threading.Lock()
        stem = blob.digest.removeprefix("sha256:")
        self.path, self.journal_path = folder / f"{stem}.part", folder / f"{stem}.journal"
        self._lock = threading.Lock()
        self._missing = dict.fromkeys(self.pieces)
        self._file = self._journal = -1

    @property
    def missing(self) -> list[Piece]:
        """The pieces that are not verified, in order."""
        with self._lock:
            return list(self._missing)

    @property
    def unreserved_bytes(self) -> int:
        """Bytes that the blob still needs on the disk."""
        return max(0, self.blob.size - (self.path.stat().st_blocks * 512 if self.path.exists() else 0))

    def adopt(self, source: Path) -> None:
        """Take a damaged blob's file out of the store, claiming all its pieces; ``open`` checks which are intact."""
        with disk_errors(self.path):
            self.journal_path.write_bytes(b"".join(_line(piece) for piece in self.pieces))
            source.replace(self.path)

    def open(self, disk: Disk) -> None:
        """Make room for the whole blob and find out which of the journal's pieces are intact.

        Raises:
            DiskError: There is no room; what was there is kept.
        """
        with disk_errors(self.path):
            self._file = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
            self._journal = os.open(self.journal_path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
            if os.fstat(self._file).st_size > self.blob.size:
                os.ftruncate(self._file, self.blob.size)
            if self.blob.size:
                disk.reserve(self._file, self.blob.size)
            sync_directory(self.path.parent)
            claimed = set(self.journal_path.read_bytes().splitlines(keepends=True))
            if claimed and not self._ends_with_line_feed():
                os.write(self._journal, b"\n")
        intact = [piece for piece in self.pieces if _line(piece) in claimed and self._is_intact(piece)]
        for piece in intact:
            del self._missing[piece]

    def write(self, piece: Piece, data: bytes, offset: int) -> None:
        """Put bytes of a piece at their place, unless it was verified meanwhile: then they could only do harm.

        Raises:
            DiskError: The disk is full after all.
        """
        with disk_errors(self.path), self._lock:
            view = memoryview(data if piece in self._missing else b"")
            while view:
                written = os.pwrite(self._file, view, offset)
                view, offset = view[written:], offset + written

    def complete(self, piece: Piece) -> bool:
        """Record a piece whose bytes were verified; return whether it was the last one missing, which is true once."""
        with disk_errors(self.path):
            os.fdatasync(self._file)
            with self._lock:
                if piece not in self._missing:
                    return False
                os.write(self._journal, _line(piece))
                os.fdatasync(self._journal)
                del self._missing[piece]
                return not self._missing

    def finish(self, layout: ImageLayout) -> None:
        """Move the complete blob into the store under its name, after hashing it as a whole.

        Raises:
            DigestMismatch: The whole has another digest than its name; it stays where it is.
            DiskError: The store cannot be written.
        """
        layout.add_file(self.path, self.blob.media_type, expected=self.blob.digest)
        with disk_errors(self.path):
            sync_directory(layout.blobs)
            self.journal_path.unlink(missing_ok=True)

    def close(self) -> None:
        """Close the files."""
        for descriptor in (self._file, self._journal):
            if descriptor >= 0:
                os.close(descriptor)
        self._file = self._journal = -1

    def _ends_with_line_feed(self) -> bool:
        return os.pread(self._journal, 1, os.fstat(self._journal).st_size - 1) == b"\n"

    def _is_intact(self, piece: Piece) -> bool:
        hasher, position = hashlib.sha256(), piece.begin
        while position < piece.end:
            data = os.pread(self._file, min(_READ_BYTES, piece.end - position), position)
            if not data:
                return False
            hasher.update(data)
            position += len(data)
        return f"sha256:{hasher.hexdigest()}" == piece.digest


def check_room(needed_bytes: int, folder: Path, disk: Disk) -> None:
    """Refuse what the disk cannot hold, before it starts.

    Raises:
        DiskError: Fewer bytes are free where ``folder`` lies than are needed.
    """
    free = disk.free_bytes(folder)
    if needed_bytes > free:
        raise DiskError(
            f"{free} bytes ({format_bytes(free)}) are free at {folder}",
            needed=f"{needed_bytes} bytes ({format_bytes(needed_bytes)})",
            next_step="free some space and run the same command again; what is there already is kept",
        )


def _line(piece: Piece) -> bytes:
    return f"{piece.begin} {piece.end} {piece.digest}\n".encode()
