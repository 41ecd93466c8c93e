"""Signs what the tags of a bundle mean: the one place of the service that uses the publisher's key.

One artifact for each name and digest holds a release statement for every tag that names it (FORMAT.md § 6), and how the
key came to replace earlier ones. Statements expire, so that nobody can hold devices back for ever; the housekeeper has
them signed again at half of their life, and after the key was replaced. Costs a few milliseconds: Ed25519 signatures
and small files flushed to the disk. Knows nothing about the index.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from cloud_service.storage.signing_keys import SigningKey
from shared.bundle.layout import ImageLayout
from shared.bundle.manifest import Descriptor
from shared.bundle.signature_artifact import Statements, publish_statements
from shared.bundle.statement import sign_release

LIFETIME = timedelta(days=30)


@dataclass(frozen=True, slots=True)
class TaggedBundle:
    """What a signature is about.

    Attributes:
        name: The bundle's name.
        manifest: The bundle's manifest.
        versions: Every tag of that name that names the bundle now, and the tag's version: a number that only grows.
    """

    name: str
    manifest: Descriptor
    versions: Mapping[str, int]


class BundleSigner:
    """Signs for one publisher.

    Args:
        layout: Where the artifacts are stored.
        key: The publisher's key.
        lifetime: How long devices may take what a tag means for the newest.
    """

    def __init__(self, layout: ImageLayout, key: SigningKey, lifetime: timedelta = LIFETIME) -> None:
        self._layout = layout
        self._key = key
        self._lifetime = lifetime

    @property
    def publisher(self) -> str:
        """Fingerprint of the key: what devices pin."""
        return self._key.fingerprint

    def renews_before(self, now: datetime) -> datetime:
        """Return the time before which statements were signed that have to be signed again now."""
        return now - self._lifetime / 2

    def sign(self, bundle: TaggedBundle, *, now: datetime | None = None) -> Descriptor:
        """Store the signature artifact and return its manifest.

        Raises:
            LimitExceeded: More tags name the bundle than devices accept.
            DiskError: The disk is full or not writable.
        """
        expires = (now or datetime.now(UTC)) + self._lifetime
        releases = tuple(
            sign_release(
                self._key.private,
                name=bundle.name,
                tag=tag,
                version=version,
                digest=bundle.manifest.digest,
                expires=expires,
            )
            for tag, version in bundle.versions.items()
        )
        return publish_statements(self._layout, bundle.manifest, Statements(releases, self._key.rotations))
