"""Bundles between image layouts: to a folder (a USB stick) and back. What comes back is trusted no more than a server.

Every blob is hashed on arrival and appears by rename; the reference is written last. Costs one copy of the bundle.
"""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

from device_client.console import Console
from device_client.download.local_name import displaced_by
from device_client.download.partial import Disk, check_room
from device_client.download.pull import (
    Accepted,
    Pulled,
    accept_signature,
    admit,
    is_intact,
    partial_folder,
    sole_writer,
    summarize,
)
from device_client.download.trusted_bundle import AcceptanceRules
from device_client.download.trusted_keys import TrustedKeys
from shared.bundle.digest import digest_of_file
from shared.bundle.layout import ImageLayout
from shared.bundle.manifest import MAX_MANIFEST_BYTES, Descriptor, parse_artifact
from shared.bundle.read import Bundle
from shared.bundle.signature import signature_tag
from shared.bundle.signature_artifact import MAX_SIGNATURE_MANIFEST_BYTES, SignatureDocuments, documents_beside
from shared.durable_files import disk_errors
from shared.errors import BlobMissing, BlobTruncated, DigestMismatch, NotFound


def import_bundle(
    source: ImageLayout,
    reference: str,
    manifest: Descriptor,
    rules: AcceptanceRules,
    layout: ImageLayout,
    keys: TrustedKeys,
    console: Console,
) -> Pulled:
    """Copy a bundle from a folder into the store under the rules that hold for a server.

    Args:
        source: The folder.
        reference: ``name:tag`` there and here.
        manifest: What the reference names there.
        rules: What is accepted; the pins are read anew, under the store's lock.
        layout: The store.
        keys: The pins.
        console: Where progress is shown.

    Raises:
        IntegrityError: The bundle is damaged, forged or by another publisher; nothing became visible.
        DiskError: There is no room.
        Conflict: A pull is running, or another publisher's bundle has that name in the store.
    """
    name = reference.rpartition(":")[0]
    with sole_writer(layout):
        rules = replace(rules, pinned=keys.pinned_for_import(name), memory=keys.memory())
        accepted = _accept(source, reference, manifest, rules, keys)
        displaced = displaced_by(reference, accepted.digest, accepted.publisher, layout, keys.memory(), rules)
        layers = [blob for blob in accepted.manifest.blobs if blob.digest != accepted.manifest.config.digest]
        missing = [blob for blob in layers if not is_intact(layout, blob)]
        was_complete = not missing and reference in layout.references()
        _copy_blobs(source, layout, missing, partial_folder(layout), console, f"Importing {reference}")
        admit(accepted, reference, layout, keys, rules, displaced)
    fetched_bytes = sum(blob.size for blob in missing)
    return summarize(accepted, reference, rules, displaced, fetched_bytes=fetched_bytes, was_complete=was_complete)


def export_bundle(bundle: Bundle, reference: str, target: Path, console: Console) -> ImageLayout:
    """Copy a validated bundle and its signature into a folder and return the folder as a layout.

    Raises:
        DiskError: The folder has no room or cannot be written.
    """
    layout = ImageLayout.create(target)
    manifest = bundle.layout.resolve(reference)
    blobs = [*bundle.manifest.blobs, manifest]
    changes: dict[str, Descriptor | None] = {reference: manifest}
    signature_reference = _signature_reference(reference, manifest.digest)
    if (signature := bundle.layout.references().get(signature_reference)) is not None:
        blobs += [signature, *_artifact_blobs(bundle.layout, signature)]
        changes[signature_reference] = signature
    missing = [blob for blob in blobs if not is_intact(layout, blob)]
    _copy_blobs(bundle.layout, layout, missing, layout.root, console, f"Exporting {reference}")
    layout.update(changes)
    return layout


def read_signatures(layout: ImageLayout, reference: str, digest: str) -> SignatureDocuments | None:
    """Return what lies beside a bundle in a layout, or None where nothing does; it is not judged.

    Raises:
        IntegrityError: It is there but incomplete, damaged, or something else than signatures.
    """
    try:
        return documents_beside(layout, reference.rpartition(":")[0], digest)
    except NotFound as error:
        raise BlobMissing(
            f"{layout.root} lacks a part of the signature of {reference}", next_step="copy the folder again"
        ) from error


def _accept(
    source: ImageLayout, reference: str, manifest: Descriptor, rules: AcceptanceRules, keys: TrustedKeys
) -> Accepted:
    data = _read(source, manifest, MAX_MANIFEST_BYTES)
    parsed = rules.accept_manifest(data)
    documents = read_signatures(source, reference, manifest.digest)
    signature = accept_signature(documents, manifest.digest, rules, keys)
    config = _read(source, parsed.config, parsed.config.size)
    return Accepted(data, parsed, signature, config, rules.accept_config(config, parsed))


def _read(source: ImageLayout, blob: Descriptor, max_bytes: int) -> bytes:
    try:
        return source.read_blob(blob.digest, max_bytes=max_bytes)
    except NotFound as error:
        raise BlobMissing(f"{source.root} lacks blob {blob.digest}", next_step="copy the folder again") from error


def _artifact_blobs(layout: ImageLayout, signature: Descriptor) -> list[Descriptor]:
    data = layout.read_blob(signature.digest, max_bytes=MAX_SIGNATURE_MANIFEST_BYTES)
    return parse_artifact(data).blobs


def _signature_reference(reference: str, digest: str) -> str:
    return f"{reference.rpartition(':')[0]}:{signature_tag(digest)}"


def _copy_blobs(
    source: ImageLayout, target: ImageLayout, blobs: list[Descriptor], folder: Path, console: Console, description: str
) -> None:
    needed = sum(blob.size for blob in blobs)
    check_room(needed, target.root, Disk())
    with console.progress(description, needed, "B") as bar:
        for blob in blobs:
            _copy_blob(source, target, blob, folder)
            bar.advance(blob.size)


def _copy_blob(source: ImageLayout, target: ImageLayout, blob: Descriptor, folder: Path) -> None:
    origin = source.blob_path(blob.digest)
    if not origin.is_file():
        raise BlobMissing(f"{source.root} lacks {blob.title or blob.digest}", next_step="copy the folder again")
    if origin.stat().st_size != blob.size:
        raise BlobTruncated(
            f"{blob.title or blob.digest} has {origin.stat().st_size} bytes in {source.root}",
            needed=f"{blob.size} bytes",
            next_step="copy the folder again",
        )
    copy = folder / f".copying-{origin.name}"
    try:
        with disk_errors(copy):
            shutil.copyfile(origin, copy)
        if digest_of_file(copy) != blob.digest:
            raise DigestMismatch(
                f"{blob.title or blob.digest} in {source.root} has other bytes",
                needed=blob.digest,
                next_step="copy the folder again",
            )
        target.add_file(copy, blob.media_type, expected=blob.digest)
    finally:
        copy.unlink(missing_ok=True)
