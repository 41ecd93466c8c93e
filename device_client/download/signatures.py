"""What lies beside a bundle: found on a server, and kept in the store.

    sha256-<hex>.sig      the tag that publishers give it
    the referrers API     what registries say has the bundle as its subject
    sha256-<hex>          the tag that clients keep such a list under where the registry has no such API

Knows nothing about whom to trust.
"""

from __future__ import annotations

from device_client.download.reference import BundleReference
from device_client.download.registry import Registry
from device_client.download.trusted_bundle import AcceptedSignature
from shared.bundle.layout import ImageLayout
from shared.bundle.manifest import Descriptor, parse_artifact
from shared.bundle.signature import publish_signature, signature_tag
from shared.bundle.signature_artifact import (
    ARTIFACT_TYPES,
    MAX_SIGNATURE_MANIFEST_BYTES,
    SignatureDocuments,
    collect_documents,
    documents_beside,
    joined,
    publish_statements,
    verified_statements,
)
from shared.errors import IntegrityError, NotFound


def find_documents(
    reference: BundleReference, registry: Registry, digest: str, *, tag: str | None
) -> SignatureDocuments | None:
    """Return what the server has beside a bundle, or None where it has nothing; it is not judged.

    Args:
        reference: The bundle.
        registry: The server.
        digest: The manifest's digest.
        tag: Fetch the release statement of this tag only; None fetches those of all tags.

    Raises:
        IntegrityError: It is there but damaged, or something else than signatures.
        NetworkError: The server or the line failed for too long.
    """
    name = reference.name

    def fetch(blob: Descriptor) -> bytes:
        return registry.small_blob(name, blob)

    try:
        data = registry.manifest(name, signature_tag(digest), max_bytes=MAX_SIGNATURE_MANIFEST_BYTES)
        return collect_documents(data, fetch, tag=tag)
    except NotFound:
        pass
    found = []
    for artifact in registry.referrers(name, digest, ARTIFACT_TYPES):
        data = registry.manifest(name, artifact, max_bytes=MAX_SIGNATURE_MANIFEST_BYTES)
        if parse_artifact(data).artifact_type in ARTIFACT_TYPES:
            found.append(collect_documents(data, fetch, tag=tag))
    return joined(found) if found else None


def keep_signature(layout: ImageLayout, name: str, manifest: Descriptor, signature: AcceptedSignature) -> Descriptor:
    """Store what was accepted, with what the store already has of other tags, and return what is to be tagged."""
    if signature.old_signature is not None:
        return publish_signature(layout, manifest, signature.old_signature)
    try:
        known = verified_statements(documents_beside(layout, name, manifest.digest))
    except (IntegrityError, NotFound):  # damaged in the store: what has just arrived takes its place
        known = verified_statements(None)
    return publish_statements(layout, manifest, known.joined(signature.statements))
