"""A folder of blobs and references: an OCI image layout.

    oci-layout                 {"imageLayoutVersion":"1.0.0"}
    index.json                 references: name:tag → manifest descriptor
    blobs/sha256/<64 hex>      every blob, raw

The cloud's local store, the output of ``zo-cloud prepare``, the device's store and a USB stick are all this. A blob
appears by rename after it was written, flushed and hashed; a reference appears by one rename of index.json, so a
reader sees a bundle whole or not at all. Writers in several processes take turns by a file lock.
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

from shared.bundle.digest import check_digest, digest_of_bytes, digest_of_file
from shared.bundle.manifest import MANIFEST_MEDIA_TYPE, Descriptor
from shared.durable_files import disk_errors, make_folder, write_atomically
from shared.errors import DigestMismatch, InvalidManifest, LimitExceeded, NotFound
from shared.file_lock import exclusive

REFERENCE_ANNOTATION = "org.opencontainers.image.ref.name"
MAX_INDEX_BYTES = 4 * 1024 * 1024
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
            make_folder(layout.blobs)
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

        A blob that is there already gets the present time, so that nobody takes it for one that is not used.

        Raises:
            DiskError: The disk is full or not writable.
        """
        digest = digest_of_bytes(data)
        path = self.blob_path(digest)
        with disk_errors(path):
            if not path.exists() or path.read_bytes() != data:
                write_atomically(path, data)
            else:
                os.utime(path)
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
        with disk_errors(source), source.open("rb") as file:
            os.fsync(file.fileno())
        return self.adopt_file(source, media_type, digest=digest_of_file(source), expected=expected)

    def adopt_file(self, source: Path, media_type: str, *, digest: str, expected: str | None = None) -> Descriptor:
        """Move a finished file, which its writer has flushed and hashed, into the store and return its descriptor.

        Args:
            source: The file, best on the same file system; it is gone afterwards.
            media_type: Its media type.
            digest: The digest of its bytes.
            expected: The digest it must have, or None.

        Raises:
            DigestMismatch: The file has another digest than expected; it is left where it was.
            DiskError: The disk is full or not writable.
        """
        if expected is not None and digest != expected:
            raise DigestMismatch(f"{source.name} has {digest}", needed=expected)
        size, path = source.stat().st_size, self.blob_path(digest)
        with disk_errors(path):
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
        """Return every reference and the manifest it names.

        Raises:
            LimitExceeded: index.json is longer than 4 MiB.
            InvalidManifest: It is no OCI image index.
        """
        try:
            with (self.root / "index.json").open("rb") as file:
                data = file.read(MAX_INDEX_BYTES + 1)
            _check_index_length(self.root, data)
            index = json.loads(data)
            manifests = [Descriptor.model_validate(entry) for entry in index["manifests"]]
        except FileNotFoundError:
            return {}
        except (ValueError, KeyError, TypeError, RecursionError) as error:
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
            LimitExceeded: There would be more references than a reader accepts; nothing changed.
            DiskError: The disk is full or not writable.
        """
        with disk_errors(self.root), exclusive(self.root / ".lock"):
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
            data = json.dumps(index, indent=1).encode()
            _check_index_length(self.root, data)
            write_atomically(self.root / "index.json", data)


def _check_index_length(root: Path, data: bytes) -> None:
    if len(data) > MAX_INDEX_BYTES:
        raise LimitExceeded(f"{root / 'index.json'} is too long", needed=f"at most {MAX_INDEX_BYTES} bytes")


def manifest_descriptor(data: bytes) -> Descriptor:
    """Return the descriptor of a manifest's bytes."""
    return Descriptor(media_type=MANIFEST_MEDIA_TYPE, digest=digest_of_bytes(data), size=len(data))
