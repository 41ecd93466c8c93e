"""Who may change what a local name means: only the publisher whose bundle it names already.

Keys are pinned for a source, which is server and name; but people type ``tiny``, and it is one name for all servers.
So a bundle from a server that was never met before must not take the name of another publisher's bundle just because
both are called alike. The same publisher, or a key that took its key's place, may come from anywhere (mirrors, sticks).
Whoever demands the other key has said that the name shall change hands; then the bundle that had it stays, named by
its digest. A local bundle without a signature has no publisher whose name could be protected.
"""

from __future__ import annotations

from dataclasses import dataclass

from device_client.download.publisher_memory import PublisherMemory
from device_client.download.reference import tag_of_digest
from device_client.download.trusted_bundle import AcceptanceRules
from shared.bundle.layout import ImageLayout
from shared.bundle.manifest import Descriptor
from shared.bundle.signature import verify
from shared.bundle.signature_artifact import documents_beside, verified_statements
from shared.errors import Conflict, IntegrityError, NotFound


@dataclass(frozen=True, slots=True)
class Displaced:
    """A bundle of another publisher, which loses a local name.

    Attributes:
        manifest: What the name meant.
        kept_as: The reference under which it stays in the store.
    """

    manifest: Descriptor
    kept_as: str


def displaced_by(
    reference: str,
    digest: str,
    publisher: str | None,
    layout: ImageLayout,
    memory: PublisherMemory,
    rules: AcceptanceRules,
) -> Displaced | None:
    """Return the bundle of another publisher that gives its name to one that comes; None where there is none.

    Args:
        reference: The local ``name:tag``.
        digest: Manifest digest of the bundle that comes.
        publisher: Fingerprint of the key that signed it, or None.
        layout: The store.
        memory: What is remembered of publishers, the statements of the coming bundle included.
        rules: What is accepted; a required key is the demand that the name changes hands.

    Raises:
        Conflict: There is one, and nobody demanded that.
    """
    named = layout.references().get(reference)
    if named is None or named.digest == digest:
        return None
    name = reference.rpartition(":")[0]
    owners = {memory.newest_key(owner) for owner in _publishers(layout, name, named.digest)}
    if not owners or publisher in owners:
        return None
    if rules.required is None:
        demand = f", or replace it: {rules.command} --trusted-key {publisher}" if publisher else ""
        raise Conflict(
            f"{reference} is here already, signed by {' and '.join(sorted(owners))}; {rules.source} offers another "
            f"bundle under that name, {f'signed by {publisher}' if publisher else 'not signed'}",
            needed="a bundle of the same publisher",
            next_step=f"keep the one that is here; or remove it first: zo-device rm {reference}{demand}",
            param="reference",
        )
    return Displaced(named, f"{name}:{tag_of_digest(named.digest)}")


def _publishers(layout: ImageLayout, name: str, digest: str) -> set[str]:
    """Return the keys that signed a bundle of the store; none where it has no signature that can be read."""
    try:
        documents = documents_beside(layout, name, digest)
        if documents is not None and documents.old_signature is not None:
            return {verify(documents.old_signature, digest).fingerprint}
        return {release.statement.publisher for release in verified_statements(documents).releases}
    except (IntegrityError, NotFound):  # damaged: pulling it again repairs it
        return set()
