"""Pulling a bundle, from reference to tagged and verified: the page to read first.

    manifest → statement                   small, judged by ``trusted_bundle`` and remembered before anything else
    configuration                          small, judged before a layer is fetched
    what is here, what is missing          blobs in the store are hashed again; damaged ones become partial
    room on the disk                       reserved before the start
    pieces                                 fetched by ``fetch``, each verified as it arrives
    the whole bundle                       validated by ``shared.bundle.read``
    key pinned, reference tagged           last: until then nothing is visible

Before any layer is fetched, ``local_name`` says whether the bundle may have its name in the store.

Every step may be killed and repeated.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path

from device_client.console import Console
from device_client.download.fetch import Fetch
from device_client.download.local_name import Displaced, displaced_by
from device_client.download.partial import Disk, PartialBlob, check_room, pieces_of, settle
from device_client.download.rate_limit import RateLimit
from device_client.download.reference import BundleReference
from device_client.download.registry import Registry
from device_client.download.retry import interruptible_sleep
from device_client.download.signatures import find_documents, keep_signature
from device_client.download.trusted_bundle import AcceptanceRules, AcceptedSignature
from device_client.download.trusted_keys import TrustedKeys
from shared.bundle.config import BundleConfig
from shared.bundle.digest import digest_of_bytes, digest_of_file
from shared.bundle.layout import ImageLayout, manifest_descriptor
from shared.bundle.manifest import MAX_MANIFEST_BYTES, Descriptor, Manifest
from shared.bundle.read import read_bundle
from shared.bundle.signature import signature_tag
from shared.bundle.signature_artifact import SignatureDocuments
from shared.bundle.statement import ReleaseStatement
from shared.durable_files import disk_errors, sync_directory
from shared.errors import Conflict
from shared.file_lock import exclusive


@dataclass(frozen=True, slots=True)
class PullOptions:
    """How to fetch.

    Attributes:
        connections: Connections at the same time.
        max_bytes_per_second: Rate of all connections together, or None.
        disk: The file system.
        clock: Seconds that only grow.
        stop: Set to end the download; also interrupts waiting.
    """

    connections: int = 4
    max_bytes_per_second: int | None = None
    disk: Disk = field(default_factory=Disk)
    clock: Callable[[], float] = time.monotonic
    stop: threading.Event = field(default_factory=threading.Event)


@dataclass(frozen=True, slots=True)
class Pulled:
    """A bundle in the store.

    Attributes:
        reference: ``name:tag`` in the store.
        digest: The manifest's digest.
        publisher: Fingerprint of the key that signed it, or None.
        statement: What its publisher stated about it, or None where it has no signature or an older one.
        replaced_key: Fingerprint of the key that was trusted before the publisher's took its place, or None.
        is_first_contact: Whether the publisher's key was pinned just now.
        displaced: The bundle of another publisher that had the reference before, or None.
        size_bytes: Bytes of all blobs.
        fetched_bytes: Bytes of layers that came over the network.
        was_complete: Whether nothing had to be changed.
    """

    reference: str
    digest: str
    publisher: str | None
    statement: ReleaseStatement | None
    replaced_key: str | None
    is_first_contact: bool
    displaced: Displaced | None
    size_bytes: int
    fetched_bytes: int
    was_complete: bool


@dataclass(frozen=True, slots=True)
class Accepted:
    """The documents of a bundle that the rules have accepted."""

    manifest_bytes: bytes
    manifest: Manifest
    signature: AcceptedSignature | None
    config_bytes: bytes
    config: BundleConfig

    @property
    def digest(self) -> str:
        """The manifest's digest."""
        return digest_of_bytes(self.manifest_bytes)

    @property
    def publisher(self) -> str | None:
        """Fingerprint of the key that signed it, or None."""
        return self.signature.publisher if self.signature else None


def pull(
    reference: BundleReference,
    rules: AcceptanceRules,
    registry: Registry,
    layout: ImageLayout,
    keys: TrustedKeys,
    console: Console,
    options: PullOptions,
) -> Pulled:
    """Fetch a bundle, verify it, and tag it in the store.

    Args:
        reference: What to pull.
        rules: What is accepted; the pins are read anew, under the store's lock, so that of two first contacts at once
            one is the second.
        registry: The server.
        layout: The store.
        keys: The pins.
        console: Where progress is shown.
        options: How to fetch.

    Raises:
        NotFound: The server has no such bundle.
        Unauthorized: The server wants a key.
        IntegrityError: The bundle is damaged, forged or by another publisher; nothing became visible.
        NetworkError: The server or the line failed for too long; what was fetched is kept.
        DiskError: There is no room; what was fetched is kept.
        Conflict: Another pull is running, or another publisher's bundle has that name in the store.
    """
    with sole_writer(layout):
        rules = replace(rules, pinned=keys.pinned(reference.source), memory=keys.memory())
        accepted = _accept(reference, rules, registry, keys)
        displaced = displaced_by(reference.local, accepted.digest, accepted.publisher, layout, keys.memory(), rules)
        missing = _missing_blobs(accepted, layout, console)
        fetched_bytes = _fetch(missing, reference, registry, layout, console, options)
        was_complete = not missing and _names(layout, reference.local, accepted.digest)
        admit(accepted, reference.local, layout, keys, rules, displaced)
    return summarize(
        accepted, reference.local, rules, displaced, fetched_bytes=fetched_bytes, was_complete=was_complete
    )


def summarize(
    accepted: Accepted,
    reference: str,
    rules: AcceptanceRules,
    displaced: Displaced | None,
    *,
    fetched_bytes: int,
    was_complete: bool,
) -> Pulled:
    """Return what is to be told of a bundle that was admitted as ``reference`` under rules made before."""
    signature = accepted.signature
    return Pulled(
        reference=reference,
        digest=accepted.digest,
        publisher=accepted.publisher,
        statement=signature.statement if signature else None,
        replaced_key=signature.path[0].rotation.old if signature and signature.path else None,
        is_first_contact=signature is not None and not rules.pinned,
        displaced=displaced,
        size_bytes=accepted.manifest.size_bytes,
        fetched_bytes=fetched_bytes,
        was_complete=was_complete,
    )


def accept_signature(
    documents: SignatureDocuments | None, digest: str, rules: AcceptanceRules, keys: TrustedKeys
) -> AcceptedSignature | None:
    """Judge what lies beside a bundle and remember it durably, before anything else of the bundle is believed.

    Raises:
        IntegrityError: It is not acceptable; nothing was remembered.
        DiskError: It cannot be remembered.
    """
    accepted = rules.accept_signature(documents, digest)
    if accepted is not None:
        keys.remember(rules.remembering(accepted))
    return accepted


def admit(
    accepted: Accepted,
    reference: str,
    layout: ImageLayout,
    keys: TrustedKeys,
    rules: AcceptanceRules,
    displaced: Displaced | None,
) -> None:
    """Validate a bundle whose layers are all in the store, pin its publisher and make it visible.

    Args:
        accepted: Its documents.
        reference: ``name:tag`` to make visible.
        layout: The store.
        keys: The pins.
        rules: The rules that accepted it; the publisher's key is pinned for their source.
        displaced: The bundle that loses the reference and gets one by its digest.

    Raises:
        IntegrityError: Something in the layers is wrong, or another key is pinned; nothing became visible.
        DiskError: The store cannot be written.
    """
    manifest = manifest_descriptor(accepted.manifest_bytes)
    layout.add_bytes(accepted.config_bytes, accepted.manifest.config.media_type)
    layout.add_bytes(accepted.manifest_bytes, manifest.media_type)
    read_bundle(layout, manifest.digest, verify_digests=False, client_version=rules.client_version)
    changes: dict[str, Descriptor | None] = {reference: manifest}
    if displaced is not None:
        changes[displaced.kept_as] = displaced.manifest
    if (signature := accepted.signature) is not None:
        may_replace = rules.required is not None or bool(signature.path)
        keys.pin(rules.source, signature.publisher, may_replace=may_replace, command=rules.command)
        name = reference.rpartition(":")[0]
        changes[f"{name}:{signature_tag(manifest.digest)}"] = keep_signature(layout, name, manifest, signature)
    if any(not _names(layout, name, named.digest) for name, named in changes.items() if named):
        layout.update(changes)


def sole_writer(layout: ImageLayout) -> AbstractContextManager[None]:
    """Make the store where it is missing, and keep other pulls, imports and prunes out of it.

    Raises:
        Conflict: One of them is running.
        DiskError: The store cannot be written.
    """
    ImageLayout.create(layout.root)
    busy = Conflict(f"another zo-device is changing {layout.root}", next_step="wait for it, then run the command again")
    return exclusive(partial_folder(layout) / ".lock", busy=busy)


def partial_folder(layout: ImageLayout) -> Path:
    """Return where a store keeps incomplete blobs."""
    return layout.root / "partial"


def is_intact(layout: ImageLayout, blob: Descriptor) -> bool:
    """Whether a blob is in the store with the right length and digest; reads all of it."""
    path = layout.blob_path(blob.digest)
    return path.is_file() and path.stat().st_size == blob.size and digest_of_file(path) == blob.digest


def _accept(reference: BundleReference, rules: AcceptanceRules, registry: Registry, keys: TrustedKeys) -> Accepted:
    data = registry.manifest(reference.name, reference.remote, max_bytes=MAX_MANIFEST_BYTES)
    manifest = rules.accept_manifest(data)
    digest = digest_of_bytes(data)
    signature = accept_signature(
        find_documents(reference, registry, digest, tag=None if rules.digest else rules.tag), digest, rules, keys
    )
    config = registry.small_blob(reference.name, manifest.config)
    return Accepted(data, manifest, signature, config, rules.accept_config(config, manifest))


def _missing_blobs(accepted: Accepted, layout: ImageLayout, console: Console) -> list[PartialBlob]:
    """Return the layers that are not intact in the store; a damaged one gives up its place there."""
    layers = [blob for blob in accepted.manifest.blobs if blob.digest != accepted.manifest.config.digest]
    missing = []
    present_bytes = sum(blob.size for blob in layers if layout.has_blob(blob.digest))
    with console.progress("Checking what is here", present_bytes, "B") as bar:
        for blob in layers:
            partial = PartialBlob(partial_folder(layout), blob, pieces_of(blob, accepted.config))
            if not layout.has_blob(blob.digest):
                missing.append(partial)
            elif is_intact(layout, blob):
                bar.advance(blob.size)
            else:
                console.warn(f"{blob.title} in the store is damaged; fetching what is wrong")
                partial.adopt(layout.blob_path(blob.digest))
                missing.append(partial)
    return missing


def _fetch(
    partials: list[PartialBlob],
    reference: BundleReference,
    registry: Registry,
    layout: ImageLayout,
    console: Console,
    options: PullOptions,
) -> int:
    check_room(sum(partial.unreserved_bytes for partial in partials), partial_folder(layout), options.disk)
    total = sum(partial.blob.size for partial in partials)
    with ExitStack() as opened, console.progress(f"Pulling {reference.name}", total, "B") as bar:
        for partial in partials:
            opened.callback(partial.close)
            partial.open(options.disk)
        with disk_errors(partial_folder(layout)):
            sync_directory(partial_folder(layout))
        bar.update(total - sum(piece.size for partial in partials for piece in partial.missing))
        fetch = Fetch(
            registry,
            reference.name,
            layout,
            rate_limit=RateLimit(options.max_bytes_per_second, options.clock, interruptible_sleep(options.stop)),
            on_bytes=bar.advance,
            notify=console.warn,
            stop=options.stop,
        )
        try:
            fetch.all(partials, connections=options.connections)
        finally:
            settle(partials, layout)
    return fetch.received_bytes


def _names(layout: ImageLayout, reference: str, digest: str) -> bool:
    named = layout.references().get(reference)
    return named is not None and named.digest == digest
