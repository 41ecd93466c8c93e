"""A blob that is not complete yet: its bytes so far, and a journal of the pieces that were verified.

    partial/<hex>.part       the blob at full length, pieces at their places
    partial/<hex>.journal    one line per verified piece: begin end digest

A journal line is appended and flushed after the piece's bytes were flushed, so a line that can be read is true unless
the disk or somebody changed the bytes since; therefore what the journal claims is hashed again before it is believed.
A torn last line matches no piece. Nothing here deletes bytes.

The blob's own digest is that of its pieces one after the other, so the hash of the first piece is where the hash of the
blob begins: only what follows the first piece is read and hashed a second time.
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
        self._first: hashlib._Hash | None = None
        self._has_two_writers = False

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
            claimed = set(self.journal_path.read_bytes().splitlines(keepends=True))
            if claimed and not self._ends_with_line_feed():
                os.write(self._journal, b"\n")
        intact = [piece for piece in self.pieces if _line(piece) in claimed and self._is_intact(piece)]
        for piece in intact:
            del self._missing[piece]

    def distrust_memory(self) -> None:
        """Hash the whole blob from the disk in the end: from now on several connections may write one piece."""
        self._has_two_writers = True

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

    def complete(self, piece: Piece, hasher: hashlib._Hash) -> bool:
        """Record a piece whose bytes were verified; return whether it was the last one missing, which is true once.

        Args:
            piece: The piece.
            hasher: Has hashed its bytes.
        """
        with disk_errors(self.path):
            os.fdatasync(self._file)
            with self._lock:
                if piece not in self._missing:
                    return False
                os.write(self._journal, _line(piece))
                del self._missing[piece]
                if piece.begin == 0:
                    self._first = hasher
                is_last = not self._missing
            if not is_last:  # else the blob is about to have its name, which says the same
                os.fdatasync(self._journal)
            return is_last

    def finish(self, layout: ImageLayout) -> None:
        """Move the complete blob into the store under its name, once it has the digest that is its name.

        The move is durable after ``settle``.

        Raises:
            DigestMismatch: The whole has another digest than its name; it stays where it is.
            DiskError: The store cannot be written.
        """
        with disk_errors(self.path):
            digest = f"sha256:{self._hash_whole().hexdigest()}"
        layout.adopt_file(self.path, self.blob.media_type, digest=digest, expected=self.blob.digest)

    def close(self) -> None:
        """Close the files."""
        for descriptor in (self._file, self._journal):
            if descriptor >= 0:
                os.close(descriptor)
        self._file = self._journal = -1

    def _ends_with_line_feed(self) -> bool:
        return os.pread(self._journal, 1, os.fstat(self._journal).st_size - 1) == b"\n"

    def _is_intact(self, piece: Piece) -> bool:
        hasher = hashlib.sha256()
        is_long_enough = self._hash(hasher, piece.begin, piece.end)
        if not is_long_enough or f"sha256:{hasher.hexdigest()}" != piece.digest:
            return False
        if piece.begin == 0:
            self._first = hasher
        return True

    def _hash_whole(self) -> hashlib._Hash:
        if self._first is None or self._has_two_writers:
            hasher, position = hashlib.sha256(), 0
        else:
            hasher, position = self._first.copy(), self.pieces[0].end
        self._hash(hasher, position, self.blob.size)
        return hasher

    def _hash(self, hasher: hashlib._Hash, begin: int, end: int) -> bool:
        """Hash bytes of the file; return whether there are as many."""
        while begin < end:
            data = os.pread(self._file, min(_READ_BYTES, end - begin), begin)
            if not data:
                return False
            hasher.update(data)
            begin += len(data)
        return True


def settle(partials: Iterable[PartialBlob], layout: ImageLayout) -> None:
    """Make the moves into the store durable, and forget the journals of the blobs that were moved.

    Raises:
        DiskError: The store cannot be written.
    """
    moved = [partial for partial in partials if not partial.path.exists()]
    if moved:
        with disk_errors(layout.root):
            sync_directory(layout.blobs)
            for partial in moved:
                partial.journal_path.unlink(missing_ok=True)


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
