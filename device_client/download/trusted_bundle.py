"""The rules by which a bundle is accepted, as a pure object: bytes and pins in, accepted documents or an error out.

Order: manifest (limits, form, the digest that was asked for) · signature (present, valid, by a key that is trusted) ·
configuration (its digest, form, chunk table). Everything else follows from digests, checked where bytes arrive.

A key is trusted if it is the required one; or, where none is required, the pinned one; or, where none is pinned, any
(trust at first contact). ``allows_unsigned`` excuses only a bundle whose source never had a key.
Not stopped yet: a server that offers an old signed bundle for ever (decisions/0007). Knows nothing about I/O.
References: The Update Framework's attacks; shared/bundle/FORMAT.md §§ 1, 5, 6.
"""

from __future__ import annotations

from dataclasses import dataclass

from shared.bundle.digest import check_digest, digest_of_bytes
from shared.bundle.manifest import (
    MAX_CONFIG_BYTES,
    MAX_MANIFEST_BYTES,
    BundleConfig,
    Descriptor,
    Manifest,
    parse_artifact,
    parse_config,
    parse_manifest,
)
from shared.bundle.signature import MAX_SIGNATURE_BYTES, SIGNATURE_ARTIFACT_TYPE, Signature, verify
from shared.errors import (
    BlobTruncated,
    DigestMismatch,
    InvalidBundleConfig,
    InvalidManifest,
    LimitExceeded,
    PublisherChanged,
    SignatureInvalid,
    SignatureMissing,
)

MAX_SIGNATURE_MANIFEST_BYTES = 64 * 1024


@dataclass(frozen=True, slots=True)
class AcceptanceRules:
    """What is accepted from one source.

    Attributes:
        source: Server and name, for messages.
        pinned: Fingerprints pinned for the source; empty at first contact.
        required: The fingerprint that the user demands, or None.
        allows_unsigned: Whether a bundle without a signature is accepted.
        digest: The manifest digest that was asked for, or None.
        client_version: This program's version, or None to skip the comparison.
    """

    source: str
    pinned: frozenset[str] = frozenset()
    required: str | None = None
    allows_unsigned: bool = False
    digest: str | None = None
    client_version: tuple[int, int, int] | None = None

    def accept_manifest(self, data: bytes) -> Manifest:
        """Return the manifest.

        Raises:
            DigestMismatch: It is not the one that was asked for.
            IntegrityError: It is over a limit or malformed.
            UpgradeNeeded: It is of a newer format.
        """
        if self.digest is not None and len(data) <= MAX_MANIFEST_BYTES and digest_of_bytes(data) != self.digest:
            raise DigestMismatch(
                f"{self.source} answered with the manifest {digest_of_bytes(data)}",
                needed=self.digest,
                next_step="do not use this server; ask its operator",
            )
        manifest = parse_manifest(data)
        if manifest.config.size > MAX_CONFIG_BYTES:
            raise LimitExceeded(f"configuration of {manifest.config.size} bytes", needed=f"at most {MAX_CONFIG_BYTES}")
        return manifest

    def accept_signature(self, data: bytes | None, manifest_digest: str) -> Signature | None:
        """Return the signature over a manifest, or None for an unsigned bundle that is allowed.

        Raises:
            SignatureMissing: There is none and there has to be one.
            SignatureInvalid: It is not a valid signature over this manifest.
            PublisherChanged: It is valid, but by another key than the trusted one.
        """
        check_digest(manifest_digest)
        if data is None:
            self._excuse_missing_signature()
            return None
        if len(data) > MAX_SIGNATURE_BYTES:
            raise LimitExceeded(f"signature of {len(data)} bytes", needed=f"at most {MAX_SIGNATURE_BYTES}")
        signature = verify(data, manifest_digest)
        self._check_publisher(signature.fingerprint)
        return signature

    def accept_config(self, data: bytes, manifest: Manifest) -> BundleConfig:
        """Return the configuration that a manifest names.

        Raises:
            BlobTruncated: It has another length.
            DigestMismatch: It has another digest.
            IntegrityError: It is malformed, or its chunk table does not fit the layers.
            UpgradeNeeded: It asks for a newer zo-device.
        """
        if len(data) != manifest.config.size:
            raise BlobTruncated(f"configuration of {len(data)} bytes", needed=f"{manifest.config.size} bytes")
        if digest_of_bytes(data) != manifest.config.digest:
            raise DigestMismatch(f"configuration {digest_of_bytes(data)}", needed=manifest.config.digest)
        config = parse_config(data, client_version=self.client_version)
        for layer in manifest.layers:
            _check_chunk_count(layer, config)
        return config

    def _excuse_missing_signature(self) -> None:
        if self.required or self.pinned:
            trusted = self.required or ", ".join(sorted(self.pinned))
            raise SignatureMissing(
                f"{self.source} offers no signature, although its key is pinned or required",
                needed=f"a signature by {trusted}",
                next_step="do not use this bundle; ask its publisher",
            )
        if not self.allows_unsigned:
            raise SignatureMissing(
                f"{self.source} offers no signature",
                needed="a signed bundle",
                next_step="ask its publisher, or add --allow-unsigned if you trust where it comes from",
            )

    def _check_publisher(self, fingerprint: str) -> None:
        trusted = frozenset({self.required}) if self.required else self.pinned
        if trusted and fingerprint not in trusted:
            raise PublisherChanged(
                f"{self.source} is signed by {fingerprint}",
                needed=f"a signature by {' or '.join(sorted(trusted))}",
                next_step=f"ask the publisher; if the new key is right: zo-device pull --trusted-key {fingerprint}",
            )


def signature_blob(data: bytes) -> Descriptor:
    """Return the blob that a signature artifact's manifest names.

    Raises:
        SignatureInvalid: It is no manifest of a signature.
        LimitExceeded: It, or what it names, is too long.
    """
    if len(data) > MAX_SIGNATURE_MANIFEST_BYTES:
        raise LimitExceeded(
            f"signature manifest of {len(data)} bytes", needed=f"at most {MAX_SIGNATURE_MANIFEST_BYTES}"
        )
    try:
        manifest = parse_artifact(data)
    except InvalidManifest as error:
        raise SignatureInvalid(f"signature's {error.found}") from error
    if manifest.artifact_type != SIGNATURE_ARTIFACT_TYPE or len(manifest.layers) != 1:
        raise SignatureInvalid(
            f"an artifact of type {manifest.artifact_type[:80]!r} with {len(manifest.layers)} layers",
            needed=f"{SIGNATURE_ARTIFACT_TYPE} with one layer",
        )
    if manifest.layers[0].size > MAX_SIGNATURE_BYTES:
        raise LimitExceeded(f"signature of {manifest.layers[0].size} bytes", needed=f"at most {MAX_SIGNATURE_BYTES}")
    return manifest.layers[0]


def _check_chunk_count(layer: Descriptor, config: BundleConfig) -> None:
    found = len(config.chunks.get(layer.digest, []))
    needed = -(-layer.size // config.chunk_bytes) if layer.size > config.chunk_bytes else 0
    if found != needed and not (needed == 0 and found == 1):
        raise InvalidBundleConfig(
            f"{found} chunk digests for {layer.title} of {layer.size} bytes",
            needed=f"{needed} of {config.chunk_bytes} bytes each",
        )
