"""Pulling a bundle, from reference to tagged and verified: the page to read first.

    manifest → signature → configuration   small, judged by ``trusted_bundle`` before a layer is fetched
    what is here, what is missing          blobs in the store are hashed again; damaged ones become partial
    room on the disk                       reserved before the start
    pieces                                 fetched by ``fetch``, each verified as it arrives
    the whole bundle                       validated by ``shared.bundle.read``
    key pinned, reference tagged           last: until then nothing is visible

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
from device_client.download.partial import Disk, PartialBlob, check_room, pieces_of
from device_client.download.rate_limit import RateLimit
from device_client.download.reference import BundleReference
from device_client.download.registry import Registry
from device_client.download.retry import interruptible_sleep
from device_client.download.trusted_bundle import (
    MAX_SIGNATURE_MANIFEST_BYTES,
    AcceptanceRules,
    signature_blob,
)
from device_client.download.trusted_keys import TrustedKeys
from shared.bundle.digest import digest_of_bytes, digest_of_file
from shared.bundle.layout import ImageLayout, manifest_descriptor
from shared.bundle.manifest import MAX_MANIFEST_BYTES, BundleConfig, Descriptor, Manifest
from shared.bundle.read import read_bundle
from shared.bundle.signature import Signature, publish_signature, signature_tag
from shared.errors import Conflict, NotFound
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
        is_first_contact: Whether that key was pinned just now.
        size_bytes: Bytes of all blobs.
        fetched_bytes: Bytes of layers that came over the network.
        was_complete: Whether nothing had to be changed.
    """

    reference: str
    digest: str
    publisher: str | None
    is_first_contact: bool
    size_bytes: int
    fetched_bytes: int
    was_complete: bool


@dataclass(frozen=True, slots=True)
class Accepted:
    """The documents of a bundle that the rules have accepted."""

    manifest_bytes: bytes
    manifest: Manifest
    signature: Signature | None
    config_bytes: bytes
    config: BundleConfig

    @property
    def digest(self) -> str:
        """The manifest's digest."""
        return digest_of_bytes(self.manifest_bytes)


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
        Conflict: Another pull is running.
    """
    with sole_writer(layout):
        rules = replace(rules, pinned=keys.pinned(reference.source))
        accepted = _accept(reference, rules, registry)
        missing = _missing_blobs(accepted, layout, console)
        fetched_bytes = _fetch(missing, reference, registry, layout, console, options)
        was_complete = not missing and _names(layout, reference.local, accepted.digest)
        is_first_contact = admit(accepted, reference.local, reference.source, layout, keys, rules)
    return Pulled(
        reference=reference.local,
        digest=accepted.digest,
        publisher=accepted.signature.fingerprint if accepted.signature else None,
        is_first_contact=is_first_contact,
        size_bytes=accepted.manifest.size_bytes,
        fetched_bytes=fetched_bytes,
        was_complete=was_complete,
    )


def admit(
    accepted: Accepted, reference: str, source: str, layout: ImageLayout, keys: TrustedKeys, rules: AcceptanceRules
) -> bool:
    """Validate a bundle whose layers are all in the store, pin its publisher and make it visible.

    Args:
        accepted: Its documents.
        reference: ``name:tag`` to make visible.
        source: What the publisher's key is pinned for.
        layout: The store.
        keys: The pins.
        rules: What was known of the source before.

    Returns:
        Whether the publisher was met for the first time.

    Raises:
        IntegrityError: Something in the layers is wrong, or another key is pinned; nothing became visible.
        DiskError: The store cannot be written.
    """
    manifest = manifest_descriptor(accepted.manifest_bytes)
    layout.add_bytes(accepted.config_bytes, accepted.manifest.config.media_type)
    layout.add_bytes(accepted.manifest_bytes, manifest.media_type)
    read_bundle(layout, manifest.digest, verify_digests=False, client_version=rules.client_version)
    changes: dict[str, Descriptor | None] = {reference: manifest}
    if accepted.signature is not None:
        fingerprint = accepted.signature.fingerprint
        keys.pin(source, fingerprint, is_demanded=fingerprint == rules.required)
        name = reference.rpartition(":")[0]
        tag = f"{name}:{signature_tag(manifest.digest)}"
        changes[tag] = publish_signature(layout, manifest, accepted.signature)
    if any(not _names(layout, name, named.digest) for name, named in changes.items() if named):
        layout.update(changes)
    return accepted.signature is not None and not rules.pinned


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


def _accept(reference: BundleReference, rules: AcceptanceRules, registry: Registry) -> Accepted:
    data = registry.manifest(reference.name, reference.remote, max_bytes=MAX_MANIFEST_BYTES)
    manifest = rules.accept_manifest(data)
    digest = digest_of_bytes(data)
    signature = rules.accept_signature(_signature(reference.name, digest, registry), digest)
    config = registry.small_blob(reference.name, manifest.config)
    return Accepted(data, manifest, signature, config, rules.accept_config(config, manifest))


def _signature(name: str, digest: str, registry: Registry) -> bytes | None:
    try:
        data = registry.manifest(name, signature_tag(digest), max_bytes=MAX_SIGNATURE_MANIFEST_BYTES)
    except NotFound:
        return None
    return registry.small_blob(name, signature_blob(data))


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
        fetch.all(partials, connections=options.connections)
    return fetch.received_bytes


def _names(layout: ImageLayout, reference: str, digest: str) -> bool:
    named = layout.references().get(reference)
    return named is not None and named.digest == digest
