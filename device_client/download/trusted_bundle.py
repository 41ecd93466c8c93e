"""The rules by which a bundle is accepted, as a pure object: bytes and memory in, accepted documents or an error out.

Order: manifest (limits, form, the digest that was asked for) · statement (present, valid, for this name and tag, by a
trusted key, neither expired nor older than the last one) · configuration (its digest, form, chunk table). Everything
else follows from digests, checked where bytes arrive.

A key is trusted if it is the required one; or, where none is required, the pinned one; or, where none is pinned, any
(trust at first contact). Whoever names a digest has named the content: then neither tag, age nor version matter.
``allows_unsigned`` excuses only a bundle whose source never had a key; a signature over the digest alone, as publishers
made them before there were statements, is accepted where no statement was ever seen. Knows nothing about I/O.
References: The Update Framework's attacks; shared/bundle/FORMAT.md §§ 1, 5, 6.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime

from device_client.download.publisher_memory import PublisherMemory
from device_client.download.trusted_release import (
    check_digest_matches,
    check_not_expired,
    check_not_older,
    find_release,
    path_to_publisher,
)
from shared.bundle.config import MAX_CONFIG_BYTES, BundleConfig, parse_config
from shared.bundle.digest import check_digest, digest_of_bytes
from shared.bundle.manifest import MAX_MANIFEST_BYTES, Descriptor, Manifest, parse_manifest
from shared.bundle.signature import MAX_SIGNATURE_BYTES, Signature, verify
from shared.bundle.signature_artifact import SignatureDocuments, Statements
from shared.bundle.statement import ReleaseStatement, SignedRelease, SignedRotation, verify_release, verify_rotation
from shared.errors import (
    BlobTruncated,
    DigestMismatch,
    InvalidBundleConfig,
    LimitExceeded,
    SignatureMissing,
    StatementMissing,
)


@dataclass(frozen=True, slots=True)
class AcceptedSignature:
    """What the rules have accepted as the publisher's word.

    Attributes:
        publisher: Fingerprint of the key that signed.
        release: The statement, or None where there is only an older signature.
        old_signature: A signature over the digest alone, or None.
        path: The rotations from the key that was trusted to the publisher's.
        rotations: All rotations that came with the bundle, to be handed on with it.
    """

    publisher: str
    release: SignedRelease | None = None
    old_signature: Signature | None = None
    path: tuple[SignedRotation, ...] = ()
    rotations: tuple[SignedRotation, ...] = ()

    @property
    def statement(self) -> ReleaseStatement | None:
        """What the publisher stated."""
        return self.release.statement if self.release else None

    @property
    def statements(self) -> Statements:
        """What is to be kept beside the bundle."""
        return Statements((self.release,) if self.release else (), self.rotations)


@dataclass(frozen=True, slots=True)
class AcceptanceRules:
    """What is accepted from one source.

    Attributes:
        source: Server and name: what is remembered is remembered for it.
        name: The name that the publisher must have signed.
        tag: The tag that the publisher must have signed, unless ``digest`` is given.
        now: The time, for expiry.
        pinned: Fingerprints pinned for the source; empty at first contact.
        memory: What this device remembers of publishers.
        required: The fingerprint that the user demands, or None.
        allows_unsigned: Whether a bundle without a signature is accepted.
        allows_old_signature: Whether a signature over the digest alone is accepted where statements were seen before.
        allows_expired: Whether an expired statement is accepted.
        digest: The manifest digest that was asked for, or None.
        client_version: This program's version, or None to skip the comparison.
        command: What was typed, to be repeated with an option that allows more.
    """

    source: str
    name: str
    tag: str | None
    now: datetime
    pinned: frozenset[str] = frozenset()
    memory: PublisherMemory = field(default_factory=PublisherMemory)
    required: str | None = None
    allows_unsigned: bool = False
    allows_old_signature: bool = False
    allows_expired: bool = False
    digest: str | None = None
    client_version: tuple[int, int, int] | None = None
    command: str = "zo-device pull"

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

    def accept_signature(self, documents: SignatureDocuments | None, manifest_digest: str) -> AcceptedSignature | None:
        """Return what the publisher signed about a manifest, or None for an unsigned bundle that is allowed.

        Raises:
            SignatureMissing: There is nothing and there has to be something.
            StatementMissing: There is an older signature only, where statements were seen before.
            SignatureInvalid: It is not valid, or not about this manifest.
            PublisherChanged: It is valid, but by a key that is not trusted.
            OtherName: It speaks for another name or tag.
            StatementExpired: It is not valid any more.
            RolledBack: It is older than the last one.
            Equivocated: It contradicts the last one.
            LimitExceeded: It is too long.
        """
        check_digest(manifest_digest)
        if documents is None:
            self._excuse_missing_signature()
            return None
        if documents.old_signature is not None:
            return self._accept_old_signature(documents.old_signature, manifest_digest)
        return self._accept_release(documents, manifest_digest)

    def remembering(self, accepted: AcceptedSignature) -> PublisherMemory:
        """Return what this device has to remember before it believes an accepted signature."""
        if accepted.statement is None:
            return self.memory
        steps = [step.rotation for step in accepted.path]
        return self.memory.with_release(self.source, self._tag_that_counts, accepted.statement, steps)

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

    @property
    def _trusted(self) -> frozenset[str]:
        return frozenset({self.required}) if self.required else self.pinned

    @property
    def _tag_that_counts(self) -> str | None:
        return self.tag if self.digest is None else None

    def _accept_release(self, documents: SignatureDocuments, manifest_digest: str) -> AcceptedSignature:
        rotations = tuple(map(verify_rotation, documents.rotations))
        releases = list(map(verify_release, documents.releases))
        release = find_release(releases, self.name, self._tag_that_counts, self.source, self.command)
        statement = release.statement
        path = path_to_publisher(statement.publisher, self._trusted, rotations, self.memory, self.source, self.command)
        check_digest_matches(statement, manifest_digest)
        if self._tag_that_counts is not None:
            if not self.allows_expired:
                check_not_expired(statement, self.now)
            seen = self.memory.seen(self.source, self._tag_that_counts, statement.publisher)
            check_not_older(statement, seen, self.source)
        return AcceptedSignature(statement.publisher, release, path=path, rotations=rotations)

    def _accept_old_signature(self, data: bytes, manifest_digest: str) -> AcceptedSignature:
        if len(data) > MAX_SIGNATURE_BYTES:
            raise LimitExceeded(f"signature of {len(data)} bytes", needed=f"at most {MAX_SIGNATURE_BYTES}")
        signature = verify(data, manifest_digest)
        path_to_publisher(signature.fingerprint, self._trusted, (), self.memory, self.source, self.command)
        if not self.allows_old_signature and self.memory.knows_statements(self.source, signature.fingerprint):
            raise StatementMissing(
                f"{self.source} offers a signature that proves neither the bundle's name nor its age, although its "
                "publisher signs statements that do",
                needed="a release statement",
                next_step="do not use this server; for a bundle from before there were statements: "
                f"{self.command} --allow-old-signature",
            )
        return AcceptedSignature(signature.fingerprint, old_signature=signature)

    def _excuse_missing_signature(self) -> None:
        if self._trusted or self.memory.knows_statements(self.source):
            trusted = " or ".join(sorted(self._trusted)) or "the publisher that signed statements before"
            raise SignatureMissing(
                f"{self.source} offers no signature, although its publisher's key is pinned, required or known",
                needed=f"a signature by {trusted}",
                next_step="do not use this bundle; ask its publisher",
            )
        if not self.allows_unsigned:
            raise SignatureMissing(
                f"{self.source} offers no signature",
                needed="a signed bundle",
                next_step=f"ask its publisher; if you trust where it comes from: {self.command} --allow-unsigned",
            )


def _check_chunk_count(layer: Descriptor, config: BundleConfig) -> None:
    found = len(config.chunks.get(layer.digest, []))
    needed = -(-layer.size // config.chunk_bytes) if layer.size > config.chunk_bytes else 0
    if found != needed and not (needed == 0 and found == 1):
        raise InvalidBundleConfig(
            f"{found} chunk digests for {layer.title} of {layer.size} bytes",
            needed=f"{needed} of {config.chunk_bytes} bytes each",
        )
