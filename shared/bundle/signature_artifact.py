"""The OCI artifact beside a bundle, tagged ``sha256-<hex>.sig``, that carries what the publisher signed.

    artifactType  application/vnd.zo-device.release.v1+json      subject: the bundle's manifest
    layers        DSSE envelopes: one release statement for each tag that names the digest, then the key rotations

Because it is found by the digest, a tag that moves on cannot come between a bundle and its statement; because it is an
ordinary artifact, any registry can carry it. An artifact of the older type holds one signature over the digest alone.
Counts and lengths are bounded before anything is fetched. What the envelopes say is judged elsewhere.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from shared.bundle.dsse import ENVELOPE_MEDIA_TYPE, MAX_ENVELOPE_BYTES
from shared.bundle.layout import ImageLayout, manifest_descriptor
from shared.bundle.manifest import TITLE_ANNOTATION, Descriptor, Manifest, parse_artifact
from shared.bundle.signature import MAX_SIGNATURE_BYTES, SIGNATURE_ARTIFACT_TYPE, signature_tag
from shared.bundle.statement import RELEASE_TYPE, SignedRelease, SignedRotation, verify_release, verify_rotation
from shared.errors import InvalidManifest, LimitExceeded, SignatureInvalid

TAG_ANNOTATION = "dev.zo-device.release.tag"
"""Of a layer: the tag whose release statement it holds. A layer without it holds a key rotation."""

ARTIFACT_TYPES = (RELEASE_TYPE, SIGNATURE_ARTIFACT_TYPE)
"""What an artifact beside a bundle can be; others are somebody else's."""

MAX_RELEASES = 100
MAX_ROTATIONS = 16
MAX_SIGNATURE_MANIFEST_BYTES = 64 * 1024


@dataclass(frozen=True, slots=True)
class SignatureDocuments:
    """What lies beside a bundle, as bytes that nobody has judged yet.

    Attributes:
        old_signature: A signature over the digest alone, or None.
        releases: Envelopes of release statements.
        rotations: Envelopes of key rotations.
    """

    old_signature: bytes | None = None
    releases: tuple[bytes, ...] = ()
    rotations: tuple[bytes, ...] = ()


@dataclass(frozen=True, slots=True)
class Statements:
    """Statements beside one bundle that their keys have signed."""

    releases: tuple[SignedRelease, ...] = ()
    rotations: tuple[SignedRotation, ...] = ()

    def joined(self, newer: Statements) -> Statements:
        """Return these and ``newer`` ones, which win where both speak for the same tag; of rotations the last 16."""
        releases = {release.statement.tag: release for release in (*self.releases, *newer.releases)}
        rotations = dict.fromkeys((*self.rotations, *newer.rotations))
        return Statements(tuple(releases.values()), tuple(rotations)[-MAX_ROTATIONS:])


def publish_statements(layout: ImageLayout, manifest: Descriptor, statements: Statements) -> Descriptor:
    """Store statements about one bundle as an OCI artifact and return its manifest, ready to be tagged.

    Raises:
        LimitExceeded: There are more than a reader accepts.
        DiskError: The disk is full or not writable.
    """
    _check_counts(len(statements.releases), len(statements.rotations))
    releases = sorted(statements.releases, key=lambda release: release.statement.tag)
    layers = []
    for number, release in enumerate(releases):
        annotations = {TITLE_ANNOTATION: f"release-{number:03d}.dsse.json", TAG_ANNOTATION: release.statement.tag}
        layers.append(_add_envelope(layout, release.envelope, annotations))
    for number, rotation in enumerate(statements.rotations):
        annotations = {TITLE_ANNOTATION: f"key-rotation-{number:03d}.dsse.json"}
        layers.append(_add_envelope(layout, rotation.envelope, annotations))
    data = Manifest(
        artifact_type=RELEASE_TYPE,
        config=layout.add_bytes(b"{}", "application/vnd.oci.empty.v1+json"),
        layers=layers,
        subject=manifest.model_copy(update={"annotations": None}),
    ).to_bytes()
    return layout.add_bytes(data, manifest_descriptor(data).media_type)


def collect_documents(
    data: bytes, fetch: Callable[[Descriptor], bytes], *, tag: str | None = None
) -> SignatureDocuments:
    """Return the documents that an artifact's manifest names.

    Args:
        data: The manifest's bytes.
        fetch: Returns the bytes of a small blob, verified against its digest and length.
        tag: Fetch the release statement of this tag only; None fetches those of all tags.

    Raises:
        SignatureInvalid: It is not a manifest of an artifact with signatures.
        LimitExceeded: It, or what it names, is too long or too much.
    """
    manifest = _parse_manifest(data)
    if manifest.artifact_type == SIGNATURE_ARTIFACT_TYPE and len(manifest.layers) == 1:
        _check_length(manifest.layers[0], MAX_SIGNATURE_BYTES)
        return SignatureDocuments(old_signature=fetch(manifest.layers[0]))
    if manifest.artifact_type != RELEASE_TYPE:
        raise SignatureInvalid(
            f"an artifact of type {manifest.artifact_type[:80]!r} with {len(manifest.layers)} layers",
            needed=f"{RELEASE_TYPE}, or {SIGNATURE_ARTIFACT_TYPE} with one layer",
        )
    tagged = [(tag_of(layer), layer) for layer in manifest.layers]
    releases = [layer for named, layer in tagged if named is not None and tag in (None, named)]
    rotations = [layer for named, layer in tagged if named is None]
    _check_counts(len(manifest.layers) - len(rotations), len(rotations))
    for layer in manifest.layers:
        _check_length(layer, MAX_ENVELOPE_BYTES)
    return SignatureDocuments(None, tuple(map(fetch, releases)), tuple(map(fetch, rotations)))


def joined(documents: Sequence[SignatureDocuments]) -> SignatureDocuments:
    """Return the documents of several artifacts beside one bundle; an older signature counts where no releases are."""
    releases = tuple(release for found in documents for release in found.releases)
    old = next((found.old_signature for found in documents if found.old_signature is not None), None)
    return SignatureDocuments(
        None if releases else old,
        releases,
        tuple(rotation for found in documents for rotation in found.rotations),
    )


def documents_beside(layout: ImageLayout, name: str, digest: str) -> SignatureDocuments | None:
    """Return what lies beside a bundle in a layout, or None where nothing does; it is not judged.

    Raises:
        NotFound: It is incomplete.
        IntegrityError: It is damaged, or something else than signatures.
    """
    artifact = layout.references().get(f"{name}:{signature_tag(digest)}")
    if artifact is None:
        return None
    data = layout.read_blob(artifact.digest, max_bytes=MAX_SIGNATURE_MANIFEST_BYTES)
    return collect_documents(data, lambda blob: layout.read_blob(blob.digest, max_bytes=blob.size))


def verified_statements(documents: SignatureDocuments | None) -> Statements:
    """Return the statements among documents that their keys have signed; an older signature counts as none.

    Raises:
        IntegrityError: One of them is malformed or forged.
    """
    found = documents or SignatureDocuments()
    return Statements(tuple(map(verify_release, found.releases)), tuple(map(verify_rotation, found.rotations)))


def tag_of(layer: Descriptor) -> str | None:
    """Return the tag whose release statement a layer claims to hold, or None for a key rotation."""
    return (layer.annotations or {}).get(TAG_ANNOTATION)


def _parse_manifest(data: bytes) -> Manifest:
    if len(data) > MAX_SIGNATURE_MANIFEST_BYTES:
        raise LimitExceeded(
            f"signature manifest of {len(data)} bytes", needed=f"at most {MAX_SIGNATURE_MANIFEST_BYTES}"
        )
    try:
        return parse_artifact(data)
    except InvalidManifest as error:
        raise SignatureInvalid(f"signature's {error.found}") from error


def _add_envelope(layout: ImageLayout, envelope: bytes, annotations: dict[str, str]) -> Descriptor:
    return layout.add_bytes(envelope, ENVELOPE_MEDIA_TYPE).model_copy(update={"annotations": annotations})


def _check_counts(releases: int, rotations: int) -> None:
    if releases > MAX_RELEASES or rotations > MAX_ROTATIONS:
        raise LimitExceeded(
            f"{releases} release statements and {rotations} key rotations beside one bundle",
            needed=f"at most {MAX_RELEASES} and {MAX_ROTATIONS}",
        )


def _check_length(layer: Descriptor, limit: int) -> None:
    if layer.size > limit:
        raise LimitExceeded(f"signature of {layer.size} bytes", needed=f"at most {limit} bytes")
