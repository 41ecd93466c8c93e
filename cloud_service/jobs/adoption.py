"""Takes the bundle that a job made into the service's own store.

    jobs/<id>/workspace/store    the job writes here, and nowhere else
    store                        the service copies each blob of the manifest here, hashing it on the way

The bytes are copied, not moved: a file that a job made may have a second name that the job still writes to. Each blob
is deleted at its source when its copy is safe, so the disk never holds more than one blob twice. A blob that the source
lacks may be in the store already, from an adoption that was cut short; whether the bundle is complete and valid is
checked afterwards by whoever signs it. Knows nothing about jobs' records.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from pathlib import Path
from typing import BinaryIO

from cloud_service.jobs.untrusted_files import open_untrusted
from shared.bundle.layout import ImageLayout
from shared.bundle.manifest import MAX_MANIFEST_BYTES, Descriptor, parse_manifest
from shared.bundle.write import UNFINISHED_PREFIX
from shared.durable_files import disk_errors, sync_directory
from shared.errors import BlobTruncated, DigestMismatch, LimitExceeded

_PIECE_BYTES = 1024 * 1024


def adopt_bundle(folder: Path, source: str, manifest: Descriptor, store: ImageLayout) -> None:
    """Copy every blob of a bundle from ``folder/source`` into ``store``; repeat it after a crash.

    Args:
        folder: The job's folder, which only the service changes.
        source: Relative path of the job's image layout, below which everything may be the work of a job.
        manifest: The bundle's manifest.
        store: Where to.

    Raises:
        IntegrityError: A blob is not a regular file, or not what the manifest says; it is not in the store then.
        DiskError: The disk is full or not writable.
    """
    if manifest.size > MAX_MANIFEST_BYTES:
        raise LimitExceeded(f"a manifest of {manifest.size} bytes", needed=f"at most {MAX_MANIFEST_BYTES} bytes")
    _adopt_blob(folder, source, manifest, store)
    if not store.has_blob(manifest.digest):
        return
    for blob in parse_manifest(store.read_blob(manifest.digest, max_bytes=MAX_MANIFEST_BYTES)).blobs:
        _adopt_blob(folder, source, blob, store)


def _adopt_blob(folder: Path, source: str, blob: Descriptor, store: ImageLayout) -> None:
    name = f"{source}/blobs/sha256/{store.blob_path(blob.digest).name}"
    if not os.path.lexists(folder / name):
        return
    with open_untrusted(folder, name) as file, disk_errors(store.root):
        with tempfile.TemporaryDirectory(dir=store.root, prefix=UNFINISHED_PREFIX) as place:
            copy = Path(place) / "blob"
            with copy.open("wb") as target:
                _copy(file, target, blob)
                target.flush()
                os.fsync(target.fileno())
            copy.replace(store.blob_path(blob.digest))
        sync_directory(store.blobs)
    (folder / name).unlink()


def _copy(source: BinaryIO, target: BinaryIO, blob: Descriptor) -> None:
    size = os.fstat(source.fileno()).st_size
    if size != blob.size:
        raise BlobTruncated(f"blob {blob.digest} of the job has {size} bytes", needed=f"{blob.size} bytes")
    hasher, left = hashlib.sha256(), size
    while left and (piece := source.read(min(left, _PIECE_BYTES))):
        hasher.update(piece)
        target.write(piece)
        left -= len(piece)
    if left or "sha256:" + hasher.hexdigest() != blob.digest:
        raise DigestMismatch(f"blob {blob.digest} of the job has other bytes", next_step="POST the same request again")
