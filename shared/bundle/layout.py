"""A folder of blobs and references: an OCI image layout.

    oci-layout                 {"imageLayoutVersion":"1.0.0"}
    index.json                 references: name:tag → manifest descriptor
    blobs/sha256/<64 hex>      every blob, raw

The cloud's local store, the output of ``zo-cloud prepare``, the device's store and a USB stick are all this. A blob
appears by rename after it was written, flushed and hashed; a reference appears by one rename of index.json, so a
reader sees a bundle whole or not at all. Writers in several processes take turns by a file lock.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from shared.bundle.digest import check_digest, digest_of_bytes, digest_of_file
from shared.bundle.manifest import MANIFEST_MEDIA_TYPE, Descriptor
from shared.errors import DigestMismatch, DiskError, InvalidManifest, LimitExceeded, NotFound

REFERENCE_ANNOTATION = "org.opencontainers.image.ref.name"
_LAYOUT_FILE = '{"imageLayoutVersion":"1.0.0"}'


class ImageLayout:
    """An OCI image layout at ``root``.

    Args:
        root: The folder. ``create`` makes one; the constructor touches nothing.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.blobs = root / "blobs" / "sha256"

    @classmethod
    def create(cls, root: Path) -> ImageLayout:
        """Return the layout at ``root``, making its folders and files where they are missing.

        Raises:
            DiskError: The folder cannot be written.
        """
        layout = cls(root)
        with disk_errors(root):
            layout.blobs.mkdir(parents=True, exist_ok=True)
            if not (root / "oci-layout").exists():
                write_atomically(root / "oci-layout", _LAYOUT_FILE.encode())
        return layout

    @property
    def exists(self) -> bool:
        """Whether there is a layout at ``root``."""
        return (self.root / "oci-layout").is_file()

    def blob_path(self, digest: str) -> Path:
        """Return where the blob of that digest lies or would lie.

        Raises:
            InvalidDigest: ``digest`` is malformed (so no path can be built from it).
        """
        return self.blobs / check_digest(digest).removeprefix("sha256:")

    def has_blob(self, digest: str) -> bool:
        """Whether the blob is present; its bytes are not checked."""
        return self.blob_path(digest).is_file()

    def add_bytes(self, data: bytes, media_type: str) -> Descriptor:
        """Store ``data``, also over a damaged blob of its name, and return its descriptor.

        Raises:
            DiskError: The disk is full or not writable.
        """
        digest = digest_of_bytes(data)
        path = self.blob_path(digest)
        with disk_errors(path):
            if not path.exists() or path.read_bytes() != data:
                write_atomically(path, data)
        return Descriptor(media_type=media_type, digest=digest, size=len(data))

    def add_file(self, source: Path, media_type: str, *, expected: str | None = None) -> Descriptor:
        """Move a finished file into the store and return its descriptor; ``source`` is gone afterwards.

        Args:
            source: The file, best on the same file system.
            media_type: Its media type.
            expected: The digest it must have; None computes it without a comparison.

        Raises:
            DigestMismatch: The file has another digest; it is left where it was.
            DiskError: The disk is full or not writable.
        """
        digest = digest_of_file(source)
        if expected is not None and digest != expected:
            raise DigestMismatch(f"{source.name} has {digest}", needed=expected)
        size, path = source.stat().st_size, self.blob_path(digest)
        with disk_errors(path):
            with source.open("rb") as file:
                os.fsync(file.fileno())
            shutil.move(source, path)
        return Descriptor(media_type=media_type, digest=digest, size=size)

    def read_blob(self, digest: str, *, max_bytes: int) -> bytes:
        """Return a small blob's bytes, verified.

        Raises:
            NotFound: There is no such blob.
            LimitExceeded: It is longer than ``max_bytes``.
            DigestMismatch: Its bytes have another digest.
        """
        path = self.blob_path(digest)
        if not path.is_file():
            raise NotFound(f"no blob {digest} in {self.root}")
        with path.open("rb") as file:
            data = file.read(max_bytes + 1)
        if len(data) > max_bytes:
            raise LimitExceeded(f"blob {digest} has {path.stat().st_size} bytes", needed=f"at most {max_bytes} bytes")
        if digest_of_bytes(data) != digest:
            raise DigestMismatch(f"blob {digest} in {self.root} has other bytes", next_step="fetch it again")
        return data

    def references(self) -> dict[str, Descriptor]:
        """Return every reference and the manifest it names."""
        try:
            index = json.loads((self.root / "index.json").read_bytes())
            manifests = [Descriptor.model_validate(entry) for entry in index["manifests"]]
        except FileNotFoundError:
            return {}
        except (ValueError, KeyError, TypeError) as error:
            raise InvalidManifest(f"{self.root / 'index.json'}: {error}", needed="an OCI image index") from error
        return {(entry.annotations or {}).get(REFERENCE_ANNOTATION, ""): entry for entry in manifests}

    def resolve(self, reference: str) -> Descriptor:
        """Return the manifest descriptor of ``name:tag``.

        Raises:
            NotFound: There is no such reference.
        """
        references = self.references()
        if reference not in references:
            known = ", ".join(sorted(name for name in references if not name.endswith(".sig"))) or "none"
            raise NotFound(f"no bundle {reference!r} in {self.root}", needed=f"one of: {known}")
        return references[reference]

    def tag(self, reference: str, manifest: Descriptor) -> None:
        """Make ``reference`` name ``manifest``, replacing what it named before."""
        self.update({reference: manifest})

    def update(self, changes: dict[str, Descriptor | None]) -> None:
        """Set and remove (None) several references at once: other processes see all of them or none.

        Raises:
            DiskError: The disk is full or not writable.
        """
        with disk_errors(self.root), self._lock():
            references: dict[str, Descriptor | None] = {**self.references(), **changes}
            entries = [
                descriptor.model_copy(update={"annotations": {REFERENCE_ANNOTATION: name}})
                for name, descriptor in sorted(references.items())
                if descriptor is not None
            ]
            index = {
                "schemaVersion": 2,
                "mediaType": "application/vnd.oci.image.index.v1+json",
                "manifests": [json.loads(entry.to_bytes()) for entry in entries],
            }
            write_atomically(self.root / "index.json", json.dumps(index, indent=1).encode())

    @contextlib.contextmanager
    def _lock(self) -> Iterator[None]:
        with (self.root / ".lock").open("a") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield


def manifest_descriptor(data: bytes) -> Descriptor:
    """Return the descriptor of a manifest's bytes."""
    return Descriptor(media_type=MANIFEST_MEDIA_TYPE, digest=digest_of_bytes(data), size=len(data))


def write_atomically(path: Path, data: bytes, *, mode: int = 0o644) -> None:
    """Write a file so that readers, and a crash at any moment, see the old content or the new one, never a part."""
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    temporary = Path(name)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.chmod(mode)
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
        DiskError: The disk is full, over quota, read-only, or access is denied.
    """
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise DiskError(
                f"no space left for {path} ({free_bytes(path)} bytes free)",
                next_step="free some space and run the same command again; nothing was lost",
            ) from error
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR):
            raise DiskError(
                f"{path} cannot be written: {error.strerror}",
                next_step="change its permissions or choose another folder",
            ) from error
        raise


def free_bytes(path: Path) -> int:
    """Return the free bytes of the file system that holds ``path`` or its nearest existing parent."""
    while not path.exists():
        path = path.parent
    return shutil.disk_usage(path).free
